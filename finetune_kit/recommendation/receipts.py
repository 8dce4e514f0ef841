"""What is known of a folder of recommendations: the job that makes it, a receipt per finished partition, a manifest.

::

    OUTPUT/day=1/part-0.parquet                 recommendations, under the name of their partition
    OUTPUT/_receipts/job.json                   what decides the numbers: run, dataset, options
    OUTPUT/_receipts/day=1/part-0.parquet.json  written after the file that it vouches for
    OUTPUT/_manifest.json                       written when all partitions are there

Readers of tables in parts pass over names that begin with an underscore.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune_kit.checksums import file_hash
from finetune_kit.data.remote import File, num_bytes
from finetune_kit.errors import DataError, OptionError
from finetune_kit.files import write_json
from finetune_kit.foreign import confined, read_json
from finetune_kit.recommendation.file import Totals
from finetune_kit.recommendation.partitions import Partition, is_hidden

RECEIPTS, JOB, MANIFEST = "_receipts", "job.json", "_manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Content:
    """What a file held.

    Args:
        num_bytes: Its size.
        version: As of `version_of`.
        sha256: Its hash.
    """

    num_bytes: int
    version: str
    sha256: str

    @classmethod
    def of(cls, file: File, copy: Path | None = None) -> Content:
        """Return what a file holds, or a copy of it on this machine."""
        return cls(num_bytes(copy or file), version_of(file), file_hash(copy or file))

    def is_in(self, file: File) -> bool:
        """Return whether a file still holds it; it is read only where its version is another, or can't be told."""
        if num_bytes(file) != self.num_bytes:
            return False
        return "" != version_of(file) == self.version or file_hash(file) == self.sha256


def version_of(file: File) -> str:
    """Return what changes when a file does: when it was written, or what its file system says; else nothing."""
    return str(file.stat().st_mtime_ns) if isinstance(file, Path) else file.version or ""


@dataclass(frozen=True)
class Receipt:
    """What vouches for a finished partition.

    Args:
        partition: Its name.
        job: The digest of the job that scored it.
        input: What the partition held.
        output: What was written.
        totals: Counts.
        users: Some of its users, where a row is an event; see `finetune_kit.recommendation.sample`.
    """

    partition: str
    job: str
    input: Content
    output: Content
    totals: Totals
    users: tuple[str, ...]


def digest(identity: Mapping[str, Any]) -> str:
    """Return 64 digits that tell jobs apart."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def run_hash(folder: Path) -> str:
    """Return a hash of what a run's folder says of the model: its weights, what they are bound to, and its options."""
    names = ("config.toml", "model.json", "model.safetensors")
    return digest({name: file_hash(folder / name) for name in names})


class Receipts:
    """The receipts in a folder of recommendations.

    Args:
        output: The folder.
        identity: What decides the numbers of the job that goes on there.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any]) -> None:
        self._output, self._identity, self._job = output, identity, digest(identity)

    def is_begun(self) -> bool:
        """Return whether the folder is here, and the job that goes on there is this one."""
        return _mapping(self._output / RECEIPTS / JOB) == dict(self._identity)

    def refuse_foreign(self, overwrite: bool) -> None:
        """Raise if the folder holds what no job made, or what another job made and ``overwrite`` is not given.

        Raises:
            OptionError: Says which option is another.
        """
        output = self._output
        if output.exists() and not output.is_dir():
            raise OptionError(f"--output {str(output)!r} is a file; for partitions name a folder")
        there = [path.name for path in output.iterdir() if path.name != RECEIPTS] if output.exists() else []
        job = output / RECEIPTS / JOB
        if there and not job.is_file():
            raise OptionError(f"--output {str(output)!r} is not empty, and no folder of recommendations; name another")
        was = _mapping(job)
        other = [key for key, value in self._identity.items() if was.get(key) != value]
        if job.is_file() and other and not overwrite:
            change = f"{other[0]} {_short(was.get(other[0]))}, not {_short(self._identity[other[0]])}"
            raise OptionError(
                f"--output {str(output)!r} was made with {change}; name another folder, or replace what is there with "
                "--overwrite"
            )

    def finished(self, partitions: Iterable[Partition], overwrite: bool) -> dict[str, Receipt]:
        """Return the receipts of the partitions that are done, by name.

        Raises:
            DataError: For a partition that has changed since it was scored, a changed output, or one whose partition
                is gone, unless ``overwrite`` is given: then they are as if never done.
        """
        by_name = {partition.name: partition for partition in partitions}
        kept: dict[str, Receipt] = {}
        for name in self._names():
            receipt = self._read(name)
            if receipt is None or not confined(self._output, name).is_file():
                continue
            change = self._change(receipt, by_name.get(name))
            if change is None:
                kept[name] = receipt
            elif not overwrite:
                raise DataError(f"{change}; name another --output, or replace what is there with --overwrite")
        self._refuse_strays(by_name)
        return kept

    def _refuse_strays(self, names: Collection[str]) -> None:
        """Raise for a file that belongs to no partition: who reads the folder would take it for recommendations."""
        known = {*names, *self._names()}
        for path in sorted(self._output.rglob("*")):
            name = path.relative_to(self._output).as_posix()
            if path.is_file() and not is_hidden(name) and name not in known:
                raise DataError(f"{path} belongs to no partition of --input; take it away, or name another --output")

    def begin(self, partitions: Iterable[Partition], kept: Mapping[str, Receipt]) -> None:
        """Make ready: forget all receipts but some, take away what belongs to no partition, make the folders."""
        names = {partition.name for partition in partitions}
        for name in list(self._names()):
            if name not in kept:
                self._path(name).unlink()
            if name not in names:
                confined(self._output, name).unlink(missing_ok=True)
        if names != kept.keys():
            (self._output / MANIFEST).unlink(missing_ok=True)
        for folder in {(self._output / name).parent for name in names}:
            folder.mkdir(parents=True, exist_ok=True)
        write_json(self._output / RECEIPTS / JOB, dict(self._identity))

    def write(self, receipt: Receipt) -> None:
        """Vouch for a partition."""
        write_json(self._path(receipt.partition), asdict(receipt))

    def end(self, receipts: Iterable[Receipt]) -> None:
        """Write the manifest, and take away what killed workers left."""
        ordered = sorted(receipts, key=lambda receipt: receipt.partition)
        for receipt in ordered:
            remove_leftovers(self._output / receipt.partition)
        partitions = [
            {
                "partition": receipt.partition,
                "input_sha256": receipt.input.sha256,
                "output_sha256": receipt.output.sha256,
                "totals": asdict(receipt.totals),
            }
            for receipt in ordered
        ]
        totals = asdict(Totals.sum(receipt.totals for receipt in ordered))
        manifest = {
            "format_version": FORMAT_VERSION,
            "job": dict(self._identity),
            "totals": totals,
            "partitions": partitions,
        }
        write_json(self._output / MANIFEST, manifest)

    def _names(self) -> Iterator[str]:
        folder = self._output / RECEIPTS
        paths = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
        yield from (path.relative_to(folder).as_posix()[: -len(".json")] for path in paths if path != folder / JOB)

    def _path(self, name: str) -> Path:
        return confined(self._output, f"{RECEIPTS}/{name}.json")

    def _read(self, name: str) -> Receipt | None:
        """Return a receipt; None for what is none, e.g. of another version."""
        try:
            said = read_json(self._path(name))
            content = Content(**said.pop("input")), Content(**said.pop("output"))
            counted = Totals(**said.pop("totals")), tuple(said.pop("users"))
            receipt = Receipt(said.pop("partition"), said.pop("job"), *content, *counted)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return receipt if receipt.partition == name else None

    def _change(self, receipt: Receipt, partition: Partition | None) -> str | None:
        """Return what is not any more as it was when a partition was scored, or None."""
        name = receipt.partition
        if partition is None:
            return f"the partition {name!r} of {str(self._output)!r} is not in --input any more"
        if receipt.job != self._job:
            return f"the partition {name!r} of {str(self._output)!r} was scored with another run or other options"
        if not receipt.input.is_in(partition.file):
            return f"{partition.file} has changed since it was scored"
        if not receipt.output.is_in(self._output / name):
            return f"{self._output / name} has changed since it was written"
        return None


def remove_leftovers(output: Path) -> None:
    """Remove what killed workers left of their tries to write a file; nobody may be writing it now."""
    name = re.compile(re.escape(f".{output.name}.") + r"[a-z0-9_]+\.partial")
    for path in output.parent.iterdir():
        if name.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _mapping(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, TypeError):
        return dict(read_json(path))
    return {}


def _short(value: object) -> str:
    """Return a value of an identity as an error shows it: of a hash the first digits."""
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text

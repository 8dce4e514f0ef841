"""ColdRec's text files and MovieLens, as folder and as archive."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from mutations import ANY, TEXT
from readers import Reader, dropped, look_into

from ftkit_datasets.coldrec import ColdRec, ColdRecOptions
from ftkit_datasets.movielens import MovieLens, MovieLensOptions


def _write_coldrec(folder: Path, random: Random) -> list[Path]:
    def line(targets: bool) -> str:
        ids = [random.randrange(1, 50) for _ in range(random.randrange(1, 8))]
        padded = ",".join(map(str, [0] * random.randrange(3) + ids))
        return padded + (f",,{','.join(map(str, random.sample(range(1, 9), 2)))}" if targets else "")

    (folder / "target.csv").write_text("".join(f"{line(True)}\n" for _ in range(8)))
    (folder / "pretrain.csv").write_text("".join(f"{line(False)}\n" for _ in range(5)))
    return [folder / "target.csv", folder / "pretrain.csv"]


def _read_coldrec(folder: Path, random: Random) -> None:
    options = ColdRecOptions(
        file=str(folder / "target.csv"),
        pretrain_file=random.choice([None, str(folder / "pretrain.csv")]),
        task=random.choice(["items"] * 5 + ["label"]),
        on_bad=random.choice(["refuse", "drop"]),
    )
    ColdRec(options).prepare(folder / "made")
    dataset = look_into(folder / "made")
    paths = [Path(path) for path in (options.file, options.pretrain_file) if path]
    lines = [line for path in paths for line in re.split(rb"\r\n|\n|\r", path.read_bytes())]
    told = dataset.manifest["raw"]["source_users"] + sum(dropped(dataset.manifest, path) for path in paths)
    least = sum(bool(line.strip()) for line in lines)
    assert least <= told <= len(lines), f"{least} lines, but {told} told as read or dropped"


def _write_movielens(folder: Path, random: Random) -> list[Path]:
    copy = folder / "ml"
    copy.mkdir()
    films = [f"{n}::Film {n} (199{n})::{'Horror' if n % 3 == 0 else 'Comedy|Drama'}" for n in range(1, 9)]
    people = [f"{n}::{'MF'[n % 2]}::25::4::12345" for n in range(1, 6)]
    pairs = [(user, film) for user in range(1, 6) for film in random.sample(range(1, 9), 6)]
    ratings = [f"{user}::{film}::4::{random.randrange(10**9)}" for user, film in pairs]
    for name, lines in {"movies": films, "users": people, "ratings": ratings}.items():
        (copy / f"{name}.dat").write_text("".join(f"{line}\n" for line in lines))
    return sorted(copy.iterdir())


def _write_zip(folder: Path, random: Random) -> list[Path]:
    files = _write_movielens(folder, random)
    with zipfile.ZipFile(folder / "ml.zip", "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for path in files:
            archive.write(path, f"ml-1m/{path.name}")
    return [folder / "ml.zip"]


def _read_movielens(name: str) -> Callable[[Path, Random], None]:
    def read(folder: Path, random: Random) -> None:
        on_bad = random.choice(["refuse", "drop"])
        MovieLens(MovieLensOptions(path=str(folder / name), min_source=1, on_bad=on_bad)).prepare(folder / "made")
        dataset = look_into(folder / "made")
        if name == "ml":
            path = folder / "ml" / "ratings.dat"
            least = sum(bool(line.strip()) for line in re.split(rb"\r\n|\n|\r", path.read_bytes()))
            raw = dataset.manifest["raw"]
            told = raw["source_events"] + raw["target_events"] + dropped(dataset.manifest, path)
            assert told >= least, f"{least} ratings, but {told} told as read or dropped"

    return read


READERS = [
    Reader("coldrec", _write_coldrec, _read_coldrec, TEXT, 2),
    Reader("movielens folder", _write_movielens, _read_movielens("ml"), TEXT, 2),
    Reader("movielens zip", _write_zip, _read_movielens("ml.zip"), ANY),
]

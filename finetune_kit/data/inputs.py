"""What a dataset's record says of the files that it was made of: each of them, or of many their number and a sum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune_kit.data.folder import describe_file
from finetune_kit.data.places import Place
from finetune_kit.data.remote import File, num_bytes

MOST_LISTED = 20
"""How many files of one folder or pattern are recorded one by one."""


def describe_inputs(inputs: Iterable[File | Place]) -> dict[str, Any]:
    """Return what is recorded of files, by their path, or by the folder or pattern where there are many.

    Of a local file these are its bytes and SHA-256, of a remote one its bytes and what its file system calls this
    version: it is not fetched twice. Of many files: how many, their bytes, and a SHA-256 over the same, sorted.
    """
    described: dict[str, Any] = {}
    for one in inputs:
        files = one.files if isinstance(one, Place) else (one,)
        each = {str(file): _describe(file) for file in files}
        if isinstance(one, Place) and len(files) > MOST_LISTED:
            contents = sorted(json.dumps(told, sort_keys=True) for told in each.values())
            digest = hashlib.sha256("\n".join(contents).encode()).hexdigest()
            each = {one.address: {"files": len(files), "bytes": sum(map(num_bytes, files)), "sha256": digest}}
        described |= each
    return described


def _describe(file: File) -> dict[str, Any]:
    return describe_file(file) if isinstance(file, Path) else {"bytes": file.size, "version": file.version}

"""Tensors by name as they are stored: the digest of what they are, and safetensors files read whole or refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .files import first_line, once_each

LFS_POINTER = b"version https://git-lfs"
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # how the safetensors library ends what the system said


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes in order of name: the same for the same tensors in any file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def refuse_pointer(path: Path) -> None:
    """Refuse what git-lfs leaves in place of a large file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(
                f"{path} is a git-lfs pointer, not the tensors themselves; run `git lfs pull` in its folder"
            )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, by name, on the CPU; on disk until somebody looks at it.

    The library checks every size against the file before it allocates.
    """
    refuse_pointer(path)
    try:
        tensors = load_file(path)
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            json.loads(file.read(length), object_pairs_hook=once_each)  # what the library does not mind
    except Exception as error:  # the library raises its own, and torch's where a shape overflows
        raise ValueError(f"{path} is damaged or cut short ({first_line(error)}); download it again") from error
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write a safetensors file.  notes: its metadata.  Raises OSError where the system refuses, as all writing does.

    The library raises its own error there, which is no OSError, with the system's number in its text.
    """
    try:
        save_file(dict(tensors), path, dict(notes))
    except SafetensorError as error:
        if (found := SYSTEM_ERROR.search(str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error

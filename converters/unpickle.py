"""Tensors out of pickles that were never meant to be opened by strangers, and nothing else out of them.

Training checkpoints carry hyper-parameters, callbacks and dates beside the weights.  Here every class that is not
needed to rebuild a tensor becomes a `Stub`; what could act on the machine is refused by name.  Nothing is run.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.storage.files import first_line, readable_size

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# fmt: off
DANGEROUS_MODULES = {
    "_pickle", "code", "codeop", "ctypes", "dill", "importlib", "io", "marshal", "multiprocessing", "nt", "operator",
    "os", "pdb", "pickle", "pip", "posix", "pty", "pydoc", "runpy", "shutil", "socket", "subprocess", "sys", "timeit",
    "urllib", "webbrowser",
}
DANGEROUS_BUILTINS = {
    "__import__", "breakpoint", "compile", "delattr", "eval", "exec", "getattr", "globals", "input", "locals", "open",
    "setattr", "vars",
}
# fmt: on
LONGEST_TEXT = 1000
OLD_PICKLES = 5  # one after the other in a file from before archives
HARMLESS = {"io.BytesIO"}  # Transformer Engine leaves empty ones beside the weights


class Stub:
    """Stands where an object of another class was; takes whatever is done to it, keeps nothing, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Stub:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def ignore(self, *args: Any) -> None:
        pass

    __setstate__ = append = extend = add = ignore


class RefusedError(ValueError):
    """A pickle names something that could act on the machine."""


def rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """View of a flat storage; torch itself refuses one that reaches beyond it."""
    return torch.as_strided(storage, size, stride, offset)


def rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


REBUILD: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": collections.OrderedDict,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
}


class Unpickler(pickle._Unpickler):
    """An unpickler whose globals are the table above, stand-ins, or a refusal.

    The one written in Python: that in C makes room for as many objects as a pickle says it will number.
    """

    def __init__(self, file: Any, storage: Callable[[torch.dtype, str, int], Tensor] | None = None) -> None:
        super().__init__(file)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        # protocol 2, which torch writes, has Python 2's names: `commands` is subprocess
        old = IMPORT_MAPPING.get(module, module), name
        module, name = NAME_MAPPING.get((module, name), old)
        path = f"{module}.{name}"
        if path in REBUILD:
            return REBUILD[path]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if path not in HARMLESS and dangerous(module, name):
            raise RefusedError(path)
        return Stub

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, count = pid[:5]
        if self.storage is None or kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it asks for the storage {key!r} in a way this reader does not know")
        return self.storage(dtype, key, count)


def dangerous(module: str, name: str) -> bool:
    if module == "builtins":
        return name.split(".")[0] in DANGEROUS_BUILTINS
    return module.split(".")[0] in DANGEROUS_MODULES


def load(path: Path) -> Any:
    """What a torch.save file holds: dicts, lists and numbers as they were, tensors on the CPU, the rest a `Stub`."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return load_archive(archive)
        raise pickle.UnpicklingError(why_no_archive(path))
    except RefusedError as error:
        raise ValueError(f"{path} asks for {error}, which no weights need; nothing was run, do not trust it") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"{path} cannot be read as a torch checkpoint ({first_line(error)}); if it was cut short, download it again"
        ) from error


def check_size(path: Path) -> None:
    """Refuse an archive whose members unpack to more than the file holds: torch never packs, and a bomb does."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
    except Exception:  # no archive, or a damaged one, which its reader names
        return
    if claimed > (size := path.stat().st_size):
        raise ValueError(
            f"{path} unpacks to {readable_size(claimed)} from {readable_size(size)}, as no checkpoint of torch does; "
            f"do not trust it"
        )


def has_long_texts(path: Path) -> bool:
    """Whether a pickle holds texts that torch's reader could choke on: it searches what it says of an error, which may
    repeat them, in a time that grows with their square.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return any(holds_long(file) for _ in range(OLD_PICKLES))
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith("/data.pkl")]
        for member in members:
            # where it lies, since torch takes members whose checksum is wrong
            file.seek(member.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)
            if member.compress_type != zipfile.ZIP_STORED or holds_long(file):
                return True
    return False


def holds_long(file: Any) -> bool:
    """Whether the pickle that begins here has a long text, or is damaged, which torch might read over."""
    try:
        return any(map(is_long, pickletools.genops(file)))
    except Exception:
        return True


def is_long(operation: tuple[Any, Any, Any]) -> bool:
    return isinstance(operation[1], str | bytes) and len(operation[1]) > LONGEST_TEXT


def why_no_archive(path: Path) -> str:
    """What a file is that is no zip archive; refuses it by name if it is a pickle that asks for something dangerous."""
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return "it is an archive without its end"
        file.seek(0)
        Unpickler(file).load()
    return "it is a pickle, but not of the kind that torch has written since version 1.6"


def load_archive(archive: zipfile.ZipFile) -> Any:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise pickle.UnpicklingError("it holds no data.pkl")
    root = names[0].removesuffix("data.pkl")
    if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
        raise pickle.UnpicklingError("it was written on a big-endian machine")
    storages: dict[str, Tensor] = {}  # tensors that shared memory when saved share it again

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        if key not in storages:
            data = bytearray(archive.read(f"{root}data/{key}"))
            storages[key] = torch.frombuffer(data, dtype=dtype, count=count) if data else torch.empty(0, dtype=dtype)
        return storages[key]

    return Unpickler(io.BytesIO(archive.read(names[0])), storage).load()

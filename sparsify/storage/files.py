"""Files that are whole and on the disk, or not there; and JSON that a stranger may have written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

JSON_BYTES = 1 << 28  # a tokenizer of a large vocabulary has some 30 MB
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota that is used up, a file larger than allowed
CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)  # what disks without it say of a folder's fsync
UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `path` at the end: readers find the old or all of the new.

    It is on the disk when this returns, so what it makes superfluous may go: a power cut loses neither.  Makes the
    folder.  Behind a link the file that it leads to is replaced.  A device or a pipe is written through instead, for
    a file in its place would do away with it.  Raises OSError that names `path` where it cannot; whatever is raised,
    nothing is left beside.
    """
    if (through := written_through(path)) is not None:
        with naming(path), through as target, tempfile.TemporaryDirectory() as scratch:
            yield (beside := Path(scratch) / path.name)
            with beside.open("rb") as file:
                shutil.copyfileobj(file, target)
        return
    place = Path(os.path.realpath(path))
    beside = place.with_name(f"{place.name}.{os.getpid()}.{threading.get_ident()}")
    with naming(path, beside):
        make_folder(place.parent)
        try:
            yield beside
            flush(beside)
            beside.replace(place)
            flush(place.parent)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file as `whole` does."""
    with whole(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def naming(path: Path, beside: Path | None = None) -> Iterator[None]:
    """OSErrors of what is written for the sake of `path` name that: those that name nothing, or what lies `beside`.

    Those of a full disk always do, because a copy of a file names what it was copied from.
    """
    try:
        yield
    except OSError as error:
        astray = error.filename is None or (beside is not None and str(error.filename).startswith(str(beside)))
        if error.errno is None or not (astray or error.errno in FULL):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


# --- devices and pipes ---------------------------------------------------------------------------------------------


def written_through(path: Path) -> BinaryIO | None:
    """`path`, open for writing, if it is a device, a pipe, or one of this process's open files; None for a file."""
    if (descriptor := own_descriptor(path)) is not None:
        with suppress(AttributeError, OSError, ValueError):  # there may be no standard output
            sys.stdout.flush()  # what was printed before comes before
        return os.fdopen(os.dup(descriptor), "wb")  # opened anew, a file would be cut to nothing
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else path.open("wb")


def own_descriptor(path: Path) -> int | None:
    """N if `path` stands for this process's open file N, as /dev/stdout and /dev/fd/N do."""
    own = ("/dev/fd", f"/proc/{os.getpid()}/fd")
    for _ in range(40):  # links that the system follows at most
        if os.path.realpath(path.parent) in own and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


# --- on the disk ---------------------------------------------------------------------------------------------------


def flush(path: Path) -> None:
    """Have the disk write a file's content, or a folder's names, before this returns."""
    try:
        held = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders, and some folders may be written to and not be read
        if path.is_dir():
            return
        raise
    try:
        os.fsync(held)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise
    finally:
        os.close(held)


def flush_all(folder: Path) -> None:
    """Have the disk write a folder with all that lies below it, the deepest first."""
    for inside, _, names in os.walk(folder, topdown=False):
        for path in (Path(inside) / name for name in names):
            if path.is_file() and not path.is_symlink():
                flush(path)
        flush(Path(inside))


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that lack, so that a power cut does not take them back."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        flush(folder.parent)


def readable_size(count: float) -> str:
    """So many bytes as people say it: 512 bytes, 4.10 kB, 1.35 GB; three digits, in powers of ten."""
    for size, unit in UNITS:
        if count >= size:
            digits = 2 if count < 10 * size else 1 if count < 100 * size else 0
            return f"{count / size:,.{digits}f} {unit}"
    return f"{count:,.0f} byte{'' if count == 1 else 's'}"


# --- JSON ----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.  Raises ValueError in one sentence, whatever else the file holds."""
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and no JSON file here needs {JSON_BYTES:,}; download it again")
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The object in JSON that was read from `path`; see `read_json`."""
    try:
        data = json.loads(content.decode(), object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:  # numbers of too many digits are ValueErrors, too
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path} is not JSON as it should be ({reason}); download it again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, expected an object of names and values")
    return data


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; readers disagree on which of two equal names counts, so there may be no two."""
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise TwiceError(next(name for name in names if names.count(name) > 1))
    return data


class TwiceError(ValueError):
    """A JSON object says a name twice."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it says {name!r:.60} twice")
        self.name = name


def first_line(error: Exception) -> str:
    """What an error of a library says, short enough for a sentence of ours."""
    return str(error).strip().split("\n")[0].rstrip(".")[:200] or type(error).__name__

"""Folders that are whole, or not there, also where a process is killed, or the power cut, while it writes one."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import flush, flush_all, make_folder, naming

NEW, OLD, GONE = "new", "old", "gone"  # in the scratch folder beside that a folder is written in


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder beside to write to, which takes the place of `path` at the end; whatever is raised, that stays.

    A process that is killed leaves its scratch folder beside, and between the two renames no `path`: see `heal`.  Every
    step is on the disk before the next begins, so a power cut leaves no more than a kill does: the old one or all of
    the new.
    OSErrors name `path` where they would name what lies in the scratch folder.
    """
    make_folder(path.parent)
    heal(path)
    scratch, held = new_scratch(path)
    try:
        (scratch / NEW).mkdir()
        with naming(path, scratch):
            yield scratch / NEW
            flush_all(scratch)
            if path.exists():
                path.rename(scratch / OLD)
                flush(scratch)  # first, or it would be nowhere
                flush(path.parent)
            take_place(scratch / NEW, path)
            flush(path.parent)
    finally:
        clear(scratch, path)
        release(held)


def take_place(new: Path, path: Path) -> None:
    """Rename a folder to a place that is free, or was a moment ago."""
    try:
        new.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise OSError(f"another process wrote {path} in the meantime; look at it, and run the command again") from error


def heal(path: Path) -> None:
    """Undo what killed processes left half done of `path`: what they had moved away comes back, the rest goes.

    A scratch folder is locked by its process for as long as that lives, and let alone then.
    """
    for scratch in path.parent.glob(glob.escape(scratch_prefix(path)) + "*"):
        if (held := hold(scratch, wait=False)) is not None:
            try:
                clear(scratch, path)
            finally:
                release(held)


def scratch_prefix(path: Path) -> str:
    return f".{path.name}.sparsify-"


def new_scratch(path: Path) -> tuple[Path, int | None]:
    """An empty folder beside `path`, and what holds its lock."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=scratch_prefix(path), dir=path.parent))
        held = hold(scratch, wait=True)
        if scratch.exists():  # else somebody took it for a dead one's before it was locked
            return scratch, held
        release(held)


def hold(scratch: Path, wait: bool) -> int | None:
    """A descriptor that locks a folder until it is closed or its process ends; None where there is no such lock."""
    try:
        import fcntl

        held = os.open(scratch, os.O_RDONLY)
    except (ImportError, OSError):  # not on Windows
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another, or on a disk that knows no locks
        os.close(held)
        return None
    return held


def release(held: int | None) -> None:
    if held is not None:
        os.close(held)


def clear(scratch: Path, path: Path) -> None:
    """Remove a scratch folder; what it holds of an earlier `path` comes back first if there is no new one."""
    if (old := scratch / OLD).exists():
        # under another name before it is taken apart: what is half removed must not come back
        old.rename(scratch / GONE if path.exists() else path)
    shutil.rmtree(scratch, ignore_errors=True)

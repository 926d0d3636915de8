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

NEW, OLD, GONE = "new", "old", "gone"  # in the room beside that a folder is written in


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder beside to write to, which takes the place of `path` at the end; whatever is raised, that stays.

    A process that is killed leaves its room beside, and between the two renames no `path`: see `heal`.  Every step is
    on the disk before the next begins, so a power cut leaves no more than a kill does: the old one or all of the new.
    OSErrors name `path` where they would name what lies in the room.
    """
    make_folder(path.parent)
    heal(path)
    room, held = new_room(path)
    try:
        (room / NEW).mkdir()
        with naming(path, room):
            yield room / NEW
            flush_all(room)
            if path.exists():
                path.rename(room / OLD)
                flush(room)  # first, or it would be nowhere
                flush(path.parent)
            take_place(room / NEW, path)
            flush(path.parent)
    finally:
        clear(room, path)
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
    """Undo what killed processes left half done of `path`: what they had moved away comes back, their rooms go.

    A room is locked by its process for as long as that lives, and let alone then.
    """
    for room in path.parent.glob(glob.escape(room_prefix(path)) + "*"):
        if (held := hold(room, wait=False)) is not None:
            try:
                clear(room, path)
            finally:
                release(held)


def room_prefix(path: Path) -> str:
    return f".{path.name}.sparsify-"


def new_room(path: Path) -> tuple[Path, int | None]:
    """An empty folder beside `path`, and what holds its lock."""
    while True:
        room = Path(tempfile.mkdtemp(prefix=room_prefix(path), dir=path.parent))
        held = hold(room, wait=True)
        if room.exists():  # else somebody took it for a dead one's before it was locked
            return room, held
        release(held)


def hold(room: Path, wait: bool) -> int | None:
    """A descriptor that locks a folder until it is closed or its process ends; None where there is no such lock."""
    try:
        import fcntl

        held = os.open(room, os.O_RDONLY)
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


def clear(room: Path, path: Path) -> None:
    """Remove a room; what it holds of an earlier `path` comes back first if there is no new one."""
    if (old := room / OLD).exists():
        # under another name before it is taken apart: what is half removed must not come back
        old.rename(room / GONE if path.exists() else path)
    shutil.rmtree(room, ignore_errors=True)

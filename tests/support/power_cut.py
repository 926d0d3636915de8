"""What a power cut may leave of a folder, at every moment of some work: as a disk may have it, not as programs see it.

Two disks, one that keeps names at once and contents only when told to (so a renamed file may be empty), and one that
keeps neither before the file, and the folder that names it, are flushed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Tree = dict[str, "bytes | Tree"]
CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir")  # of names, in the module os


@dataclass
class Disk:
    """What was flushed so far of all below `root`, by inode, and what cuts would have left."""

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, tuple[int, bool]]] = field(default_factory=dict)  # name -> inode, whether a folder
    cuts: list[Tree] = field(default_factory=list)

    def flushed(self, path: Path) -> None:
        inode = path.stat().st_ino
        if path.is_dir():
            self.names[inode] = {p.name: (p.lstat().st_ino, p.is_dir()) for p in path.iterdir()}
        else:
            self.contents[inode] = path.read_bytes()

    def flush_all(self) -> None:
        """What was there before the work is on the disk."""
        for path in (self.root, *self.root.rglob("*")):
            self.flushed(path)

    def cut(self) -> None:
        """Remember what a cut would leave now."""
        for tree in (self.eager(self.root), self.lazy(self.root.stat().st_ino)):
            if tree not in self.cuts:
                self.cuts.append(tree)

    def eager(self, folder: Path) -> Tree:
        return {p.name: self.eager(p) if p.is_dir() else self.content(p.stat().st_ino) for p in folder.iterdir()}

    def lazy(self, inode: int) -> Tree:
        known = self.names.get(inode, {})
        return {name: self.lazy(own) if folder else self.content(own) for name, (own, folder) in known.items()}

    def content(self, inode: int) -> bytes:
        return self.contents.get(inode, b"")


def power_cuts(root: Path, work: Callable[[], Any]) -> list[Tree]:
    """The states that a cut during or after `work` may leave of the folder `root`."""
    disk = Disk(root)
    disk.flush_all()
    fsync = os.fsync

    def flushing(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert stat.S_ISDIR(path.stat().st_mode) or path.is_file()
        disk.flushed(path)
        disk.cut()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", flushing)
        for name in CHANGES:
            patch.setattr(os, name, changing(getattr(os, name), disk))
        work()
    disk.cut()
    return disk.cuts


def changing(change: Callable[..., Any], disk: Disk) -> Callable[..., Any]:
    def changed(*args: Any, **options: Any) -> Any:
        disk.cut()
        done = change(*args, **options)
        disk.cut()
        return done

    return changed


def lay_out(tree: Tree, folder: Path) -> Path:
    """A tree as files."""
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            lay_out(content, folder / name)
    return folder


def laid_out(trees: list[Tree], room: Path) -> Iterator[Path]:
    """Each tree in a folder of its own."""
    room.mkdir()
    for i, tree in enumerate(trees):
        yield lay_out(tree, room / str(i))

"""Measurements that outlive the process that made them, so that what was interrupted goes on from where it was.

    FOLDER/DIGEST.jsonl         first what this is about, then a line a measurement, on the disk before the next begins
    FOLDER/DIGEST.safetensors   moments of what arrives at every site, from as many windows as were read so far

DIGEST says of which model, computed by what.  A model that changed finds nothing, and nothing of the other is lost.
A line that was torn, by a kill or a power cut, counts as not there: what it would have said is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sparsify import __version__
from sparsify.plan import SCHEMA
from sparsify.storage import files
from sparsify.storage.tensors import fingerprint, write_safetensors

from .sensitivity import Moments

FORMAT = 1  # of the lines, and of what they mean: with another number none of the old ones is found
SECONDS = 60.0  # from one writing of the moments to the next
SHARE = 0.05  # of the time that writing them may take


class Journal:
    """What was measured of one model, in a folder; `open` says of which before anything is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.about = folder, ""
        self.known: dict[str, Any] = {}  # key, as JSON -> value
        self.windows = 0  # that the moments kept are from
        self.next_save = 0.0

    def open(self, about: str) -> None:
        """Read what was kept of a model: `about` it."""
        self.about, self.known = about, {}
        self.windows = int(self.notes().get("windows", 0))
        self.next_save = time.monotonic() + SECONDS
        if self.lines.is_file():
            for line in self.lines.read_bytes().splitlines():
                try:
                    found = json.loads(line)
                    self.known[found["key"]] = found["value"]
                except (ValueError, KeyError, TypeError):
                    continue  # the first line, or one that was torn

    @property
    def name(self) -> str:
        return self.about[:16]

    @property
    def lines(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    @property
    def tensors(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def others(self) -> bool:
        """Whether the folder has measurements that are not about this."""
        return any(path != self.lines for path in self.folder.glob("*.jsonl"))

    def __bool__(self) -> bool:
        """Whether anything is kept."""
        return bool(self.known or self.windows)

    def __str__(self) -> str:
        kept = [f"{len(self.known)} measurements"] if self.known else []
        kept += [f"the moments of {self.windows} windows"] if self.windows else []
        return f"{' and '.join(kept) or 'nothing'} kept in {self.folder}"

    def recall(self, key: Mapping[str, str], compute: Callable[[], Any]) -> Any:
        """What `compute` said when this was first asked for: JSON data, numbers bit for bit."""
        name = json.dumps(key, sort_keys=True)
        if name not in self.known:
            value = compute()
            self.append({"key": name, "value": value})
            self.known[name] = value
        return self.known[name]

    def append(self, entry: Mapping[str, Any]) -> None:
        """One more line, on the disk before this returns.  Raises OSError that names the file where it cannot be."""
        with files.naming(self.lines), self.nothing_empty():
            files.make_folder(self.folder)
            with self.lines.open("a+b", buffering=0) as file:  # what a full disk refuses must not be tried again later
                if size := file.seek(0, os.SEEK_END):
                    file.seek(size - 1)
                    before = b"" if file.read() == b"\n" else b"\n"  # after a line that was torn
                else:
                    before = json.dumps({"about": self.about}).encode() + b"\n"
                line = before + json.dumps(entry).encode() + b"\n"
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            if not size:
                files.flush(self.folder)

    def notes(self) -> dict[str, str]:
        """What is said of the moments that are kept; nothing if there are none, or damaged ones."""
        try:
            with safe_open(self.tensors, framework="pt") as file:
                return dict(file.metadata() or {})
        except (OSError, SafetensorError):
            return {}

    def moments(self, key: str) -> dict[str, Moments]:
        """What was kept of a pass over these windows: site -> moments, or nothing."""
        notes = self.notes()
        if notes.get("key") != key:
            return {}
        seqlen, windows = int(notes["seqlen"]), int(notes["windows"])
        tensors = load_file(self.tensors)
        names = [name.removeprefix("power/") for name in tensors if name.startswith("power/")]
        return {name: Moments(tensors[f"power/{name}"], tensors[f"gate/{name}"], seqlen, windows) for name in names}

    def keep(self, key: str, moments: Mapping[str, Moments], last: bool) -> None:
        """Write the moments of a pass so far, if it is the last time or a while since the time before."""
        began = time.monotonic()
        if not last and began < self.next_save:
            return
        one = next(iter(moments.values()))
        tensors = {f"power/{name}": own.power for name, own in moments.items()}
        tensors |= {f"gate/{name}": own.gate for name, own in moments.items()}
        notes = {"key": key, "seqlen": one.seqlen, "windows": one.windows}
        with self.nothing_empty(), files.whole(self.tensors) as beside:
            write_safetensors(beside, tensors, {name: str(value) for name, value in notes.items()})
        self.windows = one.windows
        now = time.monotonic()
        self.next_save = now + max(SECONDS, (now - began) / SHARE)

    @contextmanager
    def nothing_empty(self) -> Iterator[None]:
        """Where what is done within fails, as on a full disk, leave neither an empty file nor an empty folder."""
        try:
            yield
        except OSError:
            with suppress(OSError):
                if self.lines.exists() and not self.lines.stat().st_size:
                    self.lines.unlink()
                self.folder.rmdir()
            raise

    def remove(self) -> None:
        """Forget this, and the folder if it holds nothing else."""
        for path in self.folder.glob(f"{self.name}.*"):
            path.unlink()
        with suppress(OSError):
            self.folder.rmdir()


def about(tensors: Mapping[str, Tensor], device: torch.device) -> str:
    """A digest of all that numbers depend on, but for plans and windows: weights and filters, and what computes."""
    computed = f"{FORMAT} {SCHEMA} {__version__} {torch.__version__} {device.type}"
    return hashlib.sha256(f"{computed} {fingerprint(tensors)}".encode()).hexdigest()

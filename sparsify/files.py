"""Files that are whole, or not there; and JSON that a stranger may have written."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

JSON_BYTES = 1 << 28  # a tokenizer of a large vocabulary has some 30 MB


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside to write to, which takes the place of `path` at the end: readers find the old or all of the new.

    Makes the folder.  Raises OSError where it cannot; whatever is raised, nothing is left beside.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file as `whole` does."""
    with whole(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


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
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it says {twice!r:.60} twice")
    return data


def first_line(error: Exception) -> str:
    """What an error of a library says, short enough for a sentence of ours."""
    return str(error).strip().split("\n")[0].rstrip(".")[:200] or type(error).__name__

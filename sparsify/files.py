"""Files that are whole, or not there; and JSON that a stranger may have written."""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

JSON_BYTES = 1 << 28  # a tokenizer of a large vocabulary has some 30 MB


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside, then rename: readers find what was there before or all that is new.  Makes the folder.

    Raises OSError where it cannot; then nothing is left beside.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.  Raises ValueError in one sentence, whatever else the file holds."""
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and no JSON file here needs {JSON_BYTES:,}; download it again")
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once_each)
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

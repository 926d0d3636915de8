"""Files that are whole, or not there."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path


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

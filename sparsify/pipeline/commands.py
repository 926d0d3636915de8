"""What to type next: commands that go into results."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sparsify import process
from sparsify.storage.reading import half_characters

from .texts import DEFAULT_WINDOWS, reads_text, remembered

if TYPE_CHECKING:
    from sparsify.converters import Pretrained


def quoted(path: Path | str) -> str:
    """A word for a shell; bytes that are no text as bash, zsh and POSIX's newest sh take them."""
    if half_characters(str(path)) is None:
        return shlex.quote(str(path))
    plain = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + os.fsencode(plain).decode("utf-8", "backslashreplace") + "'"


def program() -> str:
    """How to call the command line from the same shell."""
    if shutil.which("sparsify"):
        return "sparsify"
    ours = process.is_program() and not sys.argv[0].endswith("__main__.py")
    return quoted(sys.argv[0]) if ours else "python -m sparsify"


def next_step(p: Pretrained, out: Path, data: Path | str | None, options: str) -> str:
    """The command that measures what was written."""
    if p.head not in (verbs := {"lm": "ppl", "mlm": "mlm"}):
        return how_to_score(p, out)
    return f"{program()} eval {verbs[p.head]} {quoted(out)} --data {quoted(data or 'FILE')}{options}"


def how_to_score(p: Pretrained, out: Path) -> str:
    """The command that measures how well a model of text in `out` does; its speed, for other models."""
    from sparsify.evals.glue.tasks import TASKS

    task = next((name for name in TASKS if name == remembered(p, "task")), "TASK")
    verbs = {
        "classifier": f"eval glue {quoted(out)} --task {task} --data DIR",
        "mlm": f"eval mlm {quoted(out)} --data FILE",
        "encoder": f"eval retrieval {quoted(out)} --data FILE",
    }
    return f"{program()} {verbs[p.head] if reads_text(p) else f'bench {quoted(out)}'}"


def typed(context: int | None, stride: int | None, limit: int, upper: bool, linears: str | None) -> str:
    """The options of `DATA` and `LINEARS` that differ from their defaults, as one would type them."""
    options = {
        "context": context,
        "stride": stride,
        "limit": None if limit == DEFAULT_WINDOWS else limit,
        "linears": linears,
    }
    named = "".join(f" --{name} {value}" for name, value in options.items() if value is not None)
    return named + (" --upper" if upper else "")

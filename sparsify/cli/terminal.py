"""What a command prints: results on stdout, and on stderr what its session tells, with bars for long work."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any, Protocol

import click

from sparsify import process
from sparsify.pipeline.progress import Event

SECONDS_A_LINE = 30.0  # of progress, where there is no terminal for a bar


def say(line: str) -> None:
    """Progress, on stderr; where that cannot be written to, the work goes on without."""
    try:
        click.echo(line, file=sys.stderr)  # named, because click takes ASCII for a mistake and writes UTF-8
    except OSError:
        process.let_go(sys.stderr)


def tell(text: str) -> None:
    """A result, on stdout.  Raises RuntimeError where that is closed, as after `>&-`."""
    refuse_closed()
    click.echo(text, file=sys.stdout)


def refuse_closed() -> None:
    """Refuse to print a result that nobody can see."""
    if 1 in process.CLOSED:
        raise RuntimeError(
            "standard output is closed, so the result is not printed; what was to go into files is there; write > FILE "
            "or > /dev/null behind the command"
        )


class Bar(Protocol):
    """How far one piece of work has come, for people."""

    def advance(self, more: int, event: Event) -> None: ...

    def close(self) -> None: ...


class OnATerminal:
    """A bar that moves."""

    def __init__(self, begun: Event) -> None:
        from tqdm import tqdm

        self.shown: Any = tqdm(total=begun.total, desc=begun.text, unit=begun.unit, file=sys.stderr, leave=False)

    def advance(self, more: int, event: Event) -> None:
        self.shown.set_postfix_str(event.text, refresh=False)
        self.shown.update(more)

    def close(self) -> None:
        self.shown.close()


class InLines:
    """A line every now and then."""

    def __init__(self, begun: Event) -> None:
        self.what, self.shown = begun.text, monotonic()

    def advance(self, more: int, event: Event) -> None:
        if monotonic() - self.shown >= SECONDS_A_LINE:
            self.shown = monotonic()
            say(f"{self.what}: {event}")

    def close(self) -> None:
        pass


class Shown:
    """The callback of a command's session."""

    def __init__(self) -> None:
        self.bars: list[tuple[Bar, int]] = []  # those of work within work last, each with what it has shown

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            self.bars.append((OnATerminal(event) if sys.stderr.isatty() else InLines(event), 0))
        elif event.kind == "advance":
            bar, seen = self.bars.pop()
            self.bars.append((bar, event.done))
            bar.advance(event.done - seen, event)
        elif event.kind == "end":
            self.bars.pop()[0].close()
        else:
            say(str(event))

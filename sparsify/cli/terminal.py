"""What a command prints: results on stdout, and on stderr what its session tells, with bars for long work."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any, Protocol

import click

from sparsify import process
from sparsify.pipeline.progress import Event

SECONDS_A_LINE = 30.0  # of progress, where there is no terminal for a bar
SECONDS_A_FRAME = 0.1


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


class Bars(Protocol):
    """How far pieces of work have come, for people."""

    def begin(self, event: Event) -> Any: ...

    def advance(self, begun: Any, event: Event) -> None: ...

    def end(self, begun: Any) -> None: ...

    def close(self) -> None: ...


class OnATerminal:
    """Bars that move, one below the other for work within work; they are gone when the work ends."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.shown = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[how]}", markup=False),
            console=Console(stderr=True), transient=True, auto_refresh=False,  # whose thread would disturb timings
        )  # fmt: skip
        self.drawn = 0.0

    def begin(self, event: Event) -> Any:
        self.shown.start()
        begun = self.shown.add_task(event.text, total=event.total, how="")
        self.shown.refresh()
        return begun

    def advance(self, begun: Any, event: Event) -> None:
        self.shown.update(begun, completed=event.done, how=event.text)
        if monotonic() - self.drawn >= SECONDS_A_FRAME:
            self.shown.refresh()
            self.drawn = monotonic()

    def end(self, begun: Any) -> None:
        self.shown.remove_task(begun)
        if not self.shown.tasks:
            self.close()

    def close(self) -> None:
        self.shown.stop()


class InLines:
    """A line every now and then."""

    def begin(self, event: Event) -> Any:
        return [event.text, monotonic()]

    def advance(self, begun: Any, event: Event) -> None:
        what, before = begun
        if monotonic() - before >= SECONDS_A_LINE:
            begun[1] = monotonic()
            say(f"{what}: {event}")

    def end(self, begun: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Shown:
    """The callback of a command's session."""

    def __init__(self) -> None:
        self.bars: Bars | None = None
        self.begun: list[Any] = []  # work within work last

    def close(self) -> None:
        """Leave the terminal as it was, wherever the work was stopped."""
        if self.bars is not None:
            self.bars.close()

    def __call__(self, event: Event) -> None:
        if self.bars is None:
            self.bars = OnATerminal() if sys.stderr.isatty() else InLines()
        if event.kind == "start":
            self.begun.append(self.bars.begin(event))
        elif event.kind == "advance":
            self.bars.advance(self.begun[-1], event)
        elif event.kind == "end":
            self.bars.end(self.begun.pop())
        else:
            say(str(event))

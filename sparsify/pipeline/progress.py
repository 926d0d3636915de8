"""What the verbs tell while they work: lines, notes on the data, and how far long work has come.

All of it goes to the callback of the current session as `Event`s, and nowhere if there is none.  A session also keeps
the notes, which travel with the figures, and what an interrupted run goes on from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from sparsify.storage.records import Result


@dataclass(frozen=True)
class Event:
    """One thing that is told.  `str` makes a line of it, so `progress=print` shows them all.

    kind: "say" and "note" have a sentence as their text.  "start" has what is begun, and `total` units of it are to
    come; "advance" has how it goes, or nothing, and `done` units so far; "end" has what is over, maybe early.
    """

    kind: Literal["say", "note", "start", "advance", "end"]
    text: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""

    def __str__(self) -> str:
        if self.kind == "start":
            return f"{self.text}: {self.total:,} {self.unit}s"
        if self.kind == "advance":
            return f"{self.done:,} of {self.total:,} {self.unit}s" + (f", {self.text}" if self.text else "")
        if self.kind == "end":
            return f"{self.text}: ended after {self.done:,} of {self.total:,} {self.unit}s"
        return f"note: {self.text}" if self.kind == "note" else self.text


Progress: TypeAlias = Callable[[Event], None]
"""It is called in the thread that works; an exception that it raises ends the work."""


@dataclass
class Session:
    """What is told and kept while one verb works.

    journal: what an interrupted run goes on from; false, or None, where nothing is kept.  unfinished: what was found
    before a failure, of a verb that has something to show for itself by then.
    """

    progress: Progress | None = None
    outer: Session | None = None
    notes: list[str] = field(default_factory=list)
    journal: object = None
    unfinished: Result | None = None

    def tell(self, event: Event) -> None:
        if self.progress is not None:
            self.progress(event)


CURRENT: ContextVar[Session | None] = ContextVar("sparsify session", default=None)


@contextmanager
def session(progress: Progress | None = None) -> Iterator[Session]:
    """A session for what is done within; without a callback of its own it has that of the session around it."""
    outer = CURRENT.get()
    own = Session(progress or (outer.progress if outer else None), outer)
    token = CURRENT.set(own)
    try:
        yield own
    finally:
        CURRENT.reset(token)


def tell(event: Event) -> None:
    """Hand an event to the current session, if there is one."""
    if (current := CURRENT.get()) is not None:
        current.tell(event)


def say(line: str) -> None:
    """Tell what is done now."""
    tell(Event("say", line))


def note(sentence: str) -> None:
    """Tell something about the data that its figures depend on, once, and keep it for `noted`."""
    if (current := CURRENT.get()) is not None and sentence not in current.notes:
        current.notes.append(sentence)
        current.tell(Event("note", sentence))


def noted() -> list[str]:
    """What this verb has told about its data, which travels with the figures."""
    return [] if (current := CURRENT.get()) is None else list(current.notes)


# --- what outlives a failure ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeptRun:
    """A file that a command goes on from, as a session keeps it; false while it is not there."""

    path: Path

    def __bool__(self) -> bool:
        return self.path.is_file()

    def __str__(self) -> str:
        return f"the run kept in {self.path}"


def open_sessions() -> Iterator[Session]:
    """The current session, and those around it."""
    current = CURRENT.get()
    while current is not None:
        yield current
        current = current.outer


def goes_on_from(journal: object) -> None:
    """Remember what the same call would go on from, None for nothing; whoever opened a session around this asks."""
    for one in open_sessions():
        one.journal = journal


def leave_unfinished(found: Result) -> None:
    """Leave what was found before a failure to whoever opened a session around this."""
    for one in open_sessions():
        one.unfinished = found


# --- long work -----------------------------------------------------------------------------------------------------


@contextmanager
def bar(what: str, total: int, unit: str = "window") -> Iterator[Callable[..., None]]:
    """How far long work has come.

    Yields the function that is told of every few units more, and if there is some, a word on how it goes.
    """
    done = 0

    def advance(more: int, how: str = "") -> None:
        nonlocal done
        done += more
        tell(Event("advance", how, done, total, unit))

    tell(Event("start", what, 0, total, unit))
    try:
        yield advance
    finally:
        tell(Event("end", what, done, total, unit))


@contextmanager
def counting(what: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """A bar for work that tells how much of it is done: progress(done, total)."""
    seen = 0
    with bar(what, total, unit) as advance:

        def progress(done: int, _: int, how: str = "") -> None:
            nonlocal seen
            advance(done - seen, how)
            seen = done

        yield progress

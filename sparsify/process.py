"""What a command owes to the shell that runs it: an answer to signals, exit codes, and output that any stream takes.

Imported before anything else of the package, so that Ctrl-C is understood while torch loads, which takes seconds.
"""

from __future__ import annotations

import codecs
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

PROGRAMS = ("sparsify", "hf-sparsify")  # what `pip install` calls the command line
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}
CLOSED: set[int] = set()  # descriptors that lead nowhere because the process was started without them
NO_READER = 128 + 13  # what a shell says of a program that SIGPIPE ended
PLAIN = "sparsify.plain"  # name of an error handler of encodings
REPLACED = ("strict", "surrogateescape", "backslashreplace")  # error handlers that nobody asked for
SPELLED = {
    **{"±": "+-", "×": "x", "·": "*", "…": "...", "–": "-", "—": "-", "−": "-", "‘": "'", "’": "'", "“": '"', "”": '"'},
    **{"→": "->", "≤": "<=", "≥": ">=", "≈": "~", "µ": "u", "μ": "u"},
    **dict(zip("▁▂▃▄▅▆▇█", "_.:-=+*#", strict=True)),
}


# --- signals -------------------------------------------------------------------------------------------------------


class Stopped(KeyboardInterrupt):
    """A signal that ends the command, after everything that is open was closed."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.number = number


def is_program() -> bool:
    """Whether this process is our command line, and not a program of somebody else's that imports the package."""
    started = Path(sys.argv[0] if getattr(sys, "argv", None) else "")
    if str(started) == "-m":  # so it is while the package is imported
        return ("-m", "sparsify") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return started.name.removesuffix(".exe").removesuffix("-script.py") in PROGRAMS


def guard() -> None:
    """In our command line, and nowhere else: until it begins its work, a signal ends it with a word, not a traceback.

    An exception would do worse: raised inside an import, it may come out as another one.
    """
    if is_program():
        open_streams()
        take_signals(leave)


def leave(number: int, _: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, f"\n{WORDS[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


def stop(number: int, _: FrameType | None) -> None:
    raise Stopped(signal.Signals(number))


def take_signals(handler: Any) -> dict[signal.Signals, Any]:
    """Have `handler` answer SIGINT and SIGTERM, and return who did; signals that are ignored, as by nohup, stay so."""
    if threading.current_thread() is not threading.main_thread():
        return {}  # Python gives signals to the main thread alone
    before = {number: signal.getsignal(number) for number in WORDS}
    ours = {number: found for number, found in before.items() if found not in (signal.SIG_IGN, None)}
    for number in ours:
        signal.signal(number, handler)
    return ours


@contextmanager
def stoppable() -> Iterator[None]:
    """Signals raise `Stopped` within, so that bars are closed and nothing half-written is left."""
    before = take_signals(stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- streams -------------------------------------------------------------------------------------------------------


def open_streams() -> None:
    """Give a process that was started with closed streams (`>&-`) ones that lead nowhere.

    Else the next file that is opened would take their number, and what anybody prints would go into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            CLOSED.add(descriptor)
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  for as long as it runs


def spell_out() -> None:
    """Have stdout and stderr write letters that their encoding lacks in plain ones, instead of failing."""
    codecs.register_error(PLAIN, spelled)
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in REPLACED and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)


def spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of encodings: `in_plain_letters`, and bytes of file names that are no text as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # how Python keeps a byte that is no text
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return in_plain_letters(letter), error.start + 1


def in_plain_letters(text: str) -> str:
    """`text` in ASCII: +- for ±, letters without their accents, ? where there is nothing like it."""
    return "".join(
        letter if letter.isascii() else SPELLED.get(letter) or without_accents(letter) or "?" for letter in text
    )


def without_accents(letter: str) -> str:
    return unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()


def as_written(text: str, encoding: str) -> str:
    """`text` as a stream of this encoding will show it, for those who have to know its width."""
    codecs.register_error(PLAIN, spelled)
    return text.encode(encoding, PLAIN).decode(encoding, "replace")


def let_go(stream: IO[str] | None) -> None:
    """Lead a stream that nobody reads, or whose disk is full, nowhere: Python would try again when it ends."""
    if stream is not None:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

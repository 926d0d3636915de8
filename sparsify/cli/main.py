"""The program: its verbs, what they answer to signals and failures, and the exit codes."""

from __future__ import annotations

import signal
import sys
from contextlib import closing
from typing import IO, Any

import click

from sparsify import __version__, process
from sparsify.cpu.backend import keep_freed_memory
from sparsify.install_check import check_name_collision
from sparsify.pipeline.progress import Session, session
from sparsify.storage import files

from .bench import bench
from .convert import convert
from .evaluate import evaluate
from .finetune import finetune
from .generate import generate
from .inspect import analyze, doctor, inspect
from .push import push
from .terminal import Shown, say

EXPECTED = (LookupError, ValueError, OSError, RuntimeError)  # one sentence for people; anything else is a bug


class Refusal(click.ClickException):
    """One sentence and exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        say(f"Error: {self.format_message()}")


class Verbs(click.Group):
    """Turns expected failures into one line and exit code 1, and signals into one and the exit code that shells have:
    130 for Ctrl-C, 143 for SIGTERM.  A reader that has seen enough, as `head`, ends it in silence.
    """

    def main(self, *args: Any, **options: Any) -> Any:
        process.open_streams()
        process.spell_out()
        return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        shown = Shown()
        with session(shown) as current:
            try:
                with closing(shown), process.stoppable():
                    result = super().invoke(ctx)
                    sys.stdout.flush()  # here, where it can still be said that it could not be written
                return result
            except (click.ClickException, click.exceptions.Exit, KeyError, IndexError):
                raise  # told by click already, or a bug of ours
            except KeyboardInterrupt as stopped:
                number = getattr(stopped, "number", signal.SIGINT)
                say(f"\n{process.WORDS[number]}" + goes_on("; the same command goes on from here", current))
                ctx.exit(128 + number)
            except BrokenPipeError as error:
                if error.filename is not None:  # not stdout, but a pipe that was to be written
                    raise Refusal(in_a_sentence(error, current)) from error
                process.let_go(sys.stdout)
                ctx.exit(process.NO_READER)
            except EXPECTED as error:
                raise Refusal(in_a_sentence(error, current)) from error


def in_a_sentence(error: Exception, current: Session) -> str:
    """What an expected failure says; the system's own, with its file first and what to do about a full disk."""
    if not isinstance(error, OSError) or error.errno is None:
        return " ".join(str(error).split())
    if error.errno not in files.FULL:
        return f"{error.filename} cannot be used ({error.strerror})" if error.filename else str(error)
    if error.filename is None:
        process.let_go(sys.stdout)  # all else that is written names its file
    return (
        f"{error.filename or 'the output'} could not be written ({error.strerror}); free some space, or write to "
        f"another disk" + goes_on("; the same command then goes on from here", current)
    )


def goes_on(words: str, current: Session) -> str:
    """`words`, and what was kept so far, if anything was; nothing of verbs that keep nothing."""
    if current.journal is None:
        return ""
    return (
        f"{words} ({current.journal})"
        if current.journal
        else "; nothing is kept so far, so the same command begins anew"
    )


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sparsify")
def main() -> None:
    """Make pretrained long-convolution models faster, and measure what that costs.

    SRC and MODEL are a folder or a hub id (ORG/NAME) everywhere alike.
    """
    check_name_collision()
    keep_freed_memory()


for verb in (convert, push, evaluate, bench, finetune, inspect, analyze, generate, doctor):
    main.add_command(verb)

"""A process that pulls, pushes and converts on request, with the real client of the hub.

In a process of its own because huggingface_hub reads its settings when it is imported; one for many requests because
importing takes longer than they do.  Waiting costs nothing there: it is only counted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Client:
    """The side of the tests."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    def ask(self, do: str, *args: Any, **options: Any) -> dict[str, Any]:
        """`found`, or `refused` with the sentence, and `waited`, seconds it would have waited."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps([do, args, options], default=str), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)


@contextmanager
def running(environment: dict[str, str], log: Path) -> Iterator[Client]:
    """A client in a process of its own; what it says on stderr goes to the file `log`."""
    environment = {**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        log.open("w") as errors,
        subprocess.Popen([sys.executable, __file__], **pipes, stderr=errors, cwd=ROOT, env=environment) as process,
    ):
        try:
            yield Client(process, log)
        finally:
            process.kill()


def pull(
    src: str, revision: str | None = None, room: int | None = None, offline: bool = False, timeout: float = 30.0
) -> Any:
    from sparsify.converters import resolve
    from sparsify.converters.hub import download as puller
    from sparsify.converters.tensors import read_tensors
    from sparsify.storage.tensors import fingerprint

    puller.TIMEOUT = timeout
    with patched(room, offline):
        source = resolve(src, revision)
    return {
        "name": source.name,
        "repo": source.repo,
        "revision": source.revision,
        "sha256": fingerprint(read_tensors(source.folder)),
        "files": sorted(path.name for path in source.folder.iterdir()),
    }


@contextmanager
def patched(room: int | None, offline: bool) -> Iterator[None]:
    """With so many bytes left on the disk, or with the network switched off as HF_HUB_OFFLINE does."""
    from huggingface_hub import constants

    usage, online = shutil.disk_usage, constants.HF_HUB_OFFLINE
    if room is not None:
        shutil.disk_usage = lambda _: types.SimpleNamespace(total=room, used=0, free=room)  # type: ignore[assignment]
    constants.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        shutil.disk_usage, constants.HF_HUB_OFFLINE = usage, online


def push(*args: Any, xet: bool = False, **options: Any) -> Any:
    from huggingface_hub import constants

    from sparsify.converters.hub import upload

    constants.HF_HUB_DISABLE_XET = not xet
    return upload.push(*args, **options).to_dict()


def check(repo: str) -> Any:
    from sparsify.converters.hub import upload

    return upload.check_target(repo) is not None


def token(value: str | None) -> None:
    os.environ.pop("HF_TOKEN", None)
    if value:
        os.environ["HF_TOKEN"] = value


def program(*argv: str, kill_after: float | None = None, saving: str | None = None) -> Any:
    """`sparsify argv` in a copy of this process: exit code, seconds, last line.

    kill_after: seconds until it is killed; they count from where something hidden appears in the folder `saving`.
    """
    from sparsify import report  # noqa: F401  what a run would import itself, before the copy is made
    from sparsify.cli.main import main
    from sparsify.search import planner  # noqa: F401

    said = Path(os.environ["HF_HOME"]).with_name("said")
    began, child = time.monotonic(), os.fork()
    if not child:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            main(argv)
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(int(end.code or 0))
        finally:
            os._exit(99)
    if kill_after is not None:
        while saving and not any(Path(saving).glob(".*")) and not ended(child):
            sleep(0.0005)
        sleep(kill_after)
        os.kill(child, 9)
    _, status = os.waitpid(child, 0)
    return [os.waitstatus_to_exitcode(status), time.monotonic() - began, said.read_text().strip().splitlines()[-1:]]


def ended(child: int) -> bool:
    """Whether a process is over; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def answer() -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    from sparsify.converters import load  # noqa: F401  now, rather than in the first request

    known = {"pull": pull, "push": push, "check": check, "token": token, "program": program}
    for line in sys.stdin:
        do, args, options = json.loads(line)
        waited.clear()
        try:
            said = {"found": known[do](*args, **options)}
        except (LookupError, ValueError, OSError, RuntimeError) as error:
            said = {"refused": str(error), "kind": type(error).__name__}
        print(json.dumps({**said, "waited": waited}), flush=True)


sleep = time.sleep
waited: list[float] = []

if __name__ == "__main__":
    time.sleep = waited.append
    answer()

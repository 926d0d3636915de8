"""Publishing: a folder that `convert` wrote, on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsify.report.schema import Push, Pushed

from .progress import Progress, say, session


def push(
    folder: str | Path, repo: str, *, private: bool = False, revision: str | None = None, create_pr: bool = False,
    dry_run: bool = False, message: str | None = None, force: bool = False, progress: Progress | None = None,
) -> Push:  # fmt: skip
    """Make a repository of the hub hold the checkpoint that `convert` wrote to a folder, by one commit.

    The same again makes no commit.  The token is HF_TOKEN, or that of `hf auth login`.

    Args:
        folder: What `convert` wrote.
        repo: The repository, USER/REPO.
        private: Make the repository private if it has to be made.
        revision: Branch to push to, made if need be; None is main.
        create_pr: Open a pull request instead.
        dry_run: Say what would be done, and do nothing.
        message: Title of the commit.
        force: Write to a repository that holds something else, or weights that changed since `convert` wrote them.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints, among it the files `uploaded` (name -> bytes), `deleted` and `unchanged`,
        the `commit`, and `load`, the Python that loads it.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here, as when somebody else changed the repository meanwhile.
    """
    with session(progress):
        return pushed(Path(folder), repo, private, revision, create_pr, dry_run, message, force)


def pushed(folder: Path, repo: str, *options: Any) -> Push:
    """What a push did, and how to load it.  options: those of `sparsify.converters.hub.upload.push`, in its order."""
    from sparsify.converters.hub import upload

    say(f"pushing {folder} to {repo}")
    done = upload.push(folder, repo, *options)
    return Push(**vars(done), load=how_to_load(done))


def check_push(repo: str) -> None:
    """Refuse a repository that a push would be refused by, before the work that is to be pushed."""
    from sparsify.converters.hub import upload

    say(f"asking whether {repo} can be written to")
    upload.check_target(repo)


def how_to_load(done: Pushed) -> str:
    """Python that loads what was pushed, this very commit."""
    revision = f', revision="{done.commit}"' if done.commit else ""
    return f'import sparsify; sparsify.load("{done.repo}"{revision})'

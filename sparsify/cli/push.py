"""The verb that publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsify.pipeline import push as publishing
from sparsify.report.schema import Push
from sparsify.storage.files import readable_size

from .options import AS_JSON
from .terminal import tell


@click.command()
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.argument("repo", metavar="USER/REPO")
@click.option("--private", is_flag=True, help="Make the repository private if it has to be made.")
@click.option("--revision", metavar="BRANCH", help="Branch to push to, made if need be.  [default: main]")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--message", help="Title of the commit.")
@click.option(
    "--force",
    is_flag=True,
    help="Write to a repository that holds something else, or weights that changed since `convert` wrote them.",
)
@AS_JSON
def push(folder: Path, repo: str, as_json: bool, **options: Any) -> None:
    """Make the hub's USER/REPO hold the checkpoint that `convert` wrote to the folder OUT, by one commit.

    The same again makes no commit.  The token is HF_TOKEN, or that of `hf auth login`.
    """
    result = publishing.push(folder, repo, **options)
    tell(result.to_json() if as_json else in_words(result))


def in_words(result: Push) -> str:
    """What was done, or would be: a line a file, then where to find it."""
    lines = [f"  + {name}  {readable_size(size)}" for name, size in result.uploaded.items()]
    lines += [f"  - {name}" for name in result.deleted]
    if result.unchanged:
        lines.append(f"  = {len(result.unchanged)} unchanged")
    if result.dry_run:
        anew = result.uploaded or result.deleted
        would = "be made" if result.created else "change" if anew else "stay as it is"
        return "\n".join([f"{result.url} would {would}:", *lines])
    if result.pull_request:
        lines.append(f"pull request: {result.pull_request}")
    done = "pushed to" if result.changed else "nothing to push: the same is at"
    return "\n".join([*lines, f"{done} {result.url}, commit {result.commit}", result.load])

"""The verb that publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsify.storage.files import readable_size

from .options import AS_JSON, as_text, say, tell


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
def push(
    folder: Path, repo: str, private: bool, revision: str | None, create_pr: bool, dry_run: bool, message: str | None,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make the hub's USER/REPO hold the checkpoint that `convert` wrote to the folder OUT, by one commit.

    The same again makes no commit.  The token is HF_TOKEN, or that of `hf auth login`.
    """
    result = pushed(folder, repo, private, revision, create_pr, dry_run, message, force)
    tell(as_text(result) if as_json else in_words(result))


def pushed(folder: Path, repo: str, *options: Any) -> dict[str, Any]:
    """What a push did, and how to load it.  options: those of `sparsify.converters.hub.upload.push`, in its order."""
    from sparsify.converters.hub import upload

    say(f"pushing {folder} to {repo}")
    result = upload.push(folder, repo, *options).to_dict()
    return {**result, "load": how_to_load(result)}


def check_push(repo: str) -> None:
    """Refuse a repository that a push would be refused by, before the work that is to be pushed."""
    from sparsify.converters.hub import upload

    say(f"asking whether {repo} can be written to")
    upload.check_target(repo)


def how_to_load(result: dict[str, Any]) -> str:
    """Python that loads what was pushed, this very commit."""
    revision = f', revision="{result["commit"]}"' if result["commit"] else ""
    return f'import sparsify; sparsify.load("{result["repo"]}"{revision})'


def in_words(result: dict[str, Any]) -> str:
    """What was done, or would be: a line a file, then where to find it."""
    lines = [f"  + {name}  {readable_size(size)}" for name, size in result["uploaded"].items()]
    lines += [f"  - {name}" for name in result["deleted"]]
    if result["unchanged"]:
        lines.append(f"  = {len(result['unchanged'])} unchanged")
    if result["dry_run"]:
        anew = result["uploaded"] or result["deleted"]
        would = "be made" if result["created"] else "change" if anew else "stay as it is"
        return "\n".join([f"{result['url']} would {would}:", *lines])
    if result["pull_request"]:
        lines.append(f"pull request: {result['pull_request']}")
    done = "pushed to" if result["changed"] else "nothing to push: the same is at"
    return "\n".join([*lines, f"{done} {result['url']}, commit {result['commit']}", result["load"]])

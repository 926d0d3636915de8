"""Where a checkpoint comes from: a folder on this machine, or a repository on the hub pinned to one commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TEXTS = ("*.json", "*.md", "vocab.txt", "merges.txt", "LICENSE*")  # never *.py: no code of a checkpoint is run
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
PLAN_TENSORS = "plan.safetensors"  # coefficients that belong to a plan, not to the model
NOT_WEIGHTS = ("*/*", "training_args*", "optimizer*", "scheduler*", "rng_state*")


@dataclass(frozen=True)
class Source:
    """A checkpoint's files and the name people know it by."""

    name: str  # as given
    folder: Path
    repo: str | None = None  # "ORG/NAME" if it came from the hub
    revision: str | None = None  # the hub's commit

    @property
    def label(self) -> str:
        """The hub id, or the folder's own name: what may be published without telling where files lie here."""
        return self.repo or self.folder.name


def resolve(src: str | Path, revision: str | None = None) -> Source:
    """The files of `src`, an existing folder or else a hub id "ORG/NAME", downloaded if need be.

    revision: branch, tag or commit on the hub; the commit it stood for is kept in the Source.
    """
    name, folder = str(src), Path(src).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a folder here, and revision {revision!r} belongs to the hub; leave one out")
        return Source(name, folder.resolve())
    if folder.is_file():
        raise FileNotFoundError(f"{name} is a file; pass the folder that holds it together with its config.json")
    if not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"{name!r} is neither a folder here nor a hub id; pass a folder, or ORG/NAME")
    folder = download(name, revision)
    return Source(name, folder, name, folder.name)  # the hub's cache names a snapshot's folder by its commit


def download(repo: str, revision: str | None) -> Path:
    """Folder of one commit's files in the hub's cache: safetensors, or pickles where there are none."""
    folder = snapshot(repo, revision, (*TEXTS, "*.safetensors"))
    if any(path.name != PLAN_TENSORS for path in folder.glob("*.safetensors")):
        return folder
    return snapshot(repo, folder.name, (*TEXTS, PLAN_TENSORS, *PICKLES))


def snapshot(repo: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """`huggingface_hub.snapshot_download`, each way it can fail told in one sentence."""
    import huggingface_hub  # here, because a folder needs no hub
    from huggingface_hub import errors

    http_error: Any = errors.HfHubHTTPError.__bases__[0]  # httpx's, or httpx2's: whichever this hub uses
    where = f"revision {revision} of {repo}" if revision else repo
    try:
        path = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(NOT_WEIGHTS)
        )
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{repo}"
        raise ValueError(
            f"{repo} is gated; ask for access at {page}, then set HF_TOKEN or run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise LookupError(f"{repo} has no revision {revision!r}; leave --revision out for its main branch") from error
    except errors.RepositoryNotFoundError as error:  # the hub answers 401 for what it hides, so both are possible
        raise FileNotFoundError(
            f"there is neither a folder {repo} here nor a public repository of that name on the hub; "
            f"check the spelling, or set HF_TOKEN if the repository is private"
        ) from error
    except (errors.LocalEntryNotFoundError, http_error) as error:
        raise FileNotFoundError(f"{where} is not a folder here, and {why_not(error)}") from error
    return Path(path)


def why_not(error: Exception) -> str:
    """What kept the hub from serving, and what to do."""
    for e in (error, error.__cause__):
        if status := getattr(getattr(e, "response", None), "status_code", None):
            remedy = "set HF_TOKEN to a token that may read it" if status in (401, 403) else "try again later"
            return f"the hub answered {status}; {remedy}"
    return "the hub cannot be reached, nor is there a complete copy in its cache; connect, or pass a local folder"

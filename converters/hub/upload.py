"""The way to the hub: a folder that this package wrote, in one commit or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sparsify import __version__
from sparsify.converters.load import ours, recorded, saved_plan
from sparsify.converters.tensors import INDEX, read_config, read_tensors
from sparsify.report.schema import Pushed
from sparsify.storage.reading import HUB_ID
from sparsify.storage.tensors import fingerprint

from .download import PICKLES, Listing, list_files, matches
from .errors import CHANGED, CONFLICT, TRANSIENT, WAITS, About, NoRepository, ask, endpoint, page, wait_out

MAIN = "main"
OWN_FOLDER = ".eval_results"  # the only name with a leading dot that belongs on the hub
BEGUN_WITH = {".gitattributes"}  # what the hub puts into a repository that somebody makes
WEIGHTS = ("*.safetensors", f"*{INDEX}", *PICKLES)
CONFIG_BYTES = 1 << 24  # a longer config.json is not ours
PULLS_SEEN = 10  # newest pull requests that are compared with what is to be pushed


@dataclass(frozen=True)
class Change:
    """From what a repository holds to what a folder holds."""

    upload: dict[str, Path]
    delete: list[str]
    unchanged: list[str]

    def __bool__(self) -> bool:
        return bool(self.upload or self.delete)


def push(
    folder: str | Path, repo: str, private: bool = False, revision: str | None = None, create_pr: bool = False,
    dry_run: bool = False, message: str | None = None, force: bool = False,
) -> Pushed:  # fmt: skip
    """Make `repo` hold what sparsify wrote to `folder`, by one commit, or by none if it does already.

    private: make the repository so if it has to be made.  revision: branch, made if need be.  create_pr: open a pull
    request instead.  dry_run: ask, change nothing.  force: write to a repository that holds something else, or weights
    that changed since `convert` wrote them.  Files that an earlier push left there and `folder` lacks are deleted,
    others stay.
    """
    folder = Path(folder).expanduser().resolve()
    files = published(folder)
    if not force:
        check_unchanged(folder)
    there = check_target(repo, revision, private, create_pr, force)
    created, about = there is None, About(repo, revision, writing=True)
    if dry_run:
        change = difference(there, files)
        return outcome(about, change, there.sha if there and not change else None, created=created, dry_run=True)
    if there is None:
        there = create(repo, private)
    if there.branch != (revision or MAIN):
        there = create_branch(about, there)
    message = message or f"{folder.name}, made by sparsify {__version__}"
    return commit(about, there, files, message, create_pr, created)


def commit(
    about: About, begun: Target, files: Mapping[str, Path], message: str, create_pr: bool, created: bool
) -> Pushed:
    """Look, compare, commit on top of `begun`; where the answer is lost, look again: it may have been done."""
    import huggingface_hub

    asked = change = difference(begun, files)
    now = begun.listing
    for attempt, wait in enumerate((*WAITS, None)):
        if attempt:
            now = list_files(about)
            change = difference(Target(now, begun.branch, begun.superseded), files)
        if not change:
            return outcome(about, asked, now.sha, changed=now.sha != begun.sha, created=created)
        if create_pr and (pull := pull_request_with(about, begun, files)):
            sent = asked if attempt else Change({}, [], list(files))
            return outcome(about, sent, *pull, changed=bool(attempt), created=created)
        if now.sha != begun.sha:
            raise OSError(f"{about.lead} {CHANGED}")
        try:
            info = huggingface_hub.HfApi().create_commit(
                about.repo, operations(change), commit_message=message, revision=about.revision,
                parent_commit=begun.sha, create_pr=create_pr,
            )  # fmt: skip
        except Exception as error:  # as in `ask`, but whether it was done is looked up before it is tried again
            wait_out(error, about, wait, (*TRANSIENT, *CONFLICT))
        else:
            return outcome(about, asked, info.oid, info.pr_url, changed=True, created=created)
    raise AssertionError("the last wait is None")


# --- what is pushed -------------------------------------------------------------------------------------------------


def published(folder: Path) -> dict[str, Path]:
    """Name on the hub -> file, for what this package wrote to `folder`; refuses what is not all there."""
    entry = ours(read_config(folder)) if folder.is_dir() else None
    if entry is None:
        raise ValueError(f"{folder} was not written by sparsify; run `sparsify convert` and push the folder it writes")
    listed = entry.get("files")
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"config.json in {folder} does not list its files; convert the checkpoint again")
    found: dict[str, Path] = {}
    for name in sorted({"config.json", *listed}):
        found[name] = path = folder / check_name(name, folder)
        if not path.is_file():
            raise ValueError(f"{folder} has lost its {name}; convert the checkpoint again")
        if not path.resolve().is_relative_to(folder):
            raise ValueError(f"{path} is a link out of its folder; put the file itself there")
    return found


def check_unchanged(folder: Path) -> None:
    """Refuse weights, or coefficients of a plan, that are not those that were recorded when the folder was written.

    All weights are read and hashed for this, some 1 s a GB; sending them takes longer.
    """
    entry = ours(read_config(folder)) or {}
    saved_plan(entry, folder)
    known = recorded(entry)
    if known and fingerprint(read_tensors(folder)) not in known:
        raise ValueError(
            f"the weights in {folder} are not those that config.json records: a file was damaged or replaced; "
            f"convert them again, or pass force=True (--force) to push them as they are"
        )


def check_name(name: str, folder: Path) -> str:
    """`name`, if it stays inside the folder and is not hidden."""
    first, *rest = PurePosixPath(name).parts or ("",)
    hidden = any(part.startswith(".") for part in ([] if first == OWN_FOLDER else [first]) + rest)
    if hidden or not first or PurePosixPath(name).is_absolute() or "\\" in name:
        raise ValueError(f"config.json in {folder} lists {name!r}, which does not belong on the hub; convert again")
    return name


# --- where it goes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A branch of a repository, as it was looked at."""

    listing: Listing
    branch: str  # that the listing is of
    superseded: frozenset[str]  # files that go unless they are pushed again

    @property
    def sha(self) -> str:
        return self.listing.sha


def check_target(
    repo: str, revision: str | None = None, private: bool = False, create_pr: bool = False, force: bool = False
) -> Target | None:
    """What `push` would write to, None where it would make the repository; refuses what it would refuse."""
    if not HUB_ID.fullmatch(repo):
        raise ValueError(f"{repo!r} is no name of a repository; pass USER/NAME")
    person = whoami(repo)
    if (found := find(repo, revision)) is None:
        check_owner(repo, person, create_pr)
        return None
    listing, branch = found
    if not create_pr:
        check_may_write(repo)
    elif branch != (revision or MAIN):
        raise LookupError(f"{repo} has no branch {revision!r} that a pull request could be made to; check the spelling")
    check_private(listing, private)
    return Target(listing, branch, superseded(listing, force))


def check_private(listing: Listing, private: bool) -> None:
    """Refuse to publish what is meant to be private."""
    if private and not listing.private:
        where = f"{page(listing.repo)}/settings"
        raise ValueError(f"{listing.repo} is there and public; make it private at {where}, or leave --private out")


def whoami(repo: str) -> dict[str, Any]:
    """Whom the token belongs to; refuses one that may only read."""
    import huggingface_hub

    def question() -> dict[str, Any]:
        person = huggingface_hub.HfApi().whoami()
        role = person.get("auth", {}).get("accessToken", {}).get("role")
        return {"names": [person["name"], *(org["name"] for org in person.get("orgs", ()))], "role": role}

    person = ask(About(repo, writing=True), question)
    if person["role"] == "read":
        raise PermissionError(
            f"the token of {person['names'][0]} may only read; make one that may write at {endpoint()}/settings/tokens"
        )
    return person


def check_owner(repo: str, person: Mapping[str, Any], create_pr: bool) -> None:
    """Refuse to make a repository that nobody could, or that a pull request is meant for."""
    owner, _, name = repo.partition("/")
    if create_pr:
        raise NoRepository(f"there is no repository {repo} that a pull request could be made to; check the spelling")
    if owner not in person["names"]:
        me = person["names"][0]
        raise PermissionError(
            f"{repo} is not there, and {owner} is neither {me}, whom the token belongs to, nor an organization of "
            f"theirs; push to {me}/{name}"
        )


def check_may_write(repo: str) -> None:
    import huggingface_hub

    ask(About(repo, writing=True), lambda: huggingface_hub.HfApi().auth_check(repo, write=True))


def find(repo: str, revision: str | None) -> tuple[Listing, str] | None:
    """The files of a branch and its name, or of the main branch where there is no such branch; None: no repository."""
    try:
        return list_files(About(repo, revision, writing=True)), revision or MAIN
    except NoRepository:
        return None
    except LookupError:
        return list_files(About(repo, writing=True)), MAIN


def superseded(listing: Listing, force: bool) -> frozenset[str]:
    """Files of an earlier push, or with `force` weights of somebody else's; refuses to write over anything else."""
    if listing.files.keys() <= BEGUN_WITH:
        return frozenset()
    if (entry := remote_entry(listing)) is not None:
        files = entry.get("files")
        written = {"config.json", *map(str, files if isinstance(files, list) else ())}
        return frozenset(listing.files.keys() & written)
    if not force:
        some = next(name for name in sorted(listing.files) if name not in BEGUN_WITH)
        raise ValueError(
            f"{listing.repo} holds {len(listing.files)} files that sparsify did not write, such as {some}; "
            f"push to another name, or pass force=True (--force) to write beside and over them"
        )
    return frozenset(name for name in listing.files if "/" not in name and matches(name, WEIGHTS))


def remote_entry(listing: Listing) -> dict[str, Any] | None:
    """What this package wrote into the config.json of a repository, None if it did not."""
    import huggingface_hub

    if (file := listing.files.get("config.json")) is None or file.size > CONFIG_BYTES:
        return None
    about = About(listing.repo, listing.sha, writing=True)
    path = ask(about, lambda: huggingface_hub.hf_hub_download(listing.repo, "config.json", revision=listing.sha))
    try:
        return ours(read_config(Path(path).parent))
    except ValueError:
        return None


def create(repo: str, private: bool) -> Target:
    """The new repository."""
    import huggingface_hub

    about = About(repo, writing=True)
    ask(about, lambda: huggingface_hub.HfApi().create_repo(repo, private=private, exist_ok=True))
    listing = list_files(about)
    check_private(listing, private)  # somebody else may have been quicker
    return Target(listing, MAIN, frozenset())


def create_branch(about: About, there: Target) -> Target:
    """A new branch that begins with what is there."""
    import huggingface_hub

    branch, api = str(about.revision), huggingface_hub.HfApi()
    ask(about, lambda: api.create_branch(about.repo, branch=branch, revision=there.sha, exist_ok=True))
    return Target(list_files(about), branch, there.superseded)


# --- from one to the other ------------------------------------------------------------------------------------------


def difference(there: Target | None, files: Mapping[str, Path]) -> Change:
    """What has to be sent and what has to go, by content."""
    known = there.listing.files if there else {}
    same = [name for name, path in files.items() if name in known and known[name].matches(path)]
    upload = {name: path for name, path in files.items() if name not in same}
    gone = [name for name in known if there and name in there.superseded and name not in files]
    return Change(upload, sorted(gone), same)


def operations(change: Change) -> list[Any]:
    import huggingface_hub

    add = [huggingface_hub.CommitOperationAdd(name, path) for name, path in change.upload.items()]
    return [*add, *(huggingface_hub.CommitOperationDelete(name) for name in change.delete)]


def pull_request_with(about: About, begun: Target, files: Mapping[str, Path]) -> tuple[str, str] | None:
    """Commit and address of a pull request that holds all of this already: one whose answer was lost, say."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    refs = ask(about, lambda: api.list_repo_refs(about.repo, include_pull_requests=True)).pull_requests or []
    for ref in sorted(refs, key=lambda ref: int(ref.ref.rpartition("/")[2]), reverse=True)[:PULLS_SEEN]:
        listing = list_files(About(about.repo, ref.ref, writing=True))
        if not difference(Target(listing, ref.ref, begun.superseded), files):
            return listing.sha, f"{page(about.repo)}/discussions/{ref.ref.rpartition('/')[2]}"
    return None


def outcome(
    about: About, change: Change, sha: str | None, pull_request: str | None = None, *, changed: bool = False,
    created: bool, dry_run: bool = False,
) -> Pushed:  # fmt: skip
    """The result of a push."""
    branch = about.revision or MAIN
    return Pushed(
        repo=about.repo,
        branch=branch,
        url=page(about.repo) + (f"/tree/{branch}" if about.revision else ""),
        commit=sha,
        changed=changed,
        created=created,
        pull_request=pull_request,
        uploaded={name: path.stat().st_size for name, path in change.upload.items()},
        deleted=change.delete,
        unchanged=change.unchanged,
        dry_run=dry_run,
    )

"""Where a checkpoint comes from: a folder on this machine, or a repository on the hub pinned to one commit."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify.storage.files import readable_size
from sparsify.storage.reading import HUB_ID, given, in_utf8, readable

from .errors import TIMEOUT, About, Unanswered, ask, what_happened

PLAN_TENSORS = "plan.safetensors"  # coefficients that belong to a plan, not to the model
COPIED = (  # what a converted checkpoint takes along from its source
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("generation_config.json", "LICENSE*"),
)
# what may lie beside the weights; never *.py: no code of a checkpoint is run
TEXTS = ("config.json", "*.index.json", "plan.json", PLAN_TENSORS, "README.md", *COPIED)
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
NOT_WEIGHTS = ("*/*", "training_args*", "optimizer*", "scheduler*", "rng_state*")
CARD_LENGTH = 1 << 20  # characters of a README.md that are read
TRIES = 2  # for files whose content is not what the hub says


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


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it."""

    size: int
    git_oid: str | None  # sha1 that git calls the content by; of a pointer if the file lies outside git
    sha256: str | None  # of the content, if it lies outside git

    @property
    def digest(self) -> str | None:
        return self.sha256 or self.git_oid

    def matches(self, path: Path) -> bool:
        """Whether a file on this machine has this content."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256:
            return sha256_of(path) == self.sha256
        return self.git_oid is None or git_oid_of(path) == self.git_oid


@dataclass(frozen=True)
class Listing:
    """One commit of a repository."""

    repo: str
    sha: str
    files: Mapping[str, HubFile]
    private: bool = False


def resolve(src: str | Path, revision: str | None = None) -> Source:
    """The files of `src`, an existing folder or else a hub id "ORG/NAME", downloaded if need be.

    revision: branch, tag or commit on the hub; the commit it stood for is kept in the Source.
    """
    folder = given(src, "a folder, or ORG/NAME").expanduser()
    name = readable(src)
    in_utf8(folder, "the folder" if folder.is_dir() else "the checkpoint")
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a folder here, and revision {revision!r} belongs to the hub; leave one out")
        return Source(name, folder.resolve())
    if folder.is_file():
        raise FileNotFoundError(f"{name} is a file; pass the folder that holds it, with its config.json if it has one")
    if not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"{name!r} is neither a folder here nor a hub id; pass a folder, or ORG/NAME")
    folder = download(name, revision)
    return Source(name, folder, name, folder.name)  # the hub's cache names a snapshot's folder by its commit


def download(repo: str, revision: str | None) -> Path:
    """Folder of one commit's files in the hub's cache, complete and as the hub has them; only what a model needs."""
    try:
        listing = list_files(About(repo, revision))
    except Unanswered as error:
        if (folder := cached(repo, revision)) is None:
            raise
        if (why := error.__cause__) and not isinstance(
            why, ConnectionError
        ):  # that is HF_HUB_OFFLINE, so nobody wonders
            message = f"{repo} is read from the hub's cache, commit {folder.name}: {what_happened(why)}"
            warnings.warn(message, stacklevel=3)
        check_cached(folder / name for name in needed(path.name for path in folder.iterdir()))
        return folder
    names = needed(listing.files)
    for _ in range(TRIES):
        new = {name: listing.files[name] for name in names if not is_cached(listing, name)}
        check_room(repo, sum(file.size for file in new.values()))
        folder = snapshot(repo, revision, names)
        if folder.name != listing.sha:
            raise Unanswered(f"{repo} changed while it was downloaded; run the same command again")
        wrong = [name for name, file in new.items() if not file.matches(folder / name)]
        for name in wrong:  # or the cache would take them for good
            (folder / name).resolve().unlink()
            (folder / name).unlink(missing_ok=True)
        if not wrong:
            check_cached(folder / name for name in names if name not in new)
            return folder
    raise ValueError(f"{', '.join(wrong)} of {repo} came with another content than the hub lists; try again later")


def list_files(about: About) -> Listing:
    """The commit that a revision stands for, and its files."""
    import huggingface_hub  # here, because a folder needs no hub

    def question() -> Listing:
        info = huggingface_hub.model_info(about.repo, revision=about.revision, timeout=TIMEOUT, files_metadata=True)
        files = {
            s.rfilename: HubFile(int(s.size or 0), s.blob_id, s.lfs.sha256 if s.lfs else None)
            for s in info.siblings or ()
        }
        return Listing(about.repo, str(info.sha), files, bool(info.private))

    return ask(about, question)


def needed(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that a model is read from: at its top, texts by name, and one kind of weights."""
    from sparsify.converters.tensors import NAMES  # here, because it imports this

    plain = sorted(name for name in names if not matches(name, NOT_WEIGHTS) and "\\" not in name)
    texts = [name for name in plain if matches(name, TEXTS)]
    for kind in (("*.safetensors",), PICKLES):
        weights = [name for name in plain if matches(name, kind) and name != PLAN_TENSORS]
        whole = next((name for name in NAMES if name in weights), None)
        if weights:
            return sorted({*texts, *([whole] if whole else weights)})
    return texts


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def is_cached(listing: Listing, name: str) -> bool:
    """Whether the hub's cache has a file already, for this commit or another with the same content."""
    import huggingface_hub

    repo, digest = listing.repo, listing.files[name].digest
    if isinstance(huggingface_hub.try_to_load_from_cache(repo, name, revision=listing.sha), str):
        return True
    return digest is not None and (cache() / f"models--{repo.replace('/', '--')}" / "blobs" / digest).exists()


def check_cached(paths: Iterable[Path]) -> None:
    """Refuse files in the hub's cache whose bytes have changed since they were downloaded.

    The cache calls a content by its hash, sha256 or git's, and links to it; where it cannot link, no hash is kept and
    nothing is compared.  Reading a checkpoint takes as long again by this as by its fingerprint, some 1 s a GB with
    hardware for sha256.  One pass cannot do for both, because the fingerprint goes by tensor and is the same in any
    file; but the bytes come from memory the second time.
    """
    hashes = {40: git_oid_of, 64: sha256_of}  # by the digits that they have
    for path in paths:
        content = path.resolve()
        known = hashes.get(len(content.name)) if content.parent.name == "blobs" else None
        if known is not None and known(content) != content.name:
            raise ValueError(
                f"{path} has changed on this disk since it was downloaded, and may be damaged; delete {content}, and "
                f"the same command downloads it again"
            )


def cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def check_room(repo: str, size: int) -> None:
    """Refuse to begin what the disk has no room for.  size: in bytes."""
    folder = next(path for path in (cache(), *cache().absolute().parents) if path.exists())
    if size > (free := shutil.disk_usage(folder).free):
        raise OSError(
            f"{repo} needs {readable_size(size)} and the disk of {folder} has {readable_size(free)} left; "
            f"free {readable_size(size - free)} more, or set HF_HOME to a folder on another disk"
        )


def snapshot(repo: str, revision: str | None, names: Iterable[str], offline: bool = False) -> Path:
    """Folder of these files in the hub's cache.  offline: do not ask, take what is there if it is complete."""
    import huggingface_hub

    exactly = [glob.escape(name) for name in names]

    def question() -> Any:
        return huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=exactly, local_files_only=offline
        )

    return Path(ask(About(repo, revision), question))


def cached(repo: str, revision: str | None) -> Path | None:
    """Folder of a complete download of `revision` in the hub's cache, or None."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        listed = huggingface_hub.get_cached_repo_tree(repo, revision=revision)
        names = needed(file.path for file in listed)
    except errors.CachedRepoTreeNotFoundError:
        names = []  # another program filled the cache: who reads it will say what is missing
    try:
        return snapshot(repo, revision, names, offline=True)
    except OSError:
        return None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_oid_of(path: Path) -> str:
    """What git calls a file of this content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_card(folder: Path) -> str:
    """README.md of a checkpoint, or "" where there is none that can be read."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            return file.read(CARD_LENGTH)
    except OSError:
        return ""

"""The way out: a folder with the original weights, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsify.plan import Plan
from sparsify.storage.files import read_json
from sparsify.storage.folders import heal, whole_folder
from sparsify.storage.reading import in_utf8
from sparsify.storage.tensors import fingerprint

from .hub.download import COPIED, PLAN_TENSORS, Source
from .load import FORMAT, QUANT_METHOD, Pretrained, ours
from .state_dict import listed
from .tensors import kept_inside, read_config, read_tensors, weight_files, write_tensors


def write_folder(
    out: str | Path, pretrained: Pretrained, plan: Plan, files: Mapping[str, str | bytes], force: bool = False
) -> Path:
    """The folder `out`: the source's weights bit for bit, its config.json with `plan` in it, and `files`.

    files: name -> content, such as plan.json and README.md; coefficients that the plan has come along by themselves.
    A folder that holds something is replaced only with `force`, and only if this package wrote it; whatever fails, it
    survives and nothing half-written is left.
    """
    out = Path(out).expanduser().resolve()
    check_out(out, force)
    check_apart(out, pretrained.source.folder)
    check_names(files)
    plan.check([site.name for site in pretrained.sites])
    with whole_folder(out) as new:
        config, repo = pretrained.config, pretrained.source.repo
        config = pointing_back(config, repo) if repo else config
        tensors = plan.to_safetensors()
        write_files(new, pretrained.source, files if tensors is None else {**files, PLAN_TENSORS: tensors})
        pretrained.tokenizer.describe(new)
        write_weights(new, pretrained)
        entry = {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT,
            "source": origin(pretrained),
            "plan": plan.to_dict(),
            "files": sorted({"config.json", *contents(new)}),  # what --force and a later push may replace
        }
        kind = {"model_type": pretrained.family}  # which raw checkpoints do not tell, and AutoModel needs
        write_json(new / "config.json", {**kind, **config, **pretrained.config_overrides, "quantization_config": entry})
        check_out(out, force)  # writing took a while
    return out


def contents(folder: Path) -> set[str]:
    """Names of all files below a folder, relative to it."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}


def copy_beside(folder: Path, out: Path) -> None:
    """Copy to `out` what this package wrote into `folder` beside config and weights: plan, report, card."""
    if out.resolve() == folder.resolve():
        return
    weights = weight_files(folder)
    taken = {"config.json", *(path.name for path in (*weights.files, *filter(None, [weights.index])))}
    names = (ours(read_config(folder)) or {}).get("files")
    for name in (name for name in (names if isinstance(names, list) else ()) if str(name) not in taken):
        if (path := folder / str(name)).is_file():
            (out / str(name)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept_inside(path, folder), out / str(name))


def origin(pretrained: Pretrained) -> dict[str, str | None]:
    """Where the weights come from: repo, revision and sha256; kept from folder to folder while they stay the same."""
    before = (pretrained.quantization or {}).get("source")
    if isinstance(before, dict) and before.get("sha256") == pretrained.sha256:
        return {name: before.get(name) for name in ("repo", "revision", "sha256")}
    source = pretrained.source
    return {"repo": source.repo, "revision": source.revision, "sha256": pretrained.sha256}


def check_out(out: Path, force: bool = False) -> None:
    """Refuse to replace what `force` does not cover; worth asking before the work, too.

    What a killed process left half done of it is put right first.
    """
    in_utf8(out, "the folder")
    if file := next((path for path in (out, *out.absolute().parents) if path.exists() and not path.is_dir()), None):
        raise ValueError(f"{file} is a file; name a folder")
    heal(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if not force:
        raise ValueError(f"{out} is not empty; choose another folder, or pass force=True (--force) to replace it")
    entry = ours(read_config(out))
    if entry is None:
        raise ValueError(f"{out} was not written by sparsify, so it is not replaced; choose another folder")
    files = entry.get("files")
    written = {str(name) for name in files} if isinstance(files, list) else set()
    if strangers := sorted(contents(out) - written):
        raise ValueError(f"{out} also holds {listed(strangers)}, which sparsify did not write; move that away")


def check_apart(out: Path, source: Path) -> None:
    """Refuse a folder inside the source, or around it: replacing one would take the other along."""
    if source in out.parents or out in source.parents:
        raise ValueError(f"{out} and the checkpoint in {source} lie one inside the other; choose another folder")


def check_names(files: Mapping[str, str | bytes]) -> None:
    for name in files:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or name == "config.json" or ".safetensors" in name:
            raise ValueError(f"{name!r} cannot be a file beside the weights; give a relative name that is still free")


def write_files(new: Path, source: Source, files: Mapping[str, str | bytes]) -> None:
    """Everything but config.json and the weights."""
    for path in (path for pattern in COPIED for path in source.folder.glob(pattern) if path.is_file()):
        shutil.copyfile(kept_inside(path), new / path.name)
    if source.repo and (path := new / "tokenizer_config.json").is_file():
        write_json(path, pointing_back(read_json(path), source.repo))
    for name, content in files.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_bytes(content.encode() if isinstance(content, str) else content)


def pointing_back(config: dict[str, Any], repo: str) -> dict[str, Any]:
    """`config` with its remote code, which is not copied, named where it stays: ORG/NAME--file.Class."""

    def qualify(target: Any) -> Any:
        if isinstance(target, list):
            return [qualify(t) for t in target]
        return f"{repo}--{target}" if isinstance(target, str) and "--" not in target else target

    if not isinstance(targets := config.get("auto_map"), dict):
        return config
    return {**config, "auto_map": {name: qualify(target) for name, target in targets.items()}}


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(as_json(data), encoding="utf-8")


def as_json(data: Mapping[str, Any]) -> str:
    """Data as the JSON files of a folder have them."""
    return json.dumps(data, indent=2) + "\n"


def write_weights(new: Path, pretrained: Pretrained) -> None:
    """Safetensors byte for byte; pickles as one model.safetensors under their own names.  Read back and compared."""
    source = pretrained.source
    weights = weight_files(source.folder)
    if weights.safetensors:
        for path in (*weights.files, *([weights.index] if weights.index else [])):
            shutil.copyfile(path, new / path.name)
    else:
        write_tensors(new, read_tensors(source.folder))
    if fingerprint(read_tensors(new)) != pretrained.sha256:
        raise ValueError(f"what was written differs from what was loaded; did {source.folder} change? load it again")

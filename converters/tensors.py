"""The tensors and the config of a checkpoint folder, exactly as stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.stored import read_safetensors, refuse_pointer

from . import unpickle
from .source import NOT_WEIGHTS, PICKLES, PLAN_TENSORS

# in order of preference; a folder may hold several of them
NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "weights.ckpt",
    "model.ckpt",
    "model.pt",
    "model.pth",
)
INDEX = ".index.json"


@dataclass(frozen=True)
class WeightFiles:
    """Files that hold a checkpoint's tensors: one, or the shards that an index names."""

    files: tuple[Path, ...]
    index: Path | None = None

    @property
    def safetensors(self) -> bool:
        return all(path.suffix == ".safetensors" for path in self.files)


def weight_files(folder: Path) -> WeightFiles:
    """The weights in `folder`: a well-known name, else the only *.safetensors, else the only pickle."""
    for name in NAMES:
        if (folder / name).is_file():
            return shards(folder / name) if name.endswith(INDEX) else WeightFiles((folder / name,))
    for patterns in (("*.safetensors",), PICKLES):
        found = sorted(path for pattern in patterns for path in folder.glob(pattern) if is_weights(path))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"{folder} holds several weight files and no index: {names}; keep one of them")
        if found:
            return WeightFiles((found[0],))
    raise FileNotFoundError(f"no weights in {folder}; looked for {', '.join(NAMES)}, or one *.safetensors or pickle")


def is_weights(path: Path) -> bool:
    """Not an optimizer's state or another leftover of training, nor a plan's coefficients."""
    others = [PLAN_TENSORS, *(pattern for pattern in NOT_WEIGHTS if "/" not in pattern)]
    return path.is_file() and not any(path.match(pattern) for pattern in others)


def shards(index: Path) -> WeightFiles:
    """The files an index names, each of them there and beside it."""
    names = sorted(set(weight_map(index).values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} names the shard {name!r}; shards lie beside their index")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(
                f"{index} names the shard {name}, which is not there; download the checkpoint again"
            )
    return WeightFiles(tuple(index.parent / name for name in names), index)


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard, as an index file says."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"{index} has no weight_map of tensor names to files; download it again")
    return table


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint under its stored name, on the CPU, values and dtypes untouched.

    Training checkpoints are unwrapped to their ['state_dict'] or ['state']['model']; what is no tensor is left out.
    """
    weights = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for path in weights.files:
        shard = read_file(path)
        if twice := sorted(tensors.keys() & shard.keys()):
            raise ValueError(f"{path} repeats {twice[0]}, which another shard holds; download the checkpoint again")
        tensors |= shard
    if weights.index is not None and (lost := sorted(weight_map(weights.index).keys() - tensors.keys())):
        raise ValueError(f"{weights.index} promises {lost[0]}, which no shard holds; download the checkpoint again")
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    """Tensors of one file, by name."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    refuse_pointer(path)
    content = unwrap(read_pickle(path))
    tensors = {k: v.detach() for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name; expected a state dict, or one inside a training checkpoint")
    return tensors


def read_pickle(path: Path) -> Any:
    """What a pickle holds, by torch's own restricted reader, or by ours where foreign classes lie in it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises anything on what it does not know or what is damaged; ours says which it is
        return unpickle.load(path)


def unwrap(data: Any) -> Mapping[str, Any]:
    """The state dict inside what Lightning (['state_dict']) and Composer (['state']['model']) save."""
    if isinstance(data, Mapping):
        if isinstance(inner := data.get("state_dict"), Mapping):
            return inner
        if isinstance(state := data.get("state"), Mapping) and isinstance(inner := state.get("model"), Mapping):
            return inner
        return data
    return {}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, or {} where there is none: sizes come from the tensors."""
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, expected an object of names and values")
    return data

"""The tensors and the config of a checkpoint folder, exactly as stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.storage.files import read_json, readable_size
from sparsify.storage.tensors import read_safetensors, refuse_pointer, write_safetensors

from . import unpickle
from .hub.download import NOT_WEIGHTS, PICKLES, PLAN_TENSORS

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
NESTED = (  # where a state dict lies in what trainers save, names from outside in
    ("state_dict",),
    ("model_state_dict",),
    ("state", "model"),
    ("model",),
    ("module",),
)
DEEPEST = 3  # of these around one another
ADAPTER = "adapter_config.json"  # PEFT's, beside adapters
INDEX = ".index.json"
COPIES = 8  # names that may share one tensor in a pickle, which holds it once; they are written apart


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
        if (path := folder / name).is_file():
            return shards(path) if name.endswith(INDEX) else WeightFiles((kept_inside(path),))
    for patterns in (("*.safetensors",), PICKLES):
        found = sorted(path for pattern in patterns for path in folder.glob(pattern) if is_weights(path))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"{folder} holds several weight files and no index: {names}; keep one of them")
        if found:
            return WeightFiles((kept_inside(found[0]),))
    raise FileNotFoundError(f"no weights in {folder}; looked for {', '.join(NAMES)}, or one *.safetensors or pickle")


def is_weights(path: Path) -> bool:
    """Not an optimizer's state or another leftover of training, nor a plan's coefficients."""
    others = [PLAN_TENSORS, *(pattern for pattern in NOT_WEIGHTS if "/" not in pattern)]
    return path.is_file() and not any(path.match(pattern) for pattern in others)


def shards(index: Path) -> WeightFiles:
    """The files an index names, each of them there and beside it."""
    names = shard_names(index)
    for name in names:
        if not (index.parent / name).is_file():
            raise FileNotFoundError(
                f"{index} names the shard {name}, which is not there; download the checkpoint again"
            )
    return WeightFiles(tuple(kept_inside(index.parent / name) for name in names), index)


def shard_names(index: Path) -> list[str]:
    """Names of the files an index names; refuses one that would lie elsewhere."""
    names = sorted(set(weight_map(kept_inside(index)).values()))
    if astray := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} names the shard {astray[0]!r}; shards lie beside their index")
    return names


def kept_inside(path: Path, folder: Path | None = None) -> Path:
    """`path`, unless it leads out of its folder: no other file of this machine may pass for the checkpoint's.

    folder: that of the checkpoint, where `path` may lie deeper.  The hub's cache keeps contents beside the snapshots
    that link to them, which is inside enough.
    """
    folder, target = (folder or path.parent).resolve(), path.resolve()
    homes = [folder, *([folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [])]
    if not any(home in target.parents for home in homes):
        raise ValueError(f"{path} leads to {target}, outside its folder; put the file itself there")
    return path


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard, as an index file says."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"{index} has no weight_map of tensor names to files; download it again")
    return table


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint under its stored name, on the CPU, values and dtypes untouched.

    Training checkpoints are unwrapped to their state dict, see `unwrap`; what is no tensor is left out.
    """
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"{folder} holds adapters of PEFT that are not merged ({ADAPTER}), and weights mean something else without "
            f"them; merge them with model.merge_and_unload(), and save what that returns to a new folder"
        )
    weights = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for path in weights.files:
        shard = read_file(path)
        if twice := sorted(tensors.keys() & shard.keys()):
            raise ValueError(f"{path} repeats {twice[0]}, which another shard holds; download the checkpoint again")
        tensors |= shard
    for path in others_beside(folder, weights):
        try:
            others = read_file(path)
        except (ValueError, OSError):  # it is passed over anyway
            continue
        refuse_other_values(weights.index or weights.files[0], tensors, path, others)
    if weights.index is not None and (lost := sorted(weight_map(weights.index).keys() - tensors.keys())):
        raise ValueError(f"{weights.index} promises {lost[0]}, which no shard holds; download the checkpoint again")
    return tensors


def others_beside(folder: Path, weights: WeightFiles) -> list[Path]:
    """The files in a folder that go by a name of weights, too, and are passed over."""
    found: list[Path] = []
    for path in (folder / name for name in NAMES):
        if path.is_file() and path != weights.index:
            with suppress(ValueError, OSError):
                found += shards(path).files if path.name.endswith(INDEX) else [kept_inside(path)]
    return [path for path in dict.fromkeys(found) if path not in weights.files]


def refuse_other_values(first: Path, tensors: Mapping[str, Tensor], path: Path, others: Mapping[str, Tensor]) -> None:
    """Refuse another file that has other values for a tensor of these: only one of them can be what is meant."""
    for name in sorted(tensors.keys() & others.keys()):
        if not alike(tensors[name], others[name]):
            raise ValueError(f"{first} and {path} both hold {name}, with different values; keep the one that is meant")


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, but perhaps for a rounding to the dtype of the other."""
    if a.shape != b.shape:
        return False
    return any(torch.equal(x.to(y.dtype).nan_to_num(), y.nan_to_num()) for x, y in ((a, b), (b, a)))


def read_file(path: Path) -> dict[str, Tensor]:
    """Tensors of one file, by name; on disk until somebody looks at them, where the format allows it."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    refuse_pointer(path)
    data = read_pickle(path)
    content = unwrap(data, path)
    tensors = {k: v.detach() for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path} {why_no_tensors(data)}")
    check_plain(path, tensors)
    return tensors


def read_pickle(path: Path) -> Any:
    """What a pickle holds, by torch's own restricted reader, or by ours where foreign classes lie in it."""
    unpickle.check_size(path)
    for mapped in (True, False):  # on disk until somebody looks; torch writes files that cannot be mapped, too
        with suppress(Exception):  # torch raises anything on what it does not know or what is damaged
            if not unpickle.has_long_texts(path):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    return unpickle.load(path)  # which says what is wrong


def check_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors out of a pickle that are more than a view of the file's bytes: sparse, quantised, or inflated."""
    claimed, most = 0, COPIES * path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{path} holds {name} in a form that is no plain array; save it dense, on the CPU")
        claimed += tensor.numel() * tensor.element_size()
    if claimed > most:
        raise ValueError(
            f"{path} claims {readable_size(claimed)} of tensors, many times what it holds; do not trust it"
        )


def unwrap(data: Any, path: Path) -> Mapping[str, Any]:
    """The state dict inside what people save of a training run: Lightning, Composer, DeepSpeed, loops of their own.

    It lies in one of the places in NESTED, perhaps in several inside one another.  {} where there is none.
    """
    for _ in range(DEEPEST):
        inner = {".".join(names): found for names in NESTED if holds_tensors(found := lying_at(data, names))}
        if not inner:
            break
        (first, data), *others = inner.items()
        if other := next((name for name, another in others if another is not data), None):
            raise ValueError(f"{path} holds two state dicts, {first!r} and {other!r}; keep the one that is meant")
    return data if isinstance(data, Mapping) else {}


def lying_at(data: Any, names: Iterable[str]) -> Any:
    """What mappings inside one another hold; None for nothing."""
    for name in names:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def holds_tensors(data: Any, depth: int = DEEPEST) -> bool:
    """Whether this is a state dict, or has one inside."""
    if not isinstance(data, Mapping):
        return False
    if any(isinstance(value, Tensor) for value in data.values()):
        return True
    return depth > 0 and any(holds_tensors(lying_at(data, names), depth - 1) for names in NESTED)


def why_no_tensors(data: Any) -> str:
    """What to say of a pickle without a state dict."""
    if any(isinstance(value, unpickle.Stub) for value in (data, *(lying_at(data, names) for names in NESTED))):
        return (
            "holds a whole module as its code made it, which is never run here; "
            "save its state dict with torch.save(model.state_dict(), ...)"
        )
    return "holds no tensors by name; expected a state dict, or one inside a training checkpoint"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, or {} where there is none: sizes come from the tensors."""
    path = folder / "config.json"
    return read_json(kept_inside(path)) if path.is_file() else {}


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """model.safetensors in a folder of our own making; tensors that share memory are written apart.

    The format has no way to say so.
    """
    apart = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    path = folder / NAMES[0]
    write_safetensors(path, apart, {"format": "pt"})
    path.chmod(folder.stat().st_mode & 0o666)  # as all other files: the library lets nobody but the owner read it

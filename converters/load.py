"""The way in: source -> tensors -> family -> model -> planned convolutions, with nothing left unexplained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify import swap
from sparsify.cpu.linear import use_precision
from sparsify.plan import Plan
from sparsify.sites import ConvSite
from sparsify.storage.files import read_json
from sparsify.storage.tensors import fingerprint
from sparsify.swap import Filters

from . import registry
from .family import Family, check_options
from .hub.download import PLAN_TENSORS, Source, resolve
from .state_dict import listed
from .tensors import read_config, read_tensors

QUANT_METHOD = "sparsify"
PLAN = "plan.json"  # the plan once more, to read
FORMAT = 1  # of quantization_config, see docs/format.md; what came before it has no number, and reads the same


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A checkpoint, ready to run under its plan: the model and where it convolves."""

    model: nn.Module  #: eval mode, frozen; ids (B, L) -> what its head gives
    sites: tuple[ConvSite, ...]  #: its long convolutions
    tokenizer: Any  #: text <-> ids, a `family.Tokenizer`
    family: str
    head: str  #: "lm" or "mlm": logits (B, L, V); "classifier": scores (B, labels); "encoder": embeddings (B, D)
    context: int  #: tokens of text that fit beside the special ones
    source: Source
    config: dict[str, Any]  #: config.json as it lies in the source
    config_overrides: dict[str, Any]  #: what config.json must say besides, so that a copy loads the same
    options: dict[str, Any]  #: what of it the family lets its users choose, as it is now
    sha256: str  #: fingerprint of the stored tensors
    notes: tuple[str, ...]  #: decisions the checkpoint left open, a sentence each

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def quantization(self) -> dict[str, Any] | None:
        """What this package wrote into config.json, or None for a checkpoint it has not touched."""
        return ours(self.config)

    @cached_property
    def filters(self) -> Filters:
        """The filter of every site by name, float32, on the CPU: made when asked for, and anew when weights changed."""
        return Filters(self.sites)

    @cached_property
    def plan(self) -> Plan:
        """The plan the checkpoint was saved with, or the dense one."""
        if self.quantization is None:
            return Plan.dense(site.name for site in self.sites)
        return saved_plan(self.quantization, self.source.folder)


def ours(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `quantization_config` of a config.json if it is ours, else None."""
    entry = config.get("quantization_config")
    return entry if isinstance(entry, dict) and entry.get("quant_method") == QUANT_METHOD else None


def entry_plan(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The plan in a `quantization_config` of ours, as JSON has it; refuses formats that this version does not know."""
    if (version := entry.get("format_version", FORMAT)) != FORMAT:
        newer = type(version) is int and version > FORMAT
        remedy = "upgrade sparsify" if newer else "write it again with `sparsify convert SRC OUT --force`"
        raise ValueError(
            f"quantization_config has format_version {version!r:.60}, this sparsify reads {FORMAT}; {remedy}"
        )
    if not isinstance(saved := entry.get("plan"), dict):
        raise ValueError("quantization_config has no plan; write it again with `sparsify convert SRC OUT --force`")
    return saved


def saved_plan(entry: Mapping[str, Any], folder: Path) -> Plan:
    """The plan in a `quantization_config` of ours, its coefficients from `folder` if it has any."""
    return Plan.from_dict_beside(entry_plan(entry), folder / PLAN_TENSORS)


def check_device(device: str | torch.device) -> None:
    """Refuse a device that is not here before anything is read."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch says the same thing in many ways
        raise ValueError(f"there is no device {str(device)!r} here; leave --device out, or pass cpu") from error


def build(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[str, Family, Any, tuple[str, ...]]:
    """The model that stored tensors make, all of it finite: name and module of its family, the model, its notes."""
    name, family = registry.find({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    check_options(name, family, options or {})
    model, notes = family.build(tensors, config, options or {}, dtype)
    if broken := [key for key, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{len(broken)} tensors hold infinite or undefined values: {listed(broken)}; the checkpoint is damaged, "
            f"download it again or take another revision"
        )
    return name, family, model, notes


def recorded(entry: Mapping[str, Any] | None) -> dict[str, bool]:
    """The fingerprints that a `quantization_config` has for its weights: each with whether the plan was made for them.

    Weights that were loaded and saved again lie in another file, with another fingerprint, and may have been trained.
    Returns {} where nothing is recorded.
    """
    source = (entry or {}).get("source")
    if not isinstance(source, dict) or source.get("sha256") is None:
        return {}
    again = source.get("resaved")
    return {source["sha256"]: True} | (
        {again.get("sha256"): again.get("changed") is False} if isinstance(again, dict) else {}
    )


def strangers(entry: Mapping[str, Any] | None, sha256: str) -> list[str]:
    """A note if a plan lies with other weights than those it was made for."""
    known = recorded(entry)
    if not known or known.get(sha256):
        return []
    return ["the weights are not those that the plan was made for, so what was measured with it may not hold"]


def unused_plan(config: Mapping[str, Any], folder: Path) -> list[str]:
    """A note if a folder has a plan.json that says something else than its config.json, which alone counts."""
    path = folder / PLAN
    if not path.is_file():
        return []
    entry = ours(config)
    with suppress(ValueError, OSError):
        if entry is not None and read_json(path) == entry.get("plan"):
            return []
    runs = "has no plan, so the model runs dense" if entry is None else "has another plan, and that is used"
    return [f"{PLAN} is not used: config.json {runs}; `sparsify convert SRC OUT --plan {PLAN}` applies it"]


def load(
    src: str | Path,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    *,
    options: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Pretrained:
    """Load a checkpoint, frozen and in eval mode.

    Its convolutions run under the plan it was saved with, or dense; either way their filters are prepared once, and
    again when the weights behind them change.  No code of the checkpoint is run.

    Args:
        src: A folder or a hub id, ORG/NAME.
        revision: Branch, tag or commit on the hub; None is main.
        device: Where to run, as "cpu" or "cuda:1".
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA, whose filters the hub's
            modelling code gives a floor that training had not.
        dtype: What the weights are held in, whatever they are stored in; those of implicit filters stay float32.

    Returns:
        The model with its convolution sites, its tokenizer and its plan.

    Raises:
        ValueError: The checkpoint is damaged, or there is no such device or option.
        LookupError: The tensors are of no family that is known here.
        OSError: There is no such folder or repository, or it cannot be read.
    """
    check_device(device)
    source = resolve(src, revision)
    tensors, config = read_tensors(source.folder), read_config(source.folder)
    name, family, model, notes = build(tensors, config, options, dtype)
    model.requires_grad_(False).eval().to(device)
    sha256, overrides = fingerprint(tensors), family.config_overrides(model.config)
    pretrained = Pretrained(
        model=model,
        sites=family.sites(model),
        tokenizer=family.tokenizer(model, source.folder),
        family=name,
        head=model.head,
        context=model.context,
        source=source,
        config=config,
        config_overrides=overrides,
        options={key: value for key, value in overrides.items() if key in family.OPTIONS},
        sha256=sha256,
        notes=(*notes, *strangers(ours(config), sha256), *unused_plan(config, source.folder)),
    )
    swap.install(pretrained.sites, swap.planned(pretrained.sites, pretrained.plan, pretrained.filters))
    use_precision(pretrained.model, pretrained.plan.linears)
    return pretrained

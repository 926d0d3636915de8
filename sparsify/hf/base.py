"""What our models share behind transformers' interface: from_pretrained, save_pretrained, and their convolutions.

Names of saved tensors are those of the hub's own code, so either reads what the other wrote.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from sparsify import swap
from sparsify.converters import implicit
from sparsify.converters.folder import copy_beside
from sparsify.converters.load import build, ours, saved_plan
from sparsify.converters.tensors import INDEX, read_config, read_tensors, shard_names
from sparsify.plan import Plan
from sparsify.sites import ConvSite

from .config import FamilyConfig

logger = logging.get_logger("transformers.sparsify")  # below transformers, so that its verbosity counts here, too
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
BESIDE = ("plan.json", "plan.safetensors", "report.json", "report.html", "README.md")  # go along when it is saved
WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
OURS = "model."  # what our modules' names begin with here


def fetch(name: str, where: dict[str, Any]) -> Path:
    """Folder that holds the checkpoint `name`, a folder or a hub id, in transformers' own way and cache."""
    subfolder = where.get("subfolder") or ""
    if Path(name).is_dir():
        return Path(name) / subfolder

    def get(file: str) -> Path | None:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)
        return None if path is None else Path(path)

    config = get("config.json")
    if config is not None and "snapshots" in (parts := config.parts):
        where = {**where, "revision": parts[parts.index("snapshots") + 1]}  # all that follows of the same commit
    found = next((path for path in map(get, WEIGHTS) if path), None)
    if found is None:
        raise OSError(f"{name} has none of {', '.join(WEIGHTS)}; use sparsify.load, which knows other files as well")
    for file in (*(shard_names(found) if found.name.endswith(INDEX) else ()), *BESIDE):
        get(file)
    return found.parent


class FamilyModel(PreTrainedModel):
    """A model of ours with a head.  In eval mode all convolutions are prepared; in train mode a dense model's learn."""

    config: FamilyConfig
    config_class: type[FamilyConfig]
    family: ModuleType
    model: Any  # of that family
    base_model_prefix = "model"
    main_input_name = "input_ids"

    def __init__(self, config: FamilyConfig, model: nn.Module, folder: Path | None = None) -> None:
        super().__init__(config)
        self.model = model
        self.folder = folder  # where the checkpoint lies

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, state_dict: Any = None, **kwargs: Any
    ) -> Any:
        """As in transformers; every layout and dialect that `sparsify.load` reads, and with the same refusals."""
        name = pretrained_model_name_or_path
        if name is None or state_dict is not None:
            return super().from_pretrained(name, *args, config=config, state_dict=state_dict, **kwargs)
        folder = fetch(str(name), {key: kwargs[key] for key in WHERE if kwargs.get(key) is not None})
        stored = read_config(folder)
        shift = getattr(config, "shift", None) if isinstance(config, PretrainedConfig) else kwargs.get("shift")
        asked = {} if shift is None else {"shift": shift}
        found, family, net, notes = build(read_tensors(folder), {**stored, **asked})
        if family is not cls.family:
            raise ValueError(f"{name} is a checkpoint of {found}, which {cls.__name__} is not for; use AutoModel")
        for note in notes:
            logger.warning(f"{name}: {note}")
        known = cls.config_class.left_open(stored, net)
        if isinstance(config, PretrainedConfig):
            config = copy.deepcopy(config)
            config.update(known)
        else:
            kwargs = {**known, **kwargs}
        weights = {OURS + key: tensor for key, tensor in net.state_dict().items()}
        config = name if config is None else config
        loaded = super().from_pretrained(None, *args, config=config, state_dict=weights, folder=folder, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(name)
        return loaded

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """As in transformers; plan, report and card of a folder that sparsify wrote go along."""
        if self.folder is not None:
            copy_beside(self.folder, Path(save_directory))
        super().save_pretrained(save_directory, is_main_process, self.stored_state_dict(state_dict), *args, **kwargs)

    def stored_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Weights under the names of the hub's code."""
        state_dict = self.state_dict() if state_dict is None else state_dict
        return {self.stored_name(name.removeprefix(OURS)): tensor for name, tensor in state_dict.items()}

    @staticmethod
    def stored_name(name: str) -> str:
        return name

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, implicit.PositionalEmbedding | implicit.Modulation):
            module.reset_parameters()
        if isinstance(module, implicit.ImplicitFilter):
            nn.init.normal_(module.bias)

    # --- convolutions ------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[ConvSite, ...]:
        return self.family.sites(self.model)

    @property
    def plan(self) -> Plan:
        """The plan in config.quantization_config, or the dense one."""
        entry = ours(self.config.to_dict())
        if entry is None:
            return Plan.dense(site.name for site in self.sites)
        return saved_plan(entry, self.folder or Path())

    def prepare_convolutions(self) -> None:
        """Install the planned convolutions of the filters as they are now; in training, a dense model's own."""
        if self.training and self.plan.is_dense:
            swap.install(self.sites, {site.name: None for site in self.sites})
        elif not any(tensor.is_meta for tensor in self.state_dict().values()):
            swap.apply_(self.sites, self.plan)

    def train(self, mode: bool = True) -> Any:
        changes = mode != self.training
        super().train(mode)
        if changes:
            self.prepare_convolutions()
        return self

    # --- heads -------------------------------------------------------------------------------------------------------

    def loss_of(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """A classifier's loss, where there are labels."""
        if labels is None:
            return None
        return self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)


def given(input_ids: Tensor | None) -> Tensor:
    if input_ids is None:
        raise ValueError("the model takes input_ids, token ids of shape (batch, tokens), and got none")
    return input_ids


def told(output: Any, return_dict: bool | None) -> Any:
    """An output as the caller wants it."""
    return output.to_tuple() if return_dict is False else output

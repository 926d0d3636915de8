"""What our models share behind transformers' interface: from_pretrained, save_pretrained, and their convolutions.

Modules stand where the hub's own code has them, so parameters, state dicts and files have one set of names, the hub's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from sparsify import swap
from sparsify.converters.family import Family
from sparsify.converters.load import build, ours, saved_plan, strangers
from sparsify.converters.models import implicit_filter
from sparsify.converters.save import as_json, copy_beside
from sparsify.converters.state_dict import fill_tied, translate
from sparsify.converters.tensors import INDEX, read_config, read_tensors, shard_names
from sparsify.cpu.linear import use_precision
from sparsify.plan import Plan
from sparsify.sites import ConvSite, Replaceable
from sparsify.storage.files import write_whole
from sparsify.storage.tensors import fingerprint

from .config import FamilyConfig

logger = logging.get_logger("transformers.sparsify")  # below transformers, so that its verbosity counts here, too
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
BESIDE = ("plan.json", "plan.safetensors", "report.json", "report.html", "README.md")  # go along when it is saved
WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
WITHOUT_MEANING = {"output_attentions", "use_cache", "num_items_in_batch", "token_type_ids"}  # of calls, and harmless


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
    """A model of ours with a head, whose convolutions are prepared and follow its weights."""

    config: FamilyConfig
    config_class: type[FamilyConfig]
    family: Family
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    prefix = ""  # what the hub's code puts before the names that our own modules have

    def __init__(self, config: FamilyConfig, folder: Path | None = None, **head: Any) -> None:
        """folder: where the checkpoint lies.  head: what of the sizes the class says, not the config."""
        super().__init__(config)
        self.sizes = config.sizes(**head)
        self.folder = folder
        self.loaded_as: str | None = None  # fingerprint of the weights that a plan was made for
        self.waits = True  # for its convolutions to be prepared

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
        values = config.to_dict() if isinstance(config, PretrainedConfig) else kwargs
        asked = {option: values[option] for option in cls.family.OPTIONS if values.get(option) is not None}
        tensors = read_tensors(folder)
        found, family, net, notes = build(tensors, {**stored, **asked})
        if family is not cls.family:
            raise ValueError(f"{name} is a checkpoint of {found}, which {cls.__name__} is not for; use AutoModel")
        entry = ours(stored)
        values = config.to_dict() if isinstance(config, PretrainedConfig) else kwargs
        if entry is not None and values.get("quantization_config", entry) is None:
            logger.warning(f"{name}: quantization_config=None leaves the plan out, and the model is dense")
        changed = [] if entry is None else strangers(entry, fingerprint(tensors))
        for note in (*notes, *changed):
            logger.warning(f"{name}: {note}")
        known = cls.config_class.left_open(stored, net)
        if isinstance(config, PretrainedConfig):
            if config.num_labels != PretrainedConfig().num_labels:
                known.pop("num_labels", None)  # somebody asked for other labels than the file has
            config = copy.deepcopy(config)
            config.update(known)
        else:
            kwargs = {**known, **kwargs}
        weights = {cls.place(key): tensor for key, tensor in net.state_dict().items()}
        config = name if config is None else config
        loaded = super().from_pretrained(None, *args, config=config, state_dict=weights, folder=folder, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(name)
        if entry is not None and not changed:
            model.loaded_as = model.values()
        return loaded

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """As in transformers; plan, report and card of a folder that sparsify wrote go along."""
        if self.folder is not None:
            copy_beside(self.folder, Path(save_directory))
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            others = bool(args) or kwargs.get("state_dict") is not None
            self.note_resaved(Path(save_directory), others or self.loaded_as is None or self.loaded_as != self.values())

    def values(self) -> str | None:
        """Fingerprint of all weights; None for those of another precision than float32, which are rounded."""
        if any(w.is_meta or w.dtype != torch.float32 for w in self.parameters()):
            return None
        return fingerprint({name: tensor.cpu() for name, tensor in self.state_dict().items()})

    def note_resaved(self, folder: Path, changed: bool) -> None:
        """Say in config.json which weights lie there now, and whether they are still those the plan was made for."""
        stored = read_config(folder)
        source = (ours(stored) or {}).get("source")
        if not isinstance(source, dict) or not source.get("sha256"):
            return
        sha256 = fingerprint(read_tensors(folder))
        if sha256 != source["sha256"]:
            source["resaved"] = {"sha256": sha256, "changed": changed}
            write_whole(folder / "config.json", as_json(stored).encode())

    # --- names -------------------------------------------------------------------------------------------------------

    @classmethod
    def place(cls, name: str) -> str:
        """Where a tensor of our own module stands here, by the names of the hub's code."""
        return cls.prefix + name if name.startswith("backbone.") else name

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the names of every dialect; refuse, where this is the model that loads, tensors that are none of its."""
        translate(state_dict, prefix, self.state_dict().keys(), lambda name: self.renamed(name))
        for head, embedding in (self._tied_weights_keys or {}).items():
            if self.get_parameter(head) is self.get_parameter(embedding):
                fill_tied(state_dict, prefix + head, prefix + embedding)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def renamed(self, name: str) -> str | None:
        own = self.family.rename(name)
        return None if own is None else self.place(own)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, implicit_filter.PositionalEmbedding | implicit_filter.Modulation):
            module.reset_parameters()
        if isinstance(module, implicit_filter.ImplicitFilter):
            nn.init.normal_(module.bias)

    # --- convolutions ------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[ConvSite, ...]:
        return self.family.sites(self, self.sizes)

    @property
    def plan(self) -> Plan:
        """The plan in config.quantization_config, or the dense one."""
        entry = ours(self.config.to_dict())
        if entry is None:
            return Plan.dense(site.name for site in self.sites)
        return saved_plan(entry, self.folder or Path())

    def prepare_convolutions(self) -> None:
        """Install the planned convolutions, which follow the weights; filters under a plan are frozen.

        Call `requires_grad_(True)` on a filter to let it learn all the same: gradients go through the plan.
        """
        sites, plan = self.sites, self.plan
        self.waits = False
        swap.install(sites, swap.planned(sites, plan))
        use_precision(self, plan.linears, strict=False)  # an adapter may stand where a layer was
        for site in sites:
            if plan.filters[site.name].kind != "dense" and site.weights is not None:
                for weight in site.weights():
                    weight.requires_grad_(False)

    @property
    def is_prepared(self) -> bool:
        """Whether an operator is installed in every convolution."""
        return all(part.long_conv is not None for part in self.modules() if isinstance(part, Replaceable))

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if not (mode or self.is_prepared or any(tensor.is_meta for tensor in self.state_dict().values())):
            self.prepare_convolutions()
        return self

    # --- calls -------------------------------------------------------------------------------------------------------

    def check_call(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, unknown: Mapping[str, Any]) -> None:
        """Refuse inputs that are none or two, and arguments that would have to mean something and do not here.

        A model whose weights came after it was made gets its convolutions now, so that no plan is left out.
        """
        if self.waits and not self.is_prepared and not any(tensor.is_meta for tensor in self.state_dict().values()):
            self.prepare_convolutions()
        if (input_ids is None) == (inputs_embeds is None):
            got = "none" if input_ids is None else "both"
            raise ValueError(
                f"the model takes input_ids, token ids of shape (batch, tokens), or inputs_embeds, their embeddings "
                f"(batch, tokens, {self.config.hidden_size}); got {got} of them"
            )
        if inputs_embeds is not None and (inputs_embeds.dim() != 3 or not inputs_embeds.numel()):
            raise ValueError(
                f"got inputs_embeds of shape {tuple(inputs_embeds.shape)}, expected (batch, tokens, "
                f"{self.config.hidden_size}), at least one of each"
            )
        if unknown.get("output_attentions"):
            logger.warning_once("output_attentions has no meaning for this model: it has convolutions, no attention")
        odd = [name for name, value in unknown.items() if value is not None and name not in WITHOUT_MEANING]
        if odd:
            raise TypeError(f"{type(self).__name__} takes no {', '.join(sorted(odd))}; leave that out")

    def states_wanted(self, output_hidden_states: bool | None) -> list[Tensor] | None:
        """A list to gather hidden states in, where they are asked for by this call or by the config."""
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return [] if asked else None

    def loss_of(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """A classifier's loss, where there are labels."""
        if labels is None:
            return None
        return self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)

    def returned(self, output: Any, return_dict: bool | None) -> Any:
        """An output as the caller or the config wants it."""
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

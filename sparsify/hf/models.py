"""Our models behind transformers' interface: from_pretrained, save_pretrained, outputs by name, loss, generate.

Names of classes and of saved tensors are those of the hub's own code, so either reads what the other wrote.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, SequenceClassifierOutput
from transformers.utils import logging
from transformers.utils.hub import cached_file

from sparsify import swap
from sparsify.converters import hyena_dna, implicit
from sparsify.converters.load import build, entry_plan, ours, saved_plan
from sparsify.converters.tensors import INDEX, kept_inside, read_config, read_tensors, shard_names, weight_files
from sparsify.plan import Plan, has_coefficients

from .config import SIZES, HyenaDNAConfig

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


def beside_weights(folder: Path) -> list[Path]:
    """What sparsify wrote into `folder` beside config and weights: the plan, the report, the card."""
    entry, weights = ours(read_config(folder)) or {}, weight_files(folder)
    taken = {"config.json", *(path.name for path in (*weights.files, *filter(None, [weights.index])))}
    names = entry.get("files")
    paths = [folder / Path(str(name)).name for name in (names if isinstance(names, list) else ())]
    return [kept_inside(path) for path in paths if path.is_file() and path.name not in taken]


def left_open(stored: dict[str, Any], sizes: hyena_dna.HyenaDNAConfig) -> dict[str, Any]:
    """What config.json does not say, though the weights tell."""
    said = HyenaDNAConfig(**stored)
    known = {name: getattr(sizes, name) for name in SIZES if name != "shift" and getattr(said, name) is None}
    if sizes.num_labels and not stored.keys() & {"num_labels", "id2label"}:
        known["num_labels"] = sizes.num_labels
    return known


class HyenaDNAPreTrainedModel(PreTrainedModel):
    """What the heads share.  In eval mode all convolutions are prepared; in train mode those of a dense model learn."""

    config: HyenaDNAConfig
    config_class = HyenaDNAConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _keep_in_fp32_modules_strict = {"filter_fn"}  # half precision cannot tell the taps apart

    folder: Path | None = None  # where the checkpoint lies
    waits = False  # for the folder, where the plan's coefficients are

    def __init__(self, config: HyenaDNAConfig, num_labels: int | None = None) -> None:
        super().__init__(config)
        self.model = hyena_dna.HyenaDNA(config.sizes(num_labels))
        config.shift = self.model.config.shift

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
        _, _, net, notes = build(read_tensors(folder), {**stored, **asked})
        for note in notes:
            logger.warning(f"{name}: {note}")
        known = left_open(stored, net.config)
        if isinstance(config, PretrainedConfig):
            config = copy.deepcopy(config)
            config.update(known)
        else:
            kwargs = {**known, **kwargs}
        weights = {OURS + key: tensor for key, tensor in net.state_dict().items()}
        loaded = super().from_pretrained(
            None, *args, config=name if config is None else config, state_dict=weights, **kwargs
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.folder = folder
        if model.waits:
            model.prepare_convolutions()
        model.name_or_path = model.config.name_or_path = str(name)
        return loaded

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """As in transformers; plan, report and card of a folder that sparsify wrote go along."""
        out = Path(save_directory)
        if self.folder is not None and out.resolve() != self.folder.resolve():
            out.mkdir(parents=True, exist_ok=True)
            for path in beside_weights(self.folder):
                shutil.copyfile(path, out / path.name)
        super().save_pretrained(save_directory, is_main_process, self.stored_state_dict(state_dict), *args, **kwargs)

    def stored_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Weights under the names of the hub's code."""
        state_dict = self.state_dict() if state_dict is None else state_dict
        return {self.stored_name(name.removeprefix(OURS)): tensor for name, tensor in state_dict.items()}

    @staticmethod
    def stored_name(name: str) -> str:
        return f"hyena.{name}" if name.startswith("backbone.") else name

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, implicit.PositionalEmbedding | implicit.Modulation):
            module.reset_parameters()
        if isinstance(module, implicit.ImplicitFilter):
            nn.init.normal_(module.bias)

    # --- convolutions ------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """The plan in config.quantization_config, or the dense one."""
        entry = ours(self.config.to_dict())
        if entry is None:
            return Plan.dense(site.name for site in hyena_dna.sites(self.model))
        return saved_plan(entry, self.folder or Path())

    def prepare_convolutions(self) -> None:
        """Install the planned convolutions of the filters as they are now; in training, a dense model's own."""
        entry = ours(self.config.to_dict())
        self.waits = entry is not None and self.folder is None and has_coefficients(entry_plan(entry))
        if self.waits:
            return
        sites, plan = hyena_dna.sites(self.model), self.plan
        if self.training and plan.is_dense:
            swap.install(sites, {site.name: None for site in sites})
        elif not any(tensor.is_meta for tensor in self.state_dict().values()):
            swap.install(sites, swap.operators(swap.materialize(sites), plan))

    def train(self, mode: bool = True) -> Any:
        changes = mode != self.training
        super().train(mode)
        if changes:
            self.prepare_convolutions()
        return self

    # --- the rest ----------------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        return self.model.backbone.embeddings["word_embeddings"]

    def compute(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """What the model makes of ids (B, L)."""
        if input_ids is None:
            raise ValueError("the model takes input_ids, token ids of shape (batch, tokens), and got none")
        if attention_mask is not None and not attention_mask.all():
            logger.warning_once("HyenaDNA has no attention mask: padding is data to it, as in the reference")
        return self.model(input_ids)


class HyenaDNAModel(HyenaDNAPreTrainedModel):
    """input_ids (B, L) -> last_hidden_state (B, L, D)."""

    _keys_to_ignore_on_load_unexpected = [r"^model\.(lm_head|score)\."]

    def __init__(self, config: HyenaDNAConfig) -> None:
        super().__init__(config)
        self.model.lm_head = nn.Identity()
        self.post_init()

    @staticmethod
    def stored_name(name: str) -> str:
        return name

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        output = BaseModelOutput(last_hidden_state=self.compute(input_ids, attention_mask))
        return output.to_tuple() if return_dict is False else output


class HyenaDNAForCausalLM(HyenaDNAPreTrainedModel, GenerationMixin):
    """input_ids (B, L) -> logits (B, L, 16), and the loss where labels (B, L) are given."""

    def __init__(self, config: HyenaDNAConfig) -> None:
        super().__init__(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.lm_head

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        logits = self.compute(input_ids, attention_mask)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.shape[-1])
        output = CausalLMOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All tokens, each time: `generate` knows no cache here, and `model.model.stream()` is the fast way."""
        return {"input_ids": input_ids}


class HyenaDNAForSequenceClassification(HyenaDNAPreTrainedModel):
    """input_ids (B, L) -> logits (B, labels) of the last token before padding, and the loss where labels are given."""

    def __init__(self, config: HyenaDNAConfig) -> None:
        super().__init__(config, config.num_labels)
        self.num_labels = config.num_labels
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        logits = self.compute(input_ids, attention_mask)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output


AutoModel.register(HyenaDNAConfig, HyenaDNAModel, exist_ok=True)
AutoModelForCausalLM.register(HyenaDNAConfig, HyenaDNAForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(HyenaDNAConfig, HyenaDNAForSequenceClassification, exist_ok=True)

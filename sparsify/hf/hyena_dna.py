"""HyenaDNA as transformers' AutoModel, AutoModelForCausalLM and AutoModelForSequenceClassification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, SequenceClassifierOutput

from sparsify.converters import hyena_dna

from .base import FamilyModel, given, logger, told
from .config import HyenaDNAConfig


class HyenaDNAPreTrainedModel(FamilyModel):
    """What the heads share."""

    config: HyenaDNAConfig
    config_class = HyenaDNAConfig
    family = hyena_dna
    _keep_in_fp32_modules_strict = {"filter_fn"}  # half precision cannot tell the taps apart

    def __init__(self, config: HyenaDNAConfig, folder: Path | None = None, num_labels: int | None = None) -> None:
        super().__init__(config, hyena_dna.HyenaDNA(config.sizes(num_labels=num_labels)), folder)
        config.shift = self.model.config.shift

    @staticmethod
    def stored_name(name: str) -> str:
        return f"hyena.{name}" if name.startswith("backbone.") else name

    def get_input_embeddings(self) -> nn.Module:
        return self.model.backbone.embeddings["word_embeddings"]

    def compute(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """What the model makes of ids (B, L)."""
        if attention_mask is not None and not attention_mask.all():
            logger.warning_once("HyenaDNA has no attention mask: padding is data to it, as in the reference")
        return self.model(given(input_ids))


class HyenaDNAModel(HyenaDNAPreTrainedModel):
    """input_ids (B, L) -> last_hidden_state (B, L, D)."""

    _keys_to_ignore_on_load_unexpected = [r"^model\.(lm_head|score)\."]

    def __init__(self, config: HyenaDNAConfig, folder: Path | None = None) -> None:
        super().__init__(config, folder)
        self.model.lm_head = nn.Identity()
        self.post_init()

    @staticmethod
    def stored_name(name: str) -> str:
        return name

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        return told(BaseModelOutput(last_hidden_state=self.compute(input_ids, attention_mask)), return_dict)


class HyenaDNAForCausalLM(HyenaDNAPreTrainedModel, GenerationMixin):
    """input_ids (B, L) -> logits (B, L, 16), and the loss where labels (B, L) are given."""

    def __init__(self, config: HyenaDNAConfig, folder: Path | None = None) -> None:
        super().__init__(config, folder)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.lm_head

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        logits = self.compute(input_ids, attention_mask)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.shape[-1])
        return told(CausalLMOutput(loss=loss, logits=logits), return_dict)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All tokens, each time: `generate` knows no cache here, and `model.model.stream()` is the fast way."""
        return {"input_ids": input_ids}


class HyenaDNAForSequenceClassification(HyenaDNAPreTrainedModel):
    """input_ids (B, L) -> logits (B, labels) of the last token before padding, and the loss where labels are given."""

    def __init__(self, config: HyenaDNAConfig, folder: Path | None = None) -> None:
        super().__init__(config, folder, config.num_labels)
        self.num_labels = config.num_labels
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        logits = self.compute(input_ids, attention_mask)
        return told(SequenceClassifierOutput(loss=self.loss_of(logits, labels), logits=logits), return_dict)


AutoModel.register(HyenaDNAConfig, HyenaDNAModel, exist_ok=True)
AutoModelForCausalLM.register(HyenaDNAConfig, HyenaDNAForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(HyenaDNAConfig, HyenaDNAForSequenceClassification, exist_ok=True)

"""HyenaDNA as transformers' AutoModel, AutoModelForCausalLM and AutoModelForSequenceClassification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from sparsify.converters import hyena_dna

from .base import told
from .config import HyenaDNAConfig
from .hyena import HyenaLanguageModel, HyenaPreTrainedModel, HyenaStates


class HyenaDNAPreTrainedModel(HyenaPreTrainedModel):
    """What the heads share."""

    config: HyenaDNAConfig
    config_class = HyenaDNAConfig
    family = hyena_dna
    makes = hyena_dna.HyenaDNA

    @staticmethod
    def stored_name(name: str) -> str:
        return f"hyena.{name}" if name.startswith("backbone.") else name


class HyenaDNAModel(HyenaStates, HyenaDNAPreTrainedModel):
    """input_ids (B, L) -> last_hidden_state (B, L, D)."""

    config_class = HyenaDNAConfig


class HyenaDNAForCausalLM(HyenaLanguageModel, HyenaDNAPreTrainedModel):
    """input_ids (B, L) -> logits (B, L, 16), and the loss where labels (B, L) are given."""

    config_class = HyenaDNAConfig


class HyenaDNAForSequenceClassification(HyenaDNAPreTrainedModel):
    """input_ids (B, L) -> logits (B, labels) of the last token before padding, and the loss where labels are given."""

    def __init__(self, config: HyenaDNAConfig, folder: Path | None = None) -> None:
        super().__init__(config, folder, num_labels=config.num_labels)
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

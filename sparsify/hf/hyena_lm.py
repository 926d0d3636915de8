"""Hyena LM as transformers' AutoModel and AutoModelForCausalLM."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModel, AutoModelForCausalLM

from sparsify.converters import hyena_lm
from sparsify.converters.models.hyena import Backbone
from sparsify.converters.models.hyena_keys import EMBEDDING, HEAD
from sparsify.stream import Stream

from .config import HyenaLMConfig
from .hyena import HyenaLanguageModel, HyenaPreTrainedModel, HyenaStates, shifts_labels


class HyenaLMPreTrainedModel(HyenaPreTrainedModel):
    """What the heads share."""

    config: HyenaLMConfig
    config_class = HyenaLMConfig
    family = hyena_lm
    base_model_prefix = "backbone"


class HyenaLMModel(HyenaStates, HyenaLMPreTrainedModel):
    """input_ids (B, L) -> last_hidden_state (B, L, D)."""

    config_class = HyenaLMConfig


class HyenaLMForCausalLM(HyenaLanguageModel, HyenaLMPreTrainedModel):
    """input_ids (B, L) -> logits (B, L, 50264), and the loss where labels (B, L) are given."""

    config_class = HyenaLMConfig
    _tied_weights_keys = {HEAD: EMBEDDING}
    letters = range(hyena_lm.TOKENS)
    tokens = hyena_lm.TOKENS

    def __init__(self, config: HyenaLMConfig, folder: Path | None = None) -> None:
        super().__init__(config, folder)
        self.backbone = Backbone(self.sizes)
        self.add_head()

    def stream(self, batch: int = 1, piece: int = hyena_lm.PIECE) -> Stream:
        """As every Hyena's, in shorter pieces."""
        return super().stream(batch, piece)


AutoModel.register(HyenaLMConfig, HyenaLMModel, exist_ok=True)
AutoModelForCausalLM.register(HyenaLMConfig, HyenaLMForCausalLM, exist_ok=True)
shifts_labels(HyenaLMForCausalLM)

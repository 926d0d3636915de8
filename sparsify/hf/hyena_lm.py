"""Hyena LM as transformers' AutoModel and AutoModelForCausalLM."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from sparsify.converters import hyena_lm
from sparsify.converters.hyena_layout import EMBEDDING, HEAD
from sparsify.converters.layout import without_tied

from .base import OURS
from .config import HyenaConfig, HyenaLMConfig
from .hyena import HyenaLanguageModel, HyenaPreTrainedModel, HyenaStates


class HyenaLMPreTrainedModel(HyenaPreTrainedModel):
    """What the heads share."""

    config: HyenaLMConfig
    config_class = HyenaLMConfig
    family = hyena_lm
    makes = hyena_lm.HyenaLM


class HyenaLMModel(HyenaStates, HyenaLMPreTrainedModel):
    """input_ids (B, L) -> last_hidden_state (B, L, D)."""

    config_class = HyenaLMConfig


class HyenaLMForCausalLM(HyenaLanguageModel, HyenaLMPreTrainedModel):
    """input_ids (B, L) -> logits (B, L, 50264), and the loss where labels (B, L) are given."""

    config_class = HyenaLMConfig
    _tied_weights_keys = {OURS + HEAD: OURS + EMBEDDING}

    def __init__(self, config: HyenaConfig, folder: Path | None = None) -> None:
        super().__init__(config, folder)
        self.generation_config.suppress_tokens = list(range(hyena_lm.TOKENS, self.model.config.vocab_rows))

    def stored_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        return without_tied(super().stored_state_dict(state_dict), HEAD, EMBEDDING)


AutoModel.register(HyenaLMConfig, HyenaLMModel, exist_ok=True)
AutoModelForCausalLM.register(HyenaLMConfig, HyenaLMForCausalLM, exist_ok=True)

"""What the Hyena models share behind transformers' interface: hidden states and a language model's logits.

A family's own classes name their `config_class` each: transformers gives every class one, these here, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from sparsify.converters.hyena_model import Hyena

from .base import FamilyModel, given, logger, told
from .config import HyenaConfig


class HyenaPreTrainedModel(FamilyModel):
    """What the heads share."""

    config: HyenaConfig
    config_class: type[HyenaConfig]
    makes: type[Hyena]
    _keep_in_fp32_modules_strict = {"filter_fn"}  # half precision cannot tell the taps apart

    def __init__(self, config: HyenaConfig, folder: Path | None = None, **sizes: Any) -> None:
        super().__init__(config, self.makes(config.sizes(**sizes)), folder)
        config.update(self.family.choices(self.model))

    def get_input_embeddings(self) -> nn.Module:
        return self.model.backbone.embeddings["word_embeddings"]

    def compute(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """What the model makes of ids (B, L)."""
        if attention_mask is not None and not attention_mask.all():
            logger.warning_once("Hyena models have no attention mask: padding is data to them, as in the reference")
        return self.model(given(input_ids))


class HyenaStates(HyenaPreTrainedModel):
    """input_ids (B, L) -> last_hidden_state (B, L, D): a model without its head."""

    _keys_to_ignore_on_load_unexpected = [r"^model\.(lm_head|score)\."]

    def __init__(self, config: HyenaConfig, folder: Path | None = None) -> None:
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


class HyenaLanguageModel(HyenaPreTrainedModel, GenerationMixin):
    """input_ids (B, L) -> logits (B, L, rows of the vocabulary), and the loss where labels (B, L) are given."""

    def __init__(self, config: HyenaConfig, folder: Path | None = None) -> None:
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

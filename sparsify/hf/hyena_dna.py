"""HyenaDNA as transformers' AutoModel, AutoModelForCausalLM and AutoModelForSequenceClassification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from sparsify.converters import hyena_dna
from sparsify.converters.models.hyena import Backbone
from sparsify.converters.tokenizers.dna import DnaTokenizer

from .config import HyenaDNAConfig
from .hyena import HyenaLanguageModel, HyenaPreTrainedModel, HyenaStates, shifts_labels


class HyenaDNAPreTrainedModel(HyenaPreTrainedModel):
    """What the heads share."""

    config: HyenaDNAConfig
    config_class = HyenaDNAConfig
    family = hyena_dna
    base_model_prefix = "hyena"


class HyenaDNAModel(HyenaStates, HyenaDNAPreTrainedModel):
    """input_ids (B, L) -> last_hidden_state (B, L, D)."""

    config_class = HyenaDNAConfig


class HyenaDNAWithHead(HyenaDNAPreTrainedModel):
    """A head on the states of `hyena`."""

    prefix = "hyena."

    def __init__(self, config: HyenaDNAConfig, folder: Path | None = None, **head: Any) -> None:
        super().__init__(config, folder, **head)
        self.hyena = HyenaDNAModel(config, folder, **head)

    @property
    def trunk(self) -> Backbone:
        return self.hyena.backbone

    def states(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None,
        output_hidden_states: bool | None, unknown: dict[str, Any],
    ) -> BaseModelOutput:  # fmt: skip
        return self.hyena(input_ids, attention_mask, inputs_embeds, output_hidden_states, return_dict=True, **unknown)


class HyenaDNAForCausalLM(HyenaLanguageModel, HyenaDNAWithHead):
    """input_ids (B, L) -> logits (B, L, 16), and the loss where labels (B, L) are given."""

    config_class = HyenaDNAConfig
    letters = range(*DnaTokenizer.id_range)
    tokens = DnaTokenizer.vocab_size

    def __init__(self, config: HyenaDNAConfig, folder: Path | None = None) -> None:
        super().__init__(config, folder)
        self.add_head()


class HyenaDNAForSequenceClassification(HyenaDNAWithHead):
    """input_ids (B, L) -> logits (B, labels) of the last token before padding, and the loss where labels are given."""

    accepts_loss_kwargs = False  # its loss is a mean over the batch

    def __init__(self, config: HyenaDNAConfig, folder: Path | None = None) -> None:
        super().__init__(config, folder, num_labels=config.num_labels)
        self.num_labels = int(config.num_labels or 0)
        self.score = nn.Linear(self.sizes.d_model, self.num_labels, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        found = self.states(input_ids, attention_mask, inputs_embeds, output_hidden_states, kwargs)
        is_padding = None if attention_mask is None else attention_mask == 0
        if input_ids is not None and (is_padding is None or not is_padding.any()):
            is_padding = input_ids == self.sizes.pad_token_id  # as the hub's code does, which looks at ids alone
        assert found.last_hidden_state is not None
        logits = self.score(hyena_dna.pool(found.last_hidden_state, is_padding))
        output = SequenceClassifierOutput(
            loss=self.loss_of(logits, labels), logits=logits, hidden_states=found.hidden_states
        )
        return self.returned(output, return_dict)


AutoModel.register(HyenaDNAConfig, HyenaDNAModel, exist_ok=True)
AutoModelForCausalLM.register(HyenaDNAConfig, HyenaDNAForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(HyenaDNAConfig, HyenaDNAForSequenceClassification, exist_ok=True)
shifts_labels(HyenaDNAForCausalLM)

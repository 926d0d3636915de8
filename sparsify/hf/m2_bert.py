"""M2-BERT as transformers' AutoModel, AutoModelForMaskedLM and AutoModelForSequenceClassification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput

from sparsify.converters import m2_bert, m2_bert_model
from sparsify.converters.layout import without_tied
from sparsify.linear import BlockDiagonal

from .base import OURS, FamilyModel, given, told
from .config import M2BertConfig


class M2BertPreTrainedModel(FamilyModel):
    """What the heads share."""

    config: M2BertConfig
    config_class = M2BertConfig
    family = m2_bert
    _keep_in_fp32_modules_strict = {"filter_fn", "filter_fn2"}  # half precision cannot tell the taps apart
    _keys_to_ignore_on_load_unexpected = [r"^model\.(cls|classifier|bert\.pooler)\."]  # of another head

    def __init__(self, config: M2BertConfig, head: str, folder: Path | None = None) -> None:
        sizes = config.sizes(head=head, num_labels=config.num_labels)
        super().__init__(config, m2_bert_model.M2Bert(sizes), folder)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlockDiagonal):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.bert.embeddings.word_embeddings

    def stored_state_dict(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        return without_tied(super().stored_state_dict(state_dict), m2_bert.DECODER, m2_bert.EMBEDDING)


class M2BertModel(M2BertPreTrainedModel):
    """input_ids (B, L) -> last_hidden_state (B, L, D), and pooler_output (B, D), the embedding of each text."""

    def __init__(self, config: M2BertConfig, folder: Path | None = None) -> None:
        super().__init__(config, "encoder", folder)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        states = self.model.hidden(given(input_ids), token_type_ids)
        output = BaseModelOutputWithPooling(
            last_hidden_state=states, pooler_output=self.model.pool(states, attention_mask)
        )
        return told(output, return_dict)


class M2BertForMaskedLM(M2BertPreTrainedModel):
    """input_ids (B, L) -> logits (B, L, V), and the loss where labels (B, L) are given, -100 where none counts."""

    _tied_weights_keys = {OURS + m2_bert.DECODER: OURS + m2_bert.EMBEDDING}

    def __init__(self, config: M2BertConfig, folder: Path | None = None) -> None:
        super().__init__(config, "mlm", folder)

    def get_output_embeddings(self) -> nn.Module:
        return self.model.cls.predictions.decoder

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, labels: Tensor | None = None, return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        logits = self.model(given(input_ids), attention_mask, token_type_ids)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.shape[-1])
        return told(MaskedLMOutput(loss=loss, logits=logits), return_dict)


class M2BertForSequenceClassification(M2BertPreTrainedModel):
    """input_ids (B, L) -> logits (B, labels), and the loss where labels are given."""

    def __init__(self, config: M2BertConfig, folder: Path | None = None) -> None:
        super().__init__(config, "classifier", folder)
        self.num_labels = config.num_labels

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, labels: Tensor | None = None, return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        logits = self.model(given(input_ids), attention_mask, token_type_ids)
        return told(SequenceClassifierOutput(loss=self.loss_of(logits, labels), logits=logits), return_dict)


AutoModel.register(M2BertConfig, M2BertModel, exist_ok=True)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(M2BertConfig, M2BertForSequenceClassification, exist_ok=True)

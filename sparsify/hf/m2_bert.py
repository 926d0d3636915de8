"""M2-BERT as transformers' AutoModel, AutoModelForMaskedLM and AutoModelForSequenceClassification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput

from sparsify.converters import m2_bert
from sparsify.converters.models import m2_bert as m2_bert_model
from sparsify.converters.models.m2_bert import DECODER, EMBEDDING
from sparsify.cpu.linear import BlockDiagonal

from .base import FamilyModel, logger
from .config import M2BertConfig


class M2BertPreTrainedModel(FamilyModel):
    """What the heads share."""

    config: M2BertConfig
    config_class = M2BertConfig
    family = m2_bert
    base_model_prefix = "bert"
    _no_split_modules = ["Layer"]
    _keep_in_fp32_modules_strict = {"filter_fn", "filter_fn2"}  # half precision cannot tell the taps apart
    _keys_to_ignore_on_load_unexpected = [r"^(cls|classifier|bert\.pooler)\."]  # of another head

    def __init__(self, config: M2BertConfig, head: str, folder: Path | None = None) -> None:
        super().__init__(config, folder, head=head, num_labels=config.num_labels)
        self.bert = m2_bert_model.Bert(self.sizes)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlockDiagonal):
            module.reset_parameters()

    @property
    def embeddings(self) -> nn.Module:
        """What holds the `word_embeddings`: peft's soft prompts look for them at this place."""
        return self.bert.embeddings

    def get_input_embeddings(self) -> nn.Module:
        return self.bert.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        setattr(self.bert.embeddings, "word_embeddings", value)  # noqa: B010

    def states(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, token_type_ids: Tensor | None,
        inputs_embeds: Tensor | None, output_hidden_states: bool | None, unknown: dict[str, Any],
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:  # fmt: skip
        """Last states (B, L, D) of ids (B, L) or their embeddings, and the states of all layers if asked for."""
        self.check_call(input_ids, inputs_embeds, unknown)
        if attention_mask is not None and not attention_mask.all():
            logger.warning_once(
                "padding is data to M2-BERT, and moves its results: pad to the length that the model was trained or "
                "fine-tuned with, or run texts of one length together"
            )
        every = self.states_wanted(output_hidden_states)
        last = self.bert(input_ids, token_type_ids, embedded=inputs_embeds, every=every)
        return last, None if every is None else tuple(every)


class M2BertModel(M2BertPreTrainedModel):
    """input_ids (B, L) -> last_hidden_state (B, L, D), and pooler_output (B, D), the embedding of each text."""

    def __init__(self, config: M2BertConfig, folder: Path | None = None) -> None:
        super().__init__(config, "encoder", folder)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        last, every = self.states(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states, kwargs
        )
        pooled = self.bert.pool(last, attention_mask)
        output = BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=pooled, hidden_states=every)
        return self.returned(output, return_dict)


class M2BertForMaskedLM(M2BertPreTrainedModel):
    """input_ids (B, L) -> logits (B, L, V), and the loss where labels (B, L) are given, -100 where none counts."""

    _tied_weights_keys = {DECODER: EMBEDDING}

    def __init__(self, config: M2BertConfig, folder: Path | None = None) -> None:
        super().__init__(config, "mlm", folder)
        self.cls = m2_bert_model.MaskedWords(self.sizes)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        setattr(self.cls.predictions, "decoder", new_embeddings)  # noqa: B010

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        last, every = self.states(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states, kwargs
        )
        logits, loss = self.cls.predictions(last), None
        if labels is not None:
            items = kwargs.get("num_items_in_batch")
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], num_items_in_batch=items)
        return self.returned(MaskedLMOutput(loss=loss, logits=logits, hidden_states=every), return_dict)


class M2BertForSequenceClassification(M2BertPreTrainedModel):
    """input_ids (B, L) -> logits (B, labels), and the loss where labels are given."""

    accepts_loss_kwargs = False  # its loss is a mean over the batch

    def __init__(self, config: M2BertConfig, folder: Path | None = None) -> None:
        super().__init__(config, "classifier", folder)
        self.num_labels = int(config.num_labels or 0)
        self.dropout = nn.Dropout(self.sizes.classifier_dropout)
        self.classifier = nn.Linear(self.sizes.hidden_size, self.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        last, every = self.states(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states, kwargs
        )
        logits = self.classifier(self.dropout(self.bert.pool(last, attention_mask)))
        output = SequenceClassifierOutput(loss=self.loss_of(logits, labels), logits=logits, hidden_states=every)
        return self.returned(output, return_dict)


AutoModel.register(M2BertConfig, M2BertModel, exist_ok=True)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(M2BertConfig, M2BertForSequenceClassification, exist_ok=True)

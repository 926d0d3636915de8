"""What the Hyena models share behind transformers' interface: hidden states and a language model's logits.

A family's own classes name their `config_class` each: transformers gives every class one, these here, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sparsify.converters.models.hyena import Backbone, stream
from sparsify.converters.models.tiled import check_ids
from sparsify.stream import PIECE, Stream

from .base import FamilyModel, logger
from .config import HyenaConfig


class HyenaPreTrainedModel(FamilyModel):
    """What the heads share."""

    config: HyenaConfig
    config_class: type[HyenaConfig]
    _no_split_modules = ["Block"]
    _keep_in_fp32_modules_strict = {"filter_fn"}  # half precision cannot tell the taps apart

    def __init__(self, config: HyenaConfig, folder: Path | None = None, **head: Any) -> None:
        super().__init__(config, folder, **head)
        config.update(self.family.config_overrides(self.sizes))

    @property
    def trunk(self) -> Backbone:
        """All of the model but its head."""
        return self.backbone  # type: ignore[return-value]

    @property
    def embeddings(self) -> nn.Module:
        """What holds the `word_embeddings`: peft's soft prompts look for them at this place."""
        return self.trunk.embeddings

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.embeddings["word_embeddings"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.trunk.embeddings["word_embeddings"] = value

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Refuse another size, and change nothing: a Hyena model is told from others by its vocabulary."""
        rows = self.sizes.vocab_rows
        wanted = rows if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            wanted += -wanted % pad_to_multiple_of
        if wanted != rows:
            raise ValueError(
                f"{type(self).__name__} has {rows} rows of embeddings for its fixed vocabulary, padding included, and "
                f"cannot be resized to {wanted}; use the padding rows for tokens of your own"
            )
        return self.get_input_embeddings()

    def states(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None,
        output_hidden_states: bool | None, unknown: dict[str, Any],
    ) -> BaseModelOutput:  # fmt: skip
        """What the trunk makes of ids (B, L) or their embeddings (B, L, D)."""
        self.check_call(input_ids, inputs_embeds, unknown)
        if attention_mask is not None and not attention_mask.all():
            logger.warning_once("Hyena models have no attention mask: padding is data to them, as in the reference")
        tokens = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
        assert tokens is not None
        check_ids(tokens, self.sizes.max_seq_len)
        every = self.states_wanted(output_hidden_states)
        last = self.trunk(input_ids, embedded=inputs_embeds, every=every)
        return BaseModelOutput(last_hidden_state=last, hidden_states=None if every is None else tuple(every))


class HyenaStates(HyenaPreTrainedModel):
    """input_ids (B, L) -> last_hidden_state (B, L, D): a model without its head."""

    _keys_to_ignore_on_load_unexpected = [r"^(lm_head|score)\."]

    def __init__(self, config: HyenaConfig, folder: Path | None = None, **head: Any) -> None:
        super().__init__(config, folder, **head)
        self.backbone = Backbone(self.sizes)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        found = self.states(input_ids, attention_mask, inputs_embeds, output_hidden_states, kwargs)
        return self.returned(found, return_dict)


class HyenaLanguageModel(HyenaPreTrainedModel, GenerationMixin):
    """input_ids (B, L) -> logits (B, L, rows of the vocabulary), and the loss where labels (B, L) are given."""

    _is_stateful = True  # no cache that others could wind back, which assisted generation would
    tokens: int  # of the vocabulary; what the embedding has beyond is padding that generated text has none of

    lm_head: nn.Module
    letters: range  # ids that generated text is made of

    def add_head(self) -> None:
        self.lm_head = nn.Linear(self.sizes.d_model, self.sizes.vocab_rows, bias=False)
        self.post_init()
        self.generation_config.suppress_tokens = list(range(self.tokens, self.sizes.vocab_rows))

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        found = self.states(input_ids, attention_mask, inputs_embeds, output_hidden_states, kwargs)
        logits, loss = self.lm_head(found.last_hidden_state), None
        if labels is not None:
            items = kwargs.get("num_items_in_batch")
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], num_items_in_batch=items)
        return self.returned(CausalLMOutput(loss=loss, logits=logits, hidden_states=found.hidden_states), return_dict)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All tokens, each time: `generate` knows no cache here, and `stream()` is the fast way."""
        mask = kwargs.get("attention_mask")
        if mask is not None and not mask.all():
            logger.warning_once(
                "Hyena models have no attention mask: padding is data to them, so prompts that are padded go on "
                "otherwise than alone; generate from prompts of one length together"
            )
        return {"input_ids": input_ids}

    def stream(self, batch: int = 1, piece: int = PIECE) -> Stream:
        """The model fed in pieces of any length, at bounded memory; `Stream.generate` continues a text fast.

        batch: sequences side by side.  piece: tokens worked through at once.
        """
        return stream(self.trunk, self.lm_head, self.letters, batch, piece)


def shifts_labels(model: type[HyenaLanguageModel]) -> None:
    """Have Trainer's label smoothing compare each token with the next one: it tells language models by their names."""
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(model.config_class.model_type, model.__name__)

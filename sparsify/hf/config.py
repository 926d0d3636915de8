"""Our families' config.json as transformers reads it, in every dialect that `sparsify.load` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig

from sparsify.converters import hyena_dna, hyena_lm
from sparsify.converters.models import m2_bert
from sparsify.converters.models.hyena_keys import MULTIPLE, flat, padded_rows
from sparsify.converters.tokenizers.dna import VOCABULARY

MOST_LABELS = 1 << 20


class FamilyConfig(PretrainedConfig):
    """Sizes under the names of config.json; what it leaves open stays None, so that all it says is saved again.

    Every class needs an __init__ of its own: transformers makes a dataclass of one that has none.
    """

    made: ClassVar[Any]  # the dataclass that a model is built from
    apart: ClassVar[tuple[str, ...]] = ("num_labels",)  # of its fields, which config.json says in other words
    shown: ClassVar[tuple[str, ...]] = ()  # which the weights alone tell, whatever config.json says

    def __init__(self, **values: Any) -> None:
        labels = values.get("num_labels", 0) or 0
        if type(labels) is not int or not 0 <= labels <= MOST_LABELS:  # transformers would name every one of them
            raise ValueError(f"config.json says num_labels {labels!r:.60}, expected a number up to {MOST_LABELS}")
        names = self.names()
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self, token, None)  # where the file says nothing, as in most configs
        for name in names:
            setattr(self, name, values.get(name))
        super().__init__(
            **{name: value for name, value in values.items() if name not in names or name == "pad_token_id"}
        )

    @classmethod
    def names(cls) -> list[str]:
        """The sizes and choices that stand in config.json."""
        return [field.name for field in fields(cls.made) if field.name not in cls.apart]

    def sizes(self, **more: Any) -> Any:
        """What the model is built from.  more: what this config does not say itself."""
        values = {name: value for name in self.names() if (value := getattr(self, name)) is not None} | more
        if missing := [f.name for f in fields(self.made) if f.default is MISSING and f.name not in values]:
            raise ValueError(f"the config lacks {', '.join(missing)}, which the model is built from")
        return self.made(**values)

    @classmethod
    def left_open(cls, stored: Mapping[str, Any], model: Any) -> dict[str, Any]:
        """What config.json does not say, though the weights tell.  model: that they make."""
        values = cls(**stored)
        open_names = [name for name in cls.names() if name in cls.shown or getattr(values, name) is None]
        known = {name: getattr(model.config, name) for name in open_names}
        if model.head == "classifier" and not stored.keys() & {"num_labels", "id2label"}:
            known["num_labels"] = model.config.num_labels
        return known


class HyenaConfig(FamilyConfig):
    """What the Hyena models share: the hub's dialect and the raw one."""

    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "n_layer"}
    tokens: ClassVar[int]  # of the vocabulary, which config.json names without padding

    def __init__(self, **values: Any) -> None:
        known = {"max_seq_len": flat(values).get("l_max"), **flat(values)}
        self.vocab_size = values.pop("vocab_size", self.tokens)
        self.pad_vocab_size_multiple = values.pop("pad_vocab_size_multiple", MULTIPLE)
        super().__init__(**values | {name: known[name] for name in self.names() if name in known})

    def sizes(self, **more: Any) -> Any:
        return super().sizes(vocab_rows=padded_rows(self.vocab_size, self.pad_vocab_size_multiple), **more)


class HyenaDNAConfig(HyenaConfig):
    """HyenaDNA's."""

    model_type = "hyenadna"
    made = hyena_dna.HyenaDNAConfig
    apart = ("num_labels", "vocab_rows")
    tokens = len(VOCABULARY)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)

    def sizes(self, **more: Any) -> Any:
        if self.d_model is not None and self.d_inner is None:
            more["d_inner"] = 4 * self.d_model
        return super().sizes(**more)


class HyenaLMConfig(HyenaConfig):
    """Hyena LM's."""

    model_type = "hyena_lm"
    made = hyena_lm.HyenaLMConfig
    apart = ("vocab_rows", "shift")
    tokens = hyena_lm.TOKENS

    def __init__(self, **values: Any) -> None:
        end = self.tokens - 1  # <|endoftext|>, between documents
        super().__init__(**{"bos_token_id": end, "eos_token_id": end, **values})

    @classmethod
    def left_open(cls, stored: Mapping[str, Any], model: Any) -> dict[str, Any]:
        return super().left_open(stored, model) | {"tie_word_embeddings": model.is_tied}


class M2BertConfig(FamilyConfig):
    """M2-BERT's."""

    model_type = m2_bert.MODEL_TYPE
    made = m2_bert.M2BertConfig
    apart = ("num_labels", "head")
    shown = ("pooler", "vocab_size", "num_inner_mlps", "short_filter_order")

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)

    @classmethod
    def left_open(cls, stored: Mapping[str, Any], model: Any) -> dict[str, Any]:
        return super().left_open(stored, model) | {"tie_word_embeddings": model.is_tied}


for config in (HyenaDNAConfig, HyenaLMConfig, M2BertConfig):
    AutoConfig.register(config.model_type, config, exist_ok=True)

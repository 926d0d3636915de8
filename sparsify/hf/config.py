"""Our families' config.json as transformers reads it, in every dialect that `sparsify.load` takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig

from sparsify.converters import hyena_dna, m2_bert_model
from sparsify.converters.dna_tokenizer import VOCABULARY

MOST_LABELS = 1 << 20


class FamilyConfig(PretrainedConfig):
    """Sizes under the names of config.json; what it leaves open stays None, so that all it says is saved again.

    Every class needs an __init__ of its own: transformers makes a dataclass of one that has none.
    """

    made: ClassVar[Any]  # the dataclass that a model is built from
    apart: ClassVar[tuple[str, ...]] = ("num_labels",)  # of its fields, which config.json says in other words
    shown: ClassVar[tuple[str, ...]] = ()  # which the weights alone tell, whatever config.json says

    def __init__(self, **said: Any) -> None:
        labels = said.get("num_labels", 0) or 0
        if type(labels) is not int or not 0 <= labels <= MOST_LABELS:  # transformers would name every one of them
            raise ValueError(f"config.json says num_labels {labels!r:.60}, expected a number up to {MOST_LABELS}")
        names = self.names()
        for name in names:
            setattr(self, name, said.get(name))
        super().__init__(**{name: value for name, value in said.items() if name not in names or name == "pad_token_id"})

    @classmethod
    def names(cls) -> list[str]:
        """The sizes and choices that stand in config.json."""
        return [field.name for field in fields(cls.made) if field.name not in cls.apart]

    def sizes(self, **more: Any) -> Any:
        """What the model is built from.  more: what this config does not say itself."""
        said = {name: value for name in self.names() if (value := getattr(self, name)) is not None} | more
        if missing := [f.name for f in fields(self.made) if f.default is MISSING and f.name not in said]:
            raise ValueError(f"the config lacks {', '.join(missing)}, which the model is built from")
        return self.made(**said)

    @classmethod
    def left_open(cls, stored: Mapping[str, Any], model: Any) -> dict[str, Any]:
        """What config.json does not say, though the weights tell.  model: that they make."""
        said = cls(**stored)
        open_names = [name for name in cls.names() if name in cls.shown or getattr(said, name) is None]
        known = {name: getattr(model.config, name) for name in open_names}
        if model.head == "classifier" and not stored.keys() & {"num_labels", "id2label"}:
            known["num_labels"] = model.config.num_labels
        return known


class HyenaDNAConfig(FamilyConfig):
    """HyenaDNA's, in the hub's dialect and in the raw one."""

    model_type = "hyenadna"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "n_layer"}
    made = hyena_dna.HyenaDNAConfig
    apart = ("num_labels", "vocab_rows")

    def __init__(self, **said: Any) -> None:
        layer = said.get("layer")  # where the raw dialect keeps the operator's choices
        flat = {**said, **layer} if isinstance(layer, dict) else said
        flat = {"max_seq_len": flat.get("l_max"), **flat}
        self.vocab_size = said.pop("vocab_size", len(VOCABULARY))
        self.pad_vocab_size_multiple = said.pop("pad_vocab_size_multiple", 8)
        super().__init__(**said | {name: flat[name] for name in self.names() if name in flat})

    def sizes(self, **more: Any) -> Any:
        multiple = self.pad_vocab_size_multiple
        if self.d_model is not None and self.d_inner is None:
            more["d_inner"] = 4 * self.d_model
        return super().sizes(vocab_rows=math.ceil(self.vocab_size / multiple) * multiple, **more)


class M2BertConfig(FamilyConfig):
    """M2-BERT's."""

    model_type = m2_bert_model.MODEL_TYPE
    made = m2_bert_model.M2BertConfig
    apart = ("num_labels", "head")
    shown = ("pooler", "vocab_size", "num_inner_mlps", "short_filter_order")

    def __init__(self, **said: Any) -> None:
        super().__init__(**said)

    @classmethod
    def left_open(cls, stored: Mapping[str, Any], model: Any) -> dict[str, Any]:
        return super().left_open(stored, model) | {"tie_word_embeddings": model.is_tied}


for config in (HyenaDNAConfig, M2BertConfig):
    AutoConfig.register(config.model_type, config, exist_ok=True)

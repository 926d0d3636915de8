"""HyenaDNA's config.json as transformers reads it, in the hub's dialect and in the raw one."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from sparsify.converters import hyena_dna
from sparsify.converters.dna_tokenizer import VOCABULARY

MOST_LABELS = 1 << 20
OWN = ("vocab_rows", "num_labels")  # which config.json says in other words
SIZES = tuple(field.name for field in fields(hyena_dna.HyenaDNAConfig) if field.name not in OWN)
NEEDED = tuple(
    field.name for field in fields(hyena_dna.HyenaDNAConfig) if field.name in SIZES and field.default is MISSING
)


class HyenaDNAConfig(PretrainedConfig):
    """Sizes under the names of config.json; what it leaves open stays None, so that all it says is saved again."""

    model_type = "hyenadna"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "n_layer"}

    def __init__(self, **said: Any) -> None:
        labels = said.get("num_labels", 0) or 0
        if type(labels) is not int or not 0 <= labels <= MOST_LABELS:  # transformers would name every one of them
            raise ValueError(f"config.json says num_labels {labels!r:.60}, expected a number up to {MOST_LABELS}")
        layer = said.get("layer")  # where the raw dialect keeps the operator's choices
        flat = {**said, **layer} if isinstance(layer, dict) else said
        flat = {"max_seq_len": flat.get("l_max"), **flat}
        for name in SIZES:
            setattr(self, name, flat.get(name))
        self.vocab_size = said.pop("vocab_size", len(VOCABULARY))
        self.pad_vocab_size_multiple = said.pop("pad_vocab_size_multiple", 8)
        rest = {name: value for name, value in said.items() if name not in SIZES or name == "pad_token_id"}
        super().__init__(**rest)

    def sizes(self, num_labels: int | None = None) -> hyena_dna.HyenaDNAConfig:
        """What the model is built from.  num_labels: width of a classification head; None is a language model."""
        said = {name: value for name in SIZES if (value := getattr(self, name)) is not None}
        if "d_model" in said:
            said.setdefault("d_inner", 4 * said["d_model"])
        if missing := [name for name in NEEDED if name not in said]:
            raise ValueError(f"the config lacks {', '.join(missing)}, which a HyenaDNA is built from")
        rows = math.ceil(self.vocab_size / self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple
        return hyena_dna.HyenaDNAConfig(vocab_rows=rows, num_labels=num_labels, **said)


AutoConfig.register(HyenaDNAConfig.model_type, HyenaDNAConfig, exist_ok=True)

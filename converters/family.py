"""What a family of models brings, so that everything else can work with it: the contract of one file in this folder.

A family is a module with the functions of `Family`.  Nothing else in the package names a family: `registry` finds it by
the names of its tensors, and `registry.register` adds one of your own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsify.sites import ConvSite

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every stored tensor, by name."""


class Tokenizer(Protocol):
    """Text to ids and back, as one checkpoint reads it."""

    alphabet: str | None
    """The letters that carry a sequence, such as "ACGT"; None where the text is a language's."""

    @property
    def vocab_size(self) -> int:
        """How many ids mean something; a model's logits may have more columns."""

    @property
    def id_range(self) -> tuple[int, int]:
        """The first id of ordinary text, and one past the last."""

    def normalize(self, text: str, upper: bool = False) -> str:
        """A text from a file as `encode` takes it.  upper: read soft-masked (lower-case) bases as upper case."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens in brackets."""

    def describe(self, folder: Path) -> None:
        """Write into a folder what transformers' AutoTokenizer needs to read as this one does."""


class Family(Protocol):
    """One family of checkpoints: how they are told from others, what they are built into, where that convolves."""

    OPTIONS: Mapping[str, str]
    """What a user may choose where the checkpoint leaves it open: name -> what it means, in words."""

    def matches(self, shapes: Shapes) -> bool:
        """Whether these tensors look like this family's."""

    def build(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], options: Mapping[str, Any], dtype: torch.dtype
    ) -> tuple[Any, tuple[str, ...]]:
        """The model that stored tensors make, and what the user should know of it, a sentence each.

        Args:
            tensors: Stored name -> tensor; on the meta device they are checked without memory.
            config: What config.json says, {} where there is none.
            options: Those of OPTIONS that were chosen.
            dtype: What the weights are held in; those of implicit filters stay float32.

        Returns:
            A module that takes ids (B, L), with the properties `context` (tokens of text that it takes) and `head`
            ("lm", "mlm", "classifier" or "encoder"), and the notes.
        """

    def sites(self, model: Any, sizes: Any = None) -> tuple[ConvSite, ...]:
        """The long convolutions of a model, first to last.  sizes: those of the model; None takes `model.config`."""

    def tokenizer(self, model: Any, folder: Path) -> Any:
        """The `Tokenizer` of a checkpoint in a folder; nothing is read before it is needed."""

    def config_overrides(self, sizes: Any) -> dict[str, Any]:
        """What config.json must say besides, so that a copy loads the same again."""

    def rename(self, name: str) -> str | None:
        """The model's name for a stored tensor; None for what no model needs."""


def check_options(name: str, family: Family, options: Mapping[str, Any]) -> None:
    """Refuse options that a family does not have."""
    if strange := sorted(options.keys() - family.OPTIONS.keys()):
        known = "; ".join(f"{option}: {meaning}" for option, meaning in family.OPTIONS.items())
        raise ValueError(
            f"a {name} has no option {strange[0]!r}; "
            + (f"it has {known}" if known else "it has none, so leave it out")
        )


def number_option(options: Mapping[str, Any], name: str) -> float | None:
    """An option that is a number, given as one or as text; None where it was not chosen."""
    given = options.get(name)
    try:
        return None if given is None else float(given)
    except (TypeError, ValueError):
        raise ValueError(f"the option {name} is a number, got {given!r:.60}") from None

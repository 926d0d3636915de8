"""Tokens of GPT-2: byte pairs, so that every text has ids, and ids give back every text; nothing is put around it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparsify.storage.files import first_line

from .base import JSON, Vocabulary

if TYPE_CHECKING:  # at run time imported where it is needed: models run without it
    from tokenizers import Tokenizer

PROBE = "The  cafe\u0301 naïve\n\tα β 漢字 🙂"  # what normalisers, pre-fixed spaces and missing bytes would change


class BpeTokenizer(Vocabulary):
    """Text to ids and back, with the vocabulary in a folder, else GPT-2's.

    tokens: that the model knows, if known; a vocabulary of fewer is another's.
    """

    KINDS = (JSON, ("vocab.json", "merges.txt"))
    HUB = ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e")
    SPECIAL = ("<|endoftext|>",)
    NAMED = "a GPT-2"
    CLASS = "GPT2Tokenizer"
    TOLD = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")

    def __init__(
        self, folder: str | Path | None = None, rows: int | None = None, tokens: int | None = None,
        longest: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(folder, rows, longest)
        self.tokens = tokens

    @property
    def id_range(self) -> tuple[int, int]:
        """Ids to time a model on, first and one past the last: all tokens, whether a vocabulary is here or not."""
        return 0, self.tokens or self.vocab_size

    def encode(self, text: str) -> list[int]:
        """Ids of a text; <|endoftext|> in it is one token, as between the documents of the training data."""
        (text,) = self.whole_texts([text])
        return self.backend.encode(text, add_special_tokens=False).ids

    def from_parts(self) -> Tokenizer:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        vocabulary, merges = self.files
        try:
            made = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
        except Exception as error:  # tokenizers raises Exception itself
            raise ValueError(
                f"{vocabulary} and {merges.name} make no tokenizer ({first_line(error)}); download them again"
            ) from error
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens([token for token in self.SPECIAL if made.token_to_id(token) is not None])
        return made

    def check(self, made: Tokenizer) -> None:
        if self.tokens is not None and made.get_vocab_size() < self.tokens:
            raise ValueError(
                f"{self.file} has {made.get_vocab_size()} tokens and the model knows {self.tokens}; "
                f"take both from the same checkpoint"
            )
        if made.decode(made.encode(PROBE, add_special_tokens=False).ids, skip_special_tokens=False) != PROBE:
            raise ValueError(
                f"{self.file} does not give back every text that it reads, as GPT-2's does; it is another kind"
            )

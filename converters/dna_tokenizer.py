"""One id a nucleotide: HyenaDNA's vocabulary of 12."""

from __future__ import annotations

import re
from collections.abc import Iterable

VOCABULARY = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
SEP, PAD, UNK = (VOCABULARY.index(token) for token in ("[SEP]", "[PAD]", "[UNK]"))
TABLE = bytes(VOCABULARY.index(chr(c)) if chr(c) in VOCABULARY else UNK for c in range(256))
LOWER_CASE = re.compile("[acgtn]")
UPPER = str.maketrans("acgtn", "ACGTN")


class DnaTokenizer:
    """Text to ids and back; letters other than A, C, G, T and N read as [UNK]."""

    vocab_size = len(VOCABULARY)  # the model's logits have more columns, padding that no id uses
    alphabet = "ACGT"  # the letters that carry a sequence
    id_range = (VOCABULARY.index("A"), VOCABULARY.index("T") + 1)  # their ids: first, and one past the last

    def normalize(self, text: str, upper: bool = False) -> str:
        """A sequence from a file as `encode` takes it: no line breaks or blanks, bases in upper case.

        upper: read lower-case bases, which mark repeats in soft-masked genomes, as upper-case ones; otherwise they
        are refused, because the model knows them as [UNK] only.
        """
        return cased("".join(text.split()), upper)

    def encode(self, text: str, special: bool = False, upper: bool = False) -> list[int]:
        """Ids of `text`, one a character.  special: end with [SEP], as in pretraining.  upper: as in `normalize`."""
        letters = cased(text, upper).encode("ascii", "replace")  # one byte a character, whatever the character
        ids = list(letters.translate(TABLE))
        return [*ids, SEP] if special else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens in brackets."""
        ids = list(ids)
        if strange := [i for i in ids if not 0 <= i < len(VOCABULARY)]:
            raise ValueError(f"id {strange[0]} is no token; the vocabulary has ids 0 to {len(VOCABULARY) - 1}")
        return "".join(VOCABULARY[i] for i in ids)


def cased(text: str, upper: bool) -> str:
    """`text` without lower-case bases: made upper-case if asked to, refused otherwise."""
    if upper:
        return text.translate(UPPER)
    if found := LOWER_CASE.search(text):
        raise ValueError(
            f"got lower-case bases at position {found.start()}: soft-masked sequence reads as [UNK] to this model; "
            f"pass upper=True (--upper) to read them as upper-case"
        )
    return text

"""One id a nucleotide: HyenaDNA's vocabulary of 12."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .base import AS_JSON_SAYS, JSON, describe_to_transformers

if TYPE_CHECKING:  # at run time imported where it is needed: models run without it
    from tokenizers import Tokenizer

VOCABULARY = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
SEP, PAD, UNK = (VOCABULARY.index(token) for token in ("[SEP]", "[PAD]", "[UNK]"))
TABLE = bytes(VOCABULARY.index(chr(c)) if chr(c) in VOCABULARY else UNK for c in range(256))
LOWER_CASE = re.compile("[acgtn]")
STRANGE = re.compile(r"[^ACGTUNRYSWKMBDHV.*-]", re.IGNORECASE)  # IUPAC's letters of bases, and gaps
UPPER = str.maketrans("acgtn", "ACGTN")
TOLD = {  # to transformers, as the hub's own tokenizer has it
    "tokenizer_class": AS_JSON_SAYS,
    "bos_token": "[BOS]",
    "eos_token": "[SEP]",
    "sep_token": "[SEP]",
    "cls_token": "[CLS]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
    "unk_token": "[UNK]",
    "padding_side": "left",
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
}


class DnaTokenizer:
    """Text to ids and back; letters other than A, C, G, T and N read as [UNK].

    longest: tokens that the model takes, if known.
    """

    vocab_size = len(VOCABULARY)  # the model's logits have more columns, padding that no id uses
    alphabet = "ACGT"  # the letters that carry a sequence
    id_range = (VOCABULARY.index("A"), VOCABULARY.index("T") + 1)  # their ids: first, and one past the last

    def __init__(self, longest: int | None = None) -> None:
        self.longest = longest

    def describe(self, folder: Path) -> None:
        """Write the tokenizer.json and tokenizer_config.json by which AutoTokenizer reads DNA as we do.

        It needs no code of the hub's; where tokenizer_config.json names some, that stays for who trusts it.
        """
        made = for_transformers()
        (folder / JSON[0]).write_text(made.to_str(pretty=True), encoding="utf-8")
        describe_to_transformers(folder, TOLD, self.longest, known=True)

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
        if strange := STRANGE.search(text):
            raise ValueError(
                f"got {strange.group()!r} at position {strange.start()}, which is no letter of a DNA sequence; pass "
                f"DNA in letters such as ACGT, as FASTA or alone"
            )
        raise ValueError(
            f"got lower-case bases at position {found.start()}: soft-masked sequence reads as [UNK] to this model; "
            f"pass upper=True (--upper) to read them as upper-case"
        )
    return text


def for_transformers() -> Tokenizer:
    """The hub's tokenizer: a token a letter and [SEP] at the end; a special token's name in a text is that token.

    Lower-case letters read as [UNK], for transformers has no way to refuse them.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # a dot would leave line ends out
    made.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$A [SEP] $B [SEP]", special_tokens=[("[SEP]", SEP)]
    )
    made.decoder = decoders.Fuse()
    made.add_special_tokens([token for token in VOCABULARY if token.startswith("[")])
    return made

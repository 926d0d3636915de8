"""WordPieces of English text, BERT's way: [CLS] text [SEP], or [CLS] text [SEP] pair [SEP]."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsify.files import first_line

from .source import snapshot

if TYPE_CHECKING:  # at run time imported where it is needed: models run without it
    from tokenizers import Tokenizer

FILES = ("tokenizer.json", "vocab.txt")  # in order of preference
# what these models are trained with, pinned
HUB = ("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Batch:
    """Texts side by side, (B, L) int64 each: ids, 1 where they are no padding, and 1 where they are of the pair."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor


class TextTokenizer:
    """Text to ids and back, with the vocabulary in `folder`, else bert-base-uncased's from the hub; read on first use.

    folder: holds tokenizer.json or vocab.txt; None goes to the hub.  rows: of the embedding, if known; one for
    every token, and perhaps more.
    """

    alphabet = ""  # the letters that carry a sequence: of a text, none more than others

    def __init__(self, folder: str | Path | None = None, rows: int | None = None) -> None:
        self.folder, self.rows = None if folder is None else Path(folder), rows

    @cached_property
    def file(self) -> Path:
        """The file that the vocabulary is read from."""
        if self.folder is not None and (found := first_of(self.folder)):
            return found
        try:
            found = first_of(snapshot(*HUB, FILES))
        except (OSError, ValueError, LookupError) as error:
            where = "the checkpoint" if self.folder is None else self.folder
            raise FileNotFoundError(
                f"there is no vocabulary in {where}, nor can {HUB[0]}'s be had from the hub; put its vocab.txt there"
            ) from error
        if found is None:
            raise FileNotFoundError(f"{HUB[0]} has none of {', '.join(FILES)}; put a vocab.txt beside the weights")
        return found

    @cached_property
    def backend(self) -> Tokenizer:
        made = from_json(self.file) if self.file.suffix == ".json" else from_vocabulary(self.file)
        if missing := [token for token in SPECIAL if made.token_to_id(token) is None]:
            raise ValueError(f"{self.file} lacks {', '.join(missing)}; it is no vocabulary of a BERT")
        if self.rows is not None and made.get_vocab_size() > self.rows:
            raise ValueError(
                f"{self.file} has {made.get_vocab_size()} tokens and the model's embedding {self.rows} rows; "
                f"take both from the same checkpoint"
            )
        return made

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    @property
    def pad_id(self) -> int:
        return self.id_of("[PAD]")

    @property
    def unk_id(self) -> int:
        return self.id_of("[UNK]")

    @property
    def cls_id(self) -> int:
        return self.id_of("[CLS]")

    @property
    def sep_id(self) -> int:
        return self.id_of("[SEP]")

    @property
    def mask_id(self) -> int:
        return self.id_of("[MASK]")

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(map(self.id_of, SPECIAL))

    @property
    def id_range(self) -> tuple[int, int]:
        """Ids to time a model on, first and one past the last: all but padding, whether a vocabulary is here or not."""
        return 1, self.rows or self.vocab_size

    def id_of(self, token: str) -> int:
        """The id of a token that is in the vocabulary."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise ValueError(f"{token!r} is no token of {self.file}")
        return found

    def normalize(self, text: str, upper: bool = False) -> str:
        """A text from a file as `encode` takes it: as it is.  upper: refused, for it is about DNA."""
        if upper:
            raise ValueError("upper (--upper) reads soft-masked DNA, and this model reads text; leave it out")
        return text

    def encode(self, text: str, pair: str | None = None, limit: int | None = None) -> list[int]:
        """Ids of [CLS] text [SEP], and pair [SEP] if given; of more than `limit` the longer part loses its end."""
        return self.joined(self.pieces([text])[0], None if pair is None else self.pieces([pair])[0], limit)[0]

    def batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        pad_to: int | None = None,
        limit: int | None = None,
    ) -> Batch:
        """Texts as a model takes them, the shorter ones with padding behind.

        pad_to: length of all rows; None takes the longest of these texts.  Padding is data to M2-BERT, so a text's
        numbers depend on this length: those of the published models come from pad_to = max_position_embeddings, as in
        their training; other lengths cost less and are near, not equal.
        limit: ids a text is cut to; None takes pad_to.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"got {len(texts)} texts and {len(pairs)} pairs; give one for each")
        limit = pad_to if limit is None else limit
        seconds: Sequence[list[int] | None] = [None] * len(texts) if pairs is None else self.pieces(pairs)
        rows = [self.joined(one, two, limit) for one, two in zip(self.pieces(texts), seconds, strict=True)]
        length = max((len(ids) for ids, _ in rows), default=0) if pad_to is None else pad_to
        if longest := [len(ids) for ids, _ in rows if len(ids) > length]:
            raise ValueError(f"got a text of {max(longest)} ids, more than pad_to {length}; set limit to at most that")
        shape = len(rows), length
        ids, mask, types = torch.full(shape, self.pad_id), torch.zeros(shape).long(), torch.zeros(shape).long()
        for i, (row, first) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            types[i, first : len(row)] = 1
        return Batch(ids, mask, types)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone."""
        return [found.ids for found in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def joined(self, one: list[int], two: list[int] | None, limit: int | None) -> tuple[list[int], int]:
        """One row of ids, and how many of them come before the pair."""
        room = None if limit is None else limit - (2 if two is None else 3)
        if room is not None and room < 0:
            raise ValueError(f"got limit {limit}, which has no room for [CLS] and [SEP]")
        if room is not None and two is None:
            one = one[:room]
        if room is not None and two is not None:
            first, second = shortened(len(one), len(two), room)
            one, two = one[:first], two[:second]
        row = [self.cls_id, *one, self.sep_id]
        return [*row, *([] if two is None else [*two, self.sep_id])], len(row)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens in brackets."""
        ids = list(ids)
        if strange := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"id {strange[0]} is no token; the vocabulary has ids 0 to {self.vocab_size - 1}")
        return self.backend.decode(ids, skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Copy the vocabulary's file into a folder, under its name, with what AutoTokenizer needs to read it."""
        shutil.copyfile(self.file, folder / self.file.name)
        describe(folder)


def first_of(folder: Path) -> Path | None:
    """The vocabulary in a folder, None where there is none."""
    return next((path for name in FILES if (path := folder / name).is_file()), None)


def from_json(path: Path) -> Tokenizer:
    """As a tokenizer.json says, but that texts are neither cut nor padded."""
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise ValueError(f"{path} is no tokenizer ({first_line(error)}); download it again") from error
    made.no_truncation()
    made.no_padding()
    upper, lower = (made.encode(word, add_special_tokens=False).tokens for word in ("The", "the"))
    if "[UNK]" in upper and "[UNK]" not in lower:
        raise ValueError(f"{path} keeps capitals, which its vocabulary does not have; take a vocab.txt instead")
    return made


def from_vocabulary(path: Path) -> Tokenizer:
    """BERT's own: clean, lower case without accents unless the vocabulary has capitals, longest pieces first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens = path.read_text(encoding="utf-8").splitlines()
    if missing := [token for token in SPECIAL if token not in tokens]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it is no vocabulary of a BERT, a token a line")
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=not has_capitals(tokens))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(list(SPECIAL))
    return made


def has_capitals(tokens: Iterable[str]) -> bool:
    return any(token != token.lower() for token in tokens if not token.startswith("["))


def describe(folder: Path) -> None:
    """Write the tokenizer_config.json by which AutoTokenizer reads a vocab.txt as we do, unless there is another."""
    path, vocabulary = folder / "tokenizer_config.json", folder / "vocab.txt"
    if vocabulary.is_file() and not path.exists():
        lower = not has_capitals(vocabulary.read_text(encoding="utf-8").splitlines())
        told = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
        path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def shortened(one: int, two: int, room: int) -> tuple[int, int]:
    """Lengths of two parts that fit `room` together: the longer, or the second of equals, loses a piece at a time."""
    while one + two > room:
        one, two = (one - 1, two) if one > two else (one, two - 1)
    return one, two

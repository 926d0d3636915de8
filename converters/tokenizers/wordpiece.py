"""WordPieces of English text, BERT's way: [CLS] text [SEP], or [CLS] text [SEP] pair [SEP]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sparsify.storage.reading import decoded, lines

from .base import JSON, Vocabulary

if TYPE_CHECKING:  # at run time imported where it is needed: models run without it
    from tokenizers import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Batch:
    """Texts side by side, (B, L) int64 each: ids, 1 where they are no padding, and 1 where they are of the pair."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor


class TextTokenizer(Vocabulary):
    """Text to ids and back, with the vocabulary in a folder, else bert-base-uncased's."""

    KINDS = (JSON, ("vocab.txt",))
    HUB = ("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
    SPECIAL = SPECIAL
    NAMED = "a BERT"
    CLASS = "BertTokenizer"
    TOLD: ClassVar[dict[str, Any]] = {
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)),
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }

    def from_parts(self) -> Tokenizer:
        return from_vocabulary(self.file)

    def check(self, made: Tokenizer) -> None:
        upper, lower = (made.encode(word, add_special_tokens=False).tokens for word in ("The", "the"))
        if self.file.name in JSON and "[UNK]" in upper and "[UNK]" not in lower:
            raise ValueError(
                f"{self.file} keeps capitals, which its vocabulary does not have; take a vocab.txt instead"
            )

    def frame(self, made: Tokenizer) -> None:
        from tokenizers import processors

        cls, sep = ((token, made.get_vocab()[token]) for token in ("[CLS]", "[SEP]"))
        made.post_processor = processors.BertProcessing(sep, cls)

    @staticmethod
    def settings(*files: Path) -> dict[str, bool]:
        return {"do_lower_case": not has_capitals(tokens_in(files[0]))}

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

    def encode(self, text: str, pair: str | None = None, limit: int | None = None) -> list[int]:
        """Ids of [CLS] text [SEP], and pair [SEP] if given; of more than `limit` the longer part loses its end."""
        self.whole_texts([text, pair or ""])
        return self.cutting(limit, pair is not None).encode(text, pair).ids

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
        backend = self.cutting(pad_to if limit is None else limit, pairs is not None)
        texts, pairs = self.whole_texts(texts), None if pairs is None else self.whole_texts(pairs)
        found = backend.encode_batch(texts if pairs is None else list(zip(texts, pairs, strict=True)))
        longest = max((len(row) for row in found), default=0)
        length = longest if pad_to is None else pad_to
        if longest > length:
            raise ValueError(f"got a text of {longest} ids, more than pad_to {length}; set limit to at most that")
        for row in found:
            row.pad(length, pad_id=self.pad_id, pad_token="[PAD]")
        rows = ([row.ids for row in found], [row.attention_mask for row in found], [row.type_ids for row in found])
        return Batch(*(torch.tensor(part, dtype=torch.int64).reshape(len(found), length) for part in rows))

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone."""
        backend, texts = self.cutting(None), self.whole_texts(texts)
        return [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)]

    def cutting(self, limit: int | None, pairs: bool = False) -> Tokenizer:
        """The tokenizer, which from now on cuts texts to `limit` ids and of a pair the longer part first."""
        if limit is None:
            self.backend.no_truncation()
        elif limit < (3 if pairs else 2):
            raise ValueError(f"got limit {limit}, which has no room for [CLS] and [SEP]")
        else:
            self.backend.enable_truncation(limit, strategy="longest_first")
        return self.backend


def from_vocabulary(path: Path) -> Tokenizer:
    """BERT's own: clean, lower case without accents unless the vocabulary has capitals, longest pieces first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens = tokens_in(path)
    if missing := [token for token in SPECIAL if token not in tokens]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it is no vocabulary of a BERT, a token a line")
    if len(set(tokens)) < len(tokens):
        first: dict[str, int] = {}
        again, token = next((i, token) for i, token in enumerate(tokens) if first.setdefault(token, i) != i)
        raise ValueError(
            f"{path} names the token {token!r:.60} twice, in lines {first[token] + 1} and {again + 1}, so it is not "
            f"clear which id it has; take the vocabulary that the model was trained with"
        )
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=not has_capitals(tokens))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(list(SPECIAL))
    return made


def tokens_in(path: Path) -> list[str]:
    """The tokens of a vocab.txt, one a line; some are characters that end a line elsewhere."""
    return lines(decoded(path.read_bytes(), str(path), "a vocab.txt"))


def has_capitals(tokens: Iterable[str]) -> bool:
    return any(token != token.lower() for token in tokens if not token.startswith("["))

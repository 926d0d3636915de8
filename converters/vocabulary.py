"""What tokenizers of text share: a vocabulary that lies beside the weights, or else comes from the hub, pinned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sparsify.files import first_line
from sparsify.reading import half_characters

from .source import snapshot

if TYPE_CHECKING:  # at run time imported where it is needed: models run without it
    from tokenizers import Tokenizer

Kind = tuple[str, ...]  # files that make a vocabulary together
JSON: Kind = ("tokenizer.json",)


class Vocabulary:
    """Text to ids and back, with the vocabulary in `folder`, else that of HUB; read on first use.

    folder: holds the files of one of KINDS; None goes to the hub.  rows: of the embedding, if known; one for every
    token, and perhaps more.
    """

    KINDS: ClassVar[tuple[Kind, ...]]  # in order of preference
    HUB: ClassVar[tuple[str, str]]  # what these models are trained with: repository and commit
    SPECIAL: ClassVar[tuple[str, ...]]  # tokens that every such vocabulary has
    NAMED: ClassVar[str]  # whose vocabulary it is, in words
    CLASS: ClassVar[str]  # of transformers, which reads all but a tokenizer.json as we do

    alphabet: str | None = None  # letters that carry a sequence: of a text, none more than others

    def __init__(self, folder: str | Path | None = None, rows: int | None = None) -> None:
        self.folder, self.rows = None if folder is None else Path(folder), rows

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files that the vocabulary is read from."""
        if self.folder is not None and (found := self.lying_in(self.folder)):
            return found
        plain = " and ".join(self.KINDS[-1])
        try:
            found = self.lying_in(snapshot(*self.HUB, [name for kind in self.KINDS for name in kind]))
        except (OSError, ValueError, LookupError) as error:
            where = "the checkpoint" if self.folder is None else self.folder
            raise FileNotFoundError(
                f"there is no vocabulary in {where}, nor can {self.HUB[0]}'s be had from the hub; put its {plain} there"
            ) from error
        if not found:
            names = ", ".join(" with ".join(kind) for kind in self.KINDS)
            raise FileNotFoundError(f"{self.HUB[0]} has none of {names}; put a {plain} beside the weights")
        return found

    @classmethod
    def lying_in(cls, folder: Path) -> tuple[Path, ...]:
        """The files of a vocabulary in a folder, none where there is no complete one."""
        kinds = (tuple(folder / name for name in kind) for kind in cls.KINDS)
        return next((paths for paths in kinds if all(path.is_file() for path in paths)), ())

    @property
    def file(self) -> Path:
        """The file that names the tokens."""
        return self.files[0]

    @cached_property
    def backend(self) -> Tokenizer:
        made = from_json(self.file) if self.file.name in JSON else self.from_parts()
        if missing := [token for token in self.SPECIAL if made.token_to_id(token) is None]:
            raise ValueError(f"{self.file} lacks {', '.join(missing)}; it is no vocabulary of {self.NAMED}")
        if self.rows is not None and made.get_vocab_size() > self.rows:
            raise ValueError(
                f"{self.file} has {made.get_vocab_size()} tokens and the model's embedding {self.rows} rows; "
                f"take both from the same checkpoint"
            )
        self.check(made)
        return made

    def from_parts(self) -> Tokenizer:
        """What `files` make where they are no tokenizer.json."""
        raise NotImplementedError

    def check(self, made: Tokenizer) -> None:
        """Refuse a tokenizer that does not read as these models were trained."""

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

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

    def whole_texts(self, texts: Iterable[str]) -> list[str]:
        """These texts, if each can be encoded; refuses one with half of a surrogate pair, which is no character."""
        texts = list(texts)
        for text in texts:
            if wrong := half_characters(text):
                raise ValueError(f"a text {wrong}, as broken JSON has it; take that out, or leave the text out")
        return texts

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens in brackets."""
        ids = list(ids)
        if strange := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"id {strange[0]} is no token; the vocabulary has ids 0 to {self.vocab_size - 1}")
        return self.backend.decode(ids, skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Copy the vocabulary's files into a folder, under their names, with what AutoTokenizer needs to read them."""
        for path in self.files:
            shutil.copyfile(path, folder / path.name)
        self.describe(folder)

    def describe(self, folder: Path) -> None:
        """Write the tokenizer_config.json by which AutoTokenizer reads a folder's vocabulary, unless there is one."""
        path, files = folder / "tokenizer_config.json", [folder / name for name in self.KINDS[-1]]
        if all(file.is_file() for file in files) and not path.exists():
            told = {"tokenizer_class": self.CLASS, **self.settings(*files)}
            path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def settings(*files: Path) -> dict[str, bool]:
        """What transformers has to know besides."""
        return {}


def from_json(path: Path) -> Tokenizer:
    """As a tokenizer.json says, but that texts are neither cut nor padded."""
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise ValueError(f"{path} is no tokenizer ({first_line(error)}); download it again") from error
    made.no_truncation()
    made.no_padding()
    return made

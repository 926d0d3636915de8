"""What tokenizers of text share: a vocabulary that lies beside the weights, or else comes from the hub, pinned."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sparsify.converters.hub.download import snapshot
from sparsify.storage.files import first_line, read_json
from sparsify.storage.reading import half_characters

if TYPE_CHECKING:  # at run time imported where it is needed: models run without it
    from tokenizers import Tokenizer

Kind = tuple[str, ...]  # files that make a vocabulary together
JSON: Kind = ("tokenizer.json",)
PADDING = 128  # rows that an embedding may have beyond the vocabulary, so that its size is a round number
KEPT = ("auto_map", "model_max_length")  # of a tokenizer_config.json whose vocabulary is known
AS_JSON_SAYS = "PreTrainedTokenizerFast"  # the class of transformers that reads a tokenizer.json as it stands


class Vocabulary:
    """Text to ids and back, with the vocabulary in `folder`, else that of HUB; read on first use.

    folder: holds the files of one of KINDS; None goes to the hub.  rows: of the embedding, if known; one for every
    token, and perhaps more.  longest: tokens that the model takes, if known.
    """

    KINDS: ClassVar[tuple[Kind, ...]]  # in order of preference
    HUB: ClassVar[tuple[str, str]]  # what these models are trained with: repository and commit
    SPECIAL: ClassVar[tuple[str, ...]]  # tokens that every such vocabulary has
    NAMED: ClassVar[str]  # whose vocabulary it is, in words
    CLASS: ClassVar[str]  # of transformers, which reads all but a tokenizer.json as we do
    TOLD: ClassVar[Mapping[str, Any]]  # what transformers has to know beside a tokenizer.json

    alphabet: str | None = None  # letters that carry a sequence: of a text, none more than others

    def __init__(self, folder: str | Path | None = None, rows: int | None = None, longest: int | None = None) -> None:
        self.folder, self.rows, self.longest = None if folder is None else Path(folder), rows, longest

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
        if self.rows is not None and made.get_vocab_size() + PADDING < self.rows:
            raise ValueError(
                f"{self.file} has {made.get_vocab_size()} tokens and the model's embedding {self.rows} rows, more than "
                f"{PADDING} of them without a token; take both from the same checkpoint"
            )
        self.frame(made)
        return made

    def from_parts(self) -> Tokenizer:
        """What `files` make where they are no tokenizer.json."""
        raise NotImplementedError

    def check(self, made: Tokenizer) -> None:
        """Refuse a tokenizer that does not read as these models were trained."""

    def frame(self, made: Tokenizer) -> None:
        """Have the tokenizer put around a text what these models were trained with; here that is nothing."""

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

    def save(self, folder: Path, longest: int | None = None, pad_to: int | None = None) -> None:
        """Copy the vocabulary's files into a folder, under their names, with what AutoTokenizer needs to read them.

        longest: tokens that the model takes, where this tokenizer does not know it.
        pad_to: tokens that every text was padded and cut to in training, 0 for none.  It is written into
        tokenizer.json, and as the model_max_length of tokenizer_config.json, by which `padding="max_length",
        truncation=True` pads and cuts as in training.
        """
        for path in self.files:
            shutil.copyfile(path, folder / path.name)
        if pad_to is not None:
            (folder / JSON[0]).write_text(self.padding_to(pad_to), encoding="utf-8")
        self.describe(folder, pad_to or longest)

    def padding_to(self, length: int) -> str:
        """A tokenizer.json that pads and cuts every text to `length` tokens, or leaves it as it is for 0."""
        from tokenizers import Tokenizer

        made = Tokenizer.from_str(self.backend.to_str())
        made.no_truncation()
        made.no_padding()
        if length:
            pad = self.TOLD["pad_token"]
            made.enable_truncation(length)
            made.enable_padding(length=length, pad_id=self.id_of(pad), pad_token=pad)
        return made.to_str(pretty=True)

    def describe(self, folder: Path, longest: int | None = None) -> None:
        """Write the tokenizer_config.json by which AutoTokenizer reads a folder's vocabulary as we do.

        A folder without a vocabulary gets the one that was read, if any was: nothing is asked of the hub for it.
        """
        if not self.lying_in(folder):
            if "files" not in self.__dict__:
                return
            for path in self.files:
                shutil.copyfile(path, folder / path.name)
        files = [folder / name for name in self.KINDS[-1]]
        if all(file.is_file() for file in files):
            entries: dict[str, Any] = {"tokenizer_class": self.CLASS, **self.settings(*files)}
        else:
            entries = {"tokenizer_class": AS_JSON_SAYS, **self.TOLD}
        describe_to_transformers(folder, entries, longest or self.longest)

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


def describe_to_transformers(
    folder: Path, entries: Mapping[str, Any], longest: int | None, known: bool = False
) -> None:
    """Write a folder's tokenizer_config.json, which AutoTokenizer goes by.

    entries: what the file is to say if it names no class yet, or one in remote code.  known: it says this in any case.
    Remote code stays named for who trusts it.
    longest: tokens that the model takes.  A model_max_length, by which `truncation=True` cuts, is written where the
    file has none or a larger one.
    """
    path = folder / "tokenizer_config.json"
    stored = read_json(path) if path.is_file() else {}
    if known or "auto_map" in stored:
        config = {**{name: stored[name] for name in KEPT if name in stored}, **entries}
    else:
        config = stored if "tokenizer_class" in stored else {**entries, **stored}
    limit = stored.get("model_max_length")
    known_limit = limit if isinstance(limit, int | float) and limit > 0 else math.inf
    if longest is not None and (known_limit > longest or isinstance(limit, bool)):
        config["model_max_length"] = longest
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

"""Documents from files, and the windows of tokens that a model is scored on."""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from sparsify.storage.reading import NAMED, LeftOut, label, read_text, short_name

FASTA_SUFFIXES = (".fa", ".fasta", ".fna")
FASTA_START = re.compile(r"(?:[ \t]*[\r\n]|;[^\r\n]*[\r\n])*>")
TABLE_SUFFIXES = (".tsv", ".csv", ".bed", ".vcf", ".gff", ".gff3", ".gtf", ".sam")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
FASTQ = re.compile(r"@[^\n]*\n([A-Za-z.*-]+)\n\+[^\n]*\n([!-~]+)(?:\n|$)")
PEEK = 20  # lines by which a table is known
FEW = 8  # lines with as many commas each as the others may still be prose, or verse
COMMENT = re.compile(r"^;.*\n?", re.MULTILINE)

Encode = Callable[[str], Sequence[int]]  # text -> token ids, without special tokens


@dataclass(frozen=True)
class Document:
    """A text that is independent of the others: a file, or one record of a FASTA."""

    name: str
    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError(f"document {self.name!r} is empty; remove it or give it a text")


class Rows:
    """What windows of any kind have in common; theirs are dataclasses."""

    document: Tensor  # (W,) int64
    available: int

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What tells these windows from others, a row a window: by the names of fields."""
        raise NotImplementedError

    @property
    def n_documents(self) -> int:
        """Documents that have a window here."""
        return len(self.document.unique())

    def part(self, rows: slice | list[int]) -> Self:
        """Some of these windows; each keeps the tokens it scores."""
        own = {name: tensor[rows] for name, tensor in self.tensors.items()}
        return replace(self, **own, available=self.available or len(self))  # type: ignore[type-var]

    def spread(self, limit: int) -> Self:
        """At most `limit` of these windows, evenly spaced."""
        return self.part(evenly(len(self), limit))


@dataclass(frozen=True, eq=False)
class Windows(Rows):
    """Equally long pieces of documents, and which of their tokens count.

    A window's token p is scored on the p tokens before it in the window.  In a document's first window every token
    but the first is scored; in later ones those that the window before did not reach.
    """

    ids: Tensor  # (W, context) int64
    scored_from: Tensor  # (W,) int64, first scored position, at least 1
    document: Tensor  # (W,) int64, index into names
    names: tuple[str, ...]  # the documents
    stride: int  # tokens from one window's start to the next
    left_out: int = 0  # windows left out because of letters outside the alphabet
    tail_tokens: int = 0  # tokens at the ends of documents that fill no window
    available: int = 0  # windows there were before a limit; 0 means these are all
    figure: ClassVar = "perplexity"

    def __post_init__(self) -> None:
        if self.ids.dim() != 2 or self.ids.dtype != torch.int64 or not self.ids.numel():
            raise ValueError(f"ids are {self.ids.dtype} {tuple(self.ids.shape)}, expected int64 (windows, context)")
        for name in ("scored_from", "document"):
            if getattr(self, name).shape != (len(self),):
                got = tuple(getattr(self, name).shape)
                raise ValueError(f"{name} has shape {got}, expected ({len(self)},): one entry a window")
        if not 1 <= int(self.scored_from.min()) <= int(self.scored_from.max()) < self.context:
            raise ValueError(f"scored_from must lie in [1, {self.context}): the first token has nothing before it")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def context(self) -> int:
        return self.ids.shape[1]

    @property
    def n_tokens(self) -> int:
        """Scored tokens."""
        return int((self.context - self.scored_from).sum())

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"ids": self.ids, "scored_from": self.scored_from, "document": self.document}

    def inputs(self, rows: slice) -> tuple[Tensor, ...]:
        """What a model reads of some windows."""
        return (self.ids[rows],)

    def convention(self) -> str:
        """What was scored, in words that travel with the numbers."""
        layout = "disjoint" if self.stride == self.context else "sliding, new tokens scored"
        plural = "" if self.n_documents == 1 else "s"
        text = (
            f"context {self.context}, stride {self.stride} ({layout}), no BOS, tokens with nothing before them "
            f"in their window not scored; {self.n_tokens} tokens in {len(self)} windows of "
            f"{self.n_documents} document{plural}"
        )
        if self.available > len(self):
            text += f", evenly spaced among {self.available}"
        if self.left_out:
            text += f"; {self.left_out} windows with other letters left out"
        if self.tail_tokens:
            text += f"; {self.tail_tokens} tokens at document ends fill no window"
        return text


def read_documents(src: str | Path, tell: Callable[[str], None] = warnings.warn) -> list[Document]:
    """The documents of a file or pipe: FASTA, one a record, or plain UTF-8 text, one a file; gzipped or not.

    FASTA is known by its name (.fa, .fasta, .fna, with or without .gz) or by a leading '>', before which there may be
    blank lines and comments; gzip by its first bytes.  Line ends of plain text are \\n here, whatever they are in the
    file; one that is a table, JSON or FASTQ is refused.  src: "-" is standard input.  tell: takes a sentence on what
    is left out of a FASTA file.
    """
    text = read_text(src)
    suffix = Path(Path(src).name.removesuffix(".gz")).suffix.lower()
    if suffix in FASTA_SUFFIXES or FASTA_START.match(text):
        documents, left_out = read_fasta(text, src)
        for unit, those in left_out.items():
            if those.count:
                tell(those.sentence(unit, short_name(src)))
        return documents
    text = text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")  # the latter of old Macs
    if looks := no_plain_text(text, suffix):
        raise ValueError(f"{label(src)} looks like {looks}")
    return [Document(short_name(src), text)]


def no_plain_text(text: str, suffix: str) -> str | None:
    """What a text is, and what to do about it, if its letters are not what a model should read; else None.

    suffix: of its file, lower case, with the dot.
    """
    if (read := FASTQ.match(text.lstrip())) and len(read[1]) == len(read[2]):  # a quality for every letter
        return "FASTQ, whose qualities are no sequence; turn it into FASTA first (seqtk seq -A), or pass the genome"
    if suffix in JSON_SUFFIXES or is_json(text):
        return "JSON, whose names and marks are no text; write its texts to a plain file, a document a file"
    lines = [line for line in text.split("\n", 10 * PEEK)[: 10 * PEEK] if line.strip() and not line.startswith("#")]
    if suffix in TABLE_SUFFIXES or is_table(lines[:PEEK]):
        return "a table, whose columns are no running text; write the column with the texts to a plain file"
    if text.startswith("LOCUS "):
        return "GenBank, whose notes are no sequence; save it as FASTA"
    return None


def is_table(lines: Sequence[str]) -> bool:
    """Whether every line has the same number of fields, two or more: with tabs, or with commas in many lines."""
    for mark, least in (("\t", 2), (",", FEW)):
        with suppress(csv.Error):
            fields = {len(row) for row in csv.reader(lines, delimiter=mark)}
            if len(lines) >= least and len(fields) == 1 and fields != {1}:
                return True
    return False


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or list, or else its first line an object."""
    if not (text := text.strip()).startswith(("{", "[")):
        return False
    for piece, kinds in ((text.partition("\n")[0], dict), (text, dict | list)):
        with suppress(ValueError, RecursionError):
            if isinstance(json.loads(piece), kinds):
                return True
    return False


def read_fasta(text: str, src: str | Path) -> tuple[list[Document], dict[str, LeftOut]]:
    """One document a record, named by the first word of its header, and what is no sequence, by what it is.

    Line breaks of any kind are no part of the sequence, nor are lines that start with ';'.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    comments = [comment.start() for comment in COMMENT.finditer(text)]
    places = tuple(f"line {text.count(chr(10), 0, at) + 1} is a comment" for at in comments[:NAMED])
    before, *records = re.split(r"^>", COMMENT.sub("", text) if comments else text, flags=re.MULTILINE)
    if before.strip() or not records:
        raise ValueError(
            f"{label(src)} is called FASTA but does not start with a '>' header; rename it if it is plain text"
        )
    documents, empty = [], []
    for number, record in enumerate(records, start=1):
        header, _, rest = record.partition("\n")
        name = header.split()[0] if header.strip() else f"record {number}"
        if sequence := "".join(rest.split()):
            documents.append(Document(name, sequence))
        else:
            empty.append(f"record {number}{f' ({name:.60})' if header.strip() else ''} is empty")
    if not documents:
        raise ValueError(f"every record of {label(src)} is empty ({empty[0]}); pass a file with sequences")
    return documents, {"record": LeftOut.of(empty), "line": LeftOut(len(comments), places)}


def windows(
    documents: Sequence[Document],
    encode: Encode,
    context: int,
    stride: int | None = None,
    alphabet: str | None = None,
    limit: int | None = None,
) -> Windows:
    """Windows of `context` tokens, one every `stride` tokens of each document; disjoint without a stride.

    encode: text -> ids, no special tokens.  alphabet: letters that a window may hold, say "ACGT"; windows with
    others are left out and counted, and each letter must be a token.  limit: keep this many, evenly spaced.
    """
    stride = context if stride is None else stride
    if context < 2:
        raise ValueError(f"context must be at least 2 tokens, one to read and one to predict; got {context}")
    if not 1 <= stride <= context:
        raise ValueError(f"stride must lie in [1, {context}], the context, or tokens go unread; got {stride}")
    cuts = [Cut(document, encode, context, stride, alphabet) for document in documents]
    index = [(d, int(start)) for d, cut in enumerate(cuts) for start in cut.starts]
    if not index:
        raise ValueError(no_window(documents, cuts, context, alphabet))
    chosen = index if limit is None else [index[i] for i in evenly(len(index), limit)]
    return Windows(
        ids=torch.stack([cuts[d].window(start) for d, start in chosen]),
        scored_from=torch.tensor([1 if start == 0 else max(1, context - stride) for _, start in chosen]),
        document=torch.tensor([d for d, _ in chosen]),
        names=tuple(document.name for document in documents),
        stride=stride,
        left_out=sum(cut.left_out for cut in cuts),
        tail_tokens=sum(cut.tail for cut in cuts),
        available=len(index),
    )


class Cut:
    """Where one document is cut: `starts` (W,) of its windows, how many were `left_out`, and the `tail` in tokens."""

    def __init__(self, document: Document, encode: Encode, context: int, stride: int, alphabet: str | None) -> None:
        self.text, self.encode, self.context = document.text, encode, context
        self.ids: Tensor | None = None  # with an alphabet a window is encoded when it is asked for: genomes are long
        if alphabet is None:
            self.ids = torch.as_tensor(encode(document.text), dtype=torch.int64)
        self.length = len(document.text) if self.ids is None else len(self.ids)
        starts = torch.arange(0, max(0, self.length - context + 1), stride)
        self.tail = self.length - (int(starts[-1]) + context if len(starts) else 0)
        clean = torch.ones(len(starts), dtype=torch.bool)
        if alphabet is not None:
            refuse_lower_case(document, alphabet)
            clean = free_of_others(document.text, alphabet, starts, context)
        self.starts = starts[clean]
        self.left_out = len(starts) - len(self.starts)

    def window(self, start: int) -> Tensor:
        """Token ids start .. start + context - 1: (context,) int64."""
        if self.ids is not None:
            return self.ids[start : start + self.context]
        ids = torch.as_tensor(self.encode(self.text[start : start + self.context]), dtype=torch.int64)
        if len(ids) != self.context:
            raise ValueError(
                f"encode gave {len(ids)} tokens for {self.context} letters, but an alphabet asks for one token a "
                f"letter; encode without special tokens, or drop the alphabet"
            )
        return ids


def refuse_lower_case(document: Document, alphabet: str) -> None:
    """Lower case marks repeats in genomes; leaving such windows out would score the easy or the hard part only."""
    lower = sorted((set(document.text) & set(alphabet.lower())) - set(alphabet))
    if lower:
        raise ValueError(
            f"document {document.name!r} holds lower-case letters ({''.join(lower)}), the mark of repeats; "
            f"turn the text to upper case first (--upper on the command line)"
        )


def free_of_others(text: str, alphabet: str, starts: Tensor, context: int) -> Tensor:
    """Which windows hold letters of the alphabet only: (W,) bool."""
    runs = [run.span() for run in re.finditer(f"[^{re.escape(alphabet)}]+", text)]
    first, last = torch.tensor([*runs, (len(text), len(text))]).T.contiguous()  # runs of other letters, and the end
    next_run = torch.searchsorted(last, starts, right=True)  # the first that ends inside or after the window
    return first[next_run] >= starts + context


def no_window(documents: Sequence[Document], cuts: Sequence[Cut], context: int, alphabet: str | None) -> str:
    """Why there is nothing to score."""
    if not documents:
        return "no documents were given; pass at least one"
    if not any(cut.left_out for cut in cuts):
        longest = max(cut.length for cut in cuts)
        remedy = f"choose a context of at most that (--context {longest})" if longest > 1 else "pass a longer text"
        return f"no document fills a window of {context} tokens: the longest has {longest}; {remedy}"
    others = sorted({letter for document in documents for letter in set(document.text)} - set(alphabet or ""))
    shown = ", ".join(map(repr, others[:5]))
    return f"every window of {context} letters holds others than {alphabet}: {shown}; {way_around(others, alphabet)}"


def way_around(others: Iterable[str], alphabet: str | None) -> str:
    """What to do about letters that are none of the alphabet, as the end of a sentence."""
    if "T" in (alphabet or "") and set(others) & set("Uu"):
        return "that is RNA, so write T for every U first (seqkit seq --rna2dna)"
    return "choose a shorter context, so that some windows lie between them"


def evenly(count: int, limit: int) -> list[int]:
    """At most `limit` of the indices 0 .. count - 1, evenly spaced, from 0 on."""
    if limit < 1:
        raise ValueError(f"limit must be at least 1 window, got {limit}")
    kept = min(limit, count)
    return [i * count // kept for i in range(kept)]

"""From files to what a model reads: windows of tokens, and texts of one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.search.measuring import TOKENS_A_BATCH
from sparsify.storage.reading import label

from .checkpoints import longest
from .progress import note

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that `sparsify --help` is quick
    from torch import Tensor

    from sparsify.converters import Pretrained
    from sparsify.evals.data import Document, Windows
    from sparsify.evals.mlm import Masked
    from sparsify.evals.texts import Text

DEFAULT_WINDOWS = 500
GLUE_LENGTH = 128  # tokens that GLUE's examples are padded to, as M2-BERT was fine-tuned


# --- windows of a text ---------------------------------------------------------------------------------------------


def text_of(p: Pretrained, data: Path, context: int | None, stride: int | None, limit: int, upper: bool) -> Text:
    """What to score: windows of DATA in this model's tokens, with some of them masked for a model that fills those in.

    Raises ValueError for a model that does neither.
    """
    if p.head not in ("lm", "mlm"):
        trains = callable(getattr(p.model, "with_head", None))
        raise ValueError(
            f"{p.source.name} has the head {p.head!r}, which predicts no tokens and so has no perplexity; find a plan "
            f"for the language model that it was made from, {'`finetune` that or ' if trains else ''}pass its "
            f"plan.json with --plan, and score the outcome on its task: a perplexity says little of that"
        )
    if p.head == "lm":
        return windows_of(p, data, context, stride, limit, upper)
    if stride is not None:
        raise ValueError("windows with masked tokens lie side by side, so --stride says nothing to them; leave it out")
    return masked_of(p, data, context, limit, upper)


def refuse_same(known: Text, held_out: Text, calibration: str | Path, data: str | Path | None) -> None:
    """Refuse to prove what was found on some windows by windows that are all among them, whatever their files are.

    Where some of them are, that is told.
    """

    def rows(text: Text) -> set[bytes]:
        tokens = text.tensors["ids" if "ids" in text.tensors else "words"]
        return {row.tobytes() for row in tokens.numpy()}

    proof = rows(held_out)
    shared = len(proof & rows(known))
    if shared == len(proof):
        raise ValueError(
            f"{label(data or '')} holds the same text as {label(calibration)} and cannot prove a plan that was found "
            f"on it; pass other data, or leave --data out, and a part is held out"
        )
    if shared:
        note(f"{shared:,} of the {len(proof):,} windows of --data are in --calibration, too, where the plan was chosen")


def windows_of(p: Pretrained, data: Path, context: int | None, stride: int | None, limit: int, upper: bool) -> Windows:
    """Windows of DATA in this model's tokens."""
    from sparsify.evals.data import windows

    if p.head != "lm":
        raise ValueError(f"{p.source.name} has the head {p.head!r}, and perplexity takes a language model's, 'lm'")
    documents = documents_of(p, data, context, upper)
    return windows(documents, p.tokenizer.encode, context or p.context, stride, p.tokenizer.alphabet, limit or None)


def masked_of(
    p: Pretrained, data: Path, context: int | None, limit: int, upper: bool = False, share: float | None = None,
    seed: int = 0,
) -> Masked:  # fmt: skip
    """Windows of DATA, each between [CLS] and [SEP], with some tokens masked.  context: tokens of text in a window."""
    import torch.nn.functional as F

    from sparsify.evals import mlm
    from sparsify.evals.data import windows

    tokenizer: Any = p.tokenizer
    documents = documents_of(p, data, context, upper)
    cut = windows(documents, lambda text: tokenizer.pieces([text])[0], context or p.context, limit=limit or None)
    tell_unknown(p, cut.ids.flatten().tolist())
    ids = F.pad(F.pad(cut.ids, (1, 0), value=tokenizer.cls_id), (0, 1), value=tokenizer.sep_id)
    share = mlm.SHARE if share is None else share
    found = mlm.mask(ids, sorted(tokenizer.special_ids), tokenizer.mask_id, share, seed, cut.document, cut.available)
    return replace(found, how=f"{found.how}, [CLS] before and [SEP] behind every window")


def documents_of(p: Pretrained, data: Path, context: int | None, upper: bool) -> list[Document]:
    """The documents of DATA as this model's tokenizer takes them.  context: refused if the model cannot."""
    from sparsify.evals.data import Document, read_documents

    if context is not None and context > p.context:
        raise ValueError(f"--context {context} is longer than the model's {longest(p)}; choose at most {p.context}")
    return [Document(d.name, p.tokenizer.normalize(d.text, upper)) for d in read_documents(data, note)]


# --- texts of one length -------------------------------------------------------------------------------------------


def check_head(p: Pretrained, head: str, otherwise: str) -> None:
    if p.head != head:
        raise ValueError(f"{p.source.name} has the head {p.head!r}, and this takes {head!r}; {otherwise}")


def reads_text(p: Pretrained) -> bool:
    return hasattr(p.tokenizer, "batch")


def remembered(p: Pretrained, name: str) -> Any:
    """What `finetune` wrote of itself into config.json under this name; None in models from elsewhere."""
    from sparsify.evals.glue.labels import MEMORY

    made = p.config.get(MEMORY)
    return made.get(name) if isinstance(made, dict) else None


def trained_with(p: Pretrained) -> int:
    """Tokens that `finetune` padded every text to, 0 for its own length; M2-BERT's for models from elsewhere."""
    from sparsify.evals.glue.labels import MEMORY

    length = remembered(p, "pad_to")
    if length is None:
        return GLUE_LENGTH
    if type(length) is not int or length < 0:
        raise ValueError(
            f"config.json has {length!r:.60} for {MEMORY}.pad_to, expected a number of tokens; take it out"
        )
    return length


def as_in_training(p: Pretrained, length: int) -> str:
    """Whether texts are as long as `finetune` had them, as the end of a sentence; empty for models from elsewhere."""
    if remembered(p, "pad_to") is None:
        return ""
    before = trained_with(p)
    if length == before:
        return ", as in its fine-tune"
    return ", unlike in its fine-tune, " + (f"which padded to {before}" if before else "which padded none")


def padded(p: Pretrained, pad_to: int | None, default: int) -> int:
    """Tokens that every text is padded to, 0 for its own length; the default is cut to what the model takes."""
    if not reads_text(p):
        raise ValueError(f"models of the family {p.family} read no text; pass an M2-BERT")
    most = p.context + 2
    if pad_to is not None and pad_to > most:
        raise ValueError(f"--pad-to {pad_to} is longer than the {most} tokens this model takes; choose at most {most}")
    return min(default, most) if pad_to is None else pad_to


def convention(p: Pretrained, length: int) -> str:
    """How texts were made equally long, in words that travel with the numbers."""
    if length:
        return f"padding is data to this model: every text padded to {length} tokens, longer ones cut"
    return f"every text at its own length, without padding, cut to {p.context + 2} tokens"


def too_long(p: Pretrained, texts: Sequence[str], pairs: Sequence[str] | None, length: int) -> int:
    """How many texts are cut; says so, too, if most of their tokens are unknown to the model."""
    tokenizer: Any = p.tokenizer
    pieces = tokenizer.pieces(texts)
    counts = [len(row) + 2 for row in pieces]
    if pairs is not None:
        seconds = tokenizer.pieces(pairs)
        counts = [n + len(row) + 1 for n, row in zip(counts, seconds, strict=True)]
        pieces = [*pieces, *seconds]
    tell_unknown(p, [token for row in pieces for token in row])
    return sum(n > (length or p.context + 2) for n in counts)


def tell_unknown(p: Pretrained, ids: Sequence[int]) -> None:
    """Say if most of these tokens are [UNK]: then a figure says little of the texts."""
    tokenizer: Any = p.tokenizer
    count = ids.count(tokenizer.unk_id)
    if 2 * count > len(ids):
        note(
            f"{count / len(ids):.0%} of the tokens are [UNK], because the vocabulary of {p.source.name} lacks these "
            f"words; are the texts in its language?"
        )


def on_texts(p: Pretrained, run: Callable[..., Tensor], length: int) -> Callable[..., Tensor]:
    """`run` as a function of texts, and of second texts if there are any -> (B, columns).  length: as of `padded`."""
    import torch

    tokenizer: Any = p.tokenizer

    def of(texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        batch = tokenizer.batch(texts, pairs, pad_to=length or None, limit=length or p.context + 2)
        inputs = batch.input_ids, batch.attention_mask, batch.token_type_ids
        if length:
            return run(*inputs)
        lengths, rows, parts = batch.attention_mask.sum(1), [], []
        for own in lengths.unique().tolist():  # texts of one length together: none of them is padded
            rows.append((lengths == own).nonzero()[:, 0])
            parts.append(run(*(x[rows[-1], :own] for x in inputs)))
        found = torch.cat(parts)
        return found[torch.cat(rows).argsort().to(found.device)]

    return of


def batch_of(p: Pretrained, length: int) -> int:
    """Texts at a time; many where each has a length of its own, so that some share one."""
    return max(1, TOKENS_A_BATCH // length) if length else max(1, (1 << 16) // (p.context + 2))

"""What a model writes after a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.report.schema import Generation
from sparsify.storage.reading import label

from .checkpoints import at_least, described, open_checkpoint
from .progress import Progress, note, say, session

if TYPE_CHECKING:
    from torch import Tensor

    from sparsify.converters import Pretrained


def generate(
    model: str, prompt: str | None = None, *, prompt_file: str | Path | None = None, count: int = 100,
    temperature: float = 0.0, top_k: int | None = None, seed: int | None = None, upper: bool = False,
    revision: str | None = None, options: Mapping[str, Any] | None = None, device: str | None = None,
    progress: Progress | None = None,
) -> Generation:  # fmt: skip
    """Let a model go on from a prompt; convolutions are as planned, without the lags that read the future.

    Args:
        model: A folder or a hub id, ORG/NAME.
        prompt: The sequence to go on from.
        prompt_file: Text or FASTA file with the sequence to go on from, instead; "-" is standard input.
        count: Tokens to generate.
        temperature: 0 takes the likeliest token each time, 1 draws as the model predicts.
        top_k: Draw among so many of the likeliest tokens; None: among all.
        seed: Draw the same tokens again; None draws others each time.
        upper: Read lower-case (soft-masked) bases as upper case.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        What `--json` prints, among it `text`, what was written; `prompt_tokens`, `seconds`, `tokens_per_second`.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
    """
    from sparsify.evals.speed.throughput import wall_clock

    at_least(1, count=count, top_k=top_k)
    at_least(0, temperature=temperature, seed=seed)
    with session(progress):
        tell_what_is_idle(temperature, top_k, seed)
        text = prompt_text(prompt, prompt_file)
        p = open_checkpoint(model, revision, options, device)
        if not callable(start := getattr(p.model, "stream", None)):
            raise ValueError(f"models of the family {p.family} cannot be fed in pieces yet, so they cannot generate")
        ids = prompt_ids(p, text, upper)
        if (total := ids.shape[1] + count) > p.context:
            note(
                f"the prompt and what is generated are {total:,} tokens, more than the {p.context:,} that the model "
                f"was made for: its filters reach no further back, and it was not trained so"
            )
        stream, began = start(), wall_clock()
        if ids.shape[1] > 1:
            say(f"reading {ids.shape[1]:,} tokens")
            for piece in ids[:, :-1].split(stream.piece, dim=1):  # nobody wants their logits, all together least
                stream.feed(piece)
        read = wall_clock()
        grown = stream.generate(ids[:, -1:], count, temperature, top_k, seed)
        done = wall_clock()
        return Generation(
            **described(p),
            prompt_tokens=ids.shape[1],
            count=count,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            text=p.tokenizer.decode(grown[0, 1:].tolist()),
            prompt_seconds=read - began,
            seconds=done - read,
            tokens_per_second=count / (done - read),
        )


def tell_what_is_idle(temperature: float, top_k: int | None, seed: int | None) -> None:
    """Say of options for drawing that nothing is drawn."""
    if temperature == 0 and (idle := [name for name, it in (("--top-k", top_k), ("--seed", seed)) if it is not None]):
        say(
            f"note: at temperature 0 the likeliest token is taken each time, so {' and '.join(idle)} change nothing; "
            f"--temperature 1 draws"
        )


def prompt_text(prompt: str | None, path: str | Path | None) -> str:
    """The prompt, as it is or from a file with one sequence."""
    from sparsify.evals.data import read_documents

    if (prompt is None) == (path is None):
        raise ValueError("a prompt is needed to go on from; give --prompt or --prompt-file, one of them")
    if path is not None:
        documents = read_documents(path, note)
        if len(documents) != 1:
            raise ValueError(f"{label(path)} holds {len(documents)} sequences; cut it to the one to go on from")
        prompt = documents[0].text
    if not prompt or not prompt.strip():
        raise ValueError("the prompt is empty; give at least one token")
    return prompt


def prompt_ids(p: Pretrained, text: str, upper: bool) -> Tensor:
    """The prompt in the model's tokens: (1, tokens); refuses letters that it does not know."""
    import torch

    text = p.tokenizer.normalize(text, upper)
    tokens = p.tokenizer.encode(text)
    if p.tokenizer.decode(tokens) != text:
        rna = "; that is RNA, so write T for every U" if p.tokenizer.alphabet and set(text) & set("Uu") else ""
        raise ValueError(
            f"the prompt holds other letters than {p.tokenizer.alphabet}, which this model does not know{rna}"
        )
    return torch.tensor([tokens], device=p.device)

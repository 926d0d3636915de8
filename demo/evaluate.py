"""What the demo checkpoint's card quotes: its perplexity on held-out bases, beside a Markov model of order 5.

    python demo/evaluate.py 20.fa.gz demo/hyenadna-chr20-8k [--text demo/chr20-held-out.fa.gz]

Both see the same windows of bases 50-60 Mb; the Markov model is counted on the bases that trained the network.
--text also writes the short stretch of them that ships as the demo's evaluation text.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from train import HELD_OUT, TRAIN, read_chromosome, window_starts

from sparsify.converters import load
from sparsify.evals import Logits
from sparsify.evals.data import Document, windows
from sparsify.evals.quality import compare

ORDER = 5
FIRST = 7  # token id of A; C, G and T follow
TEXT = slice(55_000_000, 55_000_000 + 24 * 8192)  # free of N
CONTEXTS = (64, 256, 1024, 4096, 8128)
LETTERS = np.frombuffer(b"???????ACGTN????", dtype="S1")


def markov(ids: np.ndarray, order: int) -> Logits:
    """Logits function of a Markov model counted on ids: (bases,) uint8; contexts with an N are left out."""
    bases = torch.from_numpy(ids.astype(np.int64)) - FIRST
    history = sum(bases[i : len(bases) - order + i] * 4 ** (order - 1 - i) for i in range(order))
    clean = (bases < 4).unfold(0, order + 1, 1).all(1)
    index = history[clean] * 4 + bases[order:][clean]
    counts = torch.bincount(index, minlength=4 ** (order + 1)).view(-1, 4).double() + 1
    table = (counts / counts.sum(1, keepdim=True)).log()
    start = table.exp().mean(0).log()  # for the first bases of a window, which have no full history

    def logits(x: Tensor) -> Tensor:
        x = x - FIRST
        full = sum(x[:, i : x.shape[1] - order + 1 + i] * 4 ** (order - 1 - i) for i in range(order))
        out = torch.full((*x.shape, 16), -torch.inf, dtype=torch.float64)
        out[..., FIRST : FIRST + 4] = start
        out[:, order - 1 :, FIRST : FIRST + 4] = table[full]
        return out

    return logits


def write_text(ids: np.ndarray, path: Path) -> None:
    """The demo's evaluation text, a gzipped FASTA of one record."""
    letters = LETTERS[ids[TEXT]].tobytes().decode()
    lines = [f">chr20:{TEXT.start + 1}-{TEXT.stop} GRCh37", *(letters[i : i + 80] for i in range(0, len(letters), 80))]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def by_context(run: Logits, starts: np.ndarray, ids: np.ndarray, reach: int, scored: int = 64) -> None:
    """Print the perplexity of the last `scored` bases of each window when fewer or more bases before them are read."""
    means: list[Tensor] = []
    for before in CONTEXTS:
        ends = starts + reach
        rows = [torch.from_numpy(ids[e - scored - before : e].astype(np.int64)) for e in ends]
        losses = [torch.nn.functional.cross_entropy(run(row[None, :-1])[0, before - 1 :], row[before:]) for row in rows]
        means.append(torch.stack(losses).double())
        gain = means[0] - means[-1]
        print(
            f"{before:5d} bases before: perplexity {means[-1].mean().exp():.4f}, nats gained over {CONTEXTS[0]}: "
            f"{gain.mean():.5f} +- {gain.std() / len(gain) ** 0.5:.5f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--text", type=Path, help="write the evaluation text here")
    args = parser.parse_args()
    ids = read_chromosome(args.fasta)
    if args.text:
        write_text(ids, args.text)
    model = load(args.checkpoint)
    runs = {"markov": markov(ids[TRAIN], ORDER), "model": model.model}
    text = LETTERS[ids[HELD_OUT]].tobytes().decode()
    scored = windows(
        [Document("held out", text)], model.tokenizer.encode, args.context, alphabet="ACGT", limit=args.limit
    )
    comparison = compare(runs, scored, batch_size=2)
    print(comparison.convention)
    for name, quality in comparison.variants.items():
        print(f"{name}: perplexity {quality.perplexity:.4f} +- {quality.perplexity_stderr:.4f}")
        for bucket in quality.by_position:
            print(f"  positions {bucket.start:5d} - {bucket.stop - 1:5d}: {bucket.perplexity:.4f}")
    starts = window_starts(ids, HELD_OUT, args.context)
    by_context(runs["model"], starts[:: len(starts) // 400], ids, args.context)


if __name__ == "__main__":
    main()

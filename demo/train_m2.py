"""Train a small M2-BERT on a CPU: masked language modelling first, then SST-2 and CoLA by the harness itself.

    python demo/train_m2.py --glue GLUE --text FILE [FILE ...] --vocab VOCAB --out OUT

GLUE holds sst2.train.jsonl, sst2.dev.jsonl and those of cola, or GLUE's own TSV folders.  VOCAB is the vocab.txt of
bert-base-uncased; the model's own keeps its most frequent pieces.  OUT gets mlm/, sst2/ and cola/, each a checkpoint of
less than 4 MB.  What is there already is kept, and an interrupted fine-tune goes on where it was.

The classifiers read the state of [CLS] alone, so that whatever they know of the other tokens came through a long
convolution: a mean over all tokens would score nearly as well without any.

Everything is drawn from one seed.  The weights are for the machine they were made on: GLUE's texts are for research.
"""

from __future__ import annotations

import argparse
import math
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsify.converters import m2_bert
from sparsify.converters.models.m2_bert import M2Bert, M2BertConfig
from sparsify.converters.tokenizers.wordpiece import SPECIAL, TextTokenizer
from sparsify.evals.data import read_documents
from sparsify.evals.glue.tasks import TASKS, read_examples

TASKS_HERE = {  # what differs from M2-BERT's recipes: a model a hundredth of the size learns at a higher rate
    "sst2": ("--lr", "1e-3", "--epochs", "1", "--batch", "32"),
    # for the first epochs it says one class of everything, which is no reason to stop
    "cola": ("--lr", "3e-4", "--epochs", "10", "--batch", "32", "--patience", "10"),
}
PIECES = 4000
LENGTH = 64  # longest input
WINDOWS_A_STEP = 64
MASKED = 0.2


def texts_of(files: Sequence[Path], glue: Path) -> list[str]:
    """All texts to learn from, the dev sets not among them."""
    texts = [line for path in files for d in read_documents(path) for line in d.text.splitlines() if line.strip()]
    return texts + [text for task in TASKS_HERE for text in read_examples(glue, TASKS[task], "train").texts]


def vocabulary(texts: Sequence[str], whole: TextTokenizer) -> list[str]:
    """Special tokens, every letter and sign alone and inside words, then the most frequent pieces: PIECES in all."""
    counts = Counter(piece for row in whole.backend.encode_batch(list(texts)) for piece in row.tokens)
    signs = string.ascii_lowercase + string.digits + string.punctuation
    first = [*SPECIAL, *signs, *(f"##{sign}" for sign in signs)]
    frequent = [piece for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return list(dict.fromkeys(first + frequent))[:PIECES]


def make_tokenizer(texts: Sequence[str], vocab: Path | None, folder: Path) -> TextTokenizer:
    """One for the small vocabulary, in `folder`.  vocab: bert-base-uncased's, None takes it from the hub."""
    whole = TextTokenizer()
    if vocab:
        (folder / "whole").mkdir()
        shutil.copyfile(vocab, folder / "whole" / "vocab.txt")
        whole = TextTokenizer(folder / "whole")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary(texts, whole)), encoding="utf-8")
    return TextTokenizer(folder, PIECES)


def windows(texts: Sequence[str], tokenizer: TextTokenizer, generator: torch.Generator) -> Tensor:
    """All texts, in another order, as one stream in windows [CLS] ... [SEP]: (W, LENGTH) int64."""
    order = torch.randperm(len(texts), generator=generator).tolist()
    stream = torch.tensor([i for piece in tokenizer.pieces([texts[i] for i in order]) for i in piece])
    rows = stream[: len(stream) // (LENGTH - 2) * (LENGTH - 2)].view(-1, LENGTH - 2)
    return F.pad(F.pad(rows, (1, 0), value=tokenizer.cls_id), (0, 1), value=tokenizer.sep_id)


def batches(texts: Sequence[str], tokenizer: TextTokenizer, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches (B, LENGTH); every epoch has an order of its own."""
    while True:
        yield from windows(texts, tokenizer, generator).split(WINDOWS_A_STEP)


def pretrain(texts: Sequence[str], tokenizer: TextTokenizer, tokens: float, lr: float, seed: int) -> M2Bert:
    """A model that fills in masked tokens."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = M2Bert(
        M2BertConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=2, vocab_size=PIECES,
            max_position_embeddings=LENGTH, hyena_filter_order=32,
        )
    )  # fmt: skip
    optim = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    source, steps, began = batches(texts, tokenizer, generator), int(tokens / WINDOWS_A_STEP / LENGTH), time.time()
    rise = min(100, steps // 2)
    special, mean = torch.tensor(sorted(tokenizer.special_ids)), math.log(PIECES)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps", flush=True)
    for step in range(steps):
        for group in optim.param_groups:
            group["lr"] = lr * min((step + 1) / rise, (steps - step) / (steps - rise))
        ids = next(source)
        hidden = (torch.rand(ids.shape, generator=generator) < MASKED) & ~torch.isin(ids, special)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.predict(model.hidden(ids.masked_fill(hidden, tokenizer.mask_id))[hidden])
        loss = F.cross_entropy(logits.float(), ids[hidden])
        optim.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        mean += 0.02 * (loss.item() - mean)
        if (step + 1) % 50 == 0:
            rate = (step + 1) * ids.numel() / (time.time() - began)
            print(f"step {step + 1} pseudo-perplexity {math.exp(mean):.1f} {rate:,.0f} tokens/s", flush=True)
    return model.eval()


def missing(folder: Path) -> bool:
    """Whether a stage is still to do; says what is coming."""
    print(f"{folder}: {'there already, kept' if folder.exists() else 'training'}", flush=True)
    return not folder.exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--vocab", type=Path, help="(default: from the hub)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=4e6, help="tokens to pretrain on (default: %(default)g)")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    if missing(args.out / "mlm"):
        texts = texts_of(args.text, args.glue)
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = make_tokenizer(texts, args.vocab, Path(scratch))
            model = pretrain(texts, tokenizer, args.tokens, args.lr, args.seed)
            m2_bert.save(model, args.out / "mlm", tokenizer)
    own_length = ("--seed", str(args.seed), "--pad-to", "0")
    for task, options in TASKS_HERE.items():
        if missing(args.out / task):
            verb = [sys.executable, "-m", "sparsify", "finetune", args.out / "mlm", "--task", task, *options]
            subprocess.run([*verb, *own_length, "--data", args.glue, "--out", args.out / task], check=True)


if __name__ == "__main__":
    main()

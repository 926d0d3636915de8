"""Train the demo checkpoint: a small HyenaDNA on human chromosome 20, on a CPU.

    python demo/train.py 20.fa.gz OUT

Bases 0-50 Mb train, 50-60 Mb judge, 60 Mb onward stay untouched.  Windows grow from 1,024 to 8,192 bases.
The FASTA is GRCh37; Debian's package `vt-examples` holds it as /usr/share/doc/vt/examples/ref/20.fa.gz.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import sparsify  # noqa: F401  (makes sparsify.converters importable from a checkout)
from sparsify.converters.hyena_dna import HyenaDNA, HyenaDNAConfig
from sparsify.converters.models.implicit_filter import Modulation, PositionalEmbedding

TRAIN, HELD_OUT = slice(0, 50_000_000), slice(50_000_000, 60_000_000)
# share of the tokens, window length: short windows are cheap and teach the repeats, long ones teach the long filters
STAGES = ((0.45, 1024), (0.30, 4096), (0.25, 8192))
TOKENS_A_STEP = 16384
IDS = np.full(256, 11, dtype=np.uint8)  # N and everything else
IDS[[ord(c) for c in "ACGT"]] = [7, 8, 9, 10]


def read_chromosome(path: Path) -> np.ndarray:
    """Token ids of a gzipped single-record FASTA: (bases,) uint8, upper-cased."""
    with gzip.open(path) as file:
        lines = file.read().split(b"\n", 1)[1]
    return IDS[np.frombuffer(lines.replace(b"\n", b"").upper(), dtype=np.uint8)]


def window_starts(ids: np.ndarray, span: slice, length: int) -> np.ndarray:
    """Starts of the N-free windows of length + 1 inside span, on a grid of 512 bases."""
    is_n = np.concatenate([[0], np.cumsum(ids[span] == 11)])
    starts = np.arange(0, len(ids[span]) - length - 1, 512)
    return starts[is_n[starts + length + 1] == is_n[starts]] + span.start


def batches(ids: np.ndarray, starts: np.ndarray, length: int, rng: np.random.Generator):
    """Endless batches (B, length + 1), each window at a random offset, half of them reverse-complemented."""
    complement = np.arange(16)
    complement[[7, 8, 9, 10]] = [10, 9, 8, 7]
    while True:
        for rows in rng.permutation(starts)[: len(starts) // 16 * 16].reshape(-1, TOKENS_A_STEP // length):
            x = np.stack([ids[s : s + length + 1] for s in rows])
            flip = rng.random(len(x)) < 0.5
            x[flip] = complement[x[flip, ::-1]]
            yield torch.from_numpy(x.astype(np.int64))


def initialize(model: HyenaDNA) -> None:
    """Normal(0.02) weights, residual outputs scaled by depth; the filter MLP keeps torch's own initialisation."""
    for name, module in model.named_modules():
        if isinstance(module, PositionalEmbedding | Modulation):
            module.reset_parameters()
        elif isinstance(module, torch.nn.Linear) and "implicit_filter" not in name:
            scale = math.sqrt(2 * len(model.backbone.layers)) if name.endswith(("out_proj", "fc2")) else 1.0
            torch.nn.init.normal_(module.weight, std=0.02 / scale)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.02)
    for layer in model.backbone.layers:
        torch.nn.init.normal_(layer.mixer.filter_fn.bias)
    model.lm_head.weight = model.backbone.embeddings["word_embeddings"].weight


def optimizer(model: HyenaDNA, lr: float) -> torch.optim.AdamW:
    """AdamW without decay on filters, norms, biases and the embedding."""
    decayed = [p for n, p in model.named_parameters() if p.dim() == 2 and "filter" not in n and "embedding" not in n]
    chosen = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def loss_of(model: HyenaDNA, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), x[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: HyenaDNA, ids: np.ndarray, length: int, windows: int) -> float:
    starts = window_starts(ids, HELD_OUT, length)
    starts = starts[:: max(1, len(starts) // windows)][:windows]
    losses = []
    for s in starts:
        x = torch.from_numpy(ids[s : s + length + 1].astype(np.int64))[None]
        losses.append(F.cross_entropy(model(x[:, :-1])[0], x[0, 1:]).item())
    return float(np.mean(losses))


def save(model: HyenaDNA, out: Path) -> None:
    """A folder in the raw dialect: config.json as HyenaDNA's own, weights under `backbone.` and `lm_head.`."""
    c = model.config
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "d_model": c.d_model, "n_layer": c.n_layer, "d_inner": c.d_inner, "vocab_size": 12,
        "pad_vocab_size_multiple": 8, "residual_in_fp32": True,
        "layer": {"_name_": "hyena", "emb_dim": c.emb_dim, "filter_order": c.filter_order, "l_max": c.max_seq_len,
                  "modulate": True, "w": 10},
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, out / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=float, default=110e6, help="tokens to train on (default: %(default)g)")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    ids = read_chromosome(args.fasta)
    model = HyenaDNA(HyenaDNAConfig(d_model=128, d_inner=512, n_layer=2, vocab_rows=16, max_seq_len=8194))
    initialize(model)
    optim = optimizer(model, args.lr)
    steps, step, began = int(args.tokens / TOKENS_A_STEP), 0, time.time()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps", flush=True)
    for share, length in STAGES:
        source = batches(ids, window_starts(ids, TRAIN, length), length, rng)
        for _ in range(int(steps * share)):
            warm, done = min(1.0, (step + 1) / 200), step / steps
            for group in optim.param_groups:
                group["lr"] = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            loss = loss_of(model, next(source))
            optim.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optim.step()
            step += 1
            if step % 50 == 0:
                rate = step * TOKENS_A_STEP / (time.time() - began)
                print(f"step {step} length {length} ppl {math.exp(loss.item()):.3f} {rate:,.0f} tokens/s", flush=True)
            if step % 500 == 0:
                save(model, args.out)
                held = [math.exp(held_out_loss(model, ids, n, w)) for n, w in ((1024, 256), (8192, 32))]
                print(f"step {step} held out ppl at 1,024 {held[0]:.4f} at 8,192 {held[1]:.4f}", flush=True)
    save(model, args.out)


if __name__ == "__main__":
    main()

"""The published HyenaDNA tiny-1k: every tensor accounted for, and its language known."""

import gzip
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from layouts import CHECKPOINTS, positions

from sparsify.converters import load
from sparsify.converters.tensors import read_tensors

CONTEXT = 1024


@pytest.fixture(scope="module")
def folder(test_data):
    return test_data / "hyenadna-tiny-1k"


@pytest.fixture(scope="module")
def tiny(folder):
    return load(folder)


def test_every_key_is_accounted_for(tiny, folder):
    """The three freqs of a filter are one, and the head is the embedding; nothing else changes its name."""
    stored, ours = read_tensors(folder), tiny.model.state_dict()
    for name, tensor in stored.items():
        assert torch.equal(ours[name.replace("3.freq", "1.freq").replace("5.freq", "1.freq")], tensor), name
    assert ours.keys() - stored.keys() == {"lm_head.weight"}
    assert torch.equal(ours["lm_head.weight"], stored["backbone.embeddings.word_embeddings.weight"])
    assert any("tied" in note for note in tiny.notes)


def test_published_positions_follow_the_formulas(folder):
    stored = read_tensors(folder)
    for name, exact in positions(CHECKPOINTS["tiny-1k-seqlen"]).items():
        for layer in (0, 1):
            assert_close(stored[f"backbone.layers.{layer}.mixer.filter_fn.{name}"], exact, 1e-6)


@torch.no_grad()
def test_perplexity_on_held_out_bases(tiny, test_data):
    """16 windows of chromosome 20.  Four equally likely bases are 4.0; 3.4 and more is a wrong conversion."""
    text = gzip.decompress((test_data / "dna" / "chr20_30-38Mb.txt.gz").read_bytes()).decode()
    pieces = [text[i : i + CONTEXT] for i in range(0, len(text) - CONTEXT, 250_000)]
    ids = torch.tensor([tiny.tokenizer.encode(piece) for piece in pieces if "N" not in piece][:16])
    logits = tiny.model(ids)
    assert logits.isfinite().all() and logits.shape == (16, CONTEXT, 16)
    perplexity = math.exp(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item())
    assert 2.9 < perplexity < 3.4

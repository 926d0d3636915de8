"""Retrieval: how a text becomes a set, and what two models find in it."""

import numpy as np
import pytest
import torch

from sparsify.evals.data import Document
from sparsify.evals.glue.metrics import spearman
from sparsify.evals.retrieval import Halves, compare, cut_in_two, halves, paragraphs

N, D = 40, 12
PAIRS = Halves(tuple(f"q{i}" for i in range(N)), tuple(f"p{i}" for i in range(N)), N)


def sentence(words, end="."):
    return " ".join(["word"] * words) + end


def test_a_paragraph_goes_on_behind_characters_that_end_lines_elsewhere():
    text = sentence(25) + "\u2028" + sentence(25) + "\x85" + sentence(25)
    assert paragraphs(f"{text}\r\n\r\n{text}\r\n") == [text, text]


def model(noise, seed=1):
    """Embeddings of query i and passage i that point nearly the same way."""
    common = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    off = noise * torch.randn(2 * N, D, generator=torch.Generator().manual_seed(seed))
    vectors = common.repeat(2, 1) + off

    def embed(texts):
        return torch.stack([vectors[int(text[1:]) + N * (text[0] == "p")] for text in texts])

    return embed


def test_paragraphs_are_cut_at_the_sentence_nearest_the_middle():
    first, second = sentence(25), sentence(30, '."')
    assert cut_in_two(f"{first} {second}") == (first, second)
    assert cut_in_two(f"{first} {second} {sentence(21)}")[0] == first
    assert cut_in_two(f"{sentence(25)} {sentence(10)}") is None and cut_in_two(sentence(60)) is None


def test_halves_of_several_texts():
    """Blank lines end a paragraph, lines of its length stand alone, and what is short is left out."""
    long, two = f"{sentence(25)} {sentence(22)}", f"{sentence(20)}\n{sentence(20)}"
    documents = [Document("a", f"{long}\n{long}\n\n= Title =\n\n{two}"), Document("b", f"{two}\n \n{sentence(9)}")]
    found = halves(documents)
    assert len(found) == found.available == 4 and found.passages[0] == sentence(22) == found.passages[1]
    assert len(halves(documents, limit=3)) == 3 and "3 of 4 paragraphs" in halves(documents, limit=3).convention()
    with pytest.raises(ValueError, match="1 paragraphs of two halves"):
        halves([Document("a", long)])


def test_figures_are_those_of_the_definition():
    dense, sparse = model(0.8), model(0.9, seed=2)
    steps = []
    found = compare({"dense": dense, "sparse": sparse}, PAIRS, 7, progress=lambda *at: steps.append(at))
    assert steps[-1] == (2 * N, 2 * N)
    similar, reciprocal = {}, {}
    for name, embed in (("dense", dense), ("sparse", sparse)):
        q, p = (torch.nn.functional.normalize(embed(texts).double()) for texts in (PAIRS.queries, PAIRS.passages))
        similar[name] = (q @ p.T).numpy()
        place = (-similar[name]).argsort(1).argsort(1).diagonal() + 1
        reciprocal[name] = 1 / place
        assert found[name].mrr == pytest.approx(reciprocal[name].mean(), rel=1e-12)
    gap = reciprocal["sparse"] - reciprocal["dense"]
    own = found["sparse"]
    assert own.mrr_difference == pytest.approx(gap.mean()) and gap.mean() != 0
    assert own.mrr_difference_stderr == pytest.approx(gap.std(ddof=1) / N**0.5)
    alike = [spearman(a, b) for a, b in zip(similar["sparse"], similar["dense"], strict=True)]
    assert own.rank_agreement == pytest.approx(np.mean(alike)) and 0.2 < own.rank_agreement < 0.9
    top = (
        [set((-row).argsort()[:10]) for row in similar["sparse"]],
        [set((-row).argsort()[:10]) for row in similar["dense"]],
    )
    assert own.top_overlap == pytest.approx(np.mean([len(a & b) / 10 for a, b in zip(*top, strict=True)]))
    both = [torch.cat([embed(PAIRS.queries), embed(PAIRS.passages)]).double() for embed in (dense, sparse)]
    cosine = torch.nn.functional.cosine_similarity(*both)
    assert own.cosine == pytest.approx(cosine.mean().item()) and own.cosine_worst == pytest.approx(cosine.min().item())


def test_the_same_model_twice_differs_by_nothing():
    own = compare({"dense": model(0.5), "again": model(0.5)}, PAIRS)["again"]
    assert (own.mrr_difference, own.rank_agreement, own.top_overlap) == (0, 1, 1)
    assert own.cosine_worst == pytest.approx(1, abs=1e-12)


def test_embeddings_all_alike_find_nothing():
    found = compare({"dense": lambda texts: torch.ones(len(texts), D)}, PAIRS)["dense"]
    assert found.mrr == pytest.approx(1 / (1 + (N - 1) / 2)) and found.cosine is None


def test_refusals():
    with pytest.raises(ValueError, match=r"gave \(32, 3, 4\) for 32 texts, expected one vector each"):
        compare({"dense": lambda texts: torch.zeros(len(texts), 3, 4)}, PAIRS)
    with pytest.raises(ValueError, match="an embedding of no length"):
        compare({"dense": lambda texts: torch.zeros(len(texts), 3)}, PAIRS)

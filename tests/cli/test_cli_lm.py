"""The English Hyena LM through the verbs: a pickle of a name of its own, text in GPT-2's tokens, no hub to be had."""

import layouts_lm
import pytest
import torch
from layouts_lm import TOKENS, write, write_vocabulary
from oracles import oracle
from verbs import answer, refusal, run

from sparsify.converters import load
from sparsify.converters.tokenizers import base

TEXT = "the inn of the café, a théâtre in the ant hill; " * 30


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    def offline(*_):
        raise FileNotFoundError("the hub cannot be reached")

    monkeypatch.setattr(base, "snapshot", offline)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """As published: neither a config.json nor a vocabulary."""
    return write(tmp_path_factory.mktemp("bare") / "hyena-small")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The same with a vocabulary beside."""
    return write_vocabulary(write(tmp_path_factory.mktemp("source") / "hyena-small", plain=layouts_lm.untied()))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(TEXT)
    return path


def test_a_bare_pickle_is_converted_without_its_vocabulary(bare, text, tmp_path):
    """Which is missed when a text is read, and nothing is left of that."""
    result = answer("convert", bare, tmp_path / "out", "--taps", 9)
    assert result["family"] == "hyena_lm" and {f["kind"] for f in result["filters"]} == {"partial"}
    assert answer("inspect", tmp_path / "out")["context"] == 64
    assert answer("bench", tmp_path / "out", "--rounds", 3)["length"] == 64
    said = refusal("convert", bare, tmp_path / "another", "--taps", 9, "--data", text)
    assert "no vocabulary in" in said and said.endswith("put its vocab.json and merges.txt there")
    assert not (tmp_path / "another").exists()


def test_convert_then_eval(source, text, tmp_path):
    out = tmp_path / "sparse"
    result = answer("convert", source, out, "--split", "16:0.5", "--data", text)
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= {path.name for path in out.iterdir()}
    again = answer("eval", "ppl", out, "--data", text, "--baseline", source)
    assert again["perplexity"] == result["evaluation"]["perplexity"] != again["dense"]["perplexity"]
    assert result["evaluation"]["perplexity_cut"] is not None and "eval ppl" in result["next"]


@pytest.mark.parametrize("stride", [64, 24])
def test_perplexity_is_that_of_the_tokens(source, text, stride):
    """Each but the first predicted once, from those before it in its window, by the formulas."""
    ids = torch.tensor(load(source).tokenizer.encode(TEXT))
    nll = []
    for start in range(0, len(ids) - 64 + 1, stride):
        window = ids[start : start + 64]
        first = 1 if start == 0 else max(1, 64 - stride)
        log_p = oracle(layouts_lm.untied(), window[None], None)[0, :-1].log_softmax(-1)
        nll.append(-log_p.gather(1, window[1:, None])[first - 1 :, 0])
    found = answer("eval", "ppl", source, "--data", text, "--stride", stride, "--limit", 0)
    assert found["perplexity"] == pytest.approx(torch.cat(nll).mean().exp().item(), rel=1e-5)
    assert f"{len(torch.cat(nll))} tokens" in found["convention"]


def test_a_plan_within_a_budget(source, text, tmp_path):
    out = tmp_path / "out"
    ask = ("--max-ppl-increase", "5%", "--calibration", text, "--target", "kept", "--context", 32)
    result = answer("convert", source, out, *ask)
    assert result["planned"] is not None and load(out).plan.sha256 == result["plan_sha256"]


def test_generate(source):
    ask = ("generate", source, "--prompt", "the theory in the", "--temperature", 1, "--seed", 3, "--count", 20)
    done = run(*ask)
    assert done.exit_code == 0, done.output
    result = answer(*ask)
    tokenizer, model = load(source).tokenizer, load(source).model
    ids = torch.tensor([tokenizer.encode("the theory in the")])
    grown = model.stream().generate(ids, 20, temperature=1, seed=3)
    assert result["prompt_tokens"] == ids.shape[1] and grown.max() < TOKENS
    assert result["text"] == tokenizer.decode(grown[0, ids.shape[1] :].tolist())


def test_a_long_prompt_is_read_in_pieces(source, monkeypatch):
    """Of more tokens than the filters reach; a token has too many logits to hold them all."""
    ask = ("generate", source, "--prompt", TEXT, "--count", 5)
    whole = answer(*ask)["text"]
    model, fed = type(load(source).model), []
    stream = model.stream

    def short(self, batch=1):
        found = stream(self, batch, 100)
        step = found.step
        found.step = lambda ids: fed.append(ids.shape[1]) or step(ids)
        return found

    monkeypatch.setattr(model, "stream", short)
    assert answer(*ask)["text"] == whole
    assert max(fed) == 100 and sum(fed) == len(load(source).tokenizer.encode(TEXT)) + 4


def test_refusals(source, text):
    assert "DNA" in refusal("eval", "ppl", source, "--data", text, "--upper")
    assert "has no option 'shift'" in refusal("inspect", source, "--option", "shift=0.05")
    assert "--context 65 is longer than the model's 64 tokens" in refusal(
        "eval", "ppl", source, "--data", text, "--context", 65
    )
    assert "is a file; pass the folder" in refusal("inspect", source / layouts_lm.FILE)

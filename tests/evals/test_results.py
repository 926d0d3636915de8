"""Numbers travel with their conditions, and survive JSON."""

import json
import platform
import subprocess
from datetime import datetime, timedelta

import pytest
import torch

import sparsify
from sparsify.evals.causality import Leak
from sparsify.evals.data import Document, windows
from sparsify.evals.quality import compare
from sparsify.evals.results import commit, conditions, setting, variant, variants
from sparsify.report.schema import Variant

LEAK = Leak(past_mean=0.01, past_worst=0.02, edge_mean=0.1, edge_worst=0.18, trials=16)


@pytest.fixture
def comparison():
    documents = [Document("a", "abcabcab"), Document("b", "ccbbaacb")]
    w = windows(documents, lambda text: [ord(c) - 97 for c in text], 4)
    models = {name: torch.randn(3, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("dsc")}
    names = {"d": "dense", "s": "sparse", "c": "sparse, cut"}
    return compare({names[n]: lambda ids, row=row: row.expand(*ids.shape, 3) for n, row in models.items()}, w)


def test_report_has_a_plainly_named_row_a_variant(comparison):
    made = setting(comparison, conditions())
    assert made["count"] == 2 and made["samples"] == "documents" and "context 4" in made["convention"]
    found = variants(comparison, {"sparse": "sparse, cut"}, {"sparse": LEAK})
    dense, sparse = found.values()
    assert (dense.variant, sparse.variant, sparse.baseline) == ("dense", "sparse", "dense")
    assert Variant.from_dict(json.loads(json.dumps(sparse.to_dict()))) == sparse
    quality, cut = comparison["sparse"], comparison["sparse, cut"]
    expected = {
        "perplexity": quality.perplexity,
        "perplexity_stderr": quality.perplexity_stderr,
        "perplexity_ratio": quality.versus.perplexity_ratio,
        "nll_difference": quality.versus.nll_difference,
        "bits_per_token": quality.bits_per_token,
        "kl": quality.versus.kl,
        "top1_agreement": quality.versus.top1_agreement,
        "perplexity_cut": cut.perplexity,
        "perplexity_cut_ratio": cut.versus.perplexity_ratio,
        "leak": 0.18,
    }
    assert {name: getattr(sparse, name) for name in expected} == expected
    assert sparse.perplexity != sparse.perplexity_cut


def test_what_was_not_measured_is_null(comparison):
    row = variant(comparison["dense"]).to_dict()
    missing = {name for name, value in row.items() if value is None}
    assert {"kl", "leak", "perplexity_cut", "baseline"} <= missing
    assert row["perplexity"] > 1 and "perplexity" not in missing


def test_a_leak_of_zero_is_not_missing(comparison):
    none = Leak(past_mean=0.0, past_worst=0.0, edge_mean=0.0, edge_worst=0.0, trials=1)
    assert variant(comparison["dense"], leak=none).leak == 0


@pytest.mark.parametrize("where", [{"cuts": {"sparse": "x"}}, {"leaks": {"x": LEAK}}])
def test_a_stranger_is_refused(comparison, where):
    with pytest.raises(LookupError, match="no variant 'x' was compared; there are dense, sparse, sparse, cut"):
        variants(comparison, **where)


def test_conditions_of_this_process():
    now = conditions("cpu")
    assert (now.device, now.threads, now.torch) == ("cpu", torch.get_num_threads(), torch.__version__)
    assert (now.python, now.sparsify) == (platform.python_version(), sparsify.__version__)
    assert now.hardware
    age = datetime.now().astimezone() - datetime.fromisoformat(now.date)
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_commit_of_a_checkout(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    assert commit(tmp_path) is None
    git("init")
    assert commit(tmp_path) is None  # nothing committed yet
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("-c", "core.hooksPath=/dev/null", "commit", "-m", "first")
    git("tag", "v1")
    clean = commit(tmp_path)
    assert len(clean) == 40 and int(clean, 16)
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"


def test_another_projects_checkout_says_nothing(tmp_path):
    (tmp_path / ".git").mkdir()
    assert commit(tmp_path / "site-packages") is None

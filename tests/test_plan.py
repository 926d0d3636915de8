"""Plans are valid once made, read back as written, and refuse what they do not know."""

import json

import pytest
import torch

from sparsify.monarch import BlockMask
from sparsify.plan import KINDS, SCHEMA, Filter, FilterPlan, Plan
from sparsify.spectra import spectrum

MASK = BlockMask.low_pass(1024, 0.125)
ONE_EACH = {
    "dense": FilterPlan("dense"),
    "partial": FilterPlan("partial", 64),
    "frequency-sparse": FilterPlan("frequency-sparse", mask=MASK),
    "split": FilterPlan("split", 64, MASK),
}


def test_every_kind_is_tried():
    assert ONE_EACH.keys() == KINDS.keys()


def test_reads_back_as_written(tmp_path):
    plan = Plan(ONE_EACH, "by hand", {"name": "ORG/MODEL", "revision": "abc", "sha256": "0" * 64})
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert Plan.read(tmp_path / "plan.json") == plan
    assert Plan.read(tmp_path / "plan.json").sha256 == plan.sha256


def test_digest_is_of_the_decision_alone():
    here, there = ({"name": name, "revision": None, "sha256": "0" * 64} for name in ("a", "b"))
    assert Plan(ONE_EACH, "x", here).sha256 == Plan(ONE_EACH, "y", there).sha256
    assert Plan(ONE_EACH, "x", here).sha256 != Plan(ONE_EACH, "x", here | {"sha256": "1" * 64}).sha256


def test_digest_follows_the_decision():
    assert Plan(ONE_EACH, "a").sha256 != Plan(ONE_EACH | {"dense": FilterPlan("partial", 3)}, "a").sha256


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept(kind):
    k = torch.randn(3, 1026)
    kept = ONE_EACH[kind].apply(k)
    assert kept.k.dtype == torch.float32
    assert ONE_EACH[kind].leaks == (kept.ahead > 0)
    if kind == "dense":
        assert torch.equal(kept.k, k) and ONE_EACH[kind].density(1026) == 1
    if kind == "partial":
        assert torch.equal(kept.k, k[:, :64])
    if kept.mask:
        rest = kept.k.double()
        assert (kept.k.shape[-1], kept.ahead) == (1024 + 1026, 1024)
        assert torch.equal(kept.k[:, -2:], k[:, -2:])  # beyond the mask
        if kept.head is not None:
            rest[:, kept.ahead : kept.ahead + 64] -= kept.head
        k_f = spectrum(rest, MASK.n, kept.ahead)
        assert (k_f * ~MASK.bins()).norm() < 1e-6 * k_f.norm()


def test_density_counts_taps_and_bins():
    assert ONE_EACH["split"].density(1024) == pytest.approx(64 / 1024 + MASK.density)
    assert FilterPlan("frequency-sparse", mask=MASK).density(4096) == pytest.approx(3072 / 4096 + 0.125)


def test_leak_is_the_share_of_the_norm_ahead():
    assert Filter(torch.tensor([[3.0, 4.0]]), ahead=1).leak() == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FilterPlan("sparse"), "unknown kind"),
        (lambda: FilterPlan("partial"), "takes taps"),
        (lambda: FilterPlan("dense", 3), "neither"),
        (lambda: FilterPlan("partial", 0), "at least 1 tap"),
        (lambda: FilterPlan.from_dict({"kind": "dense", "tap": 3}), "got also tap"),
        (lambda: Plan.from_dict({"schema": 99, "filters": {}}), "schema 99 is not 2"),
        (lambda: Plan.from_dict({"schema": 1, "filters": {}}), "schema 1 is not 2; rebuild it with `sparsify convert`"),
        (lambda: Plan(ONE_EACH, "x").check(["dense", "other"]), "no entry for other"),
    ],
)
def test_refusals(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("text", ["", "[]", "{", {}, {"filters": 3},
     {"filters": {"a": {"kind": "partial", "taps": "5"}}},
     {"filters": {"a": {"kind": "frequency-sparse", "mask": 3}}}])  # fmt: skip
def test_a_broken_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text if isinstance(text, str) else json.dumps({"schema": SCHEMA, **text}))
    with pytest.raises(ValueError, match=r"plan"):
        Plan.read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_of_both_directions(kind):
    k, ahead = torch.randn(3, 2048), 1024
    plan = ONE_EACH[kind]
    kept, lags = plan.apply(k, ahead), torch.arange(2048) - ahead
    if kind == "dense":
        assert torch.equal(kept.k, k) and kept.ahead == ahead and plan.density(2048, ahead) == 1
    if kind == "partial":
        assert torch.equal(kept.k, k[:, lags.abs() < 64]) and kept.ahead == 63
        assert plan.density(2048, ahead) == 127 / 2048
    if kept.mask:
        rest = kept.k.double()
        assert (kept.k.shape[-1], kept.ahead) == (2048, 1024)
        if kept.head is not None:
            assert kept.head.shape[-1] == 127 and kept.head_ahead == 63
            rest[:, lags.abs() < 64] -= kept.head
            assert plan.density(2048, ahead) == pytest.approx(127 / 2048 + MASK.density)
        k_f = spectrum(rest, MASK.n, kept.ahead)
        assert (k_f * ~MASK.bins()).norm() < 1e-6 * k_f.norm()


def test_density_of_both_directions():
    assert FilterPlan("partial", 5000).density(2048, 1024) == 1
    assert FilterPlan("partial", 1).density(64, 32) == 1 / 64
    assert FilterPlan("frequency-sparse", mask=MASK).density(4096, 2048) == pytest.approx(2048 / 4096 + 0.125)

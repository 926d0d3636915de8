"""Plans are valid once made, read back as written, and refuse what they do not know."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsify.filters.monarch import BlockMask
from sparsify.filters.spectra import spectrum
from sparsify.plan import KINDS, SCHEMA, Filter, FilterPlan, Plan
from sparsify.plan.coefficients import Coefficients

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
    assert ONE_EACH[kind].leaks == (kept.lookahead > 0)
    if kind == "dense":
        assert torch.equal(kept.k, k) and ONE_EACH[kind].density(1026) == 1
    if kind == "partial":
        assert torch.equal(kept.k, k[:, :64])
    if kept.mask:
        rest = kept.k.double()
        assert (kept.k.shape[-1], kept.lookahead) == (1024 + 1026, 1024)
        assert torch.equal(kept.k[:, -2:], k[:, -2:])  # beyond the mask
        if kept.head is not None:
            rest[:, kept.lookahead : kept.lookahead + 64] -= kept.head.k
        k_f = spectrum(Filter(rest, kept.lookahead), MASK.n)
        assert (k_f * ~MASK.bins()).norm() < 1e-6 * k_f.norm()


def test_density_counts_taps_and_bins():
    assert ONE_EACH["split"].density(1024) == pytest.approx(64 / 1024 + MASK.density)
    assert FilterPlan("frequency-sparse", mask=MASK).density(4096) == pytest.approx(3072 / 4096 + 0.125)


def test_leak_is_the_share_of_the_norm_ahead():
    assert Filter(torch.tensor([[3.0, 4.0]]), lookahead=1).leak() == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FilterPlan("sparse"), "unknown kind"),
        (lambda: FilterPlan("partial"), "takes taps"),
        (lambda: FilterPlan("dense", 3), "neither"),
        (lambda: FilterPlan("partial", 0), "at least 1 tap"),
        (lambda: FilterPlan.from_dict({"kind": "dense", "tap": 3}), "got also tap"),
        (lambda: Plan.from_dict({"schema": 99, "filters": {}}), "schema 99 is not 3 or 4; upgrade sparsify"),
        (
            lambda: Plan.from_dict({"schema": 2, "filters": {}}),
            "schema 2 is not 3 or 4; rebuild it with `spars",
        ),
        (lambda: Plan.from_dict({"schema": SCHEMA, "filters": {}, "policy": 3}), "policy is text"),
        (
            lambda: Plan.from_dict({"schema": SCHEMA, "filters": {}, "linears": ["a"]}),
            "layers with a precision",
        ),
        (lambda: Plan.from_dict({"schema": True, "filters": {}}), "schema True is not"),
        (
            lambda: Plan(ONE_EACH, "x", linears={"a": "int4"}),
            "has 'int4' for the linear layer a; it may be",
        ),
        (lambda: FilterPlan("partial", 2.5), "whole number of taps, got 2.5"),
        (lambda: FilterPlan("partial", 10**400), "at most"),
        (lambda: FilterPlan("frequency-sparse", mask=BlockMask.full(1 << 20)).apply(torch.ones(1, 9)), "too fine"),
        (lambda: BlockMask.from_dict({"factors": [2**40], "block": [1], "keep": [[0, 2**40]]}), "at most .* blocks"),
        (lambda: BlockMask.from_dict({"factors": [4], "block": [1], "keep": [[0, "4"]]}), "ranges of blocks"),
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


# --- coefficients of its own -----------------------------------------------------------------------------------------


def re_fitted(kind, channels=3, shift=0.0):
    """The plan of a kind with random coefficients."""
    draw, plan = torch.Generator().manual_seed(7), ONE_EACH[kind]
    taps = torch.randn(channels, plan.taps, generator=draw) + shift if plan.taps else None
    bins = None if plan.mask is None else torch.randn(channels, 128, dtype=torch.complex64, generator=draw)
    return replace(plan, values=Coefficients(taps, bins))


KEPT = [kind for kind in KINDS if kind != "dense"]


@pytest.fixture
def saved(tmp_path):
    """plan.json and plan.safetensors of every kind."""
    plan = Plan({"dense": ONE_EACH["dense"], **{f"layers.{kind}": re_fitted(kind) for kind in KEPT}}, "by hand")
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "plan.safetensors").write_bytes(plan.to_safetensors())
    return tmp_path / "plan.json", plan


@pytest.mark.parametrize("kind", KEPT)
def test_own_coefficients_are_what_is_convolved_with(kind):
    k, plan = torch.randn(3, 1026), re_fitted(kind)
    kept, values = plan.apply(k), plan.values
    if values.bins is None:
        assert torch.equal(kept.k, values.taps)
        return
    rest = kept.k.double()
    if values.taps is not None:
        assert torch.equal(kept.head.k, values.taps)
        rest[:, kept.lookahead : kept.lookahead + 64] -= kept.head.k
    k_f = spectrum(Filter(rest[:, : 2 * MASK.n], kept.lookahead), MASK.n)
    found = k_f[:, MASK.frequencies().flatten()]
    assert (found - values.bins).norm() < 1e-6 * values.bins.norm()
    assert torch.equal(kept.k[:, -2:], k[:, -2:])  # beyond the mask
    parts = [plan.of(rows).apply(k[rows]).k for rows in (slice(1), slice(1, 3))]
    assert torch.equal(torch.cat(parts), kept.k)


@pytest.mark.parametrize(("length", "lookahead"), [(1026, 0), (2048, 1024), (1100, 20)])
@pytest.mark.parametrize("kind", KEPT)
def test_a_filters_own_coefficients_change_nothing(kind, length, lookahead):
    k, plan = Filter(torch.randn(3, length), lookahead), ONE_EACH[kind]
    taps, bins = plan.own(k)
    values = Coefficients(None if taps is None else taps.float(), None if bins is None else bins.to(torch.complex64))
    again, kept = replace(plan, values=values), plan.apply(k)
    same = again.apply(k)
    assert same.lookahead == kept.lookahead and (same.k - kept.k).norm() < 1e-6 * k.k.norm()
    assert kept.head is None or same.head.lookahead == kept.head.lookahead
    assert again.density(length, lookahead) == plan.density(length, lookahead) and str(again) == f"{plan}, re-fitted"


def test_coefficients_of_one_direction_do_not_fit_both():
    for kind in ("partial", "split"):
        with pytest.raises(ValueError, match="64 taps, the filter has 3 channels and 2048 taps"):
            re_fitted(kind).apply(Filter(torch.randn(3, 2048), 1024))


def test_plans_are_told_apart_by_their_coefficients():
    same, other = re_fitted("split"), re_fitted("split", shift=1e-3)
    assert same == re_fitted("split") and hash(same) == hash(re_fitted("split")) and {same: 1}[re_fitted("split")] == 1
    assert same != other and same != ONE_EACH["split"]
    marks = {Plan({"a": plan}, "x").sha256 for plan in (same, other, ONE_EACH["split"])}
    assert len(marks) == 3


def test_coefficients_lie_beside_their_plan(saved):
    path, plan = saved
    assert Plan.read(path) == plan and Plan.read(path).sha256 == plan.sha256
    names = {f"layers.{kind}.{part}" for kind in KEPT for part, _ in re_fitted(kind).values}
    assert set(load_file(path.with_suffix(".safetensors"))) == names
    assert json.loads(path.read_text())["filters"]["layers.split"]["refit"] == re_fitted("split").values.digest
    assert Plan(ONE_EACH, "x").to_safetensors() is None


def test_a_stranger_beside_a_plan_is_not_opened(tmp_path):
    (tmp_path / "plan.json").write_text(Plan(ONE_EACH, "x").to_json())
    (tmp_path / "plan.safetensors").write_bytes(b"weights of something")
    assert Plan.read(tmp_path / "plan.json") == Plan(ONE_EACH, "x")


def changed(name, change):
    def apply(tensors):
        tensors[name] = change(tensors[name]).contiguous()

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (changed("layers.split.taps", lambda t: t + 1e-3), "not those that the plan was made with"),
        (changed("layers.split.taps", lambda t: t[:, 1:]), "not those that the plan was made with"),
        (changed("layers.split.taps", lambda t: t[:2]), "layers.split: coefficients are taps .* for the same channels"),
        (changed("layers.split.taps", lambda t: t.double()), "layers.split: coefficients are taps .* float32"),
        (changed("layers.split.bins", lambda t: t[..., 0]), "layers.split: coefficients are taps .* complex64"),
        (changed("layers.split.bins", lambda t: t * torch.nan), "layers.split: .* infinite or undefined numbers"),
        (lambda tensors: tensors.pop("layers.split.bins"), "not those that the plan was made with"),
        (lambda tensors: tensors.pop("layers.partial.taps"), "not those that the plan was made with"),
        (lambda tensors: tensors.update({"elsewhere.taps": torch.ones(3, 5)}), "coefficients for elsewhere, which"),
        (lambda tensors: tensors.update({"dense.taps": torch.ones(3, 5)}), "not those that the plan was made with"),
        (lambda tensors: tensors.update({"weight": torch.ones(3, 5)}), "called SITE.taps or SITE.bins, got 'weight'"),
    ],
)
def test_coefficients_that_do_not_fit_their_plan(saved, damage, says):
    path, _ = saved
    tensors = load_file(path.with_suffix(".safetensors"))
    damage(tensors)
    save_file(tensors, path.with_suffix(".safetensors"))
    with pytest.raises(ValueError, match=rf"plan\.safetensors does not fit its plan: .*{says}"):
        Plan.read(path)


def test_coefficients_that_are_not_there_or_not_whole(saved):
    path, _ = saved
    beside = path.with_suffix(".safetensors")
    beside.write_bytes(beside.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged or cut short"):
        Plan.read(path)
    beside.unlink()
    with pytest.raises(FileNotFoundError, match="re-fitted coefficients are not there"):
        Plan.read(path)
    with pytest.raises(ValueError, match="not those that the plan was made with"):
        Plan.from_dict(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Coefficients(), "got neither"),
        (lambda: Coefficients(torch.ones(3)), r"taps torch.float32 \(3,\)"),
        (lambda: Coefficients(bins=torch.ones(3, 4)), "bins torch.float32"),
        (
            lambda: replace(ONE_EACH["partial"], values=re_fitted("split").values),
            "for 64 taps and no bins, got 64 and",
        ),
        (lambda: replace(ONE_EACH["dense"], values=re_fitted("partial").values), "for no taps and no bins"),
        (lambda: replace(ONE_EACH["split"], taps=32, values=re_fitted("split").values), "for 32 taps"),
        (
            lambda: re_fitted("split").apply(torch.randn(4, 1026)),
            "3 channels and 64 taps, the filter has 4",
        ),
        (lambda: re_fitted("partial").apply(torch.randn(3, 50)), "the filter has 3 channels and 50 taps"),
    ],
)
def test_refused_coefficients(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_of_both_directions(kind):
    k, lookahead = torch.randn(3, 2048), 1024
    plan = ONE_EACH[kind]
    kept, lags = plan.apply(Filter(k, lookahead)), torch.arange(2048) - lookahead
    if kind == "dense":
        assert torch.equal(kept.k, k) and kept.lookahead == lookahead and plan.density(2048, lookahead) == 1
    if kind == "partial":
        assert torch.equal(kept.k, k[:, lags.abs() < 64]) and kept.lookahead == 63
        assert plan.density(2048, lookahead) == 127 / 2048
    if kept.mask:
        rest = kept.k.double()
        assert (kept.k.shape[-1], kept.lookahead) == (2048, 1024)
        if kept.head is not None:
            assert kept.head.taps == 127 and kept.head.lookahead == 63
            assert torch.equal(kept.head.k, plan.kept(Filter(k, lookahead))[0].float())
            rest[:, lags.abs() < 64] -= kept.head.k
            assert plan.density(2048, lookahead) == pytest.approx(127 / 2048 + MASK.density)
        k_f = spectrum(Filter(rest, kept.lookahead), MASK.n)
        assert (k_f * ~MASK.bins()).norm() < 1e-6 * k_f.norm()


def test_density_of_both_directions():
    assert FilterPlan("partial", 5000).density(2048, 1024) == 1
    assert FilterPlan("partial", 1).density(64, 32) == 1 / 64
    assert FilterPlan("frequency-sparse", mask=MASK).density(4096, 2048) == pytest.approx(2048 / 4096 + 0.125)


def test_a_folder_is_no_plan_but_has_one(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder, and a plan is a file; pass .*/plan\.json"):
        Plan.read(tmp_path)


def test_linear_layers_are_a_part_of_the_decision():
    """A plan without a word on them is written and named as before there were any."""
    plain = Plan(ONE_EACH, "x")
    more = replace(plain, linears={"b": "bfloat16", "a": "bfloat16"})
    assert plain.to_dict()["schema"] == 3 and "linears" not in plain.to_dict()
    assert more.to_dict()["schema"] == 4 and list(more.to_dict()["linears"]) == ["a", "b"]
    for plan in (plain, more):
        assert Plan.from_dict(json.loads(plan.to_json())) == plan
    assert plain.sha256 != more.sha256 == replace(more, linears=dict(sorted(more.linears.items()))).sha256
    alone = Plan.dense(["a"])
    assert alone.is_dense and not replace(alone, linears={"l": "bfloat16"}).is_dense
    assert not replace(alone, linears={"l": "bfloat16"}).cuts_filters and plain.cuts_filters

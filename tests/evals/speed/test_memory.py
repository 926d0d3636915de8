"""What a pass takes: memory as the system tells it, and times whose parts multiply to the whole."""

import math

import pytest
import torch
from layouts import write_tiny

from sparsify.converters import load
from sparsify.evals.speed import memory
from sparsify.pipeline.timing import columns_of_time
from sparsify.plan import Plan, policies
from sparsify.report.schema import EXACT, LINEARS, LOSSLESS, MASKS, PLANNED, PUBLISHED

CPU = torch.device("cpu")


@pytest.mark.plain_empty
def test_a_pass_takes_what_it_fills():
    if memory.peak_growth(lambda: None, CPU) is None:
        pytest.skip("this system has no peak that can be set back")
    few, some, more = (memory.peak_growth(lambda n=n: torch.ones(n << 20), CPU) for n in (0, 8, 32))  # times 4 MiB
    assert few < 1 << 22
    assert some == pytest.approx(32 << 20, abs=1 << 22) and more == pytest.approx(128 << 20, abs=1 << 22)


def test_nobody_guesses_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "SELF", tmp_path / "nowhere")
    assert memory.peak_growth(lambda: None, CPU) is None


@pytest.mark.parametrize(
    ("policy", "linears", "columns", "gains"),
    [
        (None, "float32", [PUBLISHED, EXACT], [LOSSLESS]),
        (policies.taps(9), "float32", [PUBLISHED, EXACT, PLANNED], [LOSSLESS, MASKS]),
        (policies.taps(9), "bfloat16", [PUBLISHED, EXACT, PLANNED], [LOSSLESS, MASKS, LINEARS]),
        (None, "bfloat16", [PUBLISHED, EXACT, PLANNED], [LOSSLESS, LINEARS]),
    ],
)
def test_columns_and_what_each_change_brings(tmp_path, policy, linears, columns, gains):
    p = load(write_tiny(tmp_path / "tiny"))
    plan = Plan.dense(p.filters) if policy is None else policies.make_plan(p.sites, p.filters, policy)
    found = columns_of_time(p, plan, (torch.randint(7, 11, (2, 40)),), linears, most_seconds=1.0)
    assert [column.name for column in found.columns] == columns and [gain.name for gain in found.gains] == gains
    assert (found.batch, found.length) == (2, 40) and found.columns[0].speedup == 1
    assert found.headline is found.columns[-1]
    for column in found.columns:
        low, high = column.speedup_quartiles
        assert 0 < low <= column.speedup <= high and column.tokens_per_second == pytest.approx(80 / column.seconds)
    assert math.prod(gain.factor for gain in found.gains) == pytest.approx(found.headline.speedup, rel=0.5)

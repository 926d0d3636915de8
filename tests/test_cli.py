"""The verbs as people and machines call them, in processes of their own where that matters."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from layouts import TINY, weights, write, write_tiny
from safetensors.torch import load_file

from sparsify import swap
from sparsify.cli import check_close, main
from sparsify.converters import load
from sparsify.plan import Plan

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small HyenaDNA in the raw dialect, random weights."""
    return write_tiny(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def sparse(other, tmp_path_factory):
    """A converted checkpoint, of other weights."""
    out = tmp_path_factory.mktemp("sparse") / "out"
    answer("convert", other, out, "--taps", 5)
    return out


@pytest.fixture(scope="module")
def dna(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "dna.txt"
    letters = torch.randint(4, (4000,), generator=torch.Generator().manual_seed(0))
    path.write_text("".join("ACGT"[i] for i in letters))
    return path


def run(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def answer(*args):
    """The one JSON object on stdout."""
    done = run(*args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_inspect(checkpoint):
    result = answer("inspect", checkpoint)
    assert result["family"] == "hyenadna" and len(result["sites"]) == 2
    assert sum(part["share"] for part in result["time"]) == pytest.approx(1)


def test_analyze(checkpoint):
    for site in answer("analyze", checkpoint)["sites"]:
        assert site["taps"] == sorted(site["taps"]) and site["bins"] == sorted(site["bins"])


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--taps", 9), "partial"),
        (("--split", "8:0.25"), "split"),
        (("--low-pass", 0.25, "--allow-leak"), "frequency-sparse"),
    ],
)
def test_convert_then_eval(checkpoint, dna, tmp_path, options, kind):
    out = tmp_path / "sparse"
    result = answer("convert", checkpoint, out, *options, "--data", dna)
    assert {f["kind"] for f in result["filters"]} == {kind}
    assert (result["evaluation"]["perplexity_cut"] is not None) == (kind != "partial")
    assert result["evaluation"]["speedup"] > 0 and result["evaluation"]["dense"]["speedup"] == 1
    assert result["evaluation"]["plan"] == result["plan"]
    again = answer("eval", "ppl", out, "--data", dna, "--baseline", checkpoint)
    assert again["perplexity"] == result["evaluation"]["perplexity"]
    assert Plan.read(out / "plan.json").sha256 == result["plan_sha256"]


def test_plan_in_plan_out(checkpoint, tmp_path):
    first = answer("convert", checkpoint, tmp_path / "a", "--taps", 9)
    second = answer("convert", checkpoint, tmp_path / "b", "--plan", tmp_path / "a" / "plan.json")
    assert first["plan_sha256"] == second["plan_sha256"]


def test_another_process_computes_the_same_bits(checkpoint, tmp_path):
    """convert -> new process -> load -> same logits; and the original tensors are all there, unchanged."""
    out = tmp_path / "out"
    answer("convert", checkpoint, out, "--split", "8:0.25")
    here, ids = load(checkpoint), torch.arange(7, 11).repeat(1, 15)
    dense = here.model(ids)
    swap.apply_(here.sites, Plan.read(out / "plan.json"))
    script = (
        "import sys, torch\nfrom sparsify.converters import load\n"
        "ids = torch.arange(7, 11).repeat(1, 15)\ntorch.save(load(sys.argv[1]).model(ids), sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", script, out, tmp_path / "there.pt"], check=True, cwd=ROOT)
    there = torch.load(tmp_path / "there.pt")
    assert torch.equal(there, here.model(ids)) and not torch.equal(there, dense)
    source, kept = load_file(checkpoint / "model.safetensors"), load_file(out / "model.safetensors")
    assert source.keys() == kept.keys() and all(torch.equal(source[n], kept[n]) for n in source)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same sizes with other weights."""
    return write(tmp_path_factory.mktemp("other") / "tiny", plain=weights(TINY, seed=5))


def test_options_reach_the_model_and_the_data(checkpoint, dna):
    plain = answer("eval", "ppl", checkpoint, "--data", dna)
    shifted = answer("eval", "ppl", checkpoint, "--data", dna, "--shift", 0.05)
    assert shifted["shift"] == 0.05 and shifted["perplexity"] != plain["perplexity"]
    strided = answer("eval", "ppl", checkpoint, "--data", dna, "--stride", 16, "--limit", 7)
    assert "context 64, stride 16" in strided["convention"] and strided["count"] == 7


def test_baseline_is_the_one_given(checkpoint, other, dna, tmp_path):
    own = answer("eval", "ppl", other, "--data", dna)
    versus = answer("eval", "ppl", checkpoint, "--data", dna, "--baseline", other)
    assert versus["dense"]["perplexity"] == own["perplexity"] and versus["dense_source"] == other.name
    assert run("bench", checkpoint, "--baseline", tmp_path / "nowhere").exit_code == 1


def test_shift_is_kept_and_the_next_command_works(checkpoint, dna, tmp_path):
    out = tmp_path / "a folder"
    done = answer("convert", checkpoint, out, "--shift", 0.05, "--taps", 9, "--data", dna, "--context", 32)
    command = shlex.split(done["next"])
    again = answer(*command[command.index("eval") :])
    assert again["shift"] == 0.05 and again["perplexity"] == done["evaluation"]["perplexity"]


def test_force_spares_what_is_not_ours(checkpoint, tmp_path):
    out = tmp_path / "out"
    answer("convert", checkpoint, out, "--taps", 5)
    (out / "notes.txt").write_text("mine")
    done = run("convert", checkpoint, out, "--taps", 6, "--force")
    assert done.exit_code == 1 and "notes.txt" in done.stderr and (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    inside = shutil.copytree(checkpoint, out / "plan.json.d")
    assert run("convert", inside, out, "--taps", 6, "--force").exit_code == 1 and inside.is_dir()


def test_timing_something_wrong_means_nothing():
    y = torch.randn(1, 2, 8)
    check_close(y, y.double(), "site")
    with pytest.raises(RuntimeError, match=r"site: the convolution is off by 1\.0e\+00"):
        check_close(torch.zeros_like(y), y.double(), "site")


def test_bench(checkpoint, tmp_path):
    answer("convert", checkpoint, tmp_path / "out", "--taps", 5)
    result = answer("bench", tmp_path / "out", "--rounds", 3)
    low, high = result["speedup_quartiles"]
    assert low <= result["speedup"] <= high and len(result["sites"]) == 2


@pytest.mark.parametrize("verb", ["inspect", "analyze"])
def test_tables_for_people(checkpoint, verb):
    done = run(verb, checkpoint)
    assert done.exit_code == 0 and "backbone.layers.0.mixer" in done.output


def test_module_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "sparsify", "doctor", "--json"], capture_output=True, cwd=ROOT)
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("inspect", "no/such/folder"), "no/such/folder"),
        (("convert", "{src}", "{out}", "--taps", 5, "--energy", 0.9), "give one of them"),
        (("convert", "{src}", "{out}", "--low-pass", 0.5), "reads the future"),
        (("convert", "{src}", "{out}", "--energy", 2), "share must lie"),
        (("convert", "{src}", "{out}", "--split", "1:0.05"), "reads the future"),
        (("convert", "{src}", "{dna}/out", "--taps", 5), "is a file"),
        (("convert", "{src}", "{src}/out", "--taps", 5), "one inside the other"),
        (("convert", "{src}", "{out}", "--plan", "{foreign}"), "which are not these"),
        (("eval", "ppl", "{src}", "--data", "{dna}", "--baseline", "{sparse}"), "pass a dense checkpoint"),
        (("inspect", "{src}", "--device", "nowhere"), "there is no device 'nowhere'"),
        (("analyze", "{src}", "--length", 5000), "longer than the model's"),
        (("convert", "{src}", "{src}", "--taps", 5), "--force"),
        (("convert", "{src}", "{out}", "--plan", "{dna}"), "is no plan"),
        (("convert", "{src}", "{out}", "--plan", "{out}"), "there is no plan file"),
        (("eval", "ppl", "{src}", "--data", "{out}"), "there is no file"),
        (("eval", "ppl", "{src}", "--data", "{dna}", "--context", 9999), "longer than the model's"),
        (("eval", "ppl", "{src}", "--data", "{lower}"), "lower-case"),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(checkpoint, sparse, dna, tmp_path, args, says):
    (tmp_path / "lower.txt").write_text(dna.read_text().lower())
    names = {"src": checkpoint, "out": tmp_path / "out", "dna": dna, "lower": tmp_path / "lower.txt"}
    names |= {"sparse": sparse, "foreign": sparse / "plan.json"}
    done = run(*(str(a).format(**names) for a in args))
    assert done.exit_code == 1
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("Error: ") and says in sentence, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["lower.txt"]


def test_lower_case_on_request(checkpoint, dna, tmp_path):
    (tmp_path / "lower.txt").write_text(dna.read_text().lower())
    upper = answer("eval", "ppl", checkpoint, "--data", dna)
    assert (
        answer("eval", "ppl", checkpoint, "--data", tmp_path / "lower.txt", "--upper")["perplexity"]
        == upper["perplexity"]
    )


def test_out_survives_without_force_and_is_replaced_with_it(checkpoint, tmp_path):
    out = tmp_path / "out"
    answer("convert", checkpoint, out, "--taps", 5)
    before = (out / "plan.json").read_text()
    assert run("convert", checkpoint, out, "--taps", 7).exit_code == 1
    assert (out / "plan.json").read_text() == before
    answer("convert", checkpoint, out, "--taps", 7, "--force")
    assert (out / "plan.json").read_text() != before
    assert load(str(out)).quantization["plan"]["policy"] == "taps 7"

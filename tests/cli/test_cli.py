"""The verbs as people and machines call them, in processes of their own where that matters."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys

import layouts_m2
import pytest
import torch
from helpers import ROOT
from layouts import TINY, Sizes, weights, write, write_tiny
from safetensors.torch import load_file
from verbs import answer, refusal, run

from sparsify import sparsify_, swap
from sparsify.converters import load
from sparsify.cpu import cost_model, native
from sparsify.evals.speed import cpu_convolution
from sparsify.evals.speed.breakdown import FILTERS
from sparsify.pipeline import bench, timing
from sparsify.plan import Plan

BUDGET = ("--max-ppl-increase", "0.1%", "--calibration", "{dna}")


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
    speed = result["evaluation"]["speed"]
    assert [column["name"] for column in speed["columns"]] == ["as published", "exact", "plan"]
    assert [gain["name"] for gain in speed["gains"]] == ["lossless kernels", "masks"]
    assert speed["columns"][0]["speedup"] == 1 and all(column["seconds"] > 0 for column in speed["columns"])
    assert result["evaluation"]["plan"] == result["plan"]
    again = answer("eval", "ppl", out, "--data", dna, "--baseline", checkpoint)
    assert again["perplexity"] == result["evaluation"]["perplexity"]
    assert Plan.read(out / "plan.json").sha256 == result["plan_sha256"]


def test_convert_within_a_budget(checkpoint, dna, tmp_path):
    """The promise and its proof, in the report and in words; the figures are those of the held-out windows."""
    ask = ("convert", checkpoint, "--max-ppl-increase", "5%", "--calibration", dna, "--target", "kept")
    result = answer(*ask[:2], tmp_path / "out", *ask[2:])
    planned, evaluation = result["planned"], result["evaluation"]
    assert result["plan"] == evaluation["plan"] == "max-ppl-increase 5%" and planned["target"] == "kept taps plus bins"
    assert planned["chosen"]["increase"] + planned["chosen"]["stderr"] <= planned["budget"] == 0.05
    honest = evaluation["perplexity_cut"] or evaluation["perplexity"]
    assert honest / evaluation["dense"]["perplexity"] - 1 == pytest.approx(planned["chosen"]["increase"], abs=1e-6)
    assert evaluation["count"] == planned["held_out_windows"] == 19 and planned["calibration_windows"] == 43
    assert json.loads((tmp_path / "out" / "report.json").read_text())["planned"] == planned
    saved = Plan.read(tmp_path / "out" / "plan.json")
    assert saved.source["sha256"] == load(checkpoint).sha256 and saved.sha256 == result["plan_sha256"]
    (tmp_path / "other.txt").write_text(dna.read_text()[::-1])
    done = run(*ask[:2], tmp_path / "again", *ask[2:], "--data", tmp_path / "other.txt")
    assert done.exit_code == 0, done.output
    assert "Fastest within 5.000% on kept taps plus bins" in done.stdout and "(chosen)" in done.stdout
    assert "step 1: predicted" in done.stderr and "62 windows in" in done.stdout


@pytest.mark.parametrize(
    "start", [("convert", "{src}", "{out}", "--max-ppl-increase", "5%"), ("eval", "front", "{src}")]
)
def test_a_plan_is_not_proved_by_the_text_it_was_found_on(checkpoint, dna, tmp_path, start):
    """Not under another name either, nor zipped, nor by a part of it."""
    (tmp_path / "copy.txt.gz").write_bytes(gzip.compress(dna.read_bytes()))
    (tmp_path / "part.txt").write_text(dna.read_text()[:640])
    for name in ("copy.txt.gz", "part.txt"):
        args = (*(a.format(src=checkpoint, out=tmp_path / "out") for a in start), "--calibration", dna)
        said = refusal(*args, "--data", tmp_path / name, "--limit", 0)
        assert f"{name} holds the same text as {dna} and cannot prove a plan" in said
    assert not list(tmp_path.glob("*out*"))
    (tmp_path / "shared.txt").write_text(dna.read_text()[:640] + dna.read_text()[::-1])
    told = run(*args, "--data", tmp_path / "shared.txt", "--target", "kept").stderr
    assert "note: 10 of the 72 windows of --data are in --calibration, too" in told


def test_a_plan_that_is_not_used_is_told(checkpoint, tmp_path):
    """Beside weights that know nothing of it, and where it was changed after config.json was written."""
    out, plain = tmp_path / "out", tmp_path / "plain"
    answer("convert", checkpoint, out, "--taps", 9)
    assert "plan.json" not in run("inspect", out).stderr
    shutil.copytree(checkpoint, plain)
    shutil.copy(out / "plan.json", plain)
    assert (
        "note: plan.json is not used: config.json has no plan, so the model runs dense" in run("inspect", plain).stderr
    )
    (out / "plan.json").write_text((out / "plan.json").read_text().replace("taps 9", "taps 8"))
    assert "note: plan.json is not used: config.json has another plan" in run("inspect", out).stderr


def test_generating_beyond_the_trained_context_is_told(checkpoint):
    within = run("generate", checkpoint, "--prompt", "ACGT", "--count", 60)
    beyond = run("generate", checkpoint, "--prompt", "ACGT", "--count", 61)
    assert within.exit_code == beyond.exit_code == 0 and "made for" not in within.stderr
    assert "note: the prompt and what is generated are 65 tokens, more than the 64 that the model was" in beyond.stderr


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
    shifted = answer("eval", "ppl", checkpoint, "--data", dna, "--option", "shift=0.05")
    assert shifted["options"] == {"shift": 0.05} and shifted["perplexity"] != plain["perplexity"]
    strided = answer("eval", "ppl", checkpoint, "--data", dna, "--stride", 16, "--limit", 7)
    assert "context 64, stride 16" in strided["convention"] and strided["count"] == 7


def test_baseline_is_the_one_given(checkpoint, other, dna, tmp_path):
    own = answer("eval", "ppl", other, "--data", dna)
    versus = answer("eval", "ppl", checkpoint, "--data", dna, "--baseline", other)
    assert versus["dense"]["perplexity"] == own["perplexity"] and versus["dense_source"] == other.name
    assert versus["variant"] == "model" and versus["dense"]["variant"] == versus["baseline"] == "baseline"
    said = run("eval", "ppl", checkpoint, "--data", dna, "--baseline", other).stdout
    assert "against baseline" in said and "sparse" not in said and "dense" not in said
    assert run("bench", checkpoint, "--baseline", tmp_path / "nowhere").exit_code == 1


def test_shift_is_kept_and_the_next_command_works(checkpoint, dna, tmp_path):
    out = tmp_path / "a folder"
    done = answer("convert", checkpoint, out, "--option", "shift=0.05", "--taps", 9, "--data", dna, "--context", 32)
    command = shlex.split(done["next"])
    again = answer(*command[command.index("eval") :])
    assert again["options"] == {"shift": 0.05} and again["perplexity"] == done["evaluation"]["perplexity"]


def test_what_is_read_and_what_is_written_lie_apart(checkpoint, dna, tmp_path, monkeypatch):
    """Said before the work: nothing is loaded."""
    out = tmp_path / "out"
    answer("convert", checkpoint, out, "--taps", 5)
    monkeypatch.setattr("sparsify.pipeline.convert.open_checkpoint", None)
    monkeypatch.setattr("sparsify.pipeline.finetune.open_checkpoint", None)
    for args, name in (
        ((checkpoint, checkpoint / "out"), "checkpoint"),
        ((out / "deeper", out, "--force"), "checkpoint"),
        ((checkpoint, out, "--force", "--data", out / "plan.json"), "data"),
        ((checkpoint, out, "--force", *BUDGET[:3], out / "plan.json"), "calibration"),
    ):
        (out / "deeper").mkdir(exist_ok=True)
        said = refusal("convert", *args)
        assert f"the {name} in " in said and "lie one inside the other" in said
    for folder, name in ((checkpoint, "checkpoint"), (tmp_path, "data")):
        said = refusal("finetune", checkpoint, "--task", "sst2", "--data", tmp_path, "--out", folder / "new" / "out")
        assert f"the {name} in " in said and "lie one inside the other" in said


def test_force_spares_what_is_not_ours(checkpoint, tmp_path):
    out = tmp_path / "out"
    answer("convert", checkpoint, out, "--taps", 5)
    (out / "notes.txt").write_text("mine")
    done = run("convert", checkpoint, out, "--taps", 6, "--force")
    assert done.exit_code == 1 and "notes.txt" in done.stderr and (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    inside = shutil.copytree(checkpoint, out / "plan.json.d")
    assert run("convert", inside, out, "--taps", 6, "--force").exit_code == 1 and inside.is_dir()


def test_bench_of_a_model(checkpoint, tmp_path):
    answer("convert", checkpoint, tmp_path / "out", "--taps", 5)
    result = answer("bench", tmp_path / "out", "--rounds", 3)
    assert len(result["sites"]) == 2
    for row in (result, result["convolutions"], *result["sites"]):
        for key in ("speedup", "torch_speedup", "published_speedup"):
            low, high = row[f"{key}_quartiles"]
            assert low <= row[key] <= high
    parts = result["parts"]
    for way in ("before", "after"):
        assert sum(part["share"] for part in parts[way]) == pytest.approx(1)
    assert {part["name"] for part in parts["before"]} - {part["name"] for part in parts["after"]} == {FILTERS}


def test_bench_times_what_is_installed(checkpoint, tmp_path, monkeypatch):
    """The very operators: another made of the same taps might take another way to the same numbers."""
    answer("convert", checkpoint, tmp_path / "out", "--split", "8:0.25")
    made, timed = [], []
    operators, ways_alone = timing.operators, timing.ways_alone

    def keep(*args):
        made.append(operators(*args))
        return made[-1]

    def watch(p, site, convs, *rest):
        sparse, dense, _ = convs
        timed.append((dense is made[1][site.name], sparse is made[0][site.name], sparse.filter.lookahead > 0))
        return ways_alone(p, site, convs, *rest)

    monkeypatch.setattr(timing, "operators", keep)
    monkeypatch.setattr(timing, "ways_alone", watch)
    answer("bench", tmp_path / "out", "--rounds", 3)
    assert timed == [(True, True, True)] * 2


def test_bench_of_the_convolution(tmp_path):
    done = run(
        "bench", "--shape", "1,2,300", "--shape", "2,1,40", "--rounds", 3, "--save", tmp_path / "a" / "b.json", "--json"
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "a" / "b.json").read_text())
    assert [timed["shape"] for timed in result["shapes"]] == [[1, 2, 300], [2, 1, 40]]
    assert result["conditions"]["kernels"] and "1 x 2 x 300: timing" in done.stderr
    exact = result["shapes"][0]["ways"][2]
    assert exact["name"] == "exact" and exact["error"] < 1e-6 and exact["faster_than"]["reference code"]["median"] > 0


def test_quick_is_a_subset(monkeypatch):
    shapes = []
    nothing = bench.convolutions((), 3)
    monkeypatch.setattr(bench, "convolutions", lambda some, *_: shapes.append(some) or nothing)
    for options in ([], ["--quick"]):
        answer("bench", *options)
    assert shapes == [cpu_convolution.SHAPES, cpu_convolution.QUICK] and set(cpu_convolution.QUICK) < set(
        cpu_convolution.SHAPES
    )


@pytest.mark.skipif(not native.available(), reason="needs the compiled kernels: python -m sparsify.cpu.native.build")
def test_calibrate_measures_and_keeps(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cost_model.costs.cache_clear()
    result = answer("bench", "--calibrate")
    assert (
        result["path"] == str(tmp_path / "sparsify" / "costs.json")
        and result["costs"].keys() == result["defaults"].keys()
    )
    assert cost_model.costs().tap == result["costs"]["tap"]
    assert "nanoseconds" in run("bench", "--calibrate").stdout.lower()
    cost_model.costs.cache_clear()


def test_calibrate_without_kernels_is_one_sentence(monkeypatch):
    monkeypatch.setenv("SPARSIFY_NATIVE", "0")
    done = run("bench", "--calibrate")
    assert done.exit_code == 1 and "there are none here: switched off" in done.stderr


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """Enough context for prepared linear layers."""
    return write(tmp_path_factory.mktemp("longer") / "m", s=Sizes(2, 32, 64, 322, order=8))


def test_the_loss_of_bfloat16_is_measured(longer, dna, tmp_path):
    plain = answer("eval", "ppl", longer, "--data", dna)
    half = answer("eval", "ppl", longer, "--data", dna, "--linears", "bfloat16")
    assert plain["dense"] is None and plain["linears"] == "float32"
    assert half["variant"] == "dense, bfloat16 linears" and half["linears"] == "bfloat16"
    assert half["dense"]["perplexity"] == plain["perplexity"]  # paired with float32 on the same tokens
    assert half["kl"] > 0 and half["nll_difference"] != 0 and abs(half["perplexity_ratio"] - 1) < 0.01
    done = answer("convert", longer, tmp_path / "out", "--taps", 30, "--data", dna, "--linears", "bfloat16")
    sparse = done["evaluation"]
    assert sparse["variant"] == "sparse" and sparse["linears"] == done["linears"] == "bfloat16"
    assert done["plan"] == "taps 30, bfloat16 linears"
    assert [gain["name"] for gain in sparse["speed"]["gains"]] == ["lossless kernels", "masks", "linear layers"]
    command = shlex.split(done["next"])
    assert answer(*command[command.index("eval") :])["perplexity"] == sparse["perplexity"]  # the plan has it
    exact = answer("eval", "ppl", tmp_path / "out", "--data", dna, "--linears", "float32")
    assert exact["perplexity"] != sparse["perplexity"] and exact["variant"] == "sparse, float32 linears"
    for page in ("report.html", "README.md"):
        assert "Linear layers on a CPU multiply in bfloat16" in (tmp_path / "out" / page).read_text()
    again = answer("convert", longer, tmp_path / "again", "--plan", tmp_path / "out" / "plan.json", "--data", dna)
    assert again["evaluation"]["perplexity"] == sparse["perplexity"] and again["plan_sha256"] == done["plan_sha256"]
    few = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert few["schema"] == 4 and len(few["linears"]) == 8
    few["linears"]["backbone.nowhere"] = "bfloat16"
    (tmp_path / "more.json").write_text(json.dumps(few))
    said = refusal("convert", longer, tmp_path / "more", "--plan", tmp_path / "more.json")
    assert "names the linear layer backbone.nowhere" in said and not (tmp_path / "more").exists()
    p = load(longer)
    before = p.sites[0].install(None)
    p.sites[0].install(before)
    with pytest.raises(ValueError, match=r"backbone\.nowhere"):
        sparsify_(p, tmp_path / "more.json")
    assert p.sites[0].install(None) is before  # as it was
    few["linears"].popitem()
    few["linears"].popitem()
    (tmp_path / "few.json").write_text(json.dumps(few))
    less = answer("convert", longer, tmp_path / "less", "--plan", tmp_path / "few.json", "--data", dna)
    assert less["linears"] == less["evaluation"]["linears"] == "bfloat16 in 7 of 8 layers"
    assert less["evaluation"]["perplexity"] not in (sparse["perplexity"], exact["perplexity"])
    assert answer("bench", longer, "--linears", "bfloat16", "--rounds", 3)["linears"] == "bfloat16"


def test_generate(checkpoint, tmp_path):
    ask = ("generate", checkpoint, "--count", 30, "--temperature", 1, "--seed", 3)
    done = run(*ask, "--prompt", "ACGTTTGA")
    assert done.exit_code == 0 and re.fullmatch("[ACGT]{30}\n", done.stdout)
    result = answer(*ask, "--prompt", "ACGTTTGA")
    assert result["text"] == done.stdout.strip() and result["prompt_tokens"] == 8 and result["tokens_per_second"] > 0
    (tmp_path / "prompt.fa").write_text(">a sequence\nacgt\nTTGA\n")
    assert answer(*ask, "--prompt-file", tmp_path / "prompt.fa", "--upper")["text"] == result["text"]
    p = load(checkpoint)
    ids = torch.tensor([p.tokenizer.encode("ACGTTTGA")])
    grown = p.model.stream().generate(ids, 30, temperature=1, seed=3)
    assert p.tokenizer.decode(grown[0, 8:].tolist()) == result["text"]
    greedy = answer("generate", checkpoint, "--prompt", "A", "--count", 5)
    assert len(greedy["text"]) == 5 and greedy["text"] == answer(*ask[:2], "--prompt", "A", "--count", 5)["text"]


def test_what_is_not_used_is_told(checkpoint):
    ask = ("generate", checkpoint, "--prompt", "ACGT", "--count", 5)
    told = "so --top-k and --seed change nothing; --temperature 1 draws"
    assert told in run(*ask, "--seed", 3, "--top-k", 2).stderr
    assert "change nothing" not in run(*ask, "--seed", 3, "--top-k", 2, "--temperature", 1).stderr


def test_a_model_under_no_plan_is_told(checkpoint, sparse, other, dna):
    told = "is under no plan, so there is nothing to compare"
    ask = ("eval", "ppl", checkpoint, "--data", dna, "--context", 64)
    assert told in run(*ask).stderr
    assert told not in run(*ask, "--baseline", other).stderr + run("eval", "ppl", sparse, "--data", dna).stderr


def test_doctor_does_not_need_kernels(monkeypatch):
    monkeypatch.setenv("SPARSIFY_NATIVE", "0")
    result = answer("doctor")
    assert result["ok"]
    assert {"name": "kernels", "ok": False, "detail": "switched off: SPARSIFY_NATIVE=0"} in result["checks"]


def test_doctor_says_which_kernels_fit():
    result = answer("doctor", "--tiling", 4096, "--arch", "sm_90")
    assert result["candidates"][0]["factors"] == [16, 16, 16] and result["advice"] is None
    text = run("doctor", "--tiling", 65536, "--arch", "sm_86").stdout
    assert "refused by shared memory" in text and "101376" in text and "two levels do" in text
    assert "sm_80" in run("doctor", "--tiling", 256, "--arch", "sm_75").output
    assert "--tiling" in run("doctor", "--arch", "sm_90").output


@pytest.mark.parametrize("verb", ["inspect", "analyze", "bench"])
def test_tables_for_people(checkpoint, verb):
    done = run(verb, checkpoint, *(["--rounds", 3] if verb == "bench" else []))
    assert done.exit_code == 0 and "backbone.layers.0.mixer" in done.output


def test_table_of_the_convolution():
    done = run("bench", "--shape", "1,2,300", "--rounds", 3)
    assert done.exit_code == 0 and "partial 1/16" in done.stdout and "against best torch.fft" in done.stdout


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
        (("convert", "{src}", "{out}", "--plan", "{src}/config.json"), "config.json holds no plan; pass the plan.json"),
        (("inspect", "{src}", "--length", 65), "--length 65 is longer than the model's 64 tokens; choose at most 64"),
        (("bench", "{src}", "--save", "{src}/config.json"), "/config.json, a file of the model; name another"),
        (("eval", "front", "{src}", "--calibration", "{dna}", "--save", "{dna}"), "--save would write over --calibrat"),
        (("eval", "front", "{src}", "--calibration", "{dna}", "--save", "x", "--picture", "x"), "write over --save"),
        (("convert", "{src}", "{out}", "--max-ppl-increase", "0.1%"), "add --calibration FILE"),
        (("convert", "{src}", "{out}", *BUDGET, "--taps", 5), "got --taps and --max-ppl-increase; give one of them"),
        (("convert", "{src}", "{out}", *BUDGET, "--data", "{dna}"), "cannot prove a plan that was found on it"),
        (("convert", "{src}", "{out}", *BUDGET, "--target", "h1000"), "did you mean 'h100'"),
        (("convert", "{src}", "{out}", *BUDGET, "--limit", 9), "at least 10 windows of 64 tokens"),
        (("convert", "{src}", "{out}", *BUDGET[:1], "0", *BUDGET[2:]), "between 0 and 100 %"),
        (("convert", "{src}", "{out}", "--calibration", "{dna}"), "--calibration is for a plan within a budget"),
        (("convert", "{src}", "{out}", "--target", "h100", "--taps", 5), "--target is for a plan within a budget"),
        (("eval", "ppl", "{src}", "--data", "{dna}", "--baseline", "{sparse}"), "pass a dense checkpoint"),
        (("inspect", "{src}", "--device", "nowhere"), "there is no device 'nowhere'"),
        (("analyze", "{src}", "--length", 5000), "longer than the model's 64 tokens; choose at most 64"),
        (("convert", "{src}", "{src}", "--taps", 5), "--force"),
        (("convert", "{src}", "{out}", "--plan", "{dna}"), "is no plan"),
        (("convert", "{src}", "{out}", "--plan", "{out}"), "there is no plan file"),
        (("eval", "ppl", "{src}", "--data", "{out}"), "there is no file"),
        (
            ("eval", "ppl", "{src}", "--data", "{dna}", "--context", 9999),
            "longer than the model's 64 tokens; choose at most 64",
        ),
        (("eval", "ppl", "{src}", "--data", "{lower}"), "lower-case"),
        (("eval", "ppl", "{src}", "--data", "{dna}", "--linears", "bfloat16"), "begins to pay at 256 tokens"),
        (("bench", "--length", 64), "--length is about a model; name the MODEL"),
        (("bench", "--linears", "bfloat16"), "--linears is about a model"),
        (("bench", "{src}", "--shape", "1,2,30"), "--shape is about the convolution alone"),
        (("bench", "--calibrate", "--quick"), "give it alone"),
        (("generate", "{src}"), "give --prompt or --prompt-file"),
        (("generate", "{src}", "--prompt", "A", "--prompt-file", "{dna}"), "one of them"),
        (("generate", "{src}", "--prompt", " "), "the prompt is empty"),
        (("generate", "{src}", "--prompt", "ACXT"), "other letters than ACGT"),
        (("generate", "{src}", "--prompt", "ACUU"), "that is RNA, so write T for every U"),
        (("generate", "{src}", "--prompt", "acgt"), "lower-case"),
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


# --- a model that looks both ways ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small M2-BERT, random weights."""
    return layouts_m2.write(tmp_path_factory.mktemp("source") / "m2")


def test_a_model_that_looks_both_ways_is_shown(encoder):
    result = answer("inspect", encoder)
    assert result["family"] == "m2_bert" and [site["causal"] for site in result["sites"]] == [False] * 4
    assert result["options"] == {} and "shift" not in run("inspect", encoder).stdout
    for site in answer("analyze", encoder)["sites"]:
        assert site["taps"] == sorted(site["taps"]) and site["taps"][-1] <= layouts_m2.TINY.k


def test_a_model_that_looks_both_ways_is_converted_and_timed(encoder, tmp_path):
    result = answer("convert", encoder, tmp_path / "out", "--low-pass", 0.25)  # there is no future to leak from
    assert {row["kind"] for row in result["filters"]} == {"frequency-sparse"}
    assert {row["leak"] for row in result["filters"]} == {0.0} and " eval mlm " in result["next"]
    timed = answer("bench", tmp_path / "out", "--rounds", 3)
    assert len(timed["sites"]) == 4 and timed["plan"] == "low-pass 0.25"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("inspect", "{encoder}", "--option", "shift=0.05"), "has no option 'shift'"),
        (
            ("eval", "ppl", "{encoder}", "--data", "{dna}"),
            "has the head 'mlm', and perplexity takes a language model's",
        ),
        (("convert", "{encoder}", "{out}", *BUDGET, "--stride", 9), "windows with masked tokens lie side by side"),
        (("convert", "{encoder}", "{out}", *BUDGET, "--upper"), "reads soft-masked DNA"),
        (("convert", "{encoder}", "{out}", *BUDGET, "--context", 99), "--context 99 is longer than the model's 30"),
        (("generate", "{encoder}", "--prompt", "a film"), "cannot be fed in pieces yet"),
        (("bench", "--both-ways", "--calibrate"), "--both-ways times the convolution on a CPU"),
        (("bench", "{encoder}", "--both-ways"), "--both-ways is about the convolution alone"),
    ],
)
def test_what_makes_no_sense_of_it_is_said(args, says, encoder, dna, tmp_path):
    done = run(*(str(arg).format(encoder=encoder, dna=dna, out=tmp_path / "out") for arg in args))
    assert done.exit_code == 1 and says in done.output, done.output
    assert not (tmp_path / "out").exists()

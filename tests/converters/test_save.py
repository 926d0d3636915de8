"""A folder is written whole or not at all, with the source's weights to the last bit."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import layouts
import layouts_m2
import pytest
import torch
from helpers import ROOT, relative_l2
from safetensors.torch import save_file

from sparsify import swap
from sparsify.converters import check_out, load, save, write_folder
from sparsify.converters.hub.download import Source
from sparsify.converters.save import copy_beside
from sparsify.converters.tensors import read_tensors
from sparsify.plan import FilterPlan, Plan
from sparsify.plan.coefficients import Coefficients
from sparsify.storage.folders import heal, whole_folder


def plan_for(p, taps=5):
    return Plan({site.name: FilterPlan("partial", taps) for site in p.sites}, f"taps {taps}")


def re_fitted(p, channels=12):
    """A plan with coefficients of its own."""
    return Plan({s.name: FilterPlan("partial", 5, values=Coefficients(torch.randn(channels, 5))) for s in p.sites}, "x")


def snapshot(path):
    """Every file below a folder, with its content."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


@pytest.fixture
def source(tmp_path):
    path = layouts.write(tmp_path / "source", "hf")
    (path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization_hyena.T", null]}}')
    (path / "modeling_hyena.py").write_text("raise SystemExit")
    (path / "README.md").write_text("the source's card")
    return path


def test_weights_are_copied_byte_for_byte(source, tmp_path):
    p = load(source)
    out = write_folder(tmp_path / "deep" / "out", p, plan_for(p), {"plan.json": "{}", "README.md": b"# card"})
    written = snapshot(out)
    vocabulary = ["tokenizer.json", "tokenizer_config.json"]
    assert sorted(written) == ["README.md", "config.json", "model.safetensors", "plan.json", *vocabulary]
    assert written["model.safetensors"] == (source / "model.safetensors").read_bytes()
    assert written["README.md"] == b"# card"
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    config = json.loads(written["config.json"])
    entry = config.pop("quantization_config")
    assert entry == {
        "quant_method": "sparsify",
        "format_version": 1,
        "source": {"repo": None, "revision": None, "sha256": p.sha256},
        "plan": plan_for(p).to_dict(),
        "files": sorted(written),
    }
    assert config.pop("shift") == 0.0
    assert config == json.loads((source / "config.json").read_text())


def test_shards_are_copied_with_their_index(tmp_path):
    path = layouts.write(tmp_path / "source", "hf")
    tensors = read_tensors(path)
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, held in shards.items():
        save_file({n: tensors[n].clone() for n in held}, path / file)
    table = {name: file for file, held in shards.items() for name in held}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    (path / "model.safetensors").unlink()
    p = load(path)
    out = write_folder(tmp_path / "out", p, plan_for(p), {})
    vocabulary = {"tokenizer.json", "tokenizer_config.json"}
    assert {*shards, "model.safetensors.index.json", "config.json"} == set(snapshot(out)) - vocabulary
    assert all((out / file).read_bytes() == (path / file).read_bytes() for file in shards)


@pytest.mark.parametrize("dialect", ["raw", "raw checkpointed"])
def test_pickles_become_safetensors_under_their_own_names(tmp_path, dialect):
    path = layouts.write(tmp_path / "source", dialect)
    p = load(path)
    out = write_folder(tmp_path / "out", p, plan_for(p), {})
    before, after = read_tensors(path), read_tensors(out)
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert any("torchmetrics" in name for name in after)
    assert sorted(snapshot(out)) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@torch.no_grad()
@pytest.mark.parametrize("shift", [None, 0.05])
def test_what_was_written_loads_as_the_same_model_with_its_plan(tmp_path, shift):
    p = load(layouts.write(tmp_path / "source", "raw"), options=None if shift is None else {"shift": shift})
    assert p.quantization is None and {f.kind for f in p.plan.filters.values()} == {"dense"}
    again = load(write_folder(tmp_path / "out", p, plan_for(p), {}))
    ids = torch.randint(7, 11, (1, 50))
    assert relative_l2(again.model(ids), p.model(ids)) > 1e-3  # it comes with its plan in place
    swap.apply_(p.sites, plan_for(p))
    assert torch.equal(again.model(ids), p.model(ids))
    assert again.plan == plan_for(p) and again.sha256 == p.sha256 and again.options == p.options
    assert all(torch.equal(again.filters[name].k, k.k) for name, k in p.filters.items())


@torch.no_grad()
def test_coefficients_of_a_plan_come_along(source, tmp_path):
    """Listed, replaced by force, convolved with, and never taken for weights, whatever those are called."""
    (source / "model.safetensors").rename(source / "hyena.safetensors")
    p = load(source)
    plan, ids = re_fitted(p), torch.randint(7, 11, (1, 50))
    out = write_folder(tmp_path / "out", p, plan, {"plan.json": plan.to_json()})
    again = load(out)
    assert again.plan == plan == Plan.read(out / "plan.json") and again.sha256 == p.sha256
    assert "plan.safetensors" in again.quantization["files"]
    swap.apply_(p.sites, plan)
    dressed = p.model(ids)
    assert torch.equal(again.model(ids), dressed)
    swap.apply_(p.sites, plan_for(p))
    assert relative_l2(p.model(ids), dressed) > 1e-3
    write_folder(out, again, plan_for(again), {}, force=True)
    assert not (out / "plan.safetensors").exists() and load(out).plan == plan_for(p)


def test_coefficients_that_are_lost_or_foreign(source, tmp_path):
    p = load(source)
    out, other = (write_folder(tmp_path / name, p, re_fitted(p), {}) / "plan.safetensors" for name in ("a", "b"))
    out.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=r"plan.safetensors does not fit its plan: .* not those"):
        load(out.parent)
    out.unlink()
    with pytest.raises(FileNotFoundError, match="re-fitted coefficients are not there"):
        load(out.parent)
    with pytest.raises(ValueError, match=r"backbone.layers.0.mixer: the plan's coefficients are for 7 channels"):
        load(write_folder(tmp_path / "c", p, re_fitted(p, channels=7), {}))


def test_remote_code_is_named_where_it_stays(source, tmp_path):
    p = load(source)
    hub = Source("ORG/NAME", p.source.folder, "ORG/NAME", "abc")
    out = write_folder(tmp_path / "out", replace(p, source=hub), plan_for(p), {})
    config, tokens = (json.loads((out / f"{name}.json").read_text()) for name in ("config", "tokenizer_config"))
    assert config["auto_map"] == {"AutoConfig": "ORG/NAME--configuration_hyena.HyenaConfig"}
    assert tokens["auto_map"] == {"AutoTokenizer": ["ORG/NAME--tokenization_hyena.T", None]}


def test_the_origin_stays_from_folder_to_folder_while_the_weights_do(source, tmp_path):
    p = load(source)
    p = replace(p, source=Source("ORG/NAME", p.source.folder, "ORG/NAME", "abc"))
    first = load(write_folder(tmp_path / "first", p, plan_for(p), {}))
    origin = {"repo": "ORG/NAME", "revision": "abc", "sha256": p.sha256}
    assert first.quantization["source"] == origin
    second = load(write_folder(tmp_path / "second", first, plan_for(first, 7), {}))
    assert second.quantization["source"] == origin and second.notes == ()
    tensors = {name: tensor + 1 for name, tensor in read_tensors(tmp_path / "second").items()}
    save_file(tensors, tmp_path / "second" / "model.safetensors")
    changed = load(tmp_path / "second")
    assert any("not those that the plan was made for" in note for note in changed.notes)
    third = load(write_folder(tmp_path / "third", changed, changed.plan, {}))
    assert third.quantization["source"] == {"repo": None, "revision": None, "sha256": changed.sha256}


def test_a_raw_checkpoint_is_told_apart_by_its_config_afterwards(tmp_path):
    p = load(layouts.write(tmp_path / "source", "raw"))
    out = write_folder(tmp_path / "out", p, plan_for(p), {})
    assert json.loads((out / "config.json").read_text())["model_type"] == "hyenadna"


LOADED = """
import sys
from sparsify.converters import load, write_folder
for source in sys.argv[2:]:
    p = load(source)
    write_folder(sys.argv[1] + p.family, p, p.plan, {})
print([name for name in ("torch._dynamo", "sympy", "transformers", "huggingface_hub") if name in sys.modules])
"""


def test_loading_and_writing_import_nothing_heavy(source, tmp_path):
    """torch would import its compiler to draw weights that nobody sees."""
    other = layouts_m2.write(tmp_path / "m2", "mlm")
    done = python(LOADED, tmp_path / "out-", source, other)
    assert done.stdout == "[]\n", done.stderr


def python(script, *args):
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# --- refusals and accidents ------------------------------------------------------------------------------------------


def test_what_lies_there_is_replaced_only_if_it_is_ours_and_asked_for(source, tmp_path):
    p, out = load(source), tmp_path / "out"
    out.mkdir()
    write_folder(out, p, plan_for(p, 5), {"old.txt": "old"})  # an empty folder is free
    with pytest.raises(ValueError, match=r"is not empty; .*--force"):
        write_folder(out, p, plan_for(p, 7), {})
    assert load(out).plan == plan_for(p, 5)
    write_folder(out, p, plan_for(p, 7), {}, force=True)
    assert load(out).plan == plan_for(p, 7) and not (out / "old.txt").exists()
    before = snapshot(source)
    with pytest.raises(ValueError, match="was not written by sparsify"):
        write_folder(source, p, plan_for(p), {}, force=True)
    with pytest.raises(ValueError, match="is a file"):
        check_out(source / "config.json", force=True)
    assert snapshot(source) == before


def test_a_converted_folder_can_be_converted_in_place(source, tmp_path):
    p = load(source)
    out = write_folder(tmp_path / "out", p, plan_for(p, 5), {})
    ours = load(out)
    write_folder(out, ours, plan_for(ours, 7), {}, force=True)
    assert load(out).plan == plan_for(p, 7) and load(out).sha256 == p.sha256


@pytest.mark.parametrize("name", ["config.json", "../x", "/tmp/x", "model.safetensors", "model.safetensors.index.json"])
def test_files_that_would_lie_elsewhere_or_on_the_weights(source, tmp_path, name):
    p = load(source)
    with pytest.raises(ValueError, match="cannot be a file beside the weights"):
        write_folder(tmp_path / "out", p, plan_for(p), {name: "x"})
    assert not (tmp_path / "out").exists()


def test_a_plan_for_another_model_is_refused(source, tmp_path):
    p = load(source)
    with pytest.raises(ValueError, match="does not fit the model"):
        write_folder(tmp_path / "out", p, Plan({"elsewhere": FilterPlan("dense")}, "dense"), {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moment", ["files", "weights", "the last rename", "interrupt"])
@pytest.mark.parametrize("there", [True, False])
def test_an_accident_leaves_what_was_there(source, tmp_path, monkeypatch, moment, there):
    p, out = load(source), tmp_path / "out"
    if there:
        write_folder(out, p, plan_for(p, 5), {"kept.txt": "kept"})
    before = snapshot(tmp_path)

    def fail(*_, **__):
        raise KeyboardInterrupt if moment == "interrupt" else OSError("no space left on device")

    if moment == "the last rename":
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda a, b: fail() if a.name == "new" else rename(a, b))
    else:
        monkeypatch.setattr(save, {"files": "write_json", "weights": "fingerprint"}.get(moment, "read_tensors"), fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_folder(out, p, plan_for(p, 7), {"new.txt": "new"}, force=True)
    monkeypatch.undo()
    assert snapshot(tmp_path) == before and [x.name for x in tmp_path.iterdir()] == ["source", "out"][: 1 + there]


def test_a_source_that_changed_meanwhile(source, tmp_path):
    p = load(source)
    tensors = {name: tensor.clone() for name, tensor in read_tensors(source).items()}
    tensors["lm_head.weight"] += 1
    (source / "model.safetensors").unlink()  # the loaded model still looks into the old file
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ValueError, match="load it again"):
        write_folder(tmp_path / "out", p, plan_for(p), {})
    assert not (tmp_path / "out").exists()


def test_a_config_of_ours_without_a_plan(source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "sparsify"}}))
    with pytest.raises(ValueError, match="has no plan"):
        load(source)
    hostile = {"quant_method": "sparsify", "files": {"a": ["b"]}, "plan": None, "source": [1]}
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": hostile}))
    with pytest.raises(ValueError, match="also holds"):
        check_out(source, force=True)
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    assert load(source).quantization is None


# --- killed on the way -----------------------------------------------------------------------------------------------


KILLED = """
import os, sys
from pathlib import Path
from sparsify.storage.folders import whole_folder
out, moment = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
def until(a, b):
    if (a.name, moment) in (("new", "between"), ("old", "clearing")):
        os.kill(os.getpid(), 9)
    return rename(a, b)
Path.rename = until
with whole_folder(out) as new:
    (new / "a").write_text("new")
    if moment == "writing":
        os.kill(os.getpid(), 9)
"""


def run_killed(out, moment):
    """A process that writes the folder `out` and is killed at some moment."""
    done = python(KILLED, out, moment)
    assert done.returncode == -9, done.stderr


@pytest.mark.parametrize(
    ("moment", "there"),
    [("writing", False), ("writing", True), ("between", False), ("between", True), ("clearing", True)],
)
def test_the_next_run_puts_right_what_a_killed_one_left(tmp_path, moment, there):
    """The old folder is back, or the new one there, and nothing beside; what only looks similar is not touched."""
    out, others = tmp_path / "out", {".out.backup", ".out", ".other.sparsify-1"}
    for name in others | ({"out"} if there else set()):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("old")
    run_killed(out, moment)
    left = {path.name for path in tmp_path.iterdir()} - others - {"out"}
    assert len(left) == 1 and out.exists() == (there and moment != "between")
    heal(out)
    assert {path.name for path in tmp_path.iterdir()} == others | ({"out"} if there else set())
    assert not there or (out / "a").read_text() == ("new" if moment == "clearing" else "old")


def test_a_room_that_is_still_worked_in_is_let_alone(tmp_path):
    out = tmp_path / "out"
    with whole_folder(out) as new:
        (new / "a").write_text("first")
        with whole_folder(out) as other:  # as another process would
            (other / "a").write_text("second")
        assert (new / "a").read_text() == "first" and (out / "a").read_text() == "second"
    assert (out / "a").read_text() == "first" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_half_cleared_does_not_come_back(tmp_path, monkeypatch):
    """Killed while the old folder was removed, and the new one deleted by hand since."""
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    monkeypatch.setattr("sparsify.storage.folders.shutil.rmtree", lambda *args, **kwargs: None)  # as far as that came
    with whole_folder(out) as new:
        (new / "a").write_text("new")
    monkeypatch.undo()
    shutil.rmtree(out)
    heal(out)
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_a_conversion_that_was_killed_between_the_renames_can_be_repeated(source, tmp_path):
    """The old folder is back before anybody asks whether the place is free."""
    p, out = load(source), tmp_path / "out"
    write_folder(out, p, plan_for(p, 5), {})
    run_killed(out, "between")
    assert not out.exists()
    with pytest.raises(ValueError, match="is not empty"):
        check_out(out)
    assert load(out).plan == plan_for(p, 5)
    run_killed(out, "between")
    write_folder(out, p, plan_for(p, 7), {}, force=True)
    assert load(out).plan == plan_for(p, 7) and {path.name for path in tmp_path.iterdir()} == {"source", "out"}


# --- files by their whole names --------------------------------------------------------------------------------------


def test_files_in_folders_are_listed_and_replaced_by_their_whole_names(source, tmp_path):
    p, out, name = load(source), tmp_path / "out", ".eval_results/data.yaml"
    write_folder(out, p, plan_for(p), {name: "[]"})
    assert name in load(out).quantization["files"]
    (out / ".eval_results" / "mine.yaml").write_text("[]")
    with pytest.raises(ValueError, match=r"also holds .eval_results/mine.yaml, which sparsify did not write"):
        write_folder(out, p, plan_for(p), {}, force=True)
    (out / ".eval_results" / "mine.yaml").unlink()
    write_folder(out, p, plan_for(p), {}, force=True)
    assert not (out / ".eval_results").exists()


def test_what_lies_beside_goes_along_but_nothing_from_outside(source, tmp_path):
    p, name = load(source), ".eval_results/data.yaml"
    out = write_folder(tmp_path / "out", p, plan_for(p), {name: "[]", "plan.json": "{}"})
    copy_beside(out, tmp_path / "copy")
    assert set(snapshot(tmp_path / "copy")) == {name, "plan.json", "tokenizer.json", "tokenizer_config.json"}
    (tmp_path / "private").write_text("private")
    (out / "link").symlink_to(tmp_path / "private")
    config = json.loads((out / "config.json").read_text())
    for hostile in ("../private", "link", str(tmp_path / "private")):
        config["quantization_config"]["files"] = [hostile]
        (out / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="outside its folder"):
            copy_beside(out, tmp_path / "another")


@pytest.mark.parametrize("dialect", ["raw", "hf"])
def test_weights_can_be_read_by_whom_other_files_can(tmp_path, dialect):
    p = load(layouts.write(tmp_path / "source", dialect))
    out = write_folder(tmp_path / "out", p, re_fitted(p), {})
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1

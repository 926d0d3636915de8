"""Files are read as stored, and what is damaged, foreign or hostile is told apart in one sentence."""

import json
import pickle
import sys
import types
import zipfile
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import save_file

from sparsify.converters import load, write_folder
from sparsify.converters.state_dict import is_leftover, strip_wrappers
from sparsify.converters.tensors import read_config, read_tensors, weight_files
from sparsify.storage.tensors import fingerprint

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b": torch.arange(4, dtype=torch.bfloat16),
    "c.bias": torch.tensor(3.5, dtype=torch.float64),
    "n": torch.arange(3),
    "none": torch.zeros(0, 3),
}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def write_shards(folder):
    names = sorted(TENSORS)
    shards = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, held in shards.items():
        save_file({name: TENSORS[name] for name in held}, folder / file)
    table = {name: file for file, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


# --- what is read ----------------------------------------------------------------------------------------------------


def test_one_safetensors_file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert same(read_tensors(tmp_path), TENSORS)


def test_shards(tmp_path):
    assert same(read_tensors(write_shards(tmp_path)), TENSORS)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.ckpt", "model.pt", "my_own.pth"])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda t: {"state_dict": t, "epoch": 1},
        lambda t: {"state": {"model": t, "loss": torch.ones(1)}, "rng": 7},
        lambda t: {"model_state_dict": t, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(1)}}}},
        lambda t: {"model": t, "step": torch.tensor(7)},
        lambda t: {"module": t, "ds_version": "0.15"},
        lambda t: {"model": {"state_dict": t, "name": "hyena"}, "model_ema": {"w": torch.ones(1)}},
        lambda t: {"state_dict": t, "model": {"d_model": 128}},
        lambda t: {"state_dict": t, "model": t},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_every_trainer(tmp_path, name, wrap, zipped):
    torch.save(wrap({**TENSORS, "steps": 12, 3: torch.ones(1)}), tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(tmp_path), TENSORS)


def test_two_state_dicts_in_a_pickle_are_not_chosen_between(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}, "module": {"w": torch.zeros(1)}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds two state dicts, 'model' and 'module'; keep the one that is meant"):
        read_tensors(tmp_path)


def test_adapters_beside_the_weights_are_not_passed_over(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapters of PEFT that are not merged .*merge_and_unload\(\)"):
        read_tensors(tmp_path)


def test_a_dictionary_that_holds_itself_has_an_end(tmp_path):
    data = {"note": "none"}
    data["model"] = data
    torch.save(data, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}])
def test_a_whole_module_is_not_run_and_its_state_dict_is_asked_for(wrap, tmp_path, monkeypatch):
    module = foreign(monkeypatch, "their_code")
    module.Net = type("Net", (torch.nn.Linear,), {"__module__": "their_code"})
    torch.save(wrap(module.Net(2, 2)), tmp_path / "model.pt")
    monkeypatch.delitem(sys.modules, "their_code")
    with pytest.raises(
        ValueError, match=r"holds a whole module .* never run here; save its state dict with torch\.save"
    ):
        read_tensors(tmp_path)


def test_safetensors_before_pickles_and_weights_before_leftovers(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    torch.save({"lr": 1e-3}, tmp_path / "training_args.bin")
    torch.save({}, tmp_path / "optimizer.pt")
    assert list(read_tensors(tmp_path)) == ["w"]
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert same(read_tensors(tmp_path), TENSORS)


def foreign(monkeypatch, name):
    """A module that exists while a checkpoint is saved and is gone when it is read."""
    module = types.ModuleType(name)

    class DictConfig:
        def __init__(self, content):
            self.content = content

        def __reduce__(self):
            return (type(self), (self.content,), {"flags": {"readonly": True}}, None, iter([("lr", 6e-4)]))

        def __setitem__(self, key, value):
            pass

    class AnyNode(dict):
        pass

    for cls in (DictConfig, AnyNode):
        cls.__module__, cls.__qualname__ = name, cls.__name__
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_a_training_checkpoint_full_of_foreign_classes(tmp_path, monkeypatch):
    """Lightning with OmegaConf hyper-parameters: classes that are not installed, dates, typing.Any, numpy, sets."""
    import collections
    import datetime
    import typing

    import numpy

    omegaconf = foreign(monkeypatch, "omegaconf_of_somebody")
    kind = layouts.DIALECTS["raw checkpointed"]
    tensors = layouts.dress(layouts.untied(), kind)
    tensors["model.backbone.ln_f.weight"] = torch.nn.Parameter(tensors["model.backbone.ln_f.weight"])
    checkpoint = {
        "state_dict": collections.OrderedDict(tensors),
        "hyper_parameters": omegaconf.DictConfig({"model": omegaconf.AnyNode(a=1), "type": typing.Any}),
        "callbacks": {omegaconf.DictConfig: [numpy.float64(0.1), {1, 2}, datetime.datetime(2023, 6, 1)]},
        "loops": collections.defaultdict(list, fit=[torch.device("cpu"), torch.float32, torch.Size([3])]),
        "optimizer_states": [{"exp_avg": torch.ones(4)}],
    }
    torch.save(checkpoint, tmp_path / "weights.ckpt")
    (tmp_path / "config.json").write_text(json.dumps(layouts.config(layouts.TINY, kind)))
    monkeypatch.delitem(sys.modules, omegaconf.__name__)
    assert same(read_tensors(tmp_path), tensors)
    assert "omegaconf_of_somebody" not in sys.modules
    ids = torch.randint(7, 11, (1, 40))
    plain = load(layouts.write(tmp_path / "plain", "plain", plain=layouts.untied()))
    assert torch.equal(load(tmp_path).model(ids), plain.model(ids))


def test_tensors_that_share_memory_come_back_as_stored(tmp_path, monkeypatch):
    """Tied, transposed and sliced: through the reader that knows no class but tensors."""
    odd = foreign(monkeypatch, "somebody_else")
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "tied": base, "transposed": base.T, "row": base[1], "empty": base[:0]}
    torch.save({"state_dict": tensors, "odd": odd.AnyNode()}, tmp_path / "model.pt")
    assert same(read_tensors(tmp_path), tensors)


# --- what is refused -------------------------------------------------------------------------------------------------


class Call:
    """Unpickling this calls something."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def hostile(marker):
    import builtins
    import os
    import subprocess

    order = f"touch {marker}"
    return {
        "posix.system": Call(os.system, order),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "builtins.eval": Call(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "builtins.exec": Call(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "builtins.getattr": Call(getattr, os, "system"),
        "io.open": Call(open, str(marker), "w"),
    }


@pytest.mark.parametrize("way", ["torch", "torch, old format", "pickle"])
@pytest.mark.parametrize("name", hostile(""))
def test_a_hostile_pickle_is_named_and_never_run(tmp_path, name, way):
    marker, path = tmp_path / "was-run", tmp_path / "pytorch_model.bin"
    payload = hostile(marker)[name]
    if name == "builtins.getattr":
        payload = Call(getattr, "text", "upper")  # harmless here, but the way to everything else
    content = {"state_dict": {"w": torch.ones(2)}, "hooks": payload}
    if way == "pickle":
        path.write_bytes(pickle.dumps({"hooks": payload}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "torch")
    before = path.read_bytes()
    with pytest.raises(ValueError) as refusal:
        read_tensors(tmp_path)
    if way != "torch, old format":
        assert name in str(refusal.value) and "nothing was run" in str(refusal.value)
    assert not marker.exists() and path.read_bytes() == before


def test_a_method_of_an_unknown_class_is_not_called(tmp_path, monkeypatch):
    """Anything a stand-in is asked to do, it ignores: here it is called, filled, and given a state."""
    odd = foreign(monkeypatch, "somebody_else")
    inner = Call(odd.DictConfig, "touch")
    torch.save({"w": torch.ones(2), "odd": [inner, odd.DictConfig(inner)]}, tmp_path / "model.pt")
    monkeypatch.setattr(odd.DictConfig, "__init__", lambda *_: pytest.fail("the class itself was used"))
    assert list(read_tensors(tmp_path)) == ["w"]


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("dialect", ["plain", "raw"])
def test_a_file_that_was_cut_short(tmp_path, dialect, share):
    folder = layouts.write(tmp_path / "source", dialect)
    path = weight_files(folder).files[0]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"{path.name} .*(cut short|without its end).*download it again"):
        read_tensors(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>Not Found</html>", b"\x80\x02]q\x00(", b"\xff" * 4096])
def test_a_file_that_is_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_tensors(tmp_path)


def test_a_bit_that_flipped_in_a_foreign_checkpoint(tmp_path, monkeypatch):
    odd = foreign(monkeypatch, "somebody_else")
    torch.save({"w": torch.full((999,), 1.25), "odd": odd.AnyNode()}, tmp_path / "model.pt")
    data = bytearray((tmp_path / "model.pt").read_bytes())
    data[data.index(b"\x00\x00\xa0\x3f" * 9)] ^= 1
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(ValueError, match="CRC"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.ckpt"])
def test_a_git_lfs_pointer(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:5ce2146c\nsize 1802200\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        read_tensors(tmp_path)


def test_a_pickle_without_tensors(tmp_path):
    torch.save({"lr": 0.1}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="no tensors by name"):
        read_tensors(tmp_path)


def test_no_weights_says_what_was_looked_for(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors.*pytorch_model\.bin.*weights\.ckpt"):
        read_tensors(tmp_path)


def test_several_candidates_are_not_guessed_between(tmp_path):
    for name in ("one.safetensors", "two.safetensors"):
        save_file(TENSORS, tmp_path / name)
    with pytest.raises(ValueError, match=r"one\.safetensors, two\.safetensors"):
        read_tensors(tmp_path)


def test_shards_that_do_not_add_up(tmp_path):
    folder = write_shards(tmp_path)
    index, last = folder / "model.safetensors.index.json", folder / "model-00002-of-00002.safetensors"
    save_file({"c.bias": TENSORS["c.bias"]}, last)
    with pytest.raises(ValueError, match="promises n, which no shard holds"):
        read_tensors(folder)
    save_file(TENSORS, last)
    with pytest.raises(ValueError, match=r"repeats a\.weight"):
        read_tensors(folder)
    last.unlink()
    with pytest.raises(FileNotFoundError, match=r"names the shard model-00002-of-00002\.safetensors, which"):
        read_tensors(folder)
    for text, says in (
        ('{"weight_map": {"a": "../model.safetensors"}}', "lie beside their index"),
        ('{"weight_map": ["a"]}', "has no weight_map"),
        ("[]", "holds a list"),
        ("{", "is not JSON"),
    ):
        index.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_tensors(folder)


def test_a_config_that_is_not_json(tmp_path):
    assert read_config(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"d_model": 128')
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        read_config(tmp_path)


# --- fingerprint -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_weights_not_of_the_file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    backwards = {name: TENSORS[name] for name in reversed(TENSORS)}
    strided = {**TENSORS, "a.weight": TENSORS["a.weight"].T.contiguous().T}
    marks = {fingerprint(t) for t in (TENSORS, backwards, strided, read_tensors(tmp_path))}
    assert len(marks) == 1 and len(marks.pop()) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"b": torch.arange(4, dtype=torch.bfloat16) + 1},
        {"b": torch.arange(4, dtype=torch.float16)},
        {"b": torch.arange(4, dtype=torch.bfloat16)[None]},
        {"b2": torch.zeros(1)},
    ],
)
def test_the_fingerprint_sees_every_change(change):
    assert fingerprint({**TENSORS, **change}) != fingerprint(TENSORS)


# --- hostile folders -------------------------------------------------------------------------------------------------


DEEP = '{"a":' * 10_000 + "0" + "}" * 10_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DEEP, "nested too deep"),
        ('{"d_model": 128, "d_model": 256}', "'d_model' twice"),
        ('{"layer": {"a": 1, "a": 1}}', "'a' twice"),
        ('{"d_model": ' + "9" * 5000 + "}", "is not JSON as it should be"),
        ("\ud800", "is not JSON"),
        ("[1]", "holds a list"),
    ],
)
def test_a_hostile_config(tmp_path, text, says):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=says):
        read_config(tmp_path)


def test_a_config_too_large_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr("sparsify.storage.files.JSON_BYTES", 100)
    (tmp_path / "config.json").write_text(json.dumps({"a": "b" * 100}))
    with pytest.raises(ValueError, match=r"no JSON file here needs 100"):
        read_config(tmp_path)


F32 = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": {**F32, "shape": [2**60]}},
        {"a": {**F32, "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {**F32, "shape": [2**62, 2**62]}},
        {"a": {**F32, "shape": [0, 2**63], "data_offsets": [0, 0]}},
        {"a": {**F32, "shape": [-16]}},
        {"a": {**F32, "shape": ["16"]}},
        {"a": {**F32, "dtype": "F31"}},
        {"a": F32, "b": F32},
        {"a": {**F32, "data_offsets": [8, 72]}},
    ],
)
def test_a_safetensors_header_that_lies(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short \(.*\); download it again"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("length", [2**63, 2**40, 10**8, 3])
def test_a_safetensors_header_of_another_length(tmp_path, length):
    text = json.dumps({"a": F32}).encode()
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        read_tensors(tmp_path)


def test_a_safetensors_header_with_a_tensor_twice(tmp_path):
    one = f'"a":{json.dumps(F32)}'
    text = f"{{{one},{one}}}".encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(ValueError, match="says 'a' twice"):
        read_tensors(tmp_path)


def test_an_archive_that_unpacks_to_more_than_it_holds(tmp_path):
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "model.pt", "w") as bomb:
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member), zipfile.ZIP_DEFLATED)
    (tmp_path / "plain.pt").unlink()
    with pytest.raises(ValueError, match=r"model\.pt unpacks to 4.19 MB from .*do not trust it"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"w": torch.zeros(1).expand(1 << 40)}, "claims 4.40 TB of tensors"),
        ({f"w{i}": torch.zeros(4096).expand(9, 4096) for i in range(9)}, "many times what it holds"),
        ({"w": torch.eye(3).to_sparse()}, "no plain array"),
        ({"w": torch.empty(1 << 40, device="meta")}, "no plain array"),
    ],
)
@pytest.mark.parametrize("odd", [True, False])
def test_a_pickle_that_claims_more_than_it_holds(tmp_path, monkeypatch, tensors, says, odd):
    if odd:  # our own reader instead of torch's; it knows no form but plain arrays
        tensors = {**tensors, "odd": foreign(monkeypatch, "somebody_else").AnyNode()}
        says = f"{says}|cannot be read|no tensors by name"
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=says):
        read_tensors(tmp_path)


def test_a_pickle_that_numbers_more_than_it_holds(tmp_path):
    """Two billion entries of a memo, by one instruction of five bytes: that is 16 GB to the reader written in C."""
    torch.save({"w": torch.ones(1)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "model.pt", "w") as bomb:
        for member in plain.infolist():
            content = plain.read(member)
            if member.filename.endswith("data.pkl"):
                content = b"\x80\x02cnowhere\nWidget\nr" + (2**31 - 1).to_bytes(4, "little") + b"0" + content[2:]
            bomb.writestr(member.filename, content)
    (tmp_path / "plain.pt").unlink()
    assert list(read_tensors(tmp_path)) == ["w"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model-00001-of-00002.safetensors", "LICENSE"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path, name):
    folder = layouts.write(tmp_path / "inside", "hf")
    (folder / "LICENSE").write_text("free")
    if "00001" in name:
        (folder / "model.safetensors").unlink()
        write_shards(folder)
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"{name} leads to .*outside, outside its folder"):
        p = load(folder)
        write_folder(tmp_path / "out", p, p.plan, {})
    (folder / name).unlink()
    outside.rename(folder / f"{name}.there")
    (folder / name).symlink_to(f"{name}.there")  # within the folder it is fine
    if "00001" not in name:
        assert load(folder).model is not None


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    folder = layouts.write(tmp_path / "models--ORG--NAME" / "snapshots" / "abc", "hf")
    blobs = tmp_path / "models--ORG--NAME" / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("..") / ".." / "blobs" / path.name)
    assert load(folder).model is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_numbers(tmp_path, value):
    plain = {**layouts.weights(layouts.TINY)}
    name = "backbone.layers.1.mlp.fc1.bias"
    plain[name] = torch.full_like(plain[name], value, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"1 tensors hold infinite or undefined values: {name}; .* is damaged"):
        load(layouts.write(tmp_path / "source", "hf", plain=plain))


@pytest.mark.parametrize("dialect", ["hf", "raw"])
@pytest.mark.parametrize(
    "said",
    [
        {"pad_token_id": "4"},
        {"pad_token_id": [4]},
        {"pad_token_id": -1},
        {"pad_token_id": 10**30},
        {"layer_norm_epsilon": float("nan")},
        {"layer_norm_epsilon": -1e-5},
        {"layer_norm_epsilon": 10**400},
        {"shift": "0"},
        {"shift": float("nan")},
        {"max_seq_len": 10**13},
        {"max_seq_len": float("inf")},
        {"vocab_size": 10**400},
        {"pad_vocab_size_multiple": [8]},
        {"pad_vocab_size_multiple": 0.1},
        {"n_layer": "2"},
        {"d_model": -12},
    ],
)
def test_a_config_with_wrong_values(tmp_path, dialect, said):
    folder = layouts.write(tmp_path / "source", dialect)
    config = {**read_config(folder), **said}
    (folder / "config.json").write_text(json.dumps(config))
    if "max_seq_len" in said:  # believed where the positions are not stored
        drop_positions(folder)
    with pytest.raises(ValueError) as refusal:
        load(folder)
    assert len(str(refusal.value)) < 400
    assert any(name in str(refusal.value) for name in (*said, "l_max"))


def drop_positions(folder):
    tensors = {name: t.clone() for name, t in read_tensors(folder).items() if "pos_emb" not in name}
    weight_files(folder).files[0].unlink()
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_texts_that_torch_would_choke_on_are_not_given_to_it(tmp_path, zipped, monkeypatch):
    """Its restricted reader takes hours over the name of a class that is long enough; such a file is ours to read."""
    tensors, path = {"w": torch.arange(3.0)}, tmp_path / "model.pt"
    torch.save({"state_dict": tensors, "note": "x" * 5000}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch was asked"))
    if zipped:
        assert torch.equal(read_tensors(tmp_path)["w"], tensors["w"])
    path.write_bytes(whole.replace(b"x" * 5000, b"y" * 5000))  # whose checksum torch would not look at
    with pytest.raises(ValueError, match="cannot be read as a torch checkpoint"):
        read_tensors(tmp_path)


def test_two_files_that_disagree_are_not_chosen_between(tmp_path):
    """What is passed over may be what was meant; a copy of lower precision says the same, and a broken one nothing."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    other = tmp_path / "pytorch_model.bin"
    for same_as in (TENSORS, {name: t.bfloat16() if t.is_floating_point() else t for name, t in TENSORS.items()}):
        torch.save({**same_as, "more": torch.ones(1)}, other)
        assert same(read_tensors(tmp_path), TENSORS)
    other.write_bytes(b"broken")
    assert same(read_tensors(tmp_path), TENSORS)
    name = next(name for name, t in TENSORS.items() if t.is_floating_point())
    torch.save({**TENSORS, name: TENSORS[name] + 1}, other)
    with pytest.raises(ValueError, match=rf"model\.safetensors and .*pytorch_model\.bin both hold {name}, with diff"):
        read_tensors(tmp_path)


def test_the_counter_of_an_average_is_no_weight():
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2)).state_dict()
    names = [strip_wrappers(name) for name in averaged]
    assert [name for name in names if is_leftover(name)] == ["n_averaged"] and len(names) == 3

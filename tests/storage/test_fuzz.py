"""Files that nobody would write by hand: every reader returns, or says in one sentence why it does not.

Seeded, so that every run sees the same files; SPARSIFY_FUZZ=1000 tries so many of each kind, drawn anew.
"""

import io
import json
import os
import pickle
import struct
import tempfile
from pathlib import Path

import layouts
import layouts_lm
import layouts_m2
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from sparsify.converters import load
from sparsify.converters.load import build
from sparsify.converters.tensors import read_config, read_tensors
from sparsify.converters.tokenizers.bpe import BpeTokenizer
from sparsify.converters.tokenizers.wordpiece import TextTokenizer
from sparsify.evals.data import read_documents
from sparsify.evals.glue.tasks import TASKS, read_examples
from sparsify.plan import KINDS, SCHEMA, FilterPlan, Plan
from sparsify.plan.coefficients import Coefficients

TRIES = int(os.environ.get("SPARSIFY_FUZZ", "0"))
fuzz = settings(
    max_examples=TRIES or 40,
    derandomize=not TRIES,
    deadline=None,
    database=None,
    phases=[Phase.generate] if TRIES else [Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
EXPECTED = (ValueError, LookupError, OSError)


def answers(call, *args):
    """What `call` returns, or None where it refuses as it should; everything else is a failure of ours."""
    try:
        return call(*args)
    except EXPECTED as refusal:
        assert not isinstance(refusal, KeyError | IndexError), repr(refusal)
        text = str(refusal)
        assert 10 < len(text) < 2000 and "Traceback" not in text, repr(text)
        return None


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """`whole` with pieces overwritten, cut, doubled or moved."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        piece = draw(
            st.binary(max_size=9) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"[" * 20000, b"\x80\x04", b"-9"])
        )
        match draw(st.sampled_from(["over", "in", "cut", "double"])):
            case "over":
                data[at : at + len(piece)] = piece
            case "in":
                data[at:at] = piece
            case "cut":
                del data[at : at + draw(st.integers(1, 200))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 200))]
    return bytes(data)


def read_as(name: str, content: bytes, read):
    """What `read` makes of a folder with this one file in it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        return answers(read, Path(folder))


def saved(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": TENSORS, "epoch": 3}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


class Stranger:
    """Not to be found when it is read: what leads to our own reader of pickles."""


def foreign() -> bytes:
    """A checkpoint that torch's restricted reader refuses, for a class that is not installed."""
    file = io.BytesIO()
    torch.save({"state_dict": TENSORS, "odd": Stranger()}, file)
    return file.getvalue().replace(b"Stranger", b"Stronger")


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "n": torch.arange(3)}
WHOLE = {
    "model.safetensors": save(TENSORS),
    "pytorch_model.bin": saved(True),
    "weights.ckpt": saved(False),
    "model.pt": foreign(),
    "model.pth": pickle.dumps({"w": [1, {"x": 2.0}], "s": "text"}),
}


@pytest.mark.parametrize("name", WHOLE)
@fuzz
@given(data=st.data())
def test_weights(name, data):
    content = data.draw(damaged(WHOLE[name]))
    tensors = read_as(name, content, read_tensors)
    if tensors is not None:
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        assert held <= 8 * len(content)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@fuzz
@given(
    claims=st.fixed_dictionaries(
        {"dtype": st.sampled_from(["F32", "BF16", "I64", "BOOL", "F8_E5M2", "X"]) | VALUES,
         "shape": st.lists(st.integers(-1, 4) | st.integers(2**31, 2**64), max_size=4) | VALUES,
         "data_offsets": st.lists(st.integers(0, 64) | st.integers(2**31, 2**64), min_size=2, max_size=2) | VALUES}
    ),
    length=st.none() | st.integers(0, 2**64 - 1),
    room=st.integers(0, 64),
)  # fmt: skip
def test_headers_of_safetensors(claims, length, room):
    header = json.dumps({"a": claims}).encode()
    content = struct.pack("<Q", len(header) if length is None else length) + header + bytes(room)
    tensors = read_as("model.safetensors", content, read_tensors)
    assert tensors is None or sum(t.numel() * t.element_size() for t in tensors.values()) <= room


CONFIG = layouts.config(layouts.TINY, layouts.DIALECTS["hf"])


@fuzz
@given(text=damaged(json.dumps(CONFIG).encode()))
def test_config_files(text):
    assert isinstance(read_as("config.json", text, read_config), dict | None)


UNSAID = {"shift", "modulate", "layer", "l_max", "num_labels", "quantization_config", "normalized", "auto_map"}
DIALECTS = [(layouts, name) for name in ("hf", "raw checkpointed", "hf classifier")]
DIALECTS += [(layouts_m2, name) for name in ("mlm", "retrieval")]


@pytest.mark.parametrize(("family", "dialect"), DIALECTS, ids=[name for _, name in DIALECTS])
@fuzz
@given(data=st.data())
def test_models(family, dialect, data):
    kind = family.DIALECTS[dialect]
    config = family.config(family.TINY, kind)
    keys = st.sampled_from(sorted({*config, *UNSAID}))
    changes = data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=3))
    tensors = family.dress(family.weights(family.TINY), kind)
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2, unique=True)):
        match data.draw(st.sampled_from(["lose", "reshape", "cast", "rename", "empty", "poison"])):
            case "lose":
                del tensors[name]
            case "reshape":
                tensors[name] = tensors[name].flatten()
            case "cast":
                tensors[name] = tensors[name].to(data.draw(st.sampled_from([torch.int8, torch.half, torch.complex64])))
            case "rename":
                tensors[data.draw(st.text(max_size=20)) + name] = tensors.pop(name)
            case "empty":
                tensors[name] = tensors[name][:0]
            case "poison":
                tensors[name] = torch.full_like(tensors[name], data.draw(st.sampled_from([torch.nan, -torch.inf])))
    built = answers(build, tensors, {**config, **changes})
    if built is not None:
        logits = built[2].eval()(torch.arange(20)[None] % 4 + 7)
        assert logits.isfinite().all()


NAMES = [f"backbone.layers.{i}.mixer" for i in range(layouts.TINY.n_layer)]
MASKS = st.fixed_dictionaries(
    {"factors": st.lists(st.integers(1, 16) | VALUES, max_size=3) | VALUES,
     "block": st.lists(st.integers(1, 4) | VALUES, max_size=3) | VALUES,
     "keep": st.lists(st.lists(st.integers(0, 9) | VALUES, min_size=2, max_size=2) | VALUES, max_size=3) | VALUES}
)  # fmt: skip
FILTERS = st.fixed_dictionaries(
    {"kind": st.sampled_from(sorted(KINDS)) | VALUES},
    optional={"taps": st.integers(1, 99) | VALUES, "mask": MASKS | VALUES, "odd": VALUES},
)
PLANS = st.fixed_dictionaries(
    {"schema": st.just(SCHEMA) | VALUES, "filters": st.fixed_dictionaries({n: FILTERS for n in NAMES}) | VALUES},
    optional={"policy": VALUES, "source": VALUES},
)


@fuzz
@given(data=PLANS)
def test_plans(data):
    plan = answers(Plan.from_dict, data)
    if plan is None:
        return
    assert Plan.from_dict(json.loads(plan.to_json())) == plan and len(plan.sha256) == 64
    for kept in plan.filters.values():
        assert str(kept) and kept.density(66) > 0
        applied = answers(kept.apply, torch.randn(2, 66))
        assert applied is None or applied.k.isfinite().all()


REFITTED = Plan(
    {name: FilterPlan("partial", 5, values=Coefficients(torch.ones(12, 5) * i)) for i, name in enumerate(NAMES)}, "x"
)


@fuzz
@given(content=damaged(REFITTED.to_safetensors()), told=damaged(REFITTED.to_json().encode()), which=st.booleans())
def test_coefficients(content, told, which):
    """Either file of a plan damaged: the plan as it was, or a refusal."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.json").write_bytes(REFITTED.to_json().encode() if which else told)
        (Path(folder) / "plan.safetensors").write_bytes(content if which else REFITTED.to_safetensors())
        plan = answers(Plan.read, Path(folder) / "plan.json")
    assert plan is None or not which or plan == REFITTED


WORDS = "\n".join(layouts_m2.WORDS).encode()
TOKENIZER = json.dumps({"version": "1.0", "model": {"type": "WordPiece", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}})


VOCABULARIES = {"vocab.txt": WORDS, "tokenizer.json": TOKENIZER.encode()}


@pytest.mark.parametrize("name", VOCABULARIES)
@fuzz
@given(data=st.data())
def test_vocabularies(name, data):
    content = data.draw(damaged(VOCABULARIES[name]))
    read_as(name, content, lambda folder: TextTokenizer(folder, 40).encode("The film was unable."))


BYTE_PAIRS = {  # of which one is damaged
    "vocab.json": json.dumps(layouts_lm.vocabulary(300)).encode(),
    "merges.txt": "\n".join(["#version: 0.2", *layouts_lm.MERGES]).encode(),
}


@pytest.mark.parametrize("name", BYTE_PAIRS)
@fuzz
@given(data=st.data())
def test_byte_pairs(name, data):
    with tempfile.TemporaryDirectory() as folder:
        for file, content in {**BYTE_PAIRS, name: data.draw(damaged(BYTE_PAIRS[name]))}.items():
            (Path(folder) / file).write_bytes(content)
        answers(BpeTokenizer(folder, 320).encode, "The film was unable.")


DATA = {  # what is read of it, and a file of each kind
    "sst2.dev.tsv": b'sentence\tlabel\na fine film\t1\r\n"dull\tand\nlong"\t0\n',
    "cola.dev.tsv": "gj04\t1\t\tKim left.\ngj04\t0\t*\tL\u00e9ft \u2028 Kim.\n".encode(),
    "sst2.dev.jsonl": b'{"sentence": "a \\ud83d\\ude00", "label": 1}\n{"sentence": "b", "label": -1}\n',
    "a.fa": b"; old\n>a one\nACGT\r\n>\r>b\nGG\n\n",
    "a.txt": "a text, \u00fcber \x85 all".encode(),
}


@pytest.mark.parametrize("name", DATA)
@fuzz
@given(data=st.data())
def test_data(name, data):
    """A text that was read can be encoded, whatever the file was."""

    def read(folder):
        if (task := name.split(".")[0]) in TASKS:
            found = read_examples(folder, TASKS[task])
            assert len(found) == len(found.texts) == found.available > 0
            return found.texts
        return [document.text for document in read_documents(folder / name, tell=len)]

    content = data.draw(damaged(DATA[name]) | st.text(max_size=40).map(str.encode) | st.binary(max_size=40))
    for text in read_as(name, content, read) or ():
        text.encode()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return layouts.write(tmp_path_factory.mktemp("fuzz") / "source", "hf")


@fuzz
@given(entry=st.fixed_dictionaries({"quant_method": st.just("sparsify")}, optional={
    "format_version": st.just(1) | VALUES, "plan": PLANS | VALUES, "source": VALUES, "files": VALUES}))  # fmt: skip
def test_folders_with_a_plan(checkpoint, entry):
    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": entry}))
    loaded = answers(load, checkpoint)
    if loaded is not None:
        assert loaded.model(torch.arange(20)[None] % 4 + 7).isfinite().all()

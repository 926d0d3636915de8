"""AutoTokenizer and pipelines on the folders that we write: the same ids as ours, for every family, without code."""

import json
import random
from dataclasses import replace

import layouts
import layouts_lm
import layouts_m2
import pytest
import torch
from transformers import AutoTokenizer, pipeline

from sparsify.converters import load, m2_bert, write_folder
from sparsify.converters.hub.download import Source
from sparsify.converters.models.m2_bert import M2Bert, M2BertConfig
from sparsify.converters.tokenizers.dna import VOCABULARY
from sparsify.converters.tokenizers.wordpiece import TextTokenizer

LETTERS = "ACGTNacgtnRYU-* \t\r\n.ß€🧬é\u0301漢[]"
WORDS = (*layouts_m2.WORDS[5:], "The", "café", "film\n", " ", "🙂", "<", layouts_lm.END, "ing", "theory")


def converted(source):
    p = load(source)
    return write_folder(source.with_name("out"), p, p.plan, {})


def dna(tmp_path):
    return converted(layouts.write(tmp_path / "source", "hf")), LETTERS, ""


def english(tmp_path):
    return converted(layouts_lm.write_vocabulary(layouts_lm.write(tmp_path / "source"))), WORDS, " "


def wordpieces(tmp_path):
    return converted(layouts_m2.write(tmp_path / "source", "safetensors mlm")), WORDS, " "


@pytest.mark.parametrize("family", [dna, english, wordpieces])
def test_the_ids_are_ours(tmp_path, family):
    """On thousands of texts; letters that our own tokenizer of DNA refuses are unknown, as to the hub's."""
    out, pieces, between = family(tmp_path)
    ours, theirs, rng = load(out).tokenizer, AutoTokenizer.from_pretrained(out), random.Random(0)
    for text in (between.join(rng.choices(pieces, k=rng.randint(0, 30))) for _ in range(3000)):
        expected = ours.encode(text.translate(str.maketrans("acgtn", "?????"))) if family is dna else ours.encode(text)
        assert theirs(text)["input_ids"] == expected + ([VOCABULARY.index("[SEP]")] if family is dna else [])
        assert family is not dna or theirs.decode(expected) == ours.decode(expected)


@pytest.mark.parametrize("family", [dna, english, wordpieces])
def test_what_is_too_long_is_cut_to_what_the_model_takes(tmp_path, family):
    out, _, between = family(tmp_path)
    p, theirs = load(out), AutoTokenizer.from_pretrained(out)
    longest = getattr(p.model.config, "max_seq_len", None) or p.model.config.max_position_embeddings
    text = between.join(["A" if family is dna else "the film"] * 3 * longest)
    cut = theirs(text, truncation=True, return_tensors="pt")["input_ids"]
    assert theirs.model_max_length == longest == cut.shape[1] and p.model(cut).isfinite().all()
    if family is dna:
        assert cut[0, -1] == theirs.sep_token_id
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        p.model(theirs(text, return_tensors="pt")["input_ids"])


@pytest.mark.parametrize(
    ("said", "kept"), [(7, 7), (10**30, None), (99999, None), (None, None), ("7", None), (0, None)]
)
def test_a_limit_of_the_sources_own_stays_where_the_model_takes_it(tmp_path, said, kept):
    source = layouts_m2.write(tmp_path / "source", "safetensors mlm")
    told = {"tokenizer_class": "BertTokenizer", "model_max_length": said}
    (source / "tokenizer_config.json").write_text(json.dumps(told))
    limit = json.loads((converted(source) / "tokenizer_config.json").read_text())["model_max_length"]
    assert limit == (kept or layouts_m2.TINY.k)


def test_special_tokens_of_dna_are_the_hubs(tmp_path):
    out = dna(tmp_path)[0]
    theirs = AutoTokenizer.from_pretrained(out)
    assert theirs("ACGTN", "AC")["input_ids"] == [7, 8, 9, 10, 11, 1, 7, 8, 1]
    assert theirs("A[MASK]C[RESERVED]")["input_ids"] == [7, 3, 8, 5, 1]
    roles = ("bos", "eos", "sep", "cls", "pad", "mask", "unk")
    assert [getattr(theirs, f"{role}_token_id") for role in roles] == [2, 1, 1, 0, 4, 3, 6]
    batch = theirs(["ACGT", "A"], padding=True)
    assert batch["input_ids"] == [[7, 8, 9, 10, 1], [4, 4, 4, 7, 1]] and batch["attention_mask"][1] == [0, 0, 0, 1, 1]
    assert theirs.decode([7, 8, 1]) == "AC[SEP]" and len(theirs) == 12
    theirs.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("ACGTN")["input_ids"] == [7, 8, 9, 10, 11, 1]


def test_remote_code_of_a_tokenizer_is_not_needed(tmp_path):
    """It stays named for who trusts it; nobody is asked, and nothing of it is looked for."""
    source = layouts.write(tmp_path / "source", "hf")
    (source / "tokenizer_config.json").write_text(json.dumps({
        "auto_map": {"AutoTokenizer": ["tokenization_hyena.HyenaDNATokenizer", None]},
        "tokenizer_class": "HyenaDNATokenizer", "characters": list("ACGTN"), "clean_up_tokenization_spaces": True,
        "model_max_length": 1000002, "padding_side": "left", "add_special_tokens": False,
    }))  # fmt: skip
    mask = {"content": "[MASK]", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    named = {"bos_token": "[BOS]", "eos_token": "[SEP]", "pad_token": "[PAD]", "mask_token": mask}
    (source / "special_tokens_map.json").write_text(json.dumps(named))
    p = load(source)
    p = replace(p, source=Source("ORG/NAME", p.source.folder, "ORG/NAME", "abc"))
    out = write_folder(tmp_path / "out", p, p.plan, {})
    told = json.loads((out / "tokenizer_config.json").read_text())
    assert told["auto_map"] == {"AutoTokenizer": ["ORG/NAME--tokenization_hyena.HyenaDNATokenizer", None]}
    theirs = AutoTokenizer.from_pretrained(out)
    assert theirs("ACGTNacgtn")["input_ids"] == [7, 8, 9, 10, 11, *[6] * 5, 1]
    assert theirs.model_max_length == p.model.config.max_seq_len and theirs.padding_side == "left"


def test_remote_code_of_a_tokenizer_of_text_is_not_needed(tmp_path):
    source = layouts_m2.write(tmp_path / "source", "safetensors mlm")
    told = {"auto_map": {"AutoTokenizer": ["words.Words", None]}, "tokenizer_class": "Words", "strange": 1}
    (source / "tokenizer_config.json").write_text(json.dumps(told))
    out = converted(source)
    ours, theirs = load(out).tokenizer, AutoTokenizer.from_pretrained(out)
    assert theirs("The film", "was good")["input_ids"] == ours.encode("The film", "was good")
    assert json.loads((out / "tokenizer_config.json").read_text())["auto_map"] == told["auto_map"]


def test_a_lone_tokenizer_json_is_read_as_it_stands(tmp_path):
    """Its capitals stay capitals, and its special tokens are named."""
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join([*layouts_m2.WORDS, "The"]) + "\n")
    source = layouts_m2.write(tmp_path / "source", "safetensors mlm")
    TextTokenizer(tmp_path / "words").backend.save(str(source / "tokenizer.json"))
    (source / "vocab.txt").unlink()
    out = converted(source)
    ours, theirs = load(out).tokenizer, AutoTokenizer.from_pretrained(out)
    assert theirs("The the", "a film")["input_ids"] == ours.encode("The the", "a film")
    assert theirs("a", "film")["token_type_ids"] == [0, 0, 0, 1, 1] and theirs.mask_token_id == ours.mask_id
    assert theirs(["a", "a film"], padding=True)["input_ids"][0][-1] == ours.pad_id


def test_a_vocabulary_remembers_the_length_of_its_fine_tune(tmp_path):
    """`tokenizers` pads by itself, and transformers does where it is asked to pad to the longest that is taken."""
    words = TextTokenizer(layouts_m2.write(tmp_path / "source", "safetensors mlm"))
    sizes = M2BertConfig(16, 24, 1, len(layouts_m2.WORDS), 32, hyena_filter_order=8, head="classifier")
    saved = {n: m2_bert.save(M2Bert(sizes), tmp_path / f"{n}", words, pad_to=n) for n in (0, 12)}
    text, long = "a very good film", "a very good film " * 20
    theirs = AutoTokenizer.from_pretrained(saved[12])
    expected = words.batch([text, long], pad_to=12).input_ids.tolist()
    assert theirs([text, long], padding="max_length", truncation=True)["input_ids"] == expected
    assert [row.ids for row in words.backend.from_file(str(saved[12] / "tokenizer.json")).encode_batch([text, long])] \
        == expected  # fmt: skip
    assert load(saved[12]).tokenizer.encode(long) == words.encode(long)  # ours cuts and pads where it is told to
    own = AutoTokenizer.from_pretrained(saved[0])
    assert own(text)["input_ids"] == words.encode(text) and own.model_max_length == 32


def test_pipelines_on_dna(tmp_path):
    pipe = pipeline("text-generation", model=str(dna(tmp_path)[0]), device="cpu")
    found = pipe("ACGTACGT", max_new_tokens=5, do_sample=False, add_special_tokens=False)[0]["generated_text"]
    assert found.startswith("ACGTACGT") and len(found) > 8 and not found.startswith("ACGTACGT ")


def test_pipelines_on_text(tmp_path):
    pipe = pipeline("fill-mask", model=str(wordpieces(tmp_path)[0]), device="cpu")
    found = pipe("a very good [MASK].")
    assert len(found) == 5 and all(row["token_str"] in layouts_m2.WORDS for row in found if row["token"] < 30)
    torch.manual_seed(0)
    (tmp_path / "m").mkdir()
    source = layouts_m2.write(tmp_path / "m" / "source", "safetensors", id2label={0: "bad", 1: "so so", 2: "good"})
    out = converted(source)
    said = pipeline("text-classification", model=str(out), device="cpu")("a very good film")[0]
    p = load(out)
    scores = p.model(torch.tensor([p.tokenizer.encode("a very good film")]))[0].softmax(-1)
    assert said["label"] == ("bad", "so so", "good")[scores.argmax()]
    assert said["score"] == pytest.approx(scores.max().item(), abs=1e-5)

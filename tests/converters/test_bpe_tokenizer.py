"""Byte pairs: GPT-2's ids, every text and every byte of it, and where a vocabulary comes from."""

import json

import layouts_lm
import pytest
from layouts_lm import END, MERGES, TOKENS, byte_letters, write_vocabulary

from sparsify.converters.tokenizers import base
from sparsify.converters.tokenizers.base import JSON
from sparsify.converters.tokenizers.bpe import BpeTokenizer

SMALL = 256 + len(MERGES) + 1  # tokens of the smallest vocabulary here
TEXTS = (
    "the  theory of the\n\n\tin",
    "café naïve e\u0301",
    "漢字 🙂 α",
    "\u200b\ufeff\r\n",
    " leading",
    "trailing ",
    "",
)


@pytest.fixture
def tiny(tmp_path):
    return BpeTokenizer(write_vocabulary(tmp_path / "tiny", SMALL))


def ids(*tokens):
    words = layouts_lm.vocabulary(SMALL)
    return [words[token] for token in tokens]


def test_bytes_and_pairs(tiny):
    assert tiny.encode("the inn") == ids("the", "Ġ", "in", "n")
    assert tiny.encode("in the\na") == ids("in", "Ġthe", "Ċ", "a")
    assert tiny.encode(" a é") == ids("Ġa", "Ġ", "Ã©")
    assert tiny.encode("") == []
    assert tiny.decode(ids("Ġthe", "in")) == " thein"


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back(tiny, text):
    assert tiny.decode(tiny.encode(text)) == text == tiny.normalize(text)


def test_the_letters_of_bytes_are_those_of_the_library():
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_letters()) == sorted(ByteLevel.alphabet())


def test_the_end_of_a_text_is_a_token_of_its_own(tiny):
    assert tiny.encode(f"the{END}in") == ids("the", END, "in")
    assert tiny.decode(ids("the", END)) == f"the{END}"
    assert tiny.id_of(END) == SMALL - 1 and tiny.vocab_size == SMALL


def test_half_a_letter_is_shown_as_such(tiny):
    assert tiny.decode(ids("Ã", "in")) == "\ufffdin"


def test_no_letters_carry_more_than_others(tiny):
    assert tiny.alphabet is None and tiny.id_range == (0, SMALL)
    assert BpeTokenizer(tiny.folder, 50264, TOKENS).id_range == (0, TOKENS)


def test_tokenizer_json_is_the_same(tiny, tmp_path):
    other = tmp_path / "json"
    other.mkdir()
    tiny.backend.enable_truncation(3)
    tiny.backend.save(str(other / "tokenizer.json"))
    tiny.backend.no_truncation()
    again = BpeTokenizer(other)
    for text in TEXTS:
        assert again.encode(text) == tiny.encode(text)
    again.save(tmp_path)
    assert BpeTokenizer(tmp_path).file.name == "tokenizer.json" in JSON


def test_saved_files_are_read_again(tiny, tmp_path):
    (out := tmp_path / "out").mkdir()
    tiny.save(out, longest=64)
    assert {path.name for path in out.iterdir()} == {"vocab.json", "merges.txt", "tokenizer_config.json"}
    assert BpeTokenizer(out).encode(TEXTS[0]) == tiny.encode(TEXTS[0])
    assert json.loads((out / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "GPT2Tokenizer", "model_max_length": 64,
    }  # fmt: skip


def test_nothing_is_read_before_it_is_needed(monkeypatch, tmp_path):
    asked = []

    def offline(repo, revision, patterns):
        asked.append((repo, revision, *patterns))
        raise FileNotFoundError("the hub cannot be reached")

    monkeypatch.setattr(base, "snapshot", offline)
    (tmp_path / "vocab.json").write_text(json.dumps(layouts_lm.vocabulary(SMALL)))  # without its merges
    tokenizer = BpeTokenizer(tmp_path, 50264, TOKENS)
    assert tokenizer.id_range == (0, TOKENS) and not asked
    with pytest.raises(FileNotFoundError, match=r"no vocabulary in .*; put its vocab\.json and merges\.txt there"):
        tokenizer.encode("a")
    assert asked == [(*BpeTokenizer.HUB, "tokenizer.json", "vocab.json", "merges.txt")]
    assert len(BpeTokenizer.HUB[1]) == 40  # pinned


def test_the_hub_s_vocabulary_is_the_last_resort(monkeypatch, tmp_path, tiny):
    monkeypatch.setattr(base, "snapshot", lambda *_: tiny.folder)
    assert BpeTokenizer(tmp_path).encode("the") == BpeTokenizer().encode("the") == ids("the")
    (empty := tmp_path / "empty").mkdir()
    monkeypatch.setattr(base, "snapshot", lambda *_: empty)
    with pytest.raises(FileNotFoundError, match=r"has none of tokenizer\.json, vocab\.json with merges\.txt; put a"):
        BpeTokenizer(tmp_path).encode("a")


def rewrite(folder, change):
    """A tokenizer.json beside, changed."""
    data = json.loads(BpeTokenizer(folder).backend.to_str())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return BpeTokenizer(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(normalizer={"type": "NFC"}),
        lambda data: data.update(normalizer={"type": "Lowercase"}),
        lambda data: data["pre_tokenizer"].update(add_prefix_space=True),
        lambda data: data.update(decoder=None),
        lambda data: data["model"]["vocab"].pop("ð"),  # a byte, of which all emoji need one
    ],
)
def test_what_changes_a_text_is_refused(tiny, change):
    with pytest.raises(ValueError, match="does not give back every text that it reads"):
        rewrite(tiny.folder, change).encode("a")


def test_what_is_no_vocabulary_is_refused(tiny, tmp_path):
    words = layouts_lm.vocabulary(SMALL)
    del words[END]
    (tiny.folder / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match=r"lacks <\|endoftext\|>; it is no vocabulary of a GPT-2"):
        BpeTokenizer(tiny.folder).encode("a")
    for damaged in ("{}", "[1, 2]", "{", '{"a": -1}'):
        (tiny.folder / "vocab.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt make no tokenizer .*; download them again"):
            BpeTokenizer(tiny.folder).encode("a")
    (tiny.folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer"):
        BpeTokenizer(tiny.folder).encode("a")


def test_a_vocabulary_of_another_size_is_refused(tiny):
    with pytest.raises(ValueError, match=rf"has {SMALL} tokens and the model knows {TOKENS}; take both"):
        BpeTokenizer(tiny.folder, 50264, TOKENS).encode("a")
    with pytest.raises(ValueError, match=rf"has {SMALL} tokens and the model's embedding 200 rows"):
        BpeTokenizer(tiny.folder, 200).encode("a")


def test_refusals(tiny):
    with pytest.raises(ValueError, match=f"id {SMALL} is no token"):
        tiny.decode([0, SMALL])
    with pytest.raises(ValueError, match="reads soft-masked DNA"):
        tiny.normalize("acgt", upper=True)


def published(test_data, folder):
    """GPT-2's vocabulary under the names that the hub has for its files."""
    for name, known in (("gpt2.encoder.json", "vocab.json"), ("gpt2.vocab.bpe", "merges.txt")):
        if not (path := test_data / "tokenizers" / name).is_file():
            pytest.skip(f"needs {name}")
        (folder / known).write_bytes(path.read_bytes())
    return BpeTokenizer(folder, 50264, TOKENS)


def test_the_published_vocabulary(test_data, tmp_path):
    tokenizer = published(test_data, tmp_path)
    assert tokenizer.vocab_size == TOKENS and tokenizer.id_of(END) == 50256
    assert tokenizer.encode("Hello, world!") == [15496, 11, 995, 0]
    assert tokenizer.encode(" \n\nThe café") == [220, 198, 198, 464, 40304]


def test_the_ids_are_those_of_transformers(test_data, tmp_path):
    """On text of all kinds, one token to the letter."""
    from transformers import GPT2Tokenizer

    ours = published(test_data, tmp_path)
    theirs = GPT2Tokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, "It's a SMALL world, after all... (1,024 times)", "a" * 120, f"an end{END}\nand on"):
        assert ours.encode(text) == theirs(text)["input_ids"]

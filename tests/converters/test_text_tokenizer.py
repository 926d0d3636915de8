"""WordPieces: the published ids, one rule for padding and for what is cut, and where a vocabulary comes from."""

import json
import random

import pytest
import torch
from layouts_m2 import WORDS

from sparsify.converters.tokenizers import base
from sparsify.converters.tokenizers.wordpiece import TextTokenizer


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return TextTokenizer(tmp_path, rows=40)


def ids(*words):
    return [WORDS.index(word) for word in words]


def test_words_and_pieces(tiny):
    expected = ids("[CLS]", "the", "film", "is", "good", "##ly", "!", "[SEP]")
    assert tiny.encode("The  FILM is goodly!") == expected
    assert tiny.encode("zebra café") == ids("[CLS]", "[UNK]", "cafe", "[SEP]")
    assert tiny.encode("") == ids("[CLS]", "[SEP]")
    assert tiny.decode(expected) == "[CLS] the film is goodly! [SEP]"
    assert tiny.encode("good [MASK].") == ids("[CLS]", "good", "[MASK]", ".", "[SEP]")


def test_special_ids(tiny):
    assert (tiny.pad_id, tiny.unk_id, tiny.cls_id, tiny.sep_id, tiny.mask_id) == (0, 1, 2, 3, 4)
    assert tiny.special_ids == {0, 1, 2, 3, 4} and tiny.vocab_size == len(WORDS)
    assert tiny.id_range == (1, 40) and TextTokenizer(tiny.folder).id_range == (1, len(WORDS))


def test_pairs(tiny):
    assert tiny.encode("a film", "not bad") == ids("[CLS]", "a", "film", "[SEP]", "not", "bad", "[SEP]")
    batch = tiny.batch(["a film", "good"], ["not bad", "very very good"])
    assert batch.input_ids.tolist() == [
        ids("[CLS]", "a", "film", "[SEP]", "not", "bad", "[SEP]"),
        ids("[CLS]", "good", "[SEP]", "very", "very", "good", "[SEP]"),
    ]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    assert batch.attention_mask.all()


def test_padding_is_an_explicit_choice(tiny):
    texts = ["a very good film", "bad"]
    longest, fixed = tiny.batch(texts), tiny.batch(texts, pad_to=9)
    assert longest.input_ids.shape == (2, 6) and fixed.input_ids.shape == (2, 9)
    assert fixed.input_ids[1].tolist() == [*ids("[CLS]", "bad", "[SEP]"), *[0] * 6]
    assert torch.equal(fixed.attention_mask, (fixed.input_ids != 0).long())
    assert {t.dtype for t in (fixed.input_ids, fixed.attention_mask, fixed.token_type_ids)} == {torch.int64}
    assert tiny.batch([]).input_ids.shape == (0, 0)


def test_what_is_too_long_loses_its_end(tiny):
    assert tiny.encode("a very good film", limit=4) == ids("[CLS]", "a", "very", "[SEP]")
    assert tiny.encode("a very good film", "bad", limit=6) == ids("[CLS]", "a", "very", "[SEP]", "bad", "[SEP]")
    assert tiny.batch(["a very good film"], pad_to=4).input_ids.tolist() == [ids("[CLS]", "a", "very", "[SEP]")]
    assert tiny.batch(["a very good film"], pad_to=6, limit=4).input_ids[0, 4:].tolist() == [0, 0]
    with pytest.raises(ValueError, match="got a text of 6 ids, more than pad_to 5"):
        tiny.batch(["a very good film"], pad_to=5, limit=9)
    with pytest.raises(ValueError, match="limit 1, which has no room"):
        tiny.encode("a", limit=1)


@pytest.mark.parametrize(
    ("one", "two", "limit", "left"),
    [(5, 5, 23, (5, 5)), (9, 2, 9, (4, 2)), (2, 9, 9, (2, 4)), (3, 3, 3, (0, 0)), (7, 0, 6, (3, 0))],
)
def test_the_longer_part_is_cut_first(tiny, one, two, limit, left):
    batch = tiny.batch(["a " * one], ["bad " * two], limit=limit)
    assert [(batch.input_ids == i).sum().item() for i in ids("a", "bad")] == list(left)


def test_pairs_are_cut_as_transformers_cuts_them(tiny, tmp_path):
    """Where both texts lose something, which one loses more is the library's own rule."""
    from transformers import AutoTokenizer

    (out := tmp_path / "out").mkdir()
    tiny.save(out)
    theirs, rng = AutoTokenizer.from_pretrained(out), random.Random(0)
    texts, pairs = ([" ".join(rng.choices(WORDS[5:20], k=rng.randint(0, 40))) for _ in range(2000)] for _ in range(2))
    for limit in (3, 16, 17, 48):
        expected = theirs(texts, pairs, truncation=True, max_length=limit, padding="max_length")
        ours = tiny.batch(texts, pairs, pad_to=limit)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert getattr(ours, name).tolist() == expected[name]
        assert tiny.encode(texts[0], pairs[0], limit) == [i for i in expected["input_ids"][0] if i]


def test_a_vocabulary_with_capitals_keeps_them(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "The"]) + "\n")
    assert TextTokenizer(tmp_path).encode("The the") == [2, len(WORDS), WORDS.index("the"), 3]


def test_tokenizer_json_is_the_same(tiny, tmp_path):
    other = tmp_path / "json"
    other.mkdir()
    tiny.backend.enable_truncation(3)
    tiny.backend.save(str(other / "tokenizer.json"))
    tiny.backend.no_truncation()
    again = TextTokenizer(other)
    assert again.encode("a very good film!") == tiny.encode("a very good film!")
    again.save(tmp_path)
    assert TextTokenizer(tmp_path).file.name == "tokenizer.json"


def test_capitals_without_a_vocabulary_for_them_are_refused(tiny, tmp_path):
    other = tmp_path / "json"
    other.mkdir()
    data = json.loads(tiny.backend.to_str())
    data["normalizer"]["lowercase"] = False
    (other / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="keeps capitals, which its vocabulary does not have"):
        TextTokenizer(other).encode("a")


def test_nothing_is_read_before_it_is_needed(monkeypatch, tmp_path):
    asked = []

    def offline(repo, revision, patterns):
        asked.append((repo, revision))
        raise FileNotFoundError("the hub cannot be reached")

    monkeypatch.setattr(base, "snapshot", offline)
    tokenizer = TextTokenizer(tmp_path, rows=30528)
    assert tokenizer.id_range == (1, 30528) and not asked
    with pytest.raises(FileNotFoundError, match=r"no vocabulary in .*; put its vocab\.txt there"):
        tokenizer.encode("a")
    assert asked == [TextTokenizer.HUB] and len(TextTokenizer.HUB[1]) == 40  # pinned


def test_the_hub_s_vocabulary_is_the_last_resort(monkeypatch, tmp_path, tiny):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(base, "snapshot", lambda *_: tiny.folder)
    assert TextTokenizer(empty).encode("a film") == tiny.encode("a film") == TextTokenizer().encode("a film")
    monkeypatch.setattr(base, "snapshot", lambda *_: empty)
    with pytest.raises(FileNotFoundError, match="has none of"):
        TextTokenizer(empty).encode("a")


def test_what_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n[CLS]\n")
    with pytest.raises(ValueError, match=r"lacks \[PAD\], \[UNK\], \[SEP\], \[MASK\]"):
        TextTokenizer(tmp_path).encode("a")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer"):
        TextTokenizer(tmp_path).encode("a")


def test_more_tokens_than_the_embedding_has_rows_are_refused(tiny):
    with pytest.raises(ValueError, match=rf"has {len(WORDS)} tokens and the model's embedding 20 rows"):
        TextTokenizer(tiny.folder, rows=20).encode("a")


def test_refusals(tiny):
    with pytest.raises(ValueError, match=f"id {len(WORDS)} is no token"):
        tiny.decode([2, len(WORDS)])
    with pytest.raises(ValueError, match="got 2 texts and 1 pairs"):
        tiny.batch(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="reads soft-masked DNA"):
        tiny.normalize("acgt", upper=True)
    assert tiny.normalize("A film.\n") == "A film.\n"


def test_the_published_vocabulary(test_data, tmp_path):
    base = test_data / "tokenizers" / "bert-base-uncased.vocab.txt"
    if not base.is_file():
        pytest.skip(f"needs {base.name}")
    (tmp_path / "vocab.txt").write_bytes(base.read_bytes())
    tokenizer = TextTokenizer(tmp_path, rows=30528)
    assert tokenizer.vocab_size == 30522
    assert tokenizer.encode("Hello, world!") == [101, 7592, 1010, 2088, 999, 102]
    assert tokenizer.encode("unaffable naïveté") == [101, 14477, 20961, 3468, 15743, 2618, 102]
    assert (tokenizer.pad_id, tokenizer.mask_id) == (0, 103)


def test_the_ids_are_those_of_transformers(test_data, tmp_path):
    """On text of all kinds, one token to the letter."""
    from transformers import BertTokenizer

    base = test_data / "tokenizers" / "bert-base-uncased.vocab.txt"
    if not base.is_file():
        pytest.skip(f"needs {base.name}")
    (tmp_path / "vocab.txt").write_bytes(base.read_bytes())
    ours, theirs = TextTokenizer(tmp_path), BertTokenizer.from_pretrained(tmp_path)
    for text in (
        "It's a SMALL world, after all... (1,024 times)",
        "北京 café\u0301 \u200b\ttab",
        "a" * 120,
        "[MASK] e-mail",
    ):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.encode(text, "Ünder pair") == theirs(text, "Ünder pair")["input_ids"]


def test_a_vocabulary_of_a_much_larger_model_is_missed(tiny):
    """Every word would be another model's, or unknown, and nothing else would tell."""
    size = tiny.vocab_size
    assert TextTokenizer(tiny.folder, rows=size + 128).vocab_size == size
    with pytest.raises(ValueError, match=rf"has {size} tokens and the model's embedding {size + 129} rows"):
        TextTokenizer(tiny.folder, rows=size + 129).encode("word")


def test_a_token_that_is_named_twice_has_no_id(tiny, tmp_path):
    (tmp_path / "twice").mkdir()
    tokens = (tiny.folder / "vocab.txt").read_text().splitlines()
    (tmp_path / "twice" / "vocab.txt").write_text("\n".join([*tokens, tokens[7], ""]))
    with pytest.raises(ValueError, match=rf"names the token '{tokens[7]}' twice, in lines 8 and {len(tokens) + 1}"):
        TextTokenizer(tmp_path / "twice").encode("word")

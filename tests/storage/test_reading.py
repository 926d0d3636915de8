"""Files, pipes and standard input: each is read once, by every verb that reads data, and a line ends with \\n alone."""

import gzip
import io
import os
import random
import sys

import pytest
import torch
from helpers import ROOT
from layouts import write_tiny
from layouts_lm import write as write_lm
from layouts_lm import write_vocabulary
from layouts_m2 import WORDS
from verbs import answer, refusal

from sparsify.converters import load, m2_bert
from sparsify.converters.models.m2_bert import M2Bert, M2BertConfig
from sparsify.converters.tokenizers.bpe import BpeTokenizer
from sparsify.converters.tokenizers.wordpiece import TextTokenizer
from sparsify.storage import reading

LENGTH = 24
BREAKS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # where str.splitlines would cut
BASES = "".join(random.Random(0).choices("ACGT", k=3000))
WORDY = random.Random(1)
PROSE = "\n\n".join(
    " ".join(" ".join(WORDY.choices(("good", "bad", "film", "the"), k=21)) + "." for _ in "ab") for _ in range(12)
)


@pytest.fixture
def piped():
    """Makes a pipe that holds a text, as a shell's <(...) does: its path."""
    ends = []

    def make(content):
        end, into = os.pipe()
        ends.append(end)
        os.write(into, content.encode() if isinstance(content, str) else content)
        os.close(into)
        return f"/dev/fd/{end}"

    yield make
    for end in ends:
        os.close(end)


@pytest.fixture(scope="module")
def dna(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("dna") / "tiny")


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """A folder with one M2-BERT for every head."""
    folder = tmp_path_factory.mktemp("english")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    for head in ("mlm", "encoder", "classifier"):
        sizes = M2BertConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, vocab_size=len(WORDS), hyena_filter_order=8,
            max_position_embeddings=LENGTH, head=head,
        )  # fmt: skip
        torch.manual_seed(0)
        m2_bert.save(M2Bert(sizes), folder / head, TextTokenizer(folder))
    return folder


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_pipe_and_standard_input_read_as_a_file_does(pack, piped, tmp_path, monkeypatch):
    content = pack("\ufeffAC\r\nGT\n".encode())
    (tmp_path / "a").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    texts = {reading.read_text(src) for src in (tmp_path / "a", piped(content), "-")}
    assert texts == {"AC\r\nGT\n"}
    os.mkfifo(tmp_path / "fifo")
    assert reading.is_there(tmp_path / "fifo") and reading.is_stream(tmp_path / "fifo")


def test_what_cannot_be_read_is_told_in_one_sentence(piped, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"is empty; .* a pipe can be read only once"):
        reading.read_text(piped(""))
    for closed in (None, io.StringIO("ACGT")):
        monkeypatch.setattr(sys, "stdin", closed)
        with pytest.raises(ValueError, match="standard input is closed"):
            reading.read_text("-")
    with pytest.raises(FileNotFoundError, match="/dev/zero is a device; pass"):
        reading.read_text("/dev/zero")


def test_lines_end_with_a_line_feed_alone():
    assert reading.lines(f"a{BREAKS}\r\nb\rc\n\nd") == [f"a{BREAKS}", "b\rc", "", "d"]
    assert reading.lines("a\rb\r") == ["a", "b"] and reading.lines("") == [] and reading.lines("a\n") == ["a"]


def test_no_reader_cuts_lines_where_text_has_data():
    """`str.splitlines` cuts at ten characters, and reading a file as text turns \\r into \\n."""
    folders = (
        "converters",
        "evals",
        *(f"sparsify/{name}" for name in ("cli", "pipeline", "plan", "search", "storage")),
    )
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        code = path.read_text().replace("read_bytes().splitlines()", "")  # bytes are cut at \n and \r alone
        assert ".splitlines(" not in code, f"{path.name}: use reading.lines"


# --- vocabularies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tokens_of_a_vocabulary_may_end_lines_elsewhere(end, tmp_path):
    """As in a cased multilingual vocabulary; one more line would move every id behind it."""
    tokens = [*WORDS[:8], *BREAKS, *WORDS[8:]]
    (tmp_path / "vocab.txt").write_bytes((end.join(tokens) + end).encode())
    made = TextTokenizer(tmp_path)
    assert made.vocab_size == len(tokens) and made.encode("good")[1] == tokens.index("good")
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(ValueError, match=r"vocab.txt is not UTF-8 text: byte 0xff at 6; pass a vocab.txt in UTF-8"):
        TextTokenizer(tmp_path).encode("good")


def test_merges_end_with_a_line_feed_alone(tmp_path):
    """They are read by another library; its lines end as ours do."""
    write_vocabulary(tmp_path)
    plain = BpeTokenizer(tmp_path).encode("the théâtre")
    merges = (tmp_path / "merges.txt").read_bytes()
    (tmp_path / "merges.txt").write_bytes(merges.replace(b"\n", b"\r\n"))
    assert BpeTokenizer(tmp_path).encode("the théâtre") == plain
    (tmp_path / "merges.txt").write_bytes(merges)
    assert b"\r" not in merges


def test_half_a_character_is_refused_by_every_tokenizer(english, tmp_path):
    bpe = BpeTokenizer(write_vocabulary(tmp_path))
    for encode in (TextTokenizer(english).encode, bpe.encode):
        with pytest.raises(ValueError, match=r"a text holds half a character, U\+D800 at 1"):
            encode("a\ud800")
    with pytest.raises(ValueError, match="half a character"):
        TextTokenizer(english).batch(["good"], ["\udfff"])


# --- verbs ---------------------------------------------------------------------------------------------------------


def same(args, name, content, path, piped, monkeypatch, drop=()):
    """A verb says the same of a file, of a pipe and of standard input."""
    path.write_text(content)
    found = [answer(*args, name, path), answer(*args, name, piped(content))]
    with monkeypatch.context() as patch:
        patch.setattr(reading, "standard_input", content.encode)
        found.append(answer(*args, name, "-"))
    kept = [{key: value for key, value in result.items() if key not in drop} for result in found]
    assert kept[0] == kept[1] == kept[2]
    return found


TIMED = ("conditions", "seconds", "prompt_seconds", "tokens_per_second", "timing", "speed", "parts")


def test_perplexity(dna, piped, tmp_path, monkeypatch):
    drop = (*TIMED, "baseline")
    same(("eval", "ppl", dna, "--context", 32), "--data", BASES, tmp_path / "a.txt", piped, monkeypatch, drop)


def test_a_pipe_of_fasta_is_known_by_its_first_letters(dna, piped):
    """Also behind comments, and whatever ends its lines."""
    fasta = f"; old style\r>a\r{BASES[:400]}\r>\r>b\r{BASES[400:]}\r"
    result = answer("eval", "ppl", dna, "--context", 32, "--data", piped(fasta))
    assert "of 2 documents" in result["convention"]
    assert result["data_notes"] == [
        "1 record of a pipe left out: record 2 is empty",
        "1 line of a pipe left out: line 1 is a comment",
    ]


def test_convert(dna, piped, tmp_path):
    """The card and the next command do not repeat a path that is gone."""
    out = tmp_path / "out"
    result = answer("convert", dna, out, "--taps", 5, "--context", 32, "--data", piped(BASES))
    assert result["data"] == "a pipe" and "--data FILE" in result["next"] and result["evaluation"]["n_tokens"]
    assert "/dev/fd" not in (out / "README.md").read_text() + (out / "report.json").read_text()
    again = answer("convert", dna, tmp_path / "again", "--plan", piped((out / "plan.json").read_text()))
    assert again["plan_sha256"] == result["plan_sha256"]


def test_a_search_reads_its_pipes_once(dna, piped, tmp_path):
    ask = ("convert", dna, tmp_path / "out", "--max-ppl-increase", "50%", "--context", 32, "--limit", 60)
    result = answer(*ask, "--calibration", piped(BASES), "--data", piped(BASES[::-1]))
    assert result["planned"] and result["evaluation"]["n_tokens"]


def test_one_pipe_for_two_options_is_refused_before_anything_is_read(dna, piped, tmp_path):
    pipe = piped(BASES)
    for given in (("-", "-"), (pipe, pipe), (pipe, pipe.replace("/dev/", "/proc/self/"))):
        for verb in (("convert", dna, tmp_path / "out", "--max-ppl-increase", "1%"), ("eval", "front", dna)):
            said = refusal(*verb, "--calibration", given[0], "--data", given[1])
            assert "can be read only once; pass a file for one of them" in said
    assert reading.read_text(pipe) == BASES and not (tmp_path / "out").exists()


def test_generate(dna, piped, tmp_path, monkeypatch):
    same(("generate", dna, "--count", 3), "--prompt-file", BASES[:20], tmp_path / "a", piped, monkeypatch, TIMED)


def test_masked_tokens_and_retrieval(english, piped, tmp_path, monkeypatch):
    masked = ("eval", "mlm", english / "mlm", "--context", 10)
    same(masked, "--data", PROSE, tmp_path / "a", piped, monkeypatch, TIMED)
    same(("eval", "retrieval", english / "encoder"), "--data", PROSE, tmp_path / "b", piped, monkeypatch, TIMED)


def test_a_language_model_of_text(piped, tmp_path, monkeypatch):
    source = write_vocabulary(write_lm(tmp_path / "lm"))
    same(("eval", "ppl", source), "--data", "the inn of the café, " * 40, tmp_path / "a", piped, monkeypatch, TIMED)


JUDGED = (("good", 1), ("bad", 0)) * 5
JSONL = "".join(f'{{"sentence": "a {word} film", "label": {label}}}\n' for word, label in JUDGED)
TSV = "sentence\tlabel\n" + "".join(f"a {word} film\t{label}\n" for word, label in JUDGED)


def test_glue_from_one_file(english, piped, tmp_path, monkeypatch):
    """What a pipe holds is told by how it begins."""
    ask, drop = ("eval", "glue", english / "classifier", "--task", "sst2"), ("conditions", "scored")
    found = [
        result["figures"]
        for content, name in ((JSONL, "a.jsonl"), (TSV, "a.tsv"))
        for result in same(ask, "--data", content, tmp_path / name, piped, monkeypatch, drop)
    ]
    assert all(figures == found[0] for figures in found) and found[0][0]["n"] == 10


def test_one_file_where_several_are_needed_is_refused(english, piped, tmp_path):
    (tmp_path / "a.jsonl").write_text(JSONL)
    for src in (tmp_path / "a.jsonl", piped(JSONL), "-"):
        said = refusal("eval", "glue", english / "classifier", "--task", "sst2,cola", "--data", src)
        assert said.endswith("is one file, and 2 tasks were asked for; pass a folder that holds a file for each")
        said = refusal("eval", "glue", english / "classifier", "--task", "mnli", "--data", src)
        assert "has the dev sets dev_matched and dev_mismatched; say which of them it is (--split" in said
        said = refusal("finetune", english / "mlm", "--task", "sst2", "--data", src, "--out", tmp_path / "out")
        assert "is one file, and a fine-tune takes a training set and a dev set" in said


def test_a_checkpoint_is_no_stream(piped):
    with pytest.raises((FileNotFoundError, ValueError)):
        load(piped("x"))

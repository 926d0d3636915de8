"""Files to documents, documents to windows: nothing scored twice, nothing lost in silence."""

import bz2
import gzip
import lzma

import pytest
import torch

from sparsify.evals.data import Document, Windows, read_documents, windows

FASTA = ">chr1 first of two\nACGT\nAC\n>chr2\r\nGGTT\r\n"


def encode(text):
    """A token a letter, any letter."""
    return [ord(letter) for letter in text]


def write(path, content, zipped):
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["a.fa", "a.fasta", "a.fna", "a.fa.gz", "a.txt", "a"])
def test_fasta_is_a_document_a_record(tmp_path, name, zipped):
    """By name or by its first byte; gzip by its first bytes, whatever the name says."""
    documents = read_documents(write(tmp_path / name, FASTA, zipped))
    assert documents == [Document("chr1", "ACGTAC"), Document("chr2", "GGTT")]


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_text_is_one_document_as_it_stands(tmp_path, zipped):
    text = "Größe > 3,\n> quoted\n"
    assert read_documents(write(tmp_path / "a.txt", text, zipped)) == [Document("a.txt", text)]


def test_two_gzip_members_are_one_text(tmp_path):
    """As bgzip writes them."""
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(b">x\nAC\n") + gzip.compress(b"GT\n"))
    assert read_documents(path) == [Document("x", "ACGT")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty; pass a file"),
        ("a.txt", b" \n\n", "is empty; pass a file"),
        ("a.txt", gzip.compress(b"", mtime=0), "is empty; pass a file"),
        ("a.gz", gzip.compress(b"ACGT" * 999, mtime=0)[:-9], "damaged or truncated gzip"),
        ("a.gz", gzip.compress(b"ACGT" * 999, mtime=0)[:30] + b"\xff" * 30, "damaged or truncated gzip"),
        ("a.bin", b"AC\xff\xfeGT", "not UTF-8 text: byte 0xff at 2"),
        ("a.txt", "a\ud800".encode("utf-8", "surrogatepass"), "not UTF-8 text: byte 0xed at 1; pass .* in UTF-8"),
        ("a.bin", b"AC\0GT", "NUL byte at 2"),
        ("a.fa", b"ACGT\n>late\nACGT\n", "does not start with a '>' header"),
        ("a.fa", b"ACGT\n", "does not start with a '>' header"),
        ("a.fa", b">x\n>\n\n; none\n", r"every record of .*a.fa is empty \(record 1 \(x\) is empty\); pass"),
    ],
)
def test_refused_files(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_documents(write(tmp_path / name, content, zipped=False))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_empty_records_and_comments_are_left_out_and_told(tmp_path, end):
    """Whatever ends the lines; a header without a name has a sequence all the same."""
    text = "\n; old style\n>a one\nAC\n\nGT\n>b\n>\n>\nGG\n;note\n>c;d\nTT;\n>last".replace("\n", end)
    with pytest.warns(UserWarning, match="left out") as told:
        documents = read_documents(write(tmp_path / "a.fa", text, zipped=False))
    named = [Document("a", "ACGT"), Document("record 4", "GG"), Document("c;d", "TT;")]
    assert documents == named
    assert [str(warning.message) for warning in told] == [
        "3 records of a.fa left out: record 2 (b) is empty; record 3 is empty; record 6 (last) is empty",
        "2 lines of a.fa left out: line 2 is a comment; line 11 is a comment",
    ]
    sentences = []
    assert read_documents(write(tmp_path / "a.txt", text, zipped=False), sentences.append) == named
    assert len(sentences) == 2


def test_the_first_few_are_named_and_all_are_counted(tmp_path):
    sentences = []
    read_documents(write(tmp_path / "a.fa", ">x\n" * 8000 + ">y\nAC\n", zipped=False), sentences.append)
    (said,) = sentences
    assert said.startswith("8,000 records of a.fa left out: record 1 (x) is empty; record 2")
    assert said.endswith("record 3 (x) is empty; 7,997 more")


def test_quotations_are_no_fasta(tmp_path):
    """A '>' that does not begin its line is a letter, however much there is before it."""
    for text in ("  > quoted\n", "\n" * 5000 + "a > b\n", ";\n" * 5000 + "text\n"):
        assert read_documents(write(tmp_path / "a.txt", text, zipped=False)) == [Document("a.txt", text)]


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*; pass a text or FASTA file"):
        read_documents(tmp_path / "nowhere.fa")
    with pytest.raises(ValueError, match="is a folder; pass"):
        read_documents(tmp_path)


def test_disjoint_windows():
    documents = [Document("a", "abcdefgh"), Document("short", "ab"), Document("b", "ijklm")]
    w = windows(documents, encode, context=3)
    assert ["".join(map(chr, row)) for row in w.ids.tolist()] == ["abc", "def", "ijk"]
    assert w.scored_from.tolist() == [1, 1, 1] and w.document.tolist() == [0, 0, 2]
    assert (w.n_tokens, w.n_documents, w.tail_tokens, w.left_out) == (6, 2, 2 + 2 + 2, 0)


@pytest.mark.parametrize("stride", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("length", [7, 8, 20, 41])
def test_sliding_windows_score_every_token_once(length, stride):
    """Each but the first and the tail, with at least context - stride tokens before it once there are that many."""
    text = "".join(chr(100 + i) for i in range(length))
    w = windows([Document("a", text)], encode, context=7, stride=stride)
    scored = [int(i) - 100 for row, start in zip(w.ids, w.scored_from, strict=True) for i in row[start:]]
    assert len(scored) == len(set(scored)) == w.n_tokens
    if stride < 7:
        assert scored == list(range(1, length - w.tail_tokens)) and w.tail_tokens < stride
    assert all(start == 1 or start == max(1, 7 - stride) for start in w.scored_from.tolist())


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("rare", [0.0, 0.02, 0.2])
def test_alphabet_leaves_out_windows_with_other_letters(rare, stride):
    generator = torch.Generator().manual_seed(1)
    letters = torch.randint(4, (300,), generator=generator)
    other = torch.rand(300, generator=generator) < rare
    text = "".join("N" if n else "ACGT"[i] for i, n in zip(letters, other, strict=True))
    w = windows([Document("a", text)], encode, context=8, stride=stride, alphabet="ACGT")
    pieces = [text[i : i + 8] for i in range(0, 293, stride)]
    clean = [piece for piece in pieces if set(piece) <= set("ACGT")]
    assert ["".join(map(chr, row)) for row in w.ids.tolist()] == clean
    assert w.left_out == len(pieces) - len(clean)


def test_alphabet_keeps_unknown_letters_from_the_tokenizer():
    """Genomes hold R, Y, M; a strict tokenizer meets them in no window that counts."""
    ids = {"A": 7, "C": 8, "G": 9, "T": 10}
    w = windows([Document("a", "ACGTRACGTACGT")], lambda text: [ids[c] for c in text], 4, alphabet="ACGT")
    assert w.ids.tolist() == [[7, 8, 9, 10], [10, 7, 8, 9]] and w.left_out == 1


def test_limit_takes_evenly_spaced_windows():
    document = Document("a", "".join(map(chr, range(100, 300))))
    w = windows([document], encode, context=10, limit=5)
    assert w.ids[:, 0].tolist() == [100, 140, 180, 220, 260] and w.available == 20
    assert torch.equal(w.ids, windows([document], encode, context=10).spread(5).ids)
    assert len(w.spread(99)) == 5 and w.spread(2).available == 20


def test_convention_tells_what_was_done():
    documents = [Document("a", "ACGTACGTNACGTACGTA"), Document("b", "ACGT")]
    text = windows(documents, encode, context=4, stride=2, alphabet="ACGT", limit=3).convention()
    for part in ("context 4, stride 2 (sliding", "no BOS", "3 windows of 1", "among 7", "2 windows with other"):
        assert part in text
    assert "disjoint" in windows(documents, encode, context=4).convention()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 1}, "context must be at least 2 tokens"),
        ({"context": 4, "stride": 5}, r"stride must lie in \[1, 4\]"),
        ({"context": 4, "stride": 0}, r"stride must lie in \[1, 4\]"),
        ({"context": 4, "limit": 0}, "limit must be at least 1 window"),
        ({"context": 99}, "no document fills a window of 99 tokens: the longest has 10"),
        ({"context": 8, "alphabet": "ACGT"}, "every window of 8 letters holds others than ACGT: 'N'"),
    ],
)
def test_refused_windows(arguments, message):
    with pytest.raises(ValueError, match=message):
        windows([Document("a", "ACGTNACGTA")], encode, **arguments)


def test_lower_case_is_refused_and_not_left_out():
    """Soft-masked repeats would vanish from the score otherwise."""
    with pytest.raises(ValueError, match=r"lower-case letters \(ac\).*--upper"):
        windows([Document("a", "ACGTacGTACGT")], encode, context=4, alphabet="ACGT")


def test_an_alphabet_asks_for_a_token_a_letter():
    with pytest.raises(ValueError, match="encode gave 5 tokens for 4 letters"):
        windows([Document("a", "ACGT")], lambda text: [*encode(text), 1], context=4, alphabet="ACGT")


def test_no_documents():
    with pytest.raises(ValueError, match="no documents were given"):
        windows([], encode, context=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.zeros(2, 4)}, r"ids are torch.float32 \(2, 4\), expected int64"),
        ({"ids": torch.zeros(0, 4, dtype=torch.int64)}, "expected int64"),
        ({"scored_from": torch.tensor([1])}, r"scored_from has shape \(1,\), expected \(2,\)"),
        ({"document": torch.tensor([0])}, r"document has shape \(1,\), expected \(2,\)"),
        ({"scored_from": torch.tensor([0, 1])}, r"scored_from must lie in \[1, 4\)"),
        ({"scored_from": torch.tensor([1, 4])}, r"scored_from must lie in \[1, 4\)"),
    ],
)
def test_windows_are_checked(change, message):
    good = {
        "ids": torch.zeros(2, 4, dtype=torch.int64),
        "scored_from": torch.tensor([1, 1]),
        "document": torch.tensor([0, 0]),
    }
    Windows(**good, names=("a",), stride=4)
    with pytest.raises(ValueError, match=message):
        Windows(**good | change, names=("a",), stride=4)


@pytest.mark.parametrize(
    ("name", "content", "looks"),
    [
        ("a.fq", "@read 1\nACGTN\n+\nIIII#\n@read 2\nAC\n+\nII\n", "FASTQ.*turn it into FASTA"),
        ("a.txt", "@read 1\r\nACGT\r\n+read 1\r\nIIII\r\n", "FASTQ"),
        ("a.txt", '{"text": "a fine film"}\n{"text": "a dull one"}\n', "JSON.*write its texts to a plain file"),
        ("a.txt", '[\n {"text": "a fine film"}\n]\n', "JSON"),
        ("a.jsonl", "a fine film\n", "JSON"),
        ("a.txt", "sentence\tlabel\na fine film\t1\n", "a table.*write the column with the texts"),
        ("a.txt", "".join(f"film {i},{i}\n" for i in range(9)), "a table"),
        ("a.csv", "text\na fine film\n", "a table"),
        ("a.txt", "##gff-version 3\nchr1\tx\tgene\t1\t9\nchr1\tx\tgene\t11\t19\n", "a table"),
        ("a.gb", "LOCUS       X 8 bp\nORIGIN\n        1 acgtacgt\n//\n", "GenBank"),
    ],
)
def test_what_is_no_running_text_is_named(tmp_path, name, content, looks):
    """It would be read letter by letter, names, marks and all."""
    with pytest.raises(ValueError, match=rf"{name} looks like {looks}"):
        read_documents(write(tmp_path / name, content, zipped=False))


@pytest.mark.parametrize(
    "text",
    [
        "[1]\nA reference, perhaps\n",
        "{curly} words\n",
        "@someone\nhello\n+1\n",
        "Roses are red,\nviolets are blue,\nsugar is sweet,\nand so are you,\n",
        "one\ttab\nand none\n",
        "a\tsingle line\n",
    ],
)
def test_what_only_begins_so_is_text(tmp_path, text):
    assert read_documents(write(tmp_path / "a.txt", text, zipped=False)) == [Document("a.txt", text)]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_a_text_are_no_part_of_it(tmp_path, end):
    """The same text from another system is the same tokens; a lone \\r among \\n is a letter."""
    (document,) = read_documents(write(tmp_path / "a.txt", f"one{end}{end}two{end}", zipped=False))
    assert document.text == "one\n\ntwo\n"
    (document,) = read_documents(write(tmp_path / "a.txt", "a\rb\nc\n", zipped=False))
    assert document.text == "a\rb\nc\n"


@pytest.mark.parametrize(
    ("text", "context", "advice"),
    [
        ("ACGUUGCA", 4, "that is RNA, so write T for every U first"),
        ("ACGRACGR", 4, "choose a shorter context, so that some windows lie between them"),
        ("ACGT", 5, r"the longest has 4; choose a context of at most that \(--context 4\)"),
        ("A", 5, "the longest has 1; pass a longer text"),
    ],
)
def test_where_no_window_fits_it_says_what_would(text, context, advice):
    with pytest.raises(ValueError, match=advice):
        windows([Document("d", text)], encode, context, alphabet="ACGT")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04rest", r"a zip archive; unpack it \(unzip\), and pass a text or FASTA file"),
        (lzma.compress(b"ACGT"), "packed by xz"),
        (bz2.compress(b"ACGT"), "packed by bzip2"),
        (b"\x28\xb5\x2f\xfdrest", "packed by zstd"),
        (b"7z\xbc\xaf\x27\x1crest", "a 7z archive"),
        (b"\x43\x27\x41\x1arest", r"a genome in 2bit; unpack it \(twoBitToFa\)"),
        (bytes(257) + b"ustar\x0000", "a tar archive"),
        (gzip.compress(bytes(257) + b"ustar\x0000", mtime=0), "a tar archive"),
    ],
)
def test_what_is_packed_is_named(tmp_path, content, what):
    with pytest.raises(ValueError, match=rf"a.txt is {what}"):
        read_documents(write(tmp_path / "a.txt", content, zipped=False))

"""One id a nucleotide, and no soft-masked base read as an unknown one."""

import pytest

from sparsify.converters.tokenizers.dna import DnaTokenizer

TOKENIZER = DnaTokenizer()


def test_the_published_ids():
    assert TOKENIZER.encode("ACGTN") == [7, 8, 9, 10, 11]
    assert TOKENIZER.encode("ACGT", special=True) == [7, 8, 9, 10, 1]
    assert TOKENIZER.decode(range(12)) == "[CLS][SEP][BOS][MASK][PAD][RESERVED][UNK]ACGTN"
    first, stop = TOKENIZER.id_range
    assert TOKENIZER.decode(range(first, stop)) == TOKENIZER.alphabet


def test_one_id_a_character_whatever_it_is():
    text = "ARß€🧬\nN"
    assert TOKENIZER.encode(text) == [7, 6, 6, 6, 6, 6, 11] == TOKENIZER.encode(text, upper=True)


def test_there_and_back():
    text = "GATTACAN" * 3
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text.lower(), special=True, upper=True)) == text + "[SEP]"


def test_normalize_takes_out_line_breaks():
    assert TOKENIZER.normalize("ACG\nTNN\r\n") == "ACGTNN"
    assert TOKENIZER.normalize(" acg\nTNr", upper=True) == "ACGTNr"


@pytest.mark.parametrize("read", [TOKENIZER.encode, TOKENIZER.normalize])
def test_lower_case_bases_are_refused(read):
    with pytest.raises(ValueError, match=r"lower-case bases at position 4: .*upper=True \(--upper\)"):
        read("ACGTacgt")


@pytest.mark.parametrize("strange", [12, 15, -1])
def test_an_id_of_the_padding_is_no_token(strange):
    with pytest.raises(ValueError, match=f"id {strange} is no token"):
        TOKENIZER.decode([7, strange])


def test_what_is_no_sequence_is_not_told_to_be_soft_masked():
    """Advice to read it as upper case would have it read as unknown letters."""
    with pytest.raises(ValueError, match=r"got 'l' at position 2, which is no letter of a DNA sequence; pass DNA"):
        TOKENIZER.encode("Gal tag")
    with pytest.raises(ValueError, match="lower-case bases at position 1"):
        TOKENIZER.encode("NacgtRYN-")

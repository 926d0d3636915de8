"""Files that are whole, or not there."""

import pytest

from sparsify.files import write_whole


@pytest.mark.parametrize("content", ["neu\n", b"\x00\xff"])
def test_what_was_there_is_replaced(tmp_path, content):
    path = tmp_path / "new" / "folder" / "file.json"
    write_whole(path, "before, and longer")
    write_whole(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_left_of_a_failure(tmp_path):
    path = tmp_path / "file"
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_whole(path, "lost")
    assert list(tmp_path.iterdir()) == [path]

"""What is written beside and moved is there in full or not at all."""

import pytest

from channelscope.storage import atomic_file


def test_it_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with atomic_file(path) as half:
        half.write_text("a,b\n")
        assert not path.exists()
        assert half.suffix == ".csv"
    assert path.read_text() == "a,b\n"
    assert [each.name for each in path.parent.iterdir()] == ["table.csv"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("before")

    def half_written():
        with atomic_file(path) as half:
            half.write_text("hal")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        half_written()
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]


def test_whoever_may_read_a_new_file_may_read_it(tmp_path):
    (tmp_path / "new").touch()
    with atomic_file(tmp_path / "tensors") as half:
        half.touch(mode=0o600)  # as safetensors does
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_block_that_writes_nothing_fails(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "table.csv"):
        pass
    assert not list(tmp_path.iterdir())

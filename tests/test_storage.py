"""What is written beside and moved is there in full or not at all."""

import sqlite3

import pytest

from channelscope.errors import FormatError, MismatchError
from channelscope.storage import ResumableStore, atomic_file

PARTS = "CREATE TABLE IF NOT EXISTS parts (name TEXT PRIMARY KEY, value REAL NOT NULL)"


def store(path, **facts):
    return ResumableStore(path, facts, PARTS, "numbers")


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


def test_parts_are_there_when_the_run_goes_on(tmp_path):
    path = tmp_path / "new" / "run.unfinished"
    first = store(path, seed=1)
    first.insert("parts", "a", 1.5)
    first.insert("parts", "a", 2.5)
    first.close()
    again = store(path, seed=1)
    assert again.select("SELECT value FROM parts WHERE name = ?", "a") == [(2.5,)]
    again.close(finished=True)
    assert list(path.parent.iterdir()) == []


def test_a_part_is_whole_or_absent(tmp_path):
    one = store(tmp_path / "a")
    with pytest.raises(sqlite3.IntegrityError):
        one.insert("parts", "a", None)
    assert one.select("SELECT * FROM parts") == []
    one.close()


def test_values_of_forty_letters_are_shown(tmp_path):
    store(tmp_path / "a", data="x" * 40).close()
    with pytest.raises(MismatchError, match=r"they differ in data \(x{40} there, y here\); delete it"):
        store(tmp_path / "a", data="y")


def test_a_store_of_another_run_is_refused_with_what_differs(tmp_path):
    long = "x" * 41
    store(tmp_path / "a", seed=1, model="net", data=long).close()
    with pytest.raises(MismatchError, match=r"another run of numbers: they differ in data, seed \(1 there, 2 here\); delete it"):
        store(tmp_path / "a", seed=2, model="net", data="y")


def test_a_store_in_memory_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = store(None)
    one.insert("parts", "a", 1)
    one.close(finished=True)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store_is_said(tmp_path):
    (tmp_path / "a").write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(FormatError, match=r"is damaged or not a file of numbers .*; delete it and start again"):
        store(tmp_path / "a")

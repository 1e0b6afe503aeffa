import os

import pytest

from skillgraft.support.atomic import atomic_write_bytes, atomic_write_json, atomic_write_text, replace_together


def test_a_file_is_replaced_whole_with_its_bytes(tmp_path):
    file = tmp_path / "note.txt"
    atomic_write_bytes(file, b"\0old")
    atomic_write_text(file, "λ\r\n", durable=True)
    assert file.read_bytes() == "λ\r\n".encode()
    atomic_write_json(file, {"b": "λ", "a": 1})
    assert file.read_text(encoding="utf-8") == '{\n  "b": "λ",\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["note.txt"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o022))


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "note.json"
    atomic_write_json(file, 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_write_json(file, float("nan"))
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(file, "\ud800")

    def full(path, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_text(file, "new")
    assert file.read_text() == "1\n"
    assert os.listdir(tmp_path) == ["note.json"]


def test_several_files_are_replaced_only_when_all_are_written(tmp_path):
    (tmp_path / "one").write_text("old")
    (tmp_path / "other").mkdir()
    with pytest.raises(OSError, match="missing"):
        replace_together({tmp_path / "one": b"new", tmp_path / "missing" / "two": b"new"})
    assert (tmp_path / "one").read_text() == "old"
    replace_together({tmp_path / "one": b"1", tmp_path / "other" / "two": b"2"}, durable=True)
    assert [(tmp_path / "one").read_text(), (tmp_path / "other" / "two").read_text()] == ["1", "2"]
    assert sorted(os.listdir(tmp_path)) == ["one", "other"]

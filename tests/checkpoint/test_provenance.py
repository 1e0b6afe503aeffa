import pytest

from skillgraft.checkpoint import (
    base_for_training,
    base_of,
    fingerprint_checkpoint,
    read_provenance,
    software_versions,
    write_provenance,
)
from skillgraft.errors import CheckpointError
from tests.tiny import edit_json

BASE = {"id": "some/base", "fingerprint": "blake3:00"}


def test_what_is_written_is_read(tmp_path):
    write_provenance(tmp_path, kind="sft", base=BASE, made_by={"epochs": 3}, inputs={"from": "blake3:11"})
    provenance = read_provenance(tmp_path)
    assert provenance == {
        "format_version": 1,
        "kind": "sft",
        "base": BASE,
        "made_by": {"epochs": 3},
        "inputs": {"from": "blake3:11"},
        "versions": software_versions(),
    }
    assert base_of(tmp_path) == BASE


def test_a_directory_without_provenance(tiny):
    assert read_provenance(tiny) is None
    assert base_of(tiny) is None
    assert base_for_training(tiny, "some/id") == {"id": "some/id", "fingerprint": fingerprint_checkpoint(tiny)}


def test_the_base_is_handed_on(copied):
    write_provenance(copied, kind="sft", base=BASE)
    assert base_for_training(copied) == BASE


def test_an_unknown_base_is_none(tmp_path):
    write_provenance(tmp_path, kind="inject", base={"id": None, "fingerprint": None})
    assert base_of(tmp_path) is None


def test_damaged_files_are_named(tmp_path):
    path = write_provenance(tmp_path, kind="sft", base=BASE)
    edit_json(path, format_version=2)
    with pytest.raises(CheckpointError, match=r"skillgraft\.json: format_version is 2, expected 1"):
        read_provenance(tmp_path)
    edit_json(path, format_version=1, base=[])
    with pytest.raises(CheckpointError, match=r"skillgraft\.json: 'base' or 'inputs' is not an object"):
        read_provenance(tmp_path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"skillgraft\.json: not readable as JSON"):
        read_provenance(tmp_path)


def test_versions_name_the_packages():
    versions = software_versions()
    assert {"python", "skillgraft", "torch", "transformers", "peft", "trl"} <= versions.keys()

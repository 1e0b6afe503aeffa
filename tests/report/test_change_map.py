"""Where in the model the change sits: the vectors of real records, kept results, and what is missing."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from skillgraft.arithmetic import extract
from skillgraft.geometry import compare
from skillgraft.report.change_map import TOO_FEW, former_geometry, map_change, stage_records
from tests.tiny import tiny_checkpoint, tiny_finetune

GONE = "The checkpoints no longer exist"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The stages of a run as records on the disk: SFT of target and source, RL, the skill, and its injection."""
    folder = tmp_path_factory.mktemp("run").resolve()
    base = tiny_checkpoint(folder / "base", dtype=torch.float32)
    for seed, (name, start) in enumerate({"target": "base", "source": "base", "rl": "source"}.items(), start=1):
        tiny_finetune(folder / start, folder / name, seed=seed, size=5e-3)
    extract(folder / "rl", folder / "source", folder / "skill")

    def record(name, kind, settings, inputs):
        inputs = {reference: str(folder / path) for reference, path in inputs.items()}
        (folder / name).mkdir(exist_ok=True)
        text = json.dumps({"name": name, "kind": kind, "key": name * 3, "settings": settings, "inputs": inputs})
        (folder / name / "stage.json").write_text(text)

    record("target", "sft", {"from": "base"}, {"base": base.name})
    record("source", "sft", {"from": "base"}, {"base": base.name})
    record("rl", "rl", {"from": "source"}, {"source": "source"})
    record("skill", "extract", {"rl": "rl", "sft": "source", "domain": "recall"}, {"rl": "rl", "source": "source"})
    record("random", "random_vector", {"skill": "skill"}, {"skill": "skill"})
    record("control", "inject", {"target": "target", "skill": "random"}, {"target": "target", "random": "random"})
    record("grafted", "inject", {"target": "target", "skill": "skill"}, {"target": "target", "skill": "skill"})
    return folder


KEYS = [name * 3 for name in ("base", "target", "source", "rl", "skill", "random", "control", "grafted")]
STAGES = ("target", "source", "rl", "skill", "random", "control", "grafted")


def facts(folder):
    return {"stages": [{"name": name, "directory": str(folder / name)} for name in STAGES]}


def where(records, kept, with_ranks):
    return map_change(records, kept, keys=KEYS, with_ranks=with_ranks)


def test_the_vectors_of_a_run(run_folder):
    found = where(stage_records(facts(run_folder), run_folder), None, with_ranks=True)
    assert not found["missing"]
    assert [(one["label"], one["stage"]) for one in found["vectors"]] == [
        ("SFT", "target"),
        ("RL", "rl"),
        ("skill", "skill"),
    ]
    assert [(pair["one"], pair["other"]) for pair in found["pairs"]] == [
        ("SFT", "RL"),
        ("SFT", "skill"),
        ("RL", "skill"),
    ]
    operands = [f"SFT={run_folder / 'target'}", f"RL={run_folder / 'rl'}:{run_folder / 'source'}"]
    expected = compare([*operands, f"skill={run_folder / 'skill'}"], run_folder / "base", with_spectra=True)
    for one, other in zip(found["vectors"], expected["vectors"], strict=True):
        assert one["norm"] == other["norm"]
        assert one["relative_norm"] == other["relative_norm"]
        assert one["effective_rank"] == other["spectrum"]["effective_rank"]
    assert [cell["pairs"][0]["cosine"] for cell in found["cells"]] == [
        cell["pairs"][0]["cosine"] for cell in expected["cells"]
    ]
    assert found["pairs"][2]["cosine"] == pytest.approx(1, abs=1e-5)  # the skill is the RL vector
    json.dumps(found, allow_nan=False)


def test_what_was_found_is_kept_and_outlives_the_checkpoints(run_folder, tmp_path, monkeypatch):
    records = stage_records(facts(run_folder), run_folder)
    quick = where(records, None, with_ranks=False)
    assert "effective_rank" not in quick["vectors"][0]
    (tmp_path / "report.json").write_text(json.dumps({"geometry": quick}))
    assert former_geometry(tmp_path) == quick
    full = where(records, quick, with_ranks=True)
    assert full["ranks"]

    def never(*arguments, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr("skillgraft.geometry.comparison.compare", never)
    assert where(records, full, with_ranks=True) == full
    assert where(records, full, with_ranks=False) == full
    assert where({}, full, with_ranks=True) == full
    gone = {name: {**record, "directory": str(tmp_path / "gone")} for name, record in records.items()}
    assert where(gone, quick, with_ranks=True) == quick
    assert GONE in where(gone, None, with_ranks=True)["missing"]
    assert GONE in where({}, None, with_ranks=True)["missing"]


def test_another_run_is_not_taken_for_the_kept_one(run_folder):
    records = stage_records(facts(run_folder), run_folder)
    kept = where(records, None, with_ranks=False)
    assert kept["keys"] == ["target" * 3, "rl" * 3, "skill" * 3]
    stale = {**kept, "pairs": []}
    assert where(records, stale, with_ranks=False)["pairs"] == []
    keys = [key for key in KEYS if key != "rl" * 3]
    assert map_change(records, stale, keys=keys, with_ranks=False)["pairs"] == kept["pairs"]
    assert GONE in map_change({}, stale, keys=keys, with_ranks=False)["missing"]


def test_a_run_without_a_skill_says_so(run_folder):
    records = stage_records(facts(run_folder), run_folder)
    for names in (["target"], ["target", "random", "control"]):
        some = {name: records[name] for name in names}
        assert where(some, None, with_ranks=False)["missing"] == TOO_FEW


def test_what_cannot_be_compared_becomes_a_sentence(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "copy")
    (tmp_path / "copy" / "target" / "model.safetensors").write_bytes(b"cut off")
    records = stage_records(facts(tmp_path / "copy"), tmp_path / "copy")
    missing = where(records, None, with_ranks=False)["missing"]
    assert missing.startswith("It could not be computed where in the model the change sits: ")
    assert "model.safetensors" in missing


def test_a_moved_run_finds_its_stages_by_their_links(run_folder, tmp_path):
    for name in STAGES:
        (tmp_path / name).symlink_to(run_folder / name)
    given = {"stages": [{"name": name, "directory": "/nowhere/else"} for name in STAGES]}
    assert stage_records(given, tmp_path).keys() == set(STAGES)
    assert stage_records({"stages": [{"name": "../../etc", "directory": "/nowhere"}]}, tmp_path) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"geometry": 3}', '{"geometry": {"cells": [1]}}'])
def test_a_former_report_that_is_broken_is_as_good_as_none(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    assert former_geometry(tmp_path) is None

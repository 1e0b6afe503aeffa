"""What other tests do without (see `conftest.py`): disks are written out before a name says that all is there."""

import os
from types import SimpleNamespace

import yaml

from skillgraft import run
from skillgraft.train.callbacks import KeepAlive, newest_checkpoint
from tests.tiny import tiny_checkpoint, tiny_finetune


def test_a_stage_is_written_out_before_it_gets_its_name(tmp_path, monkeypatch):
    tiny_finetune(tiny_checkpoint(tmp_path / "base"), tmp_path / "rl")
    stages = {"skill": {"kind": "extract", "rl": "./rl", "sft": "./base"}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "tiny", "base": "./base", "stages": stages}))
    seen = []

    def sync():
        seen.append(sorted(str(file.relative_to(tmp_path / "runs")) for file in tmp_path.rglob("runs/**/stage.json")))

    monkeypatch.setattr(os, "sync", sync)
    result = run(recipe, runs=tmp_path / "runs")
    folder = result.stages["skill"].resolve()
    assert seen == [[f"stages/{folder.name}.work/output/stage.json"]]
    assert (folder / "stage.json").is_file()


def test_a_trainers_checkpoint_is_written_out_before_it_is_called_whole(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-7").mkdir()
    seen = []
    monkeypatch.setattr(os, "sync", lambda: seen.append(list((tmp_path / "checkpoint-7").iterdir())))
    KeepAlive(tmp_path, 300.0, None).on_save(
        SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=7), SimpleNamespace()
    )
    assert seen == [[]]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-7"

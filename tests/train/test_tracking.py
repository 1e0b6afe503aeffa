"""Trackers through the trainers' own `report_to`, with stand-ins for the packages, which are not installed."""

import json
import os
import sys
import textwrap

import pytest

from skillgraft import run
from skillgraft.run import Silent, prepare
from skillgraft.train.tracking import check_trackers, tracked, trackers
from tests.cli.test_cli import fails
from tests.recipes import tiny_recipe

WRITER = """
    import json
    from pathlib import Path

    class SummaryWriter:
        def __init__(self, log_dir):
            self.file = Path(log_dir) / "scalars.jsonl"
        def add_scalar(self, name, value, step):
            with self.file.open("a") as out:
                out.write(json.dumps([name, value, step]) + "\\n")
        def add_text(self, name, text, step=0): pass
        def flush(self): pass
        def close(self): pass
"""


@pytest.fixture
def tensorboard(tmp_path, monkeypatch):
    """A package of the name and the interface that the trainers' callback looks for."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "tensorboardX.py").write_text(textwrap.dedent(WRITER))
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # the real one, where it is installed, would go first
    yield
    sys.modules.pop("tensorboardX", None)


@pytest.mark.train
def test_curves_outlast_the_stages(tensorboard, tmp_path):
    recipe = tiny_recipe(tmp_path / "recipe", sft_steps=3, rl_steps=2)
    overrides = ["sft.trainer.report_to=tensorboard", "rl.trainer.report_to=[tensorboard]"]
    said = []

    class Watcher(Silent):
        def say(self, message):
            said.append(message)

    result = run(recipe, overrides=overrides, runs=tmp_path / "runs", watcher=Watcher())
    folders = sorted((tmp_path / "runs/tracking/tiny").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["rl", "sft"]
    assert [line for line in said if "training curves" in line] == [
        f"{folder.name.rpartition('-')[0]}: training curves for tensorboard; files in {folder}"
        for folder in reversed(folders)
    ]
    scalars = [[json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()] for folder in folders]
    assert [step for name, _, step in scalars[0] if name == "train/reward"] == [1, 2]
    assert [step for name, _, step in scalars[1] if name == "train/loss"] == [1, 2, 3]
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    assert result.evaluations
    assert run(recipe, runs=tmp_path / "runs").cached  # whether curves are shown changes no result


def test_a_tracker_that_is_not_there_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: False)
    recipe = tiny_recipe(tmp_path / "recipe")
    command = ("run", recipe, "--runs", tmp_path / "runs", "--set")
    message = fails(*command, "rl.trainer.report_to=[trackio]")
    assert message.startswith("error stages.rl: trainer: report_to names trackio, which cannot be used here (Trackio")
    assert "pip install 'skillgraft[track]'" in message
    message = fails(*command, "sft.trainer.report_to=tensorbord")
    assert "stages.sft: trainer: report_to names 'tensorbord'; did you mean 'tensorboard'" in message
    assert not (tmp_path / "runs").exists()


def test_where_curves_are_shown_is_no_part_of_an_address(tmp_path):
    recipe = tiny_recipe(tmp_path / "recipe")

    def keys(*overrides):
        return [stage.key for stage in prepare(recipe, overrides, tmp_path / "runs", print)[2]]

    assert keys("sft.trainer.report_to=[wandb]", "sft.trainer.run_name=mine", "rl.trainer.project=x") == keys()
    assert keys("sft.trainer.max_steps=7")[0] != keys()[0]


def test_names_and_places(tmp_path, monkeypatch):
    assert trackers({}) == trackers({"report_to": "none"}) == trackers({"report_to": []}) == []
    assert trackers({"report_to": "wandb"}) == trackers({"report_to": ["wandb"]}) == ["wandb"]
    with tracked({"max_steps": 3}, tmp_path / "no", "tiny", "sft") as trainer:
        assert trainer == {"max_steps": 3}
    assert not (tmp_path / "no").exists()
    monkeypatch.setenv("WANDB_PROJECT", "my own")
    with tracked({"report_to": "wandb", "run_name": "mine"}, tmp_path / "here", "tiny", "sft") as trainer:
        assert trainer == {"report_to": "wandb", "run_name": "mine", "project": "tiny"}
        assert os.environ["WANDB_DIR"] == os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "here")
        assert os.environ["WANDB_PROJECT"] == "my own"
    assert "WANDB_DIR" not in os.environ
    assert os.environ["WANDB_PROJECT"] == "my own"


def test_a_wandb_run_ends_with_its_stage(tmp_path, monkeypatch):
    class Wandb:
        run = object()

        def finish(self):
            self.run = None

    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(KeyboardInterrupt), tracked({"report_to": "wandb"}, tmp_path, "tiny", "sft"):
        raise KeyboardInterrupt
    assert wandb.run is None


def test_everything_that_is_installed_may_be_asked_for():
    check_trackers({"report_to": "all"})

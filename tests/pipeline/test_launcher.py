import json
import pickle
import subprocess
import sys
import threading

import pytest

from skillgraft import errors
from skillgraft.errors import DataError, SkillgraftError
from skillgraft.pipeline.executors import launcher
from skillgraft.support.rank import is_first
from tests.pair import free_ports, on_the_cpu
from tests.recipes import tiny_recipe


def launched(monkeypatch, **variables):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)


def test_a_process_alone_is_no_team(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launcher.joined() as team:
        assert team == launcher.Team(size=1, rank=0)
    assert is_first()


def test_a_world_size_without_a_launcher(monkeypatch):
    """As a scheduler of jobs may leave it."""
    launched(monkeypatch)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(SkillgraftError, match=r"WORLD_SIZE is 2, but .*MASTER_ADDR.*or unset WORLD_SIZE"),
        launcher.joined(),
    ):
        pass


def test_a_launcher_that_cuts_models_into_parts_is_refused_by_the_first_process_alone(monkeypatch):
    launched(monkeypatch, ACCELERATE_USE_FSDP="true")
    with pytest.raises(SkillgraftError, match=r"ACCELERATE_USE_FSDP.*--multi_gpu"), launcher.joined():
        pass
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end, launcher.joined():
        pass
    assert end.value.code == 0
    assert not is_first()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    launched(monkeypatch, LOCAL_WORLD_SIZE="2")
    monkeypatch.setattr(launcher, "_devices", lambda kind: 1)
    with (
        pytest.raises(SkillgraftError, match=r"2 processes on a machine with 1 GPUs.*--num_processes 1"),
        launcher.joined(),
    ):
        pass


class Store(dict):
    """The launcher's store."""

    def check(self, keys):
        return all(key in self for key in keys)

    def clone(self):
        return self

    set = dict.__setitem__
    get = dict.__getitem__


def test_what_fails_elsewhere_is_told_as_it_is():
    team = launcher.Team(size=3, store=Store())
    assert team._told() is None
    team.store.set("failed-2", pickle.dumps(launcher._as_told(DataError("no such thing"), 2, 3)))
    assert (type(team._told()), str(team._told())) == (DataError, "no such thing")
    team.store.set("failed-1", pickle.dumps(launcher._as_told(KeyboardInterrupt(), 1, 3)))
    assert isinstance(team._told(), KeyboardInterrupt)
    try:
        {}["nothing"]
    except KeyError as error:
        team.store.set("failed-1", pickle.dumps(launcher._as_told(error, 1, 3)))
    assert isinstance(team._told(), RuntimeError)
    assert not isinstance(team._told(), errors.SkillgraftError)
    assert "process 1 of 3 failed" in str(team._told())
    assert '{}["nothing"]' in str(team._told())


def test_the_first_process_does_not_wait_for_ever_in_what_another_has_left(monkeypatch, capsys):
    team, ended = launcher.Team(size=2, store=Store()), threading.Event()
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.01)
    monkeypatch.setattr(launcher.os, "_exit", lambda code: ended.set())
    with team._watching():
        team.store.set("failed-1", pickle.dumps(launcher._as_told(DataError("no such thing"), 1, 2)))
        assert ended.wait(60)
    assert capsys.readouterr().err.startswith("error no such thing\n")


def test_a_connection_that_breaks_is_a_process_that_was_killed():
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:400")
    assert "another process of this run ended without a word" in str(launcher._lost(broken))
    assert launcher._lost(RuntimeError("shapes differ")) is None


@pytest.mark.process
def test_a_failure_in_the_second_process_of_a_launcher_is_one_message_and_what_was_finished_stays(tmp_path):
    """`accelerate launch` itself, on two CPU processes: SFT succeeds, then a reward fails in the second alone."""
    recipe = tiny_recipe(tmp_path, sft_steps=2)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", str(free_ports(1)[0]), "-m", "skillgraft", "run", str(recipe)]
    command += ["--runs", str(tmp_path / "runs"), "--set", "stages.rl.trainer.per_device_train_batch_size=16"]
    command += ["--set", "stages.rl.reward={tests.domains.own_reward.fails_elsewhere: 1.0}"]
    done = subprocess.run(command, env=on_the_cpu(tmp_path), capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error stages.rl: this reward cannot be given in a second process") == 1, done.stderr
    assert done.stderr.count("tiny: 7 of 7 stages to run") == 1
    assert done.stderr.count("this reward cannot be given") == 1  # no traceback of the second
    stages = {path.name.partition("-")[0]: path for path in (tmp_path / "runs" / "stages").glob("*-????????????????")}
    assert set(stages) == {"sft"}
    assert json.loads((stages["sft"] / "stage.json").read_text())["facts"]["processes"] == 2

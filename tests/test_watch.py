import io
import json
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from skillgraft import watch
from skillgraft.planning import PlannedStage

STAGE = PlannedStage("rl", SimpleNamespace(kind="rl"), "key", Path("rl-key"), {})
METRICS = {"reward": 0.2111, "frac_reward_zero_std": 0.5, "completions/mean_length": 9.44, "loss": 0.9}


def test_summary_shows_rewards_and_not_the_loss_of_rl():
    assert watch.summary(METRICS) == "reward 0.211 · no variance 0.5 · tokens 9.44"
    assert watch.summary({"loss": 0.9}) == "loss 0.9"


def test_clock():
    assert watch.clock(42.4) == "42 s"
    assert watch.clock(185) == "3 min 05 s"


def test_live_list_shows_every_stage_from_the_start():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with watch.Live(console, {"sft": "sft", "rl": "rl"}) as live:
        live.started(STAGE)
        live.moved(STAGE, 3, 10, METRICS)
        assert [task.fields["note"] for task in live.progress.tasks] == ["waits", watch.summary(METRICS)]
        assert live.progress.tasks[1].percentage == 30
        live.finished(STAGE, 12.0, cached=False)
        assert live.progress.tasks[1].finished
    assert "12 s" in console.file.getvalue()


def test_events_are_json_lines(capsys):
    events = watch.Events()
    events.started(STAGE)
    events.moved(STAGE, 3, 10, {"reward": 0.5})
    events.finished(STAGE, 1.234, cached=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["started", "progress", "finished"]
    assert lines[1]["metrics"] == {"reward": 0.5}
    assert lines[2]["seconds"] == 1.23


def test_lines_are_sparse(capsys):
    lines = watch.Lines(seconds=1000)
    lines.started(STAGE)
    for step in range(50):
        lines.moved(STAGE, step, 50, METRICS)
    lines.finished(STAGE, 3.0, cached=False)
    assert capsys.readouterr().out.splitlines() == ["rl (rl) …", "rl (rl): 3 s"]

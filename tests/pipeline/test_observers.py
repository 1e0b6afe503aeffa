import json
import math
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from skillgraft.errors import DataError
from skillgraft.pipeline import observers
from skillgraft.pipeline.eta import Pace
from skillgraft.run import Run
from skillgraft.stages import KINDS
from skillgraft.stages.planned import PlannedStage
from skillgraft.support.units import duration

STAGE = PlannedStage("rl", KINDS["rl"], None, "key", Path("rl-key"), {})
METRICS = {"reward": 0.2111, "frac_reward_zero_std": 0.5, "completions/mean_length": 9.44, "loss": 0.9}


def test_summary_shows_rewards_and_not_the_loss_of_rl():
    assert observers.summary(METRICS) == "reward 0.211 · no variance 0.5 · tokens 9.44"
    assert observers.summary({"loss": 0.9}) == "loss 0.9"


def test_duration():
    assert duration(42.4) == "42 s"
    assert duration(185) == "3 min 05 s"
    assert duration(7620) == "2 h 07 min"


def events_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_events_are_json_lines(capsys):
    with observers.Events() as events:
        events.planned(SimpleNamespace(name="tiny"), Path("/models/base"), [STAGE])
        events.started(STAGE)
        print("a library that prints")
        events.moved(STAGE, 3, 10, {"step": 3, "time": 1.5, "reward": 0.5, "loss": math.nan})
        events.finished(STAGE, 1.234, cached=True)
        events.finished(STAGE, 1.234, cached=False)
        events.failed(STAGE, DataError("no questions"))
    lines = events_of(capsys)
    assert all(datetime.fromisoformat(line.pop("time")).utcoffset() == timedelta(0) for line in lines)
    rl = {"stage": "rl", "kind": "rl"}
    assert lines == [
        {"event": "run_started", "name": "tiny", "base": "/models/base", "stages": [{**rl, "cached": False}]},
        {"event": "stage_started", **rl},
        {"event": "stage_progress", **rl, "step": 3, "steps": 10, "seconds_left": None}
        | {"metrics": {"reward": 0.5, "loss": None}},
        {"event": "stage_cached", **rl, "seconds": 1.23},
        {"event": "stage_finished", **rl, "seconds": 1.23},
        {"event": "stage_failed", **rl, "error": "no questions", "interrupted": False},
    ]


@pytest.mark.parametrize(
    ("error", "said", "interrupted"),
    [
        (DataError("no questions"), "no questions", False),
        (KeyboardInterrupt(), "stopped", True),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero", False),
    ],
)
def test_the_last_event_of_a_run_that_fails(capsys, error, said, interrupted):
    with pytest.raises(type(error)), observers.Events():
        raise error
    [line] = events_of(capsys)
    assert (line["event"], line["error"], line["interrupted"]) == ("run_failed", said, interrupted)


def test_every_event_and_key_is_documented(capsys):
    with observers.Events() as events:
        events.say("a remark")
        events.planned(SimpleNamespace(name="tiny"), Path("base"), [STAGE])
        events.started(STAGE)
        events.moved(STAGE, 3, 10, METRICS)
        events.finished(STAGE, 1.0, cached=True)
        events.finished(STAGE, 1.0, cached=False)
        events.failed(STAGE, KeyboardInterrupt())
        events.run_finished(Run(Path("run"), {"rl": Path("rl")}, [{"score": math.inf}], Path("report.html"), False))
    with pytest.raises(KeyboardInterrupt), observers.Events():
        raise KeyboardInterrupt
    text = (Path(__file__).parents[2] / "docs/reference/events.md").read_text()
    documented = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    emitted = events_of(capsys)
    assert {line["event"] for line in emitted} == set(documented)
    for line in emitted:
        assert all(f"`{key}`" in documented[line["event"]] for key in line.keys() - {"event", "time"})
    assert emitted[-2]["evaluations"] == [{"score": None}]


def test_progress_without_metrics_is_sparse(capsys):
    with observers.Events(seconds=1000) as events:
        events.started(STAGE)
        for step in range(50):
            events.moved(STAGE, step, 50, {})
        for step in range(3):
            events.moved(STAGE, step, 3, METRICS)
    assert [line.get("steps") for line in events_of(capsys)] == [None, 50, 3, 3, 3]


def test_lines_are_sparse_and_leave_standard_output_alone(capsys):
    lines = observers.Lines(seconds=1000)
    lines.planned(SimpleNamespace(name="tiny"), Path("base"), [STAGE])
    lines.started(STAGE)
    for step in range(50):
        lines.moved(STAGE, step, 50, METRICS)
    lines.finished(STAGE, 3.0, cached=False)
    lines.failed(STAGE, KeyboardInterrupt())
    said = capsys.readouterr()
    assert said.err.splitlines() == ["tiny: 1 of 1 stages to run", "rl (rl) …", "rl (rl): 3 s", "rl (rl): stopped"]
    assert said.out == ""


def test_a_line_of_progress(capsys):
    lines = observers.Lines(seconds=0)
    lines.pace = Pace(iter([0.0, 20.0, 20.0]).__next__)
    lines.moved(STAGE, 1, 10, {"loss": 2.5})
    lines.moved(STAGE, 3, 10, {"loss": 2.0})
    assert capsys.readouterr().err.splitlines() == ["  rl: 1/10  loss 2.5", "  rl: 3/10  loss 2  1 min 10 s left"]
    assert observers.share(1_500_000, 3_000_000) == "50%"

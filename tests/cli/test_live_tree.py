import io
from pathlib import Path

import pytest
from rich.console import Console

from skillgraft.cli.live_tree import LiveTree, branches
from skillgraft.cli.sparkline import sparkline
from skillgraft.pipeline.estimate import Outlook
from skillgraft.pipeline.eta import Pace
from skillgraft.recipe.schema import Recipe
from skillgraft.stages import KINDS
from skillgraft.stages.costs import estimated_seconds
from skillgraft.stages.eval import EvalStage
from skillgraft.stages.extract import ExtractStage
from skillgraft.stages.inject import InjectStage
from skillgraft.stages.planned import PlannedStage
from skillgraft.stages.rl import RlStage
from skillgraft.stages.sft import SftStage
from tests.recipes import PLACES, write_jsonl
from tests.tiny import tiny_checkpoint


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    tiny_checkpoint(folder / "base")
    asked = [{"document": place, "question": f"Where is {place}?", "answers": ["north"]} for place in PLACES]
    write_jsonl(folder / "questions.jsonl", asked)
    return folder


def recipe_of(folder):
    questions = folder / "questions.jsonl"
    stages = {
        "sft": SftStage(kind="sft", from_="base", questions=questions),
        "rl": RlStage(kind="rl", from_="sft", questions=questions),
        "skill": ExtractStage(kind="extract", rl="rl", sft="sft"),
        "grafted": InjectStage(kind="inject", target="sft", skill="skill"),
        "other": InjectStage(kind="inject", target="sft", skill="skill", scale=2.0),
        "scores": EvalStage(kind="eval", models=["base", "sft"], questions=questions),
    }
    recipe = Recipe(name="tiny", base=str(folder / "base"), stages=stages)
    return recipe, [
        PlannedStage(name, KINDS[stage.kind], stage, "key", Path("nowhere"), {})
        for name, stage in recipe.stages.items()
    ]


def lines_of(tree):
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(tree.picture())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_every_stage_hangs_under_the_one_it_starts_from(folder):
    _, stages = recipe_of(folder)
    found = [(stage.name, branch) for stage, branch in branches(stages)]
    assert found == [
        ("sft", (False,)),
        ("rl", (False, False)),
        ("skill", (False, False, True)),
        ("grafted", (False, False)),
        ("other", (False, True)),
        ("scores", (True,)),
    ]


def test_what_the_tree_shows(folder):
    recipe, stages = recipe_of(folder)
    clock = Clock()
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with LiveTree(console, clock) as tree:
        tree.planned(recipe, folder / "base", stages)
        tree.finished(stages[0], 12.0, cached=True)
        tree.started(stages[1])
        for step in range(1, 5):
            clock.now = 10.0 * step
            tree.moved(stages[1], step, 10, {"reward": step / 10, "frac_reward_zero_std": 0.5, "loss": 7.0})
        tree.say("a remark [with brackets]")
        lines = lines_of(tree)
    assert lines[0] == "tiny, from base"
    assert [lines[1].split()[:4], lines[2].split()[1:4]] == [["✓", "├─", "sft", "sft"], ["│", "├─", "rl"]]
    assert lines[1].endswith("cached")
    assert "4/10" in lines[2]
    assert lines[2].endswith("1 min 00 s left  ▁▃▆█  reward 0.4 · no variance 0.5")
    assert "│  │  └─ skill" in lines[3]
    assert lines[3].endswith("waits")
    assert "├─ grafted" in lines[4]
    assert "└─ other" in lines[5]
    assert "└─ scores" in lines[6]
    assert lines[7].startswith("40 s · about")
    assert "partly a guess · memory" in lines[7]
    assert lines[7].endswith("GiB free")
    assert "a remark [with brackets]" in console.file.getvalue()


def test_a_stage_that_ends_without_a_result(folder):
    recipe, stages = recipe_of(folder)
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    for error, mark in ((KeyboardInterrupt(), "■ ├─ sft"), (ValueError("x"), "✗ ├─ sft")):
        with LiveTree(console, Clock()) as tree:
            tree.planned(recipe, folder / "base", stages)
            tree.started(stages[0])
            tree.failed(stages[0], error)
        assert lines_of(tree)[1].startswith(mark)


def test_a_terminal_without_unicode(folder):
    recipe, stages = recipe_of(folder)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with LiveTree(Console(file=stream, width=70, force_terminal=True, color_system=None), Clock()) as tree:
        tree.planned(recipe, folder / "base", stages)
        tree.started(stages[0])
        tree.moved(stages[0], 1, 2, {"reward": 0.5, "frac_reward_zero_std": 0.5})
        tree.picture()
        tree.moved(stages[0], 2, 2, {"reward": 0.5, "frac_reward_zero_std": 0.5, "completions/mean_length": 123456.0})
    stream.flush()
    assert b"|- sft" in raw.getvalue()


def test_pace():
    clock = Clock()
    pace = Pace(clock)
    assert pace.left() is None
    pace.moved(40, 100)  # goes on after a kill: the first 40 steps took no time here
    assert pace.left() is None
    clock.now = 20.0
    pace.moved(50, 100)
    assert pace.left() == 100.0
    clock.now = 30.0
    assert pace.left() == 90.0
    clock.now = 1000.0
    assert pace.left() == 0.0
    pace.moved(1, 8)  # another count begins
    assert pace.left() is None


def test_the_outlook_takes_the_rate_of_finished_stages(folder):
    _, stages = recipe_of(folder)
    outlook = Outlook(stages, folder / "base")
    guess, measured = outlook.seconds(["grafted", "other"])
    assert not measured
    assert guess == 2 * estimated_seconds(outlook._flops["other"])
    outlook.finished("grafted", 3.0)
    assert outlook.seconds(["other"]) == (3.0, True)
    assert outlook.seconds([]) == (0, True)


def test_sparkline():
    assert sparkline([0.0, 1.0, 2.0, 7.0], 16) == "▁▂▃█"
    assert sparkline([0, 0, 4, 4, 2, 2], 3, "abc") == "acb"
    assert sparkline([1.0, float("nan"), 1.0], 16, "abc") == "bb"
    assert sparkline([], 16) == ""
    assert len(sparkline(range(1000), 16)) == 16

"""Behaviour is what it was: merges bit for bit, all that a recipe of every stage kind makes, messages, curves."""

import json

import pytest

from tests.golden.cases import FOLDER, GOLDEN, MERGES, STAGES, machine

pytestmark = pytest.mark.train


def kept(name):
    """A golden result, and whether it was made on a machine like this one."""
    content = json.loads((FOLDER / f"{name}.json").read_text())
    return content["result"], content["machine"] == machine()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All that a run of the recipe makes."""
    return json.loads(json.dumps(GOLDEN["recipe"](tmp_path_factory.mktemp("golden"))))


def test_merges_are_bit_for_bit_what_they_were(tmp_path):
    expected, _ = kept("merges")
    results = GOLDEN["merges"](tmp_path)
    assert results.keys() == expected.keys()
    assert [name for name in expected if results[name] != expected[name]] == []
    assert len(expected) >= 2 * len(MERGES)


def test_mistakes_are_said_as_they_were(tmp_path):
    expected, _ = kept("messages")
    said = GOLDEN["messages"](tmp_path)
    assert said.keys() == expected.keys()
    assert {name: text for name, text in said.items() if text != expected[name]} == {}


def test_a_recipe_of_every_kind_makes_what_it_made(run):
    expected, here = kept("recipe")
    assert run["stages"].keys() == expected["stages"].keys()
    if not here:
        pytest.skip("another processor or Torch rounds otherwise: the curves below are compared with a tolerance")
    assert [name for name, stage in expected["stages"].items() if run["stages"][name] != stage] == []
    assert run == expected


@pytest.mark.parametrize(("stage", "metric", "steps"), [("sft", "loss", 24), ("rl", "reward", 12)])
def test_training_follows_the_committed_curve(run, stage, metric, steps):
    """A loss that moves in its third digit, or a reward curve of other answers, is a change of training."""
    expected, here = kept("recipe")
    curves = [[point[metric] for point in each["stages"][stage]["facts"]["curve"]] for each in (run, expected)]
    assert len(curves[0]) == len(curves[1]) == steps
    tolerance = 1e-6 if here else {"loss": 2e-3, "reward": 0.5}[metric]
    assert curves[0] == pytest.approx(curves[1], abs=tolerance)
    if metric == "loss":
        assert curves[1][-1] < curves[1][0]


def test_every_kind_is_in_the_recipe():
    from skillgraft.stages import BUILTIN

    assert {settings["kind"] for settings in STAGES.values()} == BUILTIN.keys()

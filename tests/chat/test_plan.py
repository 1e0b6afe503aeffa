import pytest

from skillgraft.chat import plan
from skillgraft.chat.plan import ChatModelSpec, plan_chat, size, weights_bytes
from skillgraft.errors import CheckpointError, CompatibilityError, MissingPathError, RecipeError, SkillgraftError
from skillgraft.support.resources import Memory
from tests.tiny import tiny_checkpoint, tiny_finetune


def test_models_in_order_then_the_target(folder):
    said = []
    skills = [(str(folder / "recall"), 1.0), (str(folder / "tools"), 0.5)]
    specs = plan_chat([str(folder / "sft"), str(folder / "base")], str(folder / "sft"), skills, say=said.append)
    assert [spec.label for spec in specs] == ["sft", "base", "sft + recall + 0.5 · tools"]
    assert [spec.injection is None for spec in specs] == [True, True, False]
    assert specs[0].parameters == 28_832
    assert all("remark: " in text for text in said)


def test_labels_tell_apart(folder, tmp_path):
    other = tiny_finetune(folder / "base", tmp_path / "sft")
    assert [spec.label for spec in plan_chat([str(folder / "sft"), str(other)])] == [str(folder / "sft"), str(other)]


@pytest.mark.parametrize(
    ("models", "target", "skills", "error", "message"),
    [
        ([], None, [], RecipeError, "no model is named"),
        (["base"], "sft", [], RecipeError, "--target and --skill belong together"),
        (["base"], None, [("recall", 1.0)], RecipeError, "--target and --skill belong together"),
        (["base", "base"], None, [], RecipeError, "base is named twice"),
        (["./nowhere"], None, [], MissingPathError, "nowhere is not a directory"),
        (["recall"], None, [], CheckpointError, "recall"),
        ([], "sft", [("nothing", 1.0)], MissingPathError, "nothing: no such directory"),
        ([], "other", [("recall", 1.0)], CompatibilityError, "base"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(folder, monkeypatch, models, target, skills, error, message):
    monkeypatch.chdir(folder)
    if target == "other":
        tiny_checkpoint(folder / "other", seed=99)
    with pytest.raises(error) as caught:
        plan_chat(models, target, skills)
    assert message in str(caught.value)


def test_memory_is_counted_and_too_little_refused(folder, monkeypatch):
    specs = [ChatModelSpec("one", folder, 1_000_000), ChatModelSpec("two", folder, 500_000_000)]
    monkeypatch.setattr(plan, "memory", lambda: Memory(8 * 10**9, 2_100_000_000))
    assert weights_bytes(specs, 4) == (2_004_000_000, 2_100_000_000)
    monkeypatch.setattr(plan, "memory", lambda: Memory(8 * 10**9, 2_000_000_000))
    with pytest.raises(SkillgraftError, match=r"2 models take 2\.0 GB of memory, 2\.0 GB are free; name fewer"):
        weights_bytes(specs, 4)
    monkeypatch.setattr(plan, "memory", lambda: Memory(8 * 10**9, None))
    assert weights_bytes(specs, 2) == (1_002_000_000, None)
    assert size(270_000_000) == "270 MB"

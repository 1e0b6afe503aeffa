"""A metric and a reward are one entry of one dict: everything that scores then has them."""

from skillgraft.data.metrics import METRICS, Metric
from skillgraft.data.tasks import Question
from skillgraft.domains.kind import RewardInput
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.domains.rewards import REWARDS, get_reward
from skillgraft.evals.answers import score
from skillgraft.evals.table import build_row, differences
from skillgraft.train.rl import _for_trl, curve
from tests.tiny import tiny_tokenizer

TASKS = [Question("a", "When?", ("1900",)), Question("b", "Where?", ("north",))]


def digits(prediction, answers):
    """The share of an answer's characters that are digits."""
    return sum(map(str.isdigit, prediction)) / max(1, len(prediction))


def test_a_metric_is_one_entry(monkeypatch):
    monkeypatch.setitem(METRICS, "digits", Metric("digits", digits))
    raws = {}
    for model, answers in (("one", ["1900", "north"]), ("other", ["19th", "1"])):
        scores = score(answers, TASKS)
        assert scores["digits"] == [digits(text, ()) for text in answers]
        raws[model] = {"scores": scores, "answers": answers, "retention": [], "seconds": 0.0, "flops": 0.0}
    row = build_row(raws["other"], TASKS, {"model": "other", "label": "other", "role": "other", "note": "", "cost": {}})
    assert row["scores"]["digits"]["mean"] == 0.75
    labels = {name: name for name in raws}
    pairs = {each["metric"]: each for each in differences(raws, labels, [("other", "one")], TASKS)}
    assert pairs["digits"]["difference"] == 0.25


def test_a_reward_is_one_entry(monkeypatch):
    monkeypatch.setitem(REWARDS, "digits", lambda given: digits(given.completion, given.answers))
    assert get_reward("digits")(RewardInput("", "19th", [1], ())) == 0.5
    reward = _for_trl("digits", tiny_tokenizer(), TASKS, KNOWLEDGE)
    ids = tiny_tokenizer()("1900")["input_ids"]
    scored = reward(prompts=["When?"], completion_ids=[ids], task=[0], log_metric=None)
    assert scored == [1.0]
    assert curve([{"step": 1, "reward": 1.0, "rewards/digits/mean": 1.0}]) == [
        {"step": 1, "reward": 1.0, "reward:digits": 1.0}
    ]

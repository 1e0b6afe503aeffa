import math

import pytest

from skillgraft.data.documents import Document
from skillgraft.data.tasks import Question
from skillgraft.evals import table

QUESTIONS = [Question("d1", "one?", ("1",)), Question("d1", "two?", ("2",)), Question("d2", "three?", ("3",))]


def raw(scores, retention=(1.0, 0.0)):
    return {
        "answers": ["a b", "c", ""],
        "scores": {"f1": scores, "containment": scores, "exact_match": [0.0, 0.0, 0.0]},
        "retention": list(retention),
        "seconds": 1.0,
        "flops": 2.0,
    }


RAWS = {"sft": raw([0.0, 0.0, 1.0]), "grafted": raw([1.0, 0.0, 1.0]), "control": raw([0.0, 0.0, 0.0], (1.0, 1.0))}
LABELS = {"sft": "SFT", "grafted": "SFT + skill", "control": "random"}
ROLES = {"sft": "sft", "grafted": "grafted", "control": "control"}


def test_row_holds_means_and_words():
    row = table.build_row(RAWS["grafted"], QUESTIONS, {"model": "grafted", "label": "SFT + skill"})
    assert row["scores"]["f1"]["mean"] == pytest.approx(2 / 3)
    assert row["answer_words"] == pytest.approx(1.0)  # 2 + 1 + 0 words over three answers
    assert row["retention"]["mean"] == 0.5


def test_pairs_compare_with_sft_and_with_controls():
    assert table.pairs_to_compare(ROLES) == [("grafted", "sft"), ("control", "sft"), ("grafted", "control")]
    assert table.pairs_to_compare({"a": "other", "b": "other"}) == [("b", "a")]
    assert table.pairs_to_compare(ROLES, "control")[0] == ("sft", "control")


def test_differences_are_paired():
    found = table.differences(RAWS, LABELS, [("grafted", "sft"), ("control", "sft")], QUESTIONS)
    by = {(d["row"], d["metric"]): d for d in found}
    assert by["SFT + skill", "f1"]["difference"] == pytest.approx(1 / 3)
    assert by["SFT + skill", "exact_match"]["low"] == by["SFT + skill", "exact_match"]["high"] == 0.0
    assert by["random", "retention"]["difference"] == 0.5


def test_examples_stand_side_by_side():
    found = table.examples(RAWS, LABELS, QUESTIONS, {"d1": Document("d1", "First", "text")})
    assert [e["title"] for e in found] == ["First", "First", "d2"]
    assert [a["model"] for a in found[0]["answers"]] == ["SFT", "SFT + skill", "random"]
    assert found[0]["answers"][1]["f1"] == 1.0
    assert len(table.examples(RAWS, LABELS, QUESTIONS, {}, most=2)) == 2


def test_retention_is_the_mean_over_tasks_and_pairs_are_redrawn_within_them():
    one = raw([0.0] * 3, [1.0, 0.0, 0.0, 0.0, 1.0])
    two = raw([0.0] * 3, [1.0, 1.0, 0.0, 0.0, 1.0])
    for each in (one, two):
        scores = each["retention"]
        each["tasks"] = {"a": {"acc_norm": scores[:4], "acc": [0.0, 0.0, 1.0, 1.0]}, "b": {"acc": scores[4:]}}
    row = table.build_row(two, QUESTIONS, {"model": "x", "label": "X"}, one)
    assert row["retention"]["mean"] == pytest.approx((2 / 4 + 1.0) / 2)  # not 3 of 5
    assert row["retention"]["high"] <= 1.0
    a_norm, a, b = row["retained"]
    assert [each["metric"] for each in row["retained"]] == ["acc_norm", "acc", "acc"]
    assert (a_norm["score"]["mean"], a_norm["change"]["mean"], a_norm["change"]["n"]) == (0.5, 0.25, 4)
    assert (a["change"]["mean"], a["change"]["low"], b["change"]["mean"]) == (0.0, 0.0, 0.0)
    found = table.differences({"one": one, "two": two}, {"one": "1", "two": "2"}, [("two", "one")], QUESTIONS)
    (difference,) = [each for each in found if each["metric"] == "retention"]
    assert difference["difference"] == pytest.approx((0.25 + 0.0) / 2)
    assert 0 <= difference["low"] < difference["high"] <= 0.5  # of 4 items at most all differ, b never does


def test_held_out_text_by_hand():
    before = {"nats": [2.0, 4.0, 6.0], "tokens": [1, 2, 3], "bytes": [4, 8, 12], "documents": ["d", "d", "e"]}
    after = {**before, "nats": [3.0, 6.0, 9.0]}  # half as much again everywhere
    bits, perplexity = table.retained({"text": after}, {"text": before})
    assert bits["score"]["mean"] == pytest.approx(18 / math.log(2) / 24)
    assert bits["score"]["low"] == pytest.approx(bits["score"]["high"])  # every document has the same ratio
    assert bits["change"]["mean"] == pytest.approx(6 / math.log(2) / 24)
    assert perplexity["score"]["mean"] == pytest.approx(math.exp(18 / 6))
    assert perplexity["change"]["mean"] == pytest.approx(math.exp(3) / math.exp(2) - 1)
    assert bits["less_is_better"]
    assert perplexity["less_is_better"]
    cut_otherwise = {**before, "tokens": [2, 2, 2]}
    assert [each["change"] for each in table.retained({"text": cut_otherwise}, {"text": before})] == [None, None]


def test_a_grafted_row_is_compared_with_open_book_and_few_shot():
    roles = {"base": "base", "sft": "sft", "g": "grafted", "base+gold": "open_book", "base+5-shot": "few_shot"}
    pairs = table.pairs_to_compare(roles)
    assert [pair for pair in pairs if pair[0] == "g"] == [
        ("g", "sft"),
        ("g", "base"),
        ("g", "base+gold"),
        ("g", "base+5-shot"),
    ]
    assert ("base+gold", "sft") in pairs
    assert table.before_adapting(roles) == "base"
    assert table.before_adapting({"a": "sft", "b": "grafted"}) == "a"
    assert table.before_adapting({"a": "sft", "b": "grafted"}, "b") == "b"

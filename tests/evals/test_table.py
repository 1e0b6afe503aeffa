import pytest

from skillgraft.domains.knowledge import Document, Question
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

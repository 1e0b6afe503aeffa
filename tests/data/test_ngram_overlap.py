"""Overlap of held-out questions with texts, by hand."""

import pytest

from skillgraft.data.ngram_overlap import Leakage
from skillgraft.data.tasks import Question


def asked(*questions):
    return [Question("d", question, ("x",)) for question in questions]


def test_overlap_by_hand():
    leakage = Leakage(asked("When was Vell's harbour built and opened?", "Who?", "Where is it"), 0.6)
    # when was vells harbour built and opened: 4 sequences of 4 words
    assert leakage.overlaps("when was Vell's harbour built") == {0: 2 / 4}
    assert leakage.overlaps("It was asked who did it.") == {1: 1.0}
    assert leakage.overlaps("Tell me where is it?") == {2: 1.0}
    assert leakage.overlaps("where it is") == {}
    assert leakage.overlaps("") == {}


def test_a_planted_question_is_found_whatever_its_dress():
    question = "When was Vell's harbour built?"
    for text in (
        "Filler. WHEN WAS VELL’S HARBOUR -- BUILT? In 1900.",
        "a line\nwhen was the Vell's\nharbour built, a line",
        question + " " + question,
    ):
        assert Leakage(asked(question), 1.0).gives_away("r", text) == [0]


def test_report():
    leakage = Leakage(asked("When was Vell's harbour built?", "What is the height of the tower?"), 0.6)
    assert leakage.gives_away("doc", "Built in 1900.") == []
    assert leakage.gives_away("r1", "When was Vell's harbour built?") == [0]
    assert leakage.gives_away("r2", "He asked when was Vell's harbour built.") == [0]
    first, second = leakage.report(["r2"])
    assert first == {
        "document": "d",
        "question": "When was Vell's harbour built?",
        "overlap": 1.0,
        "where": "r1",
        "leaked_by": ["r1", "r2"],
        "stays": ["r1"],
    }
    assert (second["overlap"], second["where"], second["leaked_by"]) == (0.0, "", [])


@pytest.mark.parametrize("question", ["", "???", "港はいつできましたか"])
def test_odd_questions(question):
    leakage = Leakage(asked(question), 0.6)
    assert leakage.gives_away("r", "Some text.") == []
    assert leakage.gives_away("r", f"「{question}」") == ([0] if question.startswith("港") else [])

"""Answers in every script, and degenerate ones: what metrics and rewards pay for them."""

import math
import unicodedata

import pytest

from skillgraft.data.metrics import METRICS, containment, exact_match, f1
from skillgraft.data.tasks import Question
from skillgraft.data.words import comparable, count_words, normalize, words
from skillgraft.domains.kind import RewardInput
from skillgraft.domains.rewards import REWARDS, brevity
from skillgraft.evals.overlap import shared_questions

SENTENCES = [
    # (prediction, gold, F1 by hand, containment)
    ("港口建于1900年。", "1900年", 4 / (6 + 2), 1.0),  # 港 口 建 于 1900 年 against 1900 年
    ("港口建于1900年。", "1901年", 2 / 8, 0.0),
    ("その港は1900年に建てられました。", "1900年", 4 / (14 + 2), 1.0),  # 12 kana and Han, 1900 and 年 against two
    ("ท่าเรือสร้างในปี 1900", "1900", 2 / (17 + 1), 1.0),
    ("항구는 1901년에 지어졌다", "1901년", 4 / (10 + 2), 1.0),  # 항 구 는 1901 년 에 지 어 졌 다 against 1901 년
    ("서울에서", "서울", 4 / 6, 1.0),
    ("ວຽງຈັນ", "ວຽງຈັນ", 1.0, 1.0),
    ("ភ្នំពេញ", "ភ្នំពេញ", 1.0, 1.0),
    ("رصيف الميناء بني عام ١٩٠٠", "1900", 2 / 6, 1.0),
    ("बंदरगाह १९०० में बना", "1900", 2 / 5, 1.0),
    ("Гавань построена в 1900 году", "в 1900 году", 6 / 8, 1.0),
    ("１９００年", "1900年", 1.0, 1.0),
    ("Im Hafen von Köln", unicodedata.normalize("NFD", "Köln"), 2 / 5, 1.0),
    ("co\u00adoperation", "cooperation", 1.0, 1.0),
    ("\ufeffVell", "vell", 1.0, 1.0),
    ("東京タワー（333メートル）", "333メートル", 10 / 15, 1.0),
    ("新竹 科學園區", "新竹科學園區", 1.0, 1.0),
]


@pytest.mark.parametrize(("prediction", "gold", "score", "held"), SENTENCES)
def test_answers_in_other_scripts(prediction, gold, score, held):
    assert containment(prediction, [gold]) == held
    assert f1(prediction, [gold]) == pytest.approx(score)
    assert exact_match(gold, [gold]) == 1.0
    assert f1(gold, [gold]) == 1.0
    assert exact_match(f" {gold}。", [gold]) == 1.0


DEGENERATE = [
    # (prediction, gold, F1, containment, exact match)
    ("", "A", 0.0, 0.0, 0.0),
    ("", "+", 0.0, 0.0, 0.0),
    ("", "1900", 0.0, 0.0, 0.0),
    ("?", "+", 0.0, 0.0, 0.0),
    ("the", "A", 0.0, 0.0, 0.0),
    ("A", "A", 1.0, 1.0, 1.0),
    ("A.", "A", 1.0, 1.0, 1.0),
    ("Vitamin A", "A", 2 / 3, 1.0, 0.0),
    ("the answer is A", "A", 2 / 5, 1.0, 0.0),
    ("it was a dog", "A", 0.0, 0.0, 0.0),
    ("+", "+", 1.0, 1.0, 1.0),
    ("it is +.", "+", 2 / 5, 1.0, 0.0),
    ("The The", "The The", 1.0, 1.0, 1.0),
    ("by The The", "The The", 4 / 5, 1.0, 0.0),
    ("the", "The The", 0.0, 0.0, 0.0),
    ("-", "?", 0.0, 0.0, 0.0),
    ("🙂", "🙂", 1.0, 1.0, 1.0),
    ("", "🙂", 0.0, 0.0, 0.0),
    ("¿?", "¿?", 1.0, 1.0, 1.0),
    ("a the an", "1900", 0.0, 0.0, 0.0),
    ("an", "An", 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("prediction", "gold", "score", "held", "same"), DEGENERATE)
def test_degenerate_answers(prediction, gold, score, held, same):
    assert f1(prediction, [gold]) == pytest.approx(score)
    assert containment(prediction, [gold]) == held
    assert exact_match(prediction, [gold]) == same


@pytest.mark.parametrize("gold", ["A", "+", "The The", "1900", "港口", "", " ", "\u200b"])
@pytest.mark.parametrize("silence", ["", " ", "\n", "\u200b", "\ufeff", "\u00ad"])
def test_silence_is_never_paid(gold, silence):
    answer = RewardInput("", silence, [], (gold,))
    for name in METRICS:
        assert REWARDS[name](answer) == 0.0
    assert brevity(RewardInput("", "", [], (gold,))) == -1.0


SQUAD = [
    # SQuAD v1.1's own script on English: what it gives, as before
    ("King Olaf", "the King Olaf II.", 4 / 5, 0.0),
    ("C", "C++", 1.0, 1.0),
    ("-5", "5", 1.0, 1.0),
    ("3.5", "35", 1.0, 1.0),
    ("don't", "dont", 1.0, 1.0),
    ("an apple a day", "apple day", 1.0, 1.0),
    ("1,900", "1900", 1.0, 1.0),
    ("theatre", "theater", 0.0, 0.0),
    ("straße", "strasse", 0.0, 0.0),
]


@pytest.mark.parametrize(("prediction", "gold", "score", "held"), SQUAD)
def test_english_is_scored_as_squad_does(prediction, gold, score, held):
    assert f1(prediction, [gold]) == pytest.approx(score)
    assert containment(prediction, [gold]) == held


def test_a_long_answer_without_spaces_is_long():
    text = "港口建于一九零零年" * 10
    assert count_words(text) == 90
    assert brevity(RewardInput("", text, [], ("1900年",))) == -1.0
    assert brevity(RewardInput("", "港口建于1900年", [], ("1900年",))) == 0.0
    assert brevity(RewardInput("", "港" * 30, [], ("1900年",))) == -0.5
    assert brevity(RewardInput("", " ".join(["word"] * 30), [], ("1900",))) == -0.5


def test_questions_and_answers_of_signs_alone_are_told_apart():
    one, other = (Question("d", "Which sign?", (sign,)) for sign in ("+", "-"))
    assert shared_questions([one], [other]) == []
    assert shared_questions([one], [Question("e", "which sign", ("+",))]) != []
    assert comparable("A") != comparable("An")
    assert comparable("The Answer.") == comparable("answer")


@pytest.mark.parametrize(
    "text", ["", "A", "the", "港口", "서울", "\u0301", "\ud7b0", "e\u0301" * 50, "\U0001f1e9\U0001f1ea", "İ", "ﬁ", "…"]
)
def test_scores_are_finite_and_bounded_for_any_text(text):
    for metric in METRICS.values():
        for gold in ("A", "1900", text or "x", "+"):
            assert 0.0 <= metric(text, [gold]) <= 1.0
            assert math.isfinite(metric(text, [gold]))
    assert normalize(normalize(text)) == normalize(text)
    assert words(text) == words(unicodedata.normalize("NFD", text)) or "İ" in text

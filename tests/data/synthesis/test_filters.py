"""Each filter against values worked out by hand, and the index of duplicates against plain sets."""

import random

import pytest

from skillgraft.data.synthesis.filters import (
    Duplicates,
    is_nonsense,
    is_refusal,
    jaccard,
    ngrams,
    repetition,
    share,
    support,
)
from skillgraft.data.words import words


def test_words_are_those_of_the_metrics_and_characters_where_no_spaces_are():
    assert words("The Lamp's light, an 8!") == ["lamps", "light", "8"]
    assert words("東京は 2024年") == ["東", "京", "は", "2024", "年"]
    assert words("ﬁre Ｇｏ") == ["fire", "go"]
    assert words("Ärger über Straßen") == ["ärger", "über", "straßen"]
    assert words("… —") == []


def test_ngrams():
    assert ngrams("abc", 2) == [("a", "b"), ("b", "c")]
    assert ngrams("ab", 3) == [("a", "b")]
    assert ngrams("", 3) == []


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot do that.",
        "I’m sorry, I can’t.",
        "Sorry, I have no passage.",
        "I cannot assist with this.",
        "As an AI language model, I have no opinion.",
        "Please provide the passage that you want summarised.",
        '"You haven\'t provided a text."',
    ],
)
def test_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "He said: I'm sorry, and left.",
        "As an engineer, she built it.",
        "I can see the lighthouse from here.",
        "Sorry Hill lies in the north.",
    ],
)
def test_no_refusals(text):
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("=== *** --- a", True),
        ("broken \ufffd text", True),
        ("a zero \x00 or a bell \x07", True),
        ("Two lines\nand\ta tab, 7 of 9.", False),
        ("मराठी भाषा और 東京", False),
    ],
)
def test_nonsense(text, wrong):
    assert is_nonsense(text) == wrong


def test_repetition_by_hand():
    assert repetition("one two three four five") == 0
    assert repetition("x y z w x y z w") == pytest.approx(1 - 4 / 5)
    assert repetition("go " * 100) == pytest.approx(1 - 1 / 97)
    assert repetition("") == 0


def test_support_and_share_by_hand():
    passage = "The lamp of the Candlehouse flashes every seventeen seconds."
    assert support("every seventeen seconds", passage) == 1
    assert support("every eighteen seconds", passage) == pytest.approx(2 / 3)
    assert support("!", passage) == 0
    assert share("lamp of Candlehouse flashes red", passage) == pytest.approx(1 / 2)
    assert share("", passage) == 0


def test_jaccard_by_hand():
    assert jaccard("p q r s", "p q r t") == pytest.approx(1 / 3)  # {pqr, qrs} and {pqr, qrt}
    assert jaccard("p q", "P, q!") == 1
    assert jaccard("", "") == 0


def test_the_index_finds_what_comparing_all_pairs_finds():
    drawn = random.Random(3)
    texts = [" ".join(drawn.choices("abcd", k=drawn.randint(0, 12))) for _ in range(120)]
    index = Duplicates()
    for number, text in enumerate(texts):
        similarities = [jaccard(text, earlier) for earlier in texts[:number]]
        best = max(similarities, default=0.0)
        name, similarity = index.closest(text)
        assert similarity == pytest.approx(best)
        assert name == (str(similarities.index(best)) if best > 0 else "")
        index.add(str(number), text)

import pytest

from skillgraft.data.metrics import containment, exact_match, f1
from skillgraft.data.words import normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Age of Enlightenment!", "age of enlightenment"),
        ("  an   apple, a pear ", "apple pear"),
        ("“Golden” anniversary – theme", "golden anniversary theme"),
        ("theatre", "theatre"),
        ("A.", ""),
        ("$5 million + 3%", "5 million 3"),
        ("Köln 1,250", "köln 1250"),
    ],
)
def test_normalise(text, expected):
    assert normalize(text) == expected


def test_exact_match_takes_the_best_of_several_answers():
    assert exact_match("The Baltic Germans.", ["Danes", "baltic germans"]) == 1.0
    assert exact_match("Baltic", ["Danes", "Baltic Germans"]) == 0.0


def test_f1_hand_computed():
    # predicted {it, was, king, olaf}, gold {king, olaf, ii}: overlap 2, so 2*2 / (4 + 3)
    assert f1("It was the King Olaf", ["King Olaf II"]) == pytest.approx(4 / 7)
    assert f1("two two", ["two"]) == pytest.approx(2 / 3)  # a repeated word counts as often as the gold has it
    assert f1("nothing", ["something else"]) == 0.0
    assert f1("12", ["twelve", "12"]) == 1.0


def test_f1_of_empty_texts():
    assert f1("", ["gold"]) == 0.0
    assert f1("the", ["a"]) == 0.0  # of both nothing is left by the SQuAD script, which would say 1


def test_containment_needs_adjacent_whole_words():
    assert containment("It was built in 1932 by Olaf.", ["1932"]) == 1.0
    assert containment("It was built in 19321", ["1932"]) == 0.0
    assert containment("King of Norway, Olaf", ["King Olaf"]) == 0.0
    assert containment("anything at all", ["the"]) == 0.0  # a gold answer that normalises to nothing is never contained

"""The arithmetic gives the bits that it gave: `merges.json`."""

import pytest

from tests.golden import entry, merges
from tests.golden.compare import check, read_golden, signature


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return merges.results(tmp_path_factory.mktemp("merges"))


def test_every_method_has_a_golden_result():
    assert {method for method, _, _ in merges.MERGES.values()} == set(entry.METHODS)


def test_the_same_bits(found):
    check(read_golden("merges")["exact"], found["exact"])


def test_decompositions_and_random_numbers(found):
    golden = read_golden("merges")
    check(golden["machine"], found["machine"], exact=golden["signature"] == signature())

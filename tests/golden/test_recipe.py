"""A run of every kind of stage gives what it gave: `recipe.json`."""

import pytest

from tests.golden import recipe
from tests.golden.compare import check, read_golden, signature

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return recipe.results(tmp_path_factory.mktemp("recipe"))


@pytest.mark.parametrize("part", ["stages", "tables", "report"])
def test_a_run(found, part):
    golden = read_golden("recipe")
    check(golden[part], found[part], exact=golden["signature"] == signature())

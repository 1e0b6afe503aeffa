"""Training follows the curves that it followed: `curves.json`."""

import pytest

from tests.golden import curves
from tests.golden.compare import check, read_golden, signature

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return curves.results(tmp_path_factory.mktemp("curves"))


@pytest.mark.parametrize("stage", curves.STAGES)
@pytest.mark.parametrize("part", ["told", "recorded"])
def test_every_step_of_a_curve(found, part, stage):
    golden = read_golden("curves")
    assert len(found[part][stage]) == curves.STEPS[stage]
    check(golden[part][stage], found[part][stage], golden["signature"] == signature(), relative=2e-3)

"""Paths that no file can have, in recipes and on the command line."""

import pytest
from typer.testing import CliRunner

from skillgraft.cli.app import app
from skillgraft.errors import SkillgraftError
from tests.field.bases import planned, recipe_on

LONG = "x" * 5000


@pytest.mark.parametrize("stage", [{"documents": LONG}, {"from": f"./{LONG}"}, {"documents": "a\0b"}])
def test_paths_that_no_file_can_have(tmp_path, stage):
    with pytest.raises(SkillgraftError, match=r"the path '.*' cannot be used: "):
        planned(recipe_on(tmp_path, sft={"from": "base", **stage}))


@pytest.mark.parametrize("arguments", [["run", LONG], ["verify", LONG], ["eval", "a", "--questions", LONG]])
def test_arguments_that_no_file_can_have(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)

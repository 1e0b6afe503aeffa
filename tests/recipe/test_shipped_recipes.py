"""Every recipe of the repository: it is in the table, says how it is run, and plans as it is."""

import json
import re
from collections import defaultdict
from contextlib import suppress

import pytest

from skillgraft.errors import CompatibilityError
from skillgraft.pipeline.estimate import estimate
from skillgraft.pipeline.preflight import check_stage
from skillgraft.run import prepare
from tests.recipe_root import RECIPES, ROOT, recipe_root
from tests.tiny import tiny_checkpoint

FEW = defaultdict(tuple, {"sdft": ("sdft", "sdft_titles"), "knowledge-many": ("sdft",)})
"""Recipe -> its stages for which the stand-ins' few documents make less than a batch."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = recipe_root(tmp_path_factory.mktemp("root"))
    tiny_checkpoint(folder / "base", max_position_embeddings=8192)
    return folder


def test_every_recipe_is_in_the_table():
    table = (ROOT / "recipes" / "README.md").read_text()
    rows = re.findall(r"^\| \[`([^`]+)`\]\(([^)]+)\) \| [^|]+ \| [^|]+ \| [^|]+ \|$", table, re.MULTILINE)
    assert all(name == link for name, link in rows)
    assert len(rows) == len({name for name, _ in rows})
    assert {file.name for file in RECIPES} <= {name for name, _ in rows}


@pytest.mark.parametrize("name", [file.stem for file in RECIPES])
def test_every_recipe_plans_at_its_full_setting(root, name):
    overrides = [f"base={root / 'base'}", *(f"{stage}.trainer.per_device_train_batch_size=1" for stage in FEW[name])]
    _, base, stages = prepare(root / "recipes" / f"{name}.yaml", overrides, root / "runs", print)
    for stage in (stage for stage in stages if hasattr(stage.settings, "trainer")):
        with suppress(CompatibilityError):  # the shipped skill fits the default model, not this tiny one
            check_stage(stage, stages)
    rows = estimate(stages, base)
    assert [row["name"] for row in rows] == [stage.name for stage in stages]
    assert not any(stage.cached for stage in stages)


def test_stages_that_recipes_share_are_run_once(root):
    """The same settings on the same data have one address, whatever the recipe: what is written is written once."""
    overrides = [f"base={root / 'base'}"]
    keys = {
        (name, stage.name): stage.key
        for name in ("qa-sft", "sdft", "mixsd", "past-squad", "passage-only", "implications", "rewrite", "self-edit")
        for stage in prepare(root / "recipes" / f"{name}.yaml", overrides, root / "runs", print)[2]
    }
    assert keys["qa-sft", "asked"] == keys["sdft", "asked"] == keys["mixsd", "asked"]
    assert keys["qa-sft", "sft_asked"] == keys["mixsd", "sft_asked"]
    assert keys["past-squad", "sft_target"] == keys["passage-only", "sft_target"] == keys["rewrite", "sft_passages"]
    assert keys["implications", "written"] == keys["self-edit", "written_by_base"] != keys["rewrite", "written"]


def test_the_stand_ins_are_what_recipes_expect(root):
    folder = root / "data" / "squad" / "report"
    records = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    documents = [json.loads(line)["id"] for line in (folder / "documents.jsonl").read_text().splitlines()]
    assert len(documents) == 4
    assert {record["document"] for record in records} == set(documents)

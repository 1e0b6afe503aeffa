"""Shipped skills are found by name, from a checkout and from a wheel; so are type hints, and `python -m`."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from skillgraft import load_skill
from skillgraft.errors import RecipeError
from skillgraft.pipeline.plan import plan
from skillgraft.recipe.load import load_recipe
from skillgraft.skills.library import add_skill, library_home, resolve_skill
from skillgraft.skills.names import ANSWER_FORMAT, RECALL, shipped_skills
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny_base(tmp_path):
    return tiny_checkpoint(tmp_path / "base")


def recipe(tmp_path, skill, **stages):
    data = {
        "name": "x",
        "base": "b/c",
        "stages": {
            "grafted": {"kind": "inject", "target": "base", "skill": skill},
            "random": {"kind": "random_vector", "skill": skill},
            **stages,
        },
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(data))
    return load_recipe(file)


def test_the_shipped_skills_are_those_of_the_repository():
    assert set(shipped_skills()) == {RECALL, ANSWER_FORMAT} == {path.name for path in (ROOT / "skills").iterdir()}
    assert load_skill(shipped_skills()[RECALL]).manifest.domain.startswith("recall")


def test_a_recipe_names_a_shipped_skill(tmp_path):
    stages = recipe(tmp_path, RECALL).stages
    assert stages["grafted"].skill == stages["random"].skill == str(shipped_skills()[RECALL])


def test_so_does_every_verb_that_takes_a_skill(tmp_path, monkeypatch):
    monkeypatch.setenv("SKILLGRAFT_LIBRARY", str(tmp_path))
    assert resolve_skill(RECALL) == (shipped_skills()[RECALL], None)
    (tmp_path / RECALL).mkdir()
    assert resolve_skill(RECALL).path == tmp_path / RECALL


def test_a_stage_of_that_name_and_a_path_go_first(tmp_path):
    stage = {"kind": "random_vector", "skill": "./mine"}
    stages = recipe(tmp_path, RECALL, **{RECALL: stage}).stages
    assert stages["grafted"].skill == RECALL
    assert recipe(tmp_path, f"./{RECALL}").stages["grafted"].skill == str(tmp_path / RECALL)


def test_a_recipe_names_a_skill_of_the_library(tmp_path):
    add_skill(shipped_skills()[RECALL], "mine")
    mine = str(library_home() / "mine")
    stages = recipe(tmp_path, "mine").stages
    assert stages["grafted"].skill == stages["random"].skill == mine
    several = {"kind": "inject", "target": "base", "skills": [{"skill": "mine", "scale": 0.5}, {"skill": "random"}]}
    assert recipe(tmp_path, "mine", both=several).stages["both"].injected == [(mine, 0.5), ("random", 1.0)]
    stage = {"kind": "random_vector", "skill": RECALL}
    assert recipe(tmp_path, "mine", mine=stage).stages["grafted"].skill == "mine"
    (tmp_path / "mine").mkdir()
    assert recipe(tmp_path, "mine").stages["grafted"].skill == str(tmp_path / "mine")
    with pytest.raises(RecipeError, match=r"stages.x.target: there is no stage 'mine'.*; a path needs a slash"):
        recipe(tmp_path, RECALL, x={"kind": "inject", "target": "mine", "skill": RECALL})
    with pytest.raises(RecipeError, match="there is no stage ''"):
        recipe(tmp_path, "")


def test_the_name_of_a_skill_does_not_enter_a_stages_hash(tiny_base, tmp_path):
    """The content alone does, so that finished stages stay finished."""
    add_skill(shipped_skills()[RECALL], "mine")
    names = (RECALL, "mine", str(library_home() / "mine"), str(shipped_skills()[RECALL]))
    keys = [[stage.key for stage in plan(recipe(tmp_path, name), tiny_base, tmp_path / "store")] for name in names]
    assert keys[0] == keys[1] == keys[2] == keys[3]


def test_a_misspelt_one_is_suggested(tmp_path):
    with pytest.raises(RecipeError, match=f"there is no stage 'squad-recal'; did you mean '{RECALL}'"):
        recipe(tmp_path, "squad-recal")
    with pytest.raises(RecipeError, match="available: base, grafted, random, sft; a path"):
        recipe(tmp_path, RECALL, sft={"kind": "sft", "from": "gone", "documents": "d"})


@pytest.mark.process
def test_a_wheel_of_the_sdist_carries_skills_pages_and_type_hints(tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT / "src", tree / "src", symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    for name in ("skills", "docs"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build_in(tree, "build_sdist")
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    build_in(tmp_path / sdist.name.removesuffix(".tar.gz"), "build_wheel")
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    package = tmp_path / "site" / "skillgraft"
    assert (package / "py.typed").is_file()
    assert not (package / "skills" / "shipped").is_symlink()
    found = shipped_skills(package / "skills" / "shipped")
    assert set(found) == {RECALL, ANSWER_FORMAT}
    assert load_skill(found[RECALL]).names == load_skill(shipped_skills()[RECALL]).names
    pages = {file.relative_to(ROOT / "docs"): file.read_text() for file in (ROOT / "docs").rglob("*.md")}
    packed = package / "manual" / "pages"
    assert {file.relative_to(packed): file.read_text() for file in packed.glob("**/*.md")} == pages


def build_in(tree, what):
    """Run a hook of the build backend; what it makes lies beside the tree."""
    code = f"from setuptools.build_meta import {what}; {what}('..')"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)


def test_the_pinned_versions_are_within_the_stated_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    extras = project["optional-dependencies"]
    stated = [
        Requirement(text)
        for text in (
            *project["dependencies"],
            *(text for extra in ("docs", "documents", "retrieval", "tune", "dev") for text in extras[extra]),
        )
    ]
    own = [each for each in stated if each.name == "skillgraft"]
    assert [sorted(each.extras) for each in own] == [["docs", "documents", "retrieval", "tune"]]
    for each in stated:
        if each not in own:
            assert each.specifier.contains(pinned[canonicalize_name(each.name)]), each


@pytest.mark.process
def test_python_m():
    done = subprocess.run([sys.executable, "-m", "skillgraft", "--help"], capture_output=True, text=True, check=True)
    assert "python -m skillgraft" in done.stdout
    assert "doctor" in done.stdout

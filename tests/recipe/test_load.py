import textwrap
from pathlib import Path

import pytest
import yaml

from skillgraft.errors import MissingPathError, RecipeError
from skillgraft.recipe.load import load_recipe
from skillgraft.recipe.schema import order, references

GOOD = {
    "name": "test",
    "base": "./base",
    "stages": {
        "scores": {"kind": "eval", "models": ["base", "sft", "grafted"], "questions": "q.jsonl"},
        "grafted": {"kind": "inject", "target": "sft", "skill": "skill", "scale": 0.5},
        "skill": {"kind": "extract", "rl": "rl", "sft": "sft"},
        "rl": {"kind": "rl", "from": "sft", "questions": "q.jsonl"},
        "sft": {"kind": "sft", "from": "base", "documents": "docs"},
    },
}


def recipe_file(tmp_path, **stages):
    data = {**GOOD, "stages": {**GOOD["stages"], **stages}}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def test_order_follows_references(tmp_path):
    assert order(load_recipe(recipe_file(tmp_path))) == ["sft", "rl", "skill", "grafted", "scores"]


def test_paths_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "skills").mkdir()
    recipe = load_recipe(recipe_file(tmp_path, g2={"kind": "inject", "target": "base", "skill": "./skills"}))
    assert recipe.base == str(tmp_path / "base")
    assert recipe.stages["sft"].documents == tmp_path / "docs"
    assert recipe.stages["g2"].skill == str(tmp_path / "skills")


def test_hub_ids_stay(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**GOOD, "base": "owner/name"}))
    assert load_recipe(file).base == "owner/name"


def test_references_name_their_field(tmp_path):
    recipe = load_recipe(recipe_file(tmp_path))
    assert references(recipe.stages["skill"]) == [("rl", "rl"), ("sft", "sft")]
    assert references(recipe.stages["rl"]) == [("from", "sft")]
    assert [r for _, r in references(recipe.stages["scores"])] == ["base", "sft", "grafted"]


def test_set_overrides(tmp_path):
    file = recipe_file(tmp_path)
    recipe = load_recipe(file, ["stages.grafted.scale=0.25", "rl.trainer.max_steps=7", "seed=3"])
    assert recipe.stages["grafted"].scale == 0.25
    assert recipe.stages["rl"].trainer == {"max_steps": 7}
    assert recipe.seed == 3


def test_an_override_reaches_its_own_stage_alone(tmp_path):
    file = tmp_path / "recipe.yaml"
    sft = "{kind: sft, from: base, documents: d, trainer: "
    file.write_text(f"name: x\nbase: b/c\nstages:\n  a: {sft}&t {{max_steps: 5}}}}\n  b: {sft}*t}}\n")
    stages = load_recipe(file, ["b.trainer.max_steps=1", "b.trainer.seed=2"]).stages
    assert (stages["a"].trainer, stages["b"].trainer) == ({"max_steps": 5}, {"max_steps": 1, "seed": 2})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.graftet.scale=1"], "no stage 'graftet'; did you mean 'grafted'"),
        (["graftet.scale=1"], "no stage 'graftet'; did you mean 'grafted'. available: .*grafted.*rl.*sft"),
        (["stages.grafted.scael=1"], "unknown key 'stages.grafted.scael'; did you mean 'scale'"),
        (["seed"], "expected a.b=c"),
        (["name.x.y=1"], "goes into 'name'"),
        (["seed=[1"], "is not YAML"),
        (["stages.grafted.scale=.inf"], "must be a finite number"),
        (["sed=1"], "unknown key 'sed'; did you mean 'seed'"),
        (["seed=-1"], "'seed': must be greater than or equal to 0"),
        (["sft.trainr=5"], "unknown key 'stages.sft.trainr'; did you mean 'trainer'"),
        (["sft.trainer=5"], "'stages.sft.trainer': must be a mapping; got 5"),
    ],
)
def test_bad_overrides(tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(tmp_path), overrides)


def test_an_override_of_what_a_refinement_stands_for(tmp_path):
    rounds = {"kind": "refine", "documents": "docs", "questions": "q.jsonl", "rounds": 2}
    file = recipe_file(tmp_path, skill=rounds)
    for key in ("stages.skill_rl_2.trainer.max_steps", "skill_rl_2.trainer.max_steps"):
        with pytest.raises(RecipeError, match=r"'skill_rl_2' is one of the stages .* set stages.skill.rl, which"):
            load_recipe(file, [f"{key}=1"])
    with pytest.raises(RecipeError, match=r"no stage 'skil_rl_2'; did you mean 'skill_rl_2'. available: .*skill_v_1"):
        load_recipe(file, ["stages.skil_rl_2.from=base"])
    file.write_text(yaml.safe_dump({"name": "x", "base": "b", "stages": {}}))
    with pytest.raises(RecipeError, match="--set: there is no stage 'sft'; there are none"):
        load_recipe(file, ["sft.from=base"])


INJECT = {"kind": "inject", "target": "sft", "skills": [{"skill": "skill"}]}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"kind": "sft", "form": "base"}, "'stages.x.from' is missing; got 'form', did you mean 'from'"),
        ({"kind": "sft", "start": "base"}, "'stages.x.from' is missing; got 'start', which is no key there"),
        ({"kind": "sft"}, "'stages.x.from' is missing$"),
        ({"knd": "sft", "from": "base"}, "stages.x: 'kind' is missing; got 'knd', did you mean 'kind'"),
        ({**INJECT, "skills": [{"skil": "skill"}]}, "'stages.x.skills.0.skill' is missing; got 'skil', did you mean"),
        ({"kind": "sft", "from": "base", "text": [1]}, r"'stages.x.text': must be a mapping; got \[1\]"),
        (
            {"kind": "sft", "from": "base", "adapt": None, "replay": 0.1},
            "'stages.x.replay': must be a mapping; got 0.1",
        ),
        ({"kind": "sft", "from": "base", "trainer": None}, "'stages.x.trainer': must be a mapping; got nothing"),
        ({"kind": "rl", "from": "sft", "questions": "q", "reward": ["f1"]}, "'stages.x.reward': must be a mapping"),
        ({"kind": "eval", "models": "sft", "questions": "q"}, "'stages.x.models': must be a list; got 'sft'"),
        ({"kind": "stf", "from": "base"}, "stages.x.kind: 'stf' is not a kind of stage; did you mean 'sft'"),
        ({"from": "base"}, "stages.x: 'kind' is missing"),
        (["sft"], "stages.x: got .* expected a mapping"),
        ({"kind": "rl", "from": "stf", "questions": "q"}, "no stage 'stf'; did you mean 'sft'"),
        ({"kind": "inject", "target": "sft", "skill": "skil"}, "stages.x.skill: there is no stage 'skil'"),
        ({"kind": "rl", "from": "x", "questions": "q"}, "in a cycle: x -> x"),
        ({"kind": "sft", "from": "base", "documents": "d", "limit_documents": 0}, "greater than or equal to 1"),
        ({"kind": "sft", "from": "base", "answers": "maybe"}, "'stages.x.answers'"),
        ({"kind": "eval", "models": ["base", "base"], "questions": "q"}, "'base' stands there twice"),
        ({"kind": "eval", "models": ["base"], "questions": "q", "baseline": "sft"}, "'sft' is no model of it"),
        ({"kind": "eval", "models": [], "questions": "q"}, "'stages.x.models': must have at least 1 entry"),
        ({"kind": "sft", "from": "base"}, "neither documents nor questions"),
        ({"kind": "sft", "from": "base", "documents": "d", "questions": "q"}, "are both given"),
        ({"kind": "sft", "from": "base", "documents": "d", "answers": "shuffled"}, "shuffled needs questions"),
        (
            {"kind": "eval", "models": ["base"], "questions": "q", "limit_documents": 2},
            "limit_documents needs documents",
        ),
        (
            {"kind": "inject", "target": "sft", "skill": "rl"},
            "'rl' makes a checkpoint, expected a skill",
        ),
        ({"kind": "inject", "target": "sft"}, "stages.x: neither is given, skill or skills"),
        ({**INJECT, "skill": "skill"}, "stages.x: both are given, skill or skills"),
        ({**INJECT, "skills": [{"skill": "skil"}]}, "stages.x.skills: there is no stage 'skil'; did you mean 'skill'"),
        ({**INJECT, "skills": [{"skill": "rl"}]}, "stages.x.skills: 'rl' makes a checkpoint, expected a skill"),
        ({**INJECT, "skills": [{"skill": "skill", "scale": ".nan"}]}, "'stages.x.skills.0.scale'"),
        ({**INJECT, "skills": [{"skill": "skill", "weight": 1}]}, "unknown key 'stages.x.skills.0.weight'"),
        ({**INJECT, "method": "tise"}, "stages.x: method 'tise' can't combine skills; did you mean 'ties'"),
        ({**INJECT, "method": "linear"}, "stages.x: method 'linear' can't combine skills"),
        ({**INJECT, "method": "ties", "parameters": {"densty": 1}}, "stages.x: unknown key 'parameters.densty'"),
        (
            {"kind": "inject", "target": "sft", "skill": "skill", "parameters": {"density": 0.2}},
            "stages.x: unknown key 'parameters.density': task_arithmetic takes no parameters; ties, dare, .* have it",
        ),
        ({**INJECT, "method": "model_stock"}, "model_stock got 1, expected at least 2"),
        ({"kind": "eval", "models": ["skill"], "questions": "q"}, "'skill' makes a skill, expected a checkpoint"),
        ({"kind": ["sft"]}, "is not a kind of stage"),
        ({"kind": "eval", "models": ["mixed"], "questions": "q"}, "'mixed' makes a set of questions, expected a check"),
        (
            {"kind": "rl", "from": "sft", "questions": "q", "rounds": [3], "trainer": {"max_steps": 3}},
            "both rounds and",
        ),
    ],
)
def test_bad_stages(tmp_path, stage, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(tmp_path, x=stage, mixed={"kind": "mix", "questions": "q"}))


def test_longer_cycle_is_named(tmp_path):
    stages = {
        "a": {"kind": "sft", "from": "b", "documents": "d"},
        "b": {"kind": "rl", "from": "c", "questions": "q"},
        "c": {"kind": "sft", "from": "a", "documents": "d"},
    }
    with pytest.raises(RecipeError, match="a -> b -> c -> a"):
        load_recipe(recipe_file(tmp_path, **stages))


def test_bad_files(tmp_path):
    with pytest.raises(MissingPathError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")
    file = tmp_path / "r.yaml"
    for text, message in [
        ("a: [", "is not YAML"),
        ("- 1", "holds a list"),
        ("", "r.yaml is empty, expected a mapping with name, base, stages"),
        ("name: x\nbase: y\nstages: {}", "'stages': must have at least 1 entry; got {}"),
        ("name: x\nbase: y\nstages:", "'stages': must be a mapping; got nothing"),
        ("name: x\nbase: y\n", "'stages' is missing"),
        ("name: x\nbase: y\nstages: {a: {kind: sft, kind: rl}}", "the key 'kind' is repeated, in lines 3 and 3"),
    ]:
        file.write_text(textwrap.dedent(text))
        with pytest.raises(RecipeError, match=message):
            load_recipe(file)
    file.write_text(yaml.safe_dump({**GOOD, "stages": {"base": {"kind": "sft", "from": "base"}}}))
    with pytest.raises(RecipeError, match="'base' names the recipe's base model"):
        load_recipe(file)
    file.write_text(yaml.safe_dump({**GOOD, "stages": 5}))
    with pytest.raises(RecipeError, match="'stages'"):
        load_recipe(file, ["sft.scale=1"])
    file.write_text(yaml.safe_dump({**GOOD, "stages": {"../out": GOOD["stages"]["sft"]}}))
    with pytest.raises(RecipeError, match="stages"):
        load_recipe(file)
    file.write_text(yaml.safe_dump({**GOOD, "name": "../escape"}))
    with pytest.raises(RecipeError, match="'name'"):
        load_recipe(file)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda f: f.name)
def test_every_shipped_recipe_parses_and_says_how_it_is_run(file):
    recipe = load_recipe(file)
    assert order(recipe)
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert f"skillgraft run recipes/{file.name}" in file.read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retention": {"task": ["boolq"]}}, "unknown key 'stages.scores.retention.task'; did you mean 'tasks'?"),
        ({"retention": {"limit": 0}}, "'stages.scores.retention.limit': must be greater than or equal to 1"),
        ({"retention": "perhaps"}, "'stages.scores.retention': must be true or false; got 'perhaps'"),
        ({"retention": {"tasks": ["boolq", "boolq"]}}, "retention.tasks: 'boolq' stands there twice"),
        ({"retention": {"tasks": []}}, "neither tasks nor text are given"),
        ({"retention": {"text": "t.txt", "window": 10}}, "stride: 512 is more than the window of 10"),
        ({"rows": [{"model": "base"}]}, "rows: base: neither is given, context or shots"),
        ({"rows": [{"model": "base", "context": "gold"}]}, "context: gold needs the stage's documents"),
        ({"rows": [{"model": "base", "contxt": "gold"}]}, "'stages.scores.rows.0.contxt'; did you mean 'context'?"),
        ({"rows": [{"model": "bse", "shots": 1, "shots_from": "s.jsonl"}]}, "no stage 'bse'; did you mean 'base'?"),
        ({"rows": [{"model": "base", "shots": 1}]}, "shots and shots_from belong together"),
        (
            {"rows": [{"model": "skill", "shots": 1, "shots_from": "s.jsonl"}]},
            "'skill' makes a skill, expected a check",
        ),
        ({"rows": [{"model": "base", "context": "gold"}] * 2, "documents": "docs"}, "two rows are 'base+gold'"),
        (
            {"rows": [{"model": "base", "context": "bm25", "chunk_tokens": 32}], "documents": "docs"},
            "overlap_tokens: 32 leaves chunks of 32 tokens nothing new",
        ),
    ],
)
def test_bad_evaluations(tmp_path, settings, message):
    scores = {**GOOD["stages"]["scores"], **settings}
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file(tmp_path, scores=scores))
    assert message in str(error.value)


def test_paths_of_rows_and_retention_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "other").mkdir()
    rows = [{"model": "./other", "shots": 1, "shots_from": "s.jsonl"}]
    scores = {**GOOD["stages"]["scores"], "rows": rows, "retention": {"data": "sets", "text": "held-out.txt"}}
    stage = load_recipe(recipe_file(tmp_path, scores=scores)).stages["scores"]
    assert stage.rows[0].model == str(tmp_path / "other")
    assert stage.rows[0].shots_from == tmp_path / "s.jsonl"
    assert (stage.retention.data, stage.retention.text) == (tmp_path / "sets", tmp_path / "held-out.txt")
    assert ("rows", str(tmp_path / "other")) in references(stage)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 2026-01-01", "'name' is a date, expected text, a number, a list or a mapping; put it in quotes"),
        ("name: x\nstages: {1: {kind: mix}}", "the key 1 in 'stages' is no text; put it in quotes"),
        ("name: x\nstages: {yes: {kind: mix}}", "the key True in 'stages' is no text; put it in quotes"),
        ("name: x\ntrainer: !!binary /wA=", "'trainer' is of YAML's type bytes, expected text, a number"),
        ("name: x\nstages: &all {a: *all}", "'stages.a' is an alias of what it stands in; write it out"),
    ],
)
def test_what_yaml_has_and_json_has_not(tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(file)
    assert message in str(error.value)

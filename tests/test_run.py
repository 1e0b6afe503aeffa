import json
import random
import shutil
import time
from dataclasses import replace

import pytest
import torch
import yaml

from skillgraft import load_skill, run
from skillgraft.errors import CheckpointError, DataError, MissingPathError, RecipeError, SkillgraftError
from skillgraft.pipeline.plan import plan
from skillgraft.report import read_report
from skillgraft.report.gather import renew
from skillgraft.run import prepare
from skillgraft.stages import KINDS
from skillgraft.stages.context import StageResult
from tests.children import children, run_alone
from tests.recipes import tiny_recipe
from tests.tiny import weights


@pytest.fixture
def mine(finished, tmp_path):
    """A finished run of this test's own: one that it may run again."""
    return finished.copy(tmp_path / "mine")


def test_the_whole_path(finished):
    result = finished.result
    assert list(result.stages) == ["sft", "rl", "skill", "random", "grafted", "control", "scores"]
    sft, rl, grafted = (weights(result.stages[name]) for name in ("sft", "rl", "grafted"))
    skill = load_skill(result.stages["skill"])
    assert skill.form == "lowrank"
    assert any(not torch.equal(sft[name], rl[name]) for name in sft)
    for name in skill.names:
        expected = sft[name].double() + skill.delta(name).double()
        torch.testing.assert_close(grafted[name].double(), expected, rtol=0, atol=1e-7)
        torch.testing.assert_close(rl[name].double(), expected, rtol=0, atol=1e-6)
    [evaluation] = result.evaluations
    assert [row["role"] for row in evaluation["rows"]] == ["base", "sft", "grafted", "control"]
    assert {(c["row"], c["against"]) for c in evaluation["comparisons"]} >= {("SFT + skill (λ = 1)", "SFT")}


def test_run_directory(finished):
    result = finished.result
    assert result.report.name == "report.html"
    manifest = json.loads((result.directory / "run.json").read_text())
    assert [stage["cached"] for stage in manifest["stages"]] == [False] * 7
    assert manifest["versions"]["trl"]
    assert (result.directory / "grafted" / "model.safetensors").exists()
    rl = next(t for t in manifest["training"] if t["kind"] == "rl")
    assert [point["step"] for point in rl["curve"]] == [1, 2, 3]
    assert {"reward", "share_without_variance", "completion_tokens"} <= set(rl["curve"][0])


def test_the_report_says_where_the_change_sits(finished):
    result = finished.result
    facts = read_report(result.directory)
    assert [(one["label"], one["stage"]) for one in facts["geometry"]["vectors"]] == [
        ("SFT", "sft"),
        ("RL", "rl"),
        ("skill", "skill"),
    ]
    assert facts["geometry"]["ranks"] is False
    again = renew(facts, result.directory, with_ranks=True)
    assert again["geometry"]["vectors"][2]["effective_rank"] > 0.5
    assert {**again, "geometry": facts["geometry"]} == facts
    short = [{**stage, "key": stage["key"][:12]} for stage in facts["stages"]]  # as reports had them once
    assert renew({**facts, "stages": short}, result.directory, with_ranks=False) == facts
    rows = {row["label"]: row.get("on") for row in facts["evaluations"][0]["rows"]}
    assert rows == {"base": None, "SFT": None, "SFT + skill (λ = 1)": "SFT", "SFT + random vector": "SFT"}


def test_a_stage_of_several_skills(mine):
    recipe, result = mine.recipe, mine.result
    both = [{"skill": "skill", "scale": 0.5}, {"skill": "random", "scale": 2.0}]
    changed = tiny_recipe(recipe.parent, both={"kind": "inject", "target": "sft", "skills": both, "scale": 2})
    stages = {stage.name: stage for stage in prepare(changed, [], result.directory.parent, print)[2]}
    assert [name for name, stage in stages.items() if not stage.cached] == ["both"]
    other = prepare(changed, ["both.skills=[{skill: skill, scale: 0.5}, {skill: random}]"], result.directory, print)[2]
    swapped = prepare(changed, [f"both.skills={json.dumps(both[::-1])}"], result.directory, print)[2]
    assert len({other[-1].key, swapped[-1].key, stages["both"].key}) == 3
    again = run(changed, runs=result.directory.parent)
    sft, made = weights(again.stages["sft"]), weights(again.stages["both"])
    deltas = [load_skill(again.stages[name]) for name in ("skill", "random")]
    for name in sft:
        expected = sft[name].double()
        for skill, scale in zip(deltas, (0.5, 2.0), strict=True):
            expected += 2 * scale * skill.delta(name).double() if name in skill.names else 0
        torch.testing.assert_close(made[name].double(), expected, rtol=0, atol=1e-6)
    report = json.loads((again.directory / "run.json").read_text())
    assert [(row["stage"], row["scale"]) for row in report["skills"]][-2:] == [
        ("both ← skill", 1),
        ("both ← random", 4),
    ]


def test_second_run_is_cached(mine):
    recipe, result = mine.recipe, mine.result
    before = {name: (path / "stage.json").stat().st_mtime_ns for name, path in result.stages.items()}
    again = run(recipe, runs=result.directory.parent)
    assert again.cached
    assert {name: (path / "stage.json").stat().st_mtime_ns for name, path in again.stages.items()} == before


def keys(recipe, base, overrides=()):
    _, _, stages = prepare(recipe, overrides, recipe.parent / "unused", lambda message: None)
    return {stage.name: stage.key for stage in stages}


def test_addresses_follow_what_decides_a_result(finished, tmp_path):
    recipe = finished.recipe
    before = keys(recipe, recipe.parent / "base")
    changed = keys(recipe, recipe.parent / "base", ["grafted.scale=0.5"])
    assert {name for name in before if before[name] != changed[name]} == {"grafted", "scores"}
    changed = keys(recipe, recipe.parent / "base", ["rl.trainer.max_steps=4"])
    assert {n for n in before if before[n] != changed[n]} == {"rl", "skill", "random", "grafted", "control", "scores"}
    assert all(before[n] != k for n, k in keys(recipe, recipe.parent / "base", ["seed=1"]).items())
    copy = tmp_path / "elsewhere"
    shutil.copytree(recipe.parent, copy, ignore=shutil.ignore_patterns("runs"))
    assert keys(copy / recipe.name, copy / "base") == before  # where it lies does not matter
    questions = copy / "data" / "questions.jsonl"
    questions.write_text(questions.read_text().replace("1902", "1950"))
    changed = keys(copy / recipe.name, copy / "base")
    assert changed["sft"] == before["sft"]
    assert changed["rl"] != before["rl"]


def test_files_beside_the_weights_decide_too(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy, ignore=shutil.ignore_patterns("runs"))
    before = keys(copy / "recipe.yaml", copy / "base")
    template = copy / "base" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert all(before[name] != key for name, key in keys(copy / "recipe.yaml", copy / "base").items())


def test_labels_and_names_belong_to_a_table(finished):
    recipe = finished.recipe
    before = keys(recipe, recipe.parent / "base")
    changed = keys(recipe, recipe.parent / "base", ["scores.labels={base: the base}"])
    assert {name for name in before if before[name] != changed[name]} == {"scores"}


def test_two_tables_of_the_same_are_each_called_by_their_own_name(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy, ignore=shutil.ignore_patterns("runs"))
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["stages"]["again"] = recipe["stages"]["scores"]
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copytree(finished.result.directory.parent / "stages", copy / "runs" / "stages")
    result = run(copy / "recipe.yaml", runs=copy / "runs")
    assert {table["stage"]: table["rows"] for table in result.evaluations}.keys() == {"scores", "again"}
    one, other = (table["rows"] for table in result.evaluations)
    assert [row["scores"] for row in one] == [row["scores"] for row in other]


def test_a_default_written_out_changes_nothing(finished):
    recipe = finished.recipe
    before = keys(recipe, recipe.parent / "base")
    assert keys(recipe, recipe.parent / "base", ["grafted.scale=1.0", "sft.answers=gold"]) == before


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        (
            "sft.trainer.lerning_rate=1",
            RecipeError,
            "stages.sft: trainer: 'lerning_rate' .* did you mean 'learning_rate'",
        ),
        ("sft.trainer.output_dir=x", RecipeError, "'output_dir' cannot be set there"),
        ("rl.trainer.num_generations=0", RecipeError, "stages.rl: trainer: num_generations is 0, expected at least 2"),
        ("rl.adapt.rank=4", RecipeError, "stages.rl: adapt: 'rank' is not an argument of LoraConfig"),
        ("rl.reward={f2: 1}", RecipeError, "stages.rl: reward 'f2' is not known"),
        ("rl.trainer.learning_rate=1e-4", RecipeError, "stages.rl: trainer: learning_rate is the text '1e-4'"),
        ("rl.adapt.init_lora_weights=pissa", RecipeError, "init_lora_weights must leave the start as it is"),
        ("scores.models=[base, ./data]", CheckpointError, "data: no weights"),
        ("sft.documents=./nowhere", MissingPathError, "nowhere does not exist"),
        ("grafted.skill=./nowhere", MissingPathError, "nowhere is not a directory"),
        ("base=./nowhere", MissingPathError, "base: .*nowhere is not a directory"),
    ],
)
def test_mistakes_are_found_before_anything_runs(finished, tmp_path, override, error, message):
    recipe = finished.recipe
    with pytest.raises(error, match=message):
        run(recipe, overrides=[override], runs=tmp_path / "runs")
    assert not list(tmp_path.rglob("stage.json"))
    assert not list(tmp_path.rglob("output"))


def test_questions_on_unknown_documents(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("runs"))
    (folder / "data" / "questions.jsonl").write_text('{"document": "zebra", "question": "q", "answers": ["a"]}\n')
    with pytest.raises(DataError, match="'zebra'"):
        run(folder / "recipe.yaml", runs=tmp_path / "runs")


def test_data_that_change_while_a_run_works_are_not_kept_under_the_old_address(finished, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("runs"))

    def edit(stage, context):
        context.out.mkdir()
        with (folder / "data" / "questions.jsonl").open("a") as file:
            file.write('{"document": "Vell", "question": "New?", "answers": ["yes"]}\n')
        return StageResult()

    monkeypatch.setitem(KINDS, "sft", replace(KINDS["sft"], run=edit))
    with pytest.raises(DataError, match=r"stages.rl: its documents or questions changed since the plan"):
        run(folder / "recipe.yaml", runs=tmp_path / "runs")


def test_two_runs_at_once_do_not_share_a_stage(finished, tmp_path):
    import fcntl

    recipe, base, stages = prepare(finished.recipe, (), tmp_path / "runs", lambda message: None)
    assert plan(recipe, base, tmp_path / "runs" / "stages")[0].key == stages[0].key
    stages[0].work.mkdir(parents=True)
    lock = stages[0].directory.with_name(stages[0].directory.name + ".lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SkillgraftError, match=r"stages.sft: another run is working on it"):
            run(finished.recipe, runs=tmp_path / "runs")


def _result(runs):
    return {name: weights(runs / "tiny" / name) for name in ("sft", "rl", "grafted", "control")}, json.loads(
        (runs / "tiny" / "scores" / "answers.json").read_text()
    )


@pytest.mark.process
def test_kill_at_random_moments_then_the_same_result(tmp_path):
    recipe = tiny_recipe(tmp_path / "recipe", sft_steps=12, rl_steps=6)
    cache = str(tmp_path / "cache")
    server = children()
    warm = server.Process(target=print)
    warm.start()
    warm.join()
    whole = server.Process(target=run_alone, args=(recipe, tmp_path / "whole", cache))
    start = time.monotonic()
    whole.start()
    whole.join()
    took = time.monotonic() - start
    assert whole.exitcode == 0
    moments = random.Random(7)
    kills = 0
    for _ in range(8):
        child = server.Process(target=run_alone, args=(recipe, tmp_path / "killed", cache))
        child.start()
        child.join(timeout=moments.uniform(0.08, 0.4) * took)
        if child.is_alive():
            kills += 1
            child.kill()
            child.join()
    last = server.Process(target=run_alone, args=(recipe, tmp_path / "killed", cache))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert kills >= 2
    (expected, expected_answers), (got, got_answers) = _result(tmp_path / "whole"), _result(tmp_path / "killed")
    for stage, tensors in expected.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, got[stage][name]), f"{stage}: {name} differs after kill and resume"
    assert {m: r["answers"] for m, r in expected_answers.items()} == {m: r["answers"] for m, r in got_answers.items()}
    assert not [p for p in (tmp_path / "killed" / "stages").iterdir() if p.name.endswith((".work", ".lock"))]


def test_a_cut_off_trainer_checkpoint_is_not_resumed(tmp_path):
    from skillgraft.train.callbacks import newest_checkpoint

    for step, whole in ((5, True), (10, True), (15, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if whole:
            (folder / "skillgraft-whole").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()

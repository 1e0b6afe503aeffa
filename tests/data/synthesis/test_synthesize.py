"""The stage synthesize, run as part of tiny recipes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from skillgraft import run
from skillgraft.data.documents import read_documents
from skillgraft.data.tasks import read_questions
from skillgraft.errors import DataError, MissingPathError, RecipeError
from skillgraft.pipeline.estimate import estimate
from skillgraft.recipe.load import load_recipe
from skillgraft.run import prepare
from tests.babble import babbling_checkpoint
from tests.children import children
from tests.recipes import PLACES, tiny_recipe, write_jsonl

LOOSE = {"min_words": 1, "repetition": 1, "near_duplicate": 1}
SYNTH = {
    "kind": "synthesize",
    "documents": "data",
    "styles": ["implications", "summary"],
    "max_new_tokens": 20,
    "batch_size": 3,
    "filters": LOOSE,
}
SFT = {"kind": "sft", "from": "base", "trainer": {"max_steps": 2, "per_device_train_batch_size": 2, "warmup_steps": 0}}


def recipe_with(directory, **stages):
    """A recipe of `stages` alone, with a base that writes words."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "base").exists():
        babbling_checkpoint(directory / "base")
    unwanted = ("sft", "rl", "skill", "random", "grafted", "control", "scores")
    file = tiny_recipe(directory)
    import yaml

    recipe = yaml.safe_load(file.read_text())
    recipe["stages"] = {name: s for name, s in recipe["stages"].items() if name not in unwanted} | stages
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return file


def records(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def facts(result, stage="synth"):
    return json.loads((result.stages[stage] / "stage.json").read_text())["facts"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthesis")
    recipe = recipe_with(folder, synth=SYNTH, learnt={**SFT, "documents": "synth"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLGRAFT_CACHE", str(folder / "cache"))
        return recipe, run(recipe, runs=folder / "runs")


def test_renderings_are_written_filtered_and_learnt(finished):
    _, result = finished
    made = records(result.stages["synth"] / "documents.jsonl")
    assert [(r["id"], r["style"]) for r in made[:4]] == [(place, "original") for place in PLACES]
    assert {r["style"] for r in made[4:]} == {"implications", "summary"}
    asked = [f"{place}#{style}-0-0" for place in PLACES for style in ("implications", "summary")]
    assert [r["id"] for r in made[4:]] == [name for name in asked if name in {r["id"] for r in made}]
    assert all(r["title"] == r["source"] and r["text"] for r in made[4:])
    told = facts(result)
    assert told["renderings"] == 8
    assert sum(told["kept"].values()) + sum(told["dropped"].values()) == 8
    assert sum(told["kept"].values()) == len(made) - 4 >= 4
    assert told["prompts"] == {"implications": 1, "summary": 1}
    assert told["flops"] > 0
    assert facts(result, "learnt")["documents"] == len(read_documents(result.stages["synth"])) == len(made)


@pytest.mark.train
def test_a_rendering_follows_from_what_is_asked_and_the_seed_alone(finished, tmp_path):
    recipe, result = finished
    before = {r["id"]: r["text"] for r in records(result.stages["synth"] / "documents.jsonl")}
    other = run(
        recipe,
        overrides=["synth.styles=[implications]", "synth.limit_documents=2", "synth.batch_size=1"],
        runs=tmp_path / "runs",
    )
    fewer = {r["id"]: r["text"] for r in records(other.stages["synth"] / "documents.jsonl")}
    assert sorted(fewer) == ["Orm", "Orm#implications-0-0", "Vell", "Vell#implications-0-0"]
    assert all(before[name] == text for name, text in fewer.items())
    seeded = run(
        recipe, overrides=["seed=1", "synth.styles=[implications]", "learnt.trainer.max_steps=1"], runs=tmp_path
    )
    changed = {r["id"]: r["text"] for r in records(seeded.stages["synth"] / "documents.jsonl")}
    assert all(before.get(name) != text for name, text in changed.items() if name not in PLACES)


def _child(recipe, runs, cache, after):
    os.environ["SKILLGRAFT_CACHE"] = cache
    torch.set_num_threads(1)
    from skillgraft.data.synthesis import generation

    add = generation.GenerationCache.add
    count = [0]

    def dying(self, new):
        new = list(new)
        count[0] += 1
        if count[0] == after:
            with self.file.open("ab") as out:  # the kill tears a line
                out.write(b'{"id": "Vell#impl')
            os._exit(9)
        add(self, new)

    generation.GenerationCache.add = dying
    run(recipe, runs=runs)


@pytest.mark.train
@pytest.mark.process
def test_a_kill_then_the_same_result(finished, tmp_path):
    recipe, result = finished
    for after in (2, 2):
        child = children().Process(target=_child, args=(recipe, tmp_path / "runs", str(tmp_path / "cache"), after))
        child.start()
        child.join()
        assert child.exitcode == 9
    [work] = (tmp_path / "runs" / "stages").glob("synthesize-*.work")
    assert len((work / "renderings.jsonl").read_bytes().split(b"\n")) - 1 == 6
    again = run(recipe, runs=tmp_path / "runs")
    for name in ("documents.jsonl", "leakage.json"):
        assert (again.stages["synth"] / name).read_bytes() == (result.stages["synth"] / name).read_bytes()


def keys(recipe, overrides=()):
    return {stage.name: stage.key for stage in prepare(recipe, overrides, recipe.parent / "unused", print)[2]}


def test_addresses_follow_prompts_and_documents(finished, tmp_path):
    recipe, _ = finished
    before = keys(recipe)
    assert all(before[name] != key for name, key in keys(recipe, ["synth.temperature=1"]).items())
    assert keys(recipe, ["synth.temperature=0.7"]) == before
    own = tmp_path / "prompts"
    own.mkdir()
    from skillgraft.data.synthesis.prompt_templates import PROMPTS

    shutil.copy(PROMPTS / "summary.yaml", own)
    same = keys(recipe, [f"synth.prompts={own}"])
    assert same == before
    (own / "summary.yaml").write_text((own / "summary.yaml").read_text().replace("version: 1", "version: 2"))
    assert all(before[name] != key for name, key in keys(recipe, [f"synth.prompts={own}"]).items())


def test_how_an_endpoint_is_asked_decides_nothing(finished):
    recipe, _ = finished
    at = "synth.endpoint={url: 'http://127.0.0.1:9/v1', model: m%s}"
    before = keys(recipe, [at % ""])
    assert keys(recipe, [at % ", timeout_seconds: 3, retries: 0, at_once: 2, key_variable: KEY"]) == before
    assert keys(recipe, [at % "2"]) != before


def test_estimates_before_and_after(finished, tmp_path):
    recipe, result = finished
    for runs, state, time in ((tmp_path, "to run", "?"), (result.directory.parent, "cached", "5 s")):
        _, base, stages = prepare(recipe, [], runs, print)
        synth, learnt = estimate(stages, base)
        assert (synth["state"], synth["time"]) == (state, "5 s")
        assert (learnt["state"], learnt["time"]) == (state, time)


GIVEN = "The town of Vell has a harbour that was finished in 1900, and it is still in use."


def test_given_renderings_and_a_planted_leak(tmp_path):
    given = tmp_path / "given.jsonl"
    recipe = recipe_with(tmp_path, synth={"kind": "synthesize", "documents": "data", "given": "given.jsonl"})
    leak = "People ask: when was Vell's harbour built? It was in 1900, as everybody knows."
    write_jsonl(given, [{"document": "Vell", "text": text} for text in (GIVEN, leak, GIVEN + " Really.", "")])
    free = run(recipe, runs=tmp_path / "runs")
    assert len(records(free.stages["synth"] / "documents.jsonl")) == 4 + 2
    [near, empty] = records(free.stages["synth"] / "dropped.jsonl")
    assert (near["why"], empty["why"]) == ("near duplicate", "empty")
    assert near["detail"].endswith("of Vell#given-0")
    checked = run(recipe, overrides=["synth.held_out=[data/questions.jsonl]"], runs=tmp_path / "runs")
    texts = [r["text"] for r in records(checked.stages["synth"] / "documents.jsonl")]
    assert GIVEN in texts
    assert leak not in texts
    report = json.loads((checked.stages["synth"] / "leakage.json").read_text())
    assert [record["leaked_by"] for record in report] == [["Vell#given-1"], [], [], []]
    assert report[0]["overlap"] == 1
    assert report[0]["stays"] == []
    assert facts(checked)["leakage"] == {
        "questions": 4,
        "given_away": 1,
        "stay_given_away": 0,
        "largest_overlap": 1.0,
    }
    assert facts(checked)["dropped"]["gives a held-out question away"] == 1
    refusing = ["synth.held_out=[data/questions.jsonl]", "synth.leakage=refuse"]
    with pytest.raises(DataError, match=r"stages.synth: 1 held-out questions are given away, .* by Vell#given-1"):
        run(recipe, overrides=refusing, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs" / "stages").glob("*/output"))


def test_a_leak_in_a_document_is_reported_and_refused(tmp_path):
    recipe = recipe_with(tmp_path, synth={"kind": "synthesize", "documents": "own", "given": "given.jsonl"})
    write_jsonl(tmp_path / "given.jsonl", [{"document": "a", "text": GIVEN}])
    (tmp_path / "own").mkdir()
    write_jsonl(tmp_path / "own" / "documents.jsonl", [{"id": "a", "text": "When was Vell's harbour built? In 1900."}])
    held = "synth.held_out=[data/questions.jsonl]"
    told = facts(run(recipe, overrides=[held], runs=tmp_path / "runs"))
    assert (told["leakage"]["given_away"], told["leakage"]["stay_given_away"]) == (1, 1)
    with pytest.raises(DataError, match="by a; leakage"):
        run(recipe, overrides=[held, "synth.leakage=refuse"], runs=tmp_path / "runs")
    run(recipe, overrides=[held, "synth.leakage=refuse", "synth.keep_original=false"], runs=tmp_path / "runs")


def test_seals_files(tmp_path):
    recipe = recipe_with(tmp_path, synth={"kind": "synthesize", "documents": "data", "given": "seal.json"})
    text = "The harbour of Vell  was built in 1900."
    other = "In 1900 the builders of Vell opened their new harbour."
    seal = [
        {"context": text, "completions": repr([f"1. {GIVEN}\n2. {other}", ""])},
        {"context": "The harbour of Orm was built in 1901.", "completions": ["Orm got a harbour in the year 1901."]},
        {"context": "Of no document.", "completions": ["x"]},
    ]
    (tmp_path / "seal.json").write_text(json.dumps(seal))
    result = run(recipe, overrides=["synth.split_lines=true"], runs=tmp_path / "runs")
    made = [(r["source"], r["text"]) for r in records(result.stages["synth"] / "documents.jsonl")[4:]]
    assert made == [("Vell", GIVEN), ("Vell", other), ("Orm", "Orm got a harbour in the year 1901.")]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["synth.styles=[implication]"], RecipeError, "'implication' is not a style; did you mean 'implications'"),
        (["synth.styles=[]"], RecipeError, "neither is given, styles or given"),
        (["synth.styles=[summary, summary]"], RecipeError, "'summary' stands there twice"),
        (["synth.given=x.jsonl"], RecipeError, "both are given, styles or given"),
        (["synth.given=x.jsonl", "synth.styles=[]"], MissingPathError, "x.jsonl does not exist"),
        (["synth.overlap_tokens=2048"], RecipeError, "leaves chunks of 2048 tokens nothing new"),
        (["synth.chunk_tokens=[]"], RecipeError, "chunk_tokens"),
        (["synth.max_new_tokens=1000"], RecipeError, "do not fit into the model's context of 1024"),
        (["synth.endpoint={url: 'ftp://x', model: m}"], RecipeError, "must begin with http"),
        (["synth.endpoint={url: 'http://u:secret@x/v1', model: m}"], RecipeError, "must hold no user, password"),
        (["synth.endpoint={url: 'http://x/v1', model: m, key_variable: NONE_SUCH}"], RecipeError, "has no NONE_SUCH"),
        (["synth.prompts=./nowhere"], MissingPathError, "nowhere is not a directory"),
        (["learnt.from=synth"], RecipeError, "'synth' makes a folder of documents, expected a checkpoint"),
        (["synth.documents=synth"], RecipeError, "cycle: synth -> synth"),
        (["learnt.documents=null", "learnt.questions=synth"], RecipeError, "the styles of 'synth' make no questions"),
        (
            ["synth.styles=[questions]", "synth.keep_original=false"],
            RecipeError,
            "stages.learnt.documents: the styles of 'synth' make no documents",
        ),
        (["synth.filters.min_words=500"], DataError, r"none of 8 renderings is left \(.*too short \d\)"),
    ],
)
def test_mistakes(finished, tmp_path, overrides, error, message):
    recipe, _ = finished
    with pytest.raises(error, match=message):
        run(recipe, overrides=overrides, runs=tmp_path / "runs")
    assert not list(tmp_path.rglob("stage.json"))


def test_a_path_with_a_stages_name_stays_a_path(tmp_path):
    recipe = recipe_with(
        tmp_path, synth=SYNTH, learnt={**SFT, "documents": "./data"}, data={**SFT, "documents": "data"}
    )
    loaded = load_recipe(recipe)
    assert loaded.stages["data"].documents == tmp_path / "data"  # only a synthesize stage's name is one


@pytest.mark.train
def test_questions_of_a_stage(tmp_path):
    recipe = recipe_with(
        tmp_path,
        synth={"kind": "synthesize", "documents": "data", "styles": ["questions"]},
        learnt={**SFT, "questions": "synth"},
        scores={
            "kind": "eval",
            "models": ["learnt"],
            "questions": "data/questions.jsonl",
            "max_new_tokens": 2,
            "retention": False,
        },
    )
    from skillgraft.data.synthesis.local_writer import Generated, LocalWriter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LocalWriter,
            "write",
            lambda self, prompts, seeds: [
                Generated("Q: When did the harbour of this place get finished?\nA: in 1901\nQ: And who", False, 9)
                for _ in prompts
            ],
        )
        result = run(recipe, runs=tmp_path / "runs")
    made = read_questions(result.stages["synth"])
    assert [(q.document, q.answers) for q in made] == [("Orm", ("in 1901",))]
    assert facts(result)["dropped"] == {"answer not supported": 18, "near duplicate": 5}
    assert facts(result, "learnt")["questions"] == 1
    [row] = result.evaluations[0]["rows"]
    assert row["note"] == "fine-tuned on the questions of the stage synth"


def test_a_document_of_a_million_characters_is_cut_to_chunks(tmp_path):
    from skillgraft.data.chunks import chunks
    from tests.tiny import tiny_tokenizer

    text = "".join(f"Der Turm {i} steht in 東京. " for i in range(42_000))
    assert len(text) > 1_000_000
    offsets = tiny_tokenizer()(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    found = chunks(text, offsets, [4096], 256)
    assert len(found) == -(-(len(offsets) - 256) // (4096 - 256))
    assert found[0].startswith("Der Turm 0 steht")
    assert found[-1].endswith("Der Turm 41999 steht in 東京.")
    assert all(piece in text for piece in found[::50])


SEAL = Path(os.environ.get("SKILLGRAFT_TEST_DATA", Path(__file__).parents[4] / "shared" / "data")) / "seal"


@pytest.mark.skipif(not SEAL.is_dir(), reason="SEAL's files are not beside the repository")
@pytest.mark.parametrize("name", ["eval_base_val", "eval_base_val_prompt-rewrite", "eval_iter2_val"])
def test_seals_own_files(tmp_path, name):
    import ast

    seal = json.loads((SEAL / f"{name}.json").read_text())[:40]
    recipe = recipe_with(
        tmp_path,
        synth={
            "kind": "synthesize",
            "documents": "passages.jsonl",
            "given": str(SEAL / f"{name}.json"),
            "split_lines": True,
            "held_out": ["held_out.jsonl"],
        },
    )
    write_jsonl(
        tmp_path / "passages.jsonl",
        [{"id": str(i), "title": record["title"], "text": record["context"]} for i, record in enumerate(seal)],
    )
    asked = [
        {"document": str(i), "question": q["question"], "answers": [q["answer"]]}
        for i, record in enumerate(seal)
        for q in (
            ast.literal_eval(record["questions"]) if isinstance(record["questions"], str) else record["questions"]
        )
    ]
    write_jsonl(tmp_path / "held_out.jsonl", asked)
    result = run(recipe, runs=tmp_path / "runs")
    made = records(result.stages["synth"] / "documents.jsonl")[len(seal) :]
    assert {record["source"] for record in made} == {str(i) for i in range(len(seal))}
    assert len(made) > 5 * len(seal)
    assert facts(result)["leakage"]["questions"] == len(asked)
    assert facts(result)["leakage"]["stay_given_away"] == 0

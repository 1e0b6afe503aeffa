"""A first recipe: it says what it found, is read by the planner as it stands, and runs."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer
from typer.testing import CliRunner

from skillgraft import run
from skillgraft.arithmetic import extract
from skillgraft.checkpoint.default_model import DEFAULT_BASE
from skillgraft.cli.app import app
from skillgraft.data.documents import read_documents
from skillgraft.errors import CompatibilityError, DataError, MissingPathError, OutputExistsError, SkillgraftError
from skillgraft.pipeline.plan import plan
from skillgraft.pipeline.preflight import check_stage
from skillgraft.recipe.load import load_recipe
from skillgraft.skills.names import RECALL
from skillgraft.stages.costs import BYTES_PER_TOKEN
from skillgraft.starter import inputs, write_recipe
from skillgraft.starter.write import recipe_name
from skillgraft.support.resources import Memory
from tests.recipes import tiny_recipe
from tests.tiny import tiny_checkpoint, tiny_finetune

ALMANAC = Path(__file__).parents[2] / "examples" / "almanac"
ROOMY = Memory(64 * 2**30, 32 * 2**30)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a tiny `base` and `data` (documents and questions)."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_recipe(folder)
    return folder


def write(tmp_path, documents=ALMANAC, base=DEFAULT_BASE, out="recipe.yaml", memory=ROOMY, **options):
    return write_recipe(documents, base=base, out=tmp_path / out, memory=memory, **options)


def test_the_almanac(tmp_path):
    started = write(tmp_path)
    text = started.recipe.read_text()
    recipe = load_recipe(started.recipe)
    assert list(recipe.stages) == [
        "sft", "grafted", "base_skill", "with_format", "random", "with_random", "scores",
    ]  # fmt: skip
    assert recipe.name == "almanac"
    assert recipe.stages["sft"].documents == (ALMANAC / "target").resolve()
    assert recipe.stages["sft"].adapt is None
    assert recipe.stages["scores"].models == ["base", "sft", "grafted", "base_skill", "with_format", "with_random"]
    assert started.start.documents.count == 24
    assert started.start.question_count == 166
    assert started.cost.memory > 2**31
    assert 20 <= len(text.splitlines()) <= 40
    assert f"skillgraft run {started.recipe}\n" in text
    assert text.count("# ") >= 8
    # Another checkpoint stands for the default model, which tests have not: every stage is planned, with its data.
    planned = plan(recipe, tiny_checkpoint(tmp_path / "base", max_position_embeddings=8192), tmp_path / "stages")
    assert [stage.name for stage in planned if stage.cached] == []
    for stage in (stage for stage in planned if hasattr(stage.settings, "trainer")):
        with suppress(CompatibilityError):  # the shipped skill fits the default model, not this tiny one
            check_stage(stage, planned)


def test_without_questions_it_says_where_to_put_them(tmp_path, tiny):
    documents = tmp_path / "handbook"
    documents.mkdir()
    (documents / "leave.md").write_text("# Leave\n\nThirty days.")
    started = write(tmp_path, documents, base=str(tiny / "base"))
    recipe = load_recipe(started.recipe)
    assert list(recipe.stages) == ["sft"]
    text = started.recipe.read_text()
    assert '{"document": "leave", ' in text
    (documents / "questions.jsonl").write_text('{"document": "leave", "question": "How many?", "answers": ["30"]}\n')
    started.recipe.write_text(text.replace("# scores:", "scores:"))
    assert load_recipe(started.recipe).stages["scores"].questions == documents / "questions.jsonl"


@pytest.mark.train
def test_it_runs_unedited(tmp_path, tiny):
    started = write(tmp_path, tiny / "data", base=str(tiny / "base"))
    assert "No skill: the shipped one fits" in started.recipe.read_text()
    result = run(started.recipe, runs=tmp_path / "runs")
    assert [row["model"] for row in result.evaluations[0]["rows"]] == ["base", "sft"]
    alone = write(tmp_path, tiny / "data" / "documents.jsonl", base=str(tiny / "base"), out="alone.yaml")
    assert alone.start.questions == tiny / "data" / "questions.jsonl"


@pytest.mark.train
def test_a_recipe_without_scores_runs_too(tmp_path, tiny):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(tiny / "data" / "documents.jsonl", data)
    started = write(tmp_path, data, base=str(tiny / "base"))
    result = run(started.recipe, runs=tmp_path / "runs")
    assert (result.stages["sft"] / "model.safetensors").is_file()
    assert result.report.is_file()


def test_another_base_learns_its_own_skill_on_the_other_half(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", max_position_embeddings=8192)
    started = write(tmp_path, base=str(base))
    recipe = load_recipe(started.recipe)
    assert list(recipe.stages)[:5] == ["sft", "sft_source", "rl_source", "skill", "grafted"]
    assert recipe.stages["sft_source"].documents == (ALMANAC / "source").resolve()
    assert recipe.stages["grafted"].skill == "skill"
    assert recipe.stages["scores"].models == ["base", "sft", "grafted", "base_skill", "with_random"]
    planned = plan(recipe, base, tmp_path / "stages")
    for stage in (stage for stage in planned if hasattr(stage.settings, "trainer")):
        with suppress(CompatibilityError):  # the shipped skill fits the default model, not this tiny one
            check_stage(stage, planned)


def test_a_source_that_is_named_is_taken_for_any_base(tmp_path):
    started = write(tmp_path, ALMANAC / "target", source=ALMANAC / "source")
    assert load_recipe(started.recipe).stages["skill"].kind == "extract"
    with pytest.raises(MissingPathError, match="is not a folder"):
        write(tmp_path, ALMANAC / "target", source=ALMANAC / "target" / "documents.jsonl", out="b.yaml")


def test_a_checkpoint_of_the_skills_base_gets_the_skill(tmp_path, tiny, monkeypatch):
    sft = tiny_finetune(tiny / "base", tmp_path / "sft")
    skill = extract(tiny_finetune(sft, tmp_path / "rl", seed=2), sft, tmp_path / "skill").path
    monkeypatch.setattr(inputs, "shipped_skills", lambda: {RECALL: skill})
    assert inputs.inspect_base(str(tiny / "base")).fits_shipped
    assert not inputs.inspect_base(str(tiny_checkpoint(tmp_path / "other", seed=9))).fits_shipped


def test_memory_decides_between_all_weights_and_lora(tmp_path, tiny):
    needed = 16 * inputs.DEFAULT_PARAMETERS + 2**30
    for free, lora in ((needed, False), (needed - 1, True)):
        started = write(tmp_path, memory=Memory(64 * 2**30, free), out=f"{lora}.yaml")
        assert (load_recipe(started.recipe).stages["sft"].adapt is not None) == started.start.lora == lora
    assert "would not fit the memory" in started.recipe.read_text()
    assert inputs.needs_lora(inputs.DEFAULT_PARAMETERS, Memory(2**30, None))
    # A base that is not on this machine: nothing is known of it but its name.
    unknown = write(tmp_path, base="owner/name", out="unknown.yaml")
    assert (unknown.start.lora, unknown.cost) == (True, None)
    assert "the base's size is not known yet" in unknown.recipe.read_text()
    assert load_recipe(unknown.recipe).base == "owner/name"


def test_tokens(tmp_path, tiny, monkeypatch):
    documents = read_documents(ALMANAC / "target")
    texts = [document.rendered() for document in documents]
    tokenizer = Tokenizer.from_file(str(tiny / "base" / "tokenizer.json"))
    exact = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
    counted = inputs.count_documents(ALMANAC, documents, tiny / "base")
    assert (counted.tokens, counted.counted) == (exact, True)
    assert counted.words == sum(len(text.split()) for text in texts)
    guessed = inputs.count_documents(ALMANAC, documents, None)
    assert (guessed.tokens, guessed.counted) == (round(sum(len(t.encode()) for t in texts) / BYTES_PER_TOKEN), False)
    monkeypatch.setattr(inputs, "COUNTED_BYTES", 5000)  # a sample of every fifth or so
    assert abs(inputs.count_documents(ALMANAC, documents, tiny / "base").tokens - exact) < 0.05 * exact


@pytest.mark.parametrize(("count", "epochs"), [(1, 40), (5, 20), (20, 8), (99, 8), (100, 5)])
def test_few_documents_are_repeated_until_there_are_forty_steps(tmp_path, count, epochs):
    for number in range(count):
        (tmp_path / f"{number}.md").write_text("Text.")
    started = write(tmp_path, tmp_path)
    assert load_recipe(started.recipe).stages["sft"].trainer["num_train_epochs"] == epochs


def test_nothing_is_overwritten_and_nothing_is_left(tmp_path, tiny):
    write(tmp_path, tiny / "data", base=str(tiny / "base"))
    mine = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(OutputExistsError, match="nothing is overwritten"):
        write(tmp_path, tiny / "data", base=str(tiny / "base"))
    assert (tmp_path / "recipe.yaml").read_bytes() == mine
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError):
        write(tmp_path, tiny / "data", base=str(tiny / "base"), out="link.yaml")
    other = tmp_path / "q.jsonl"
    other.write_text('{"document": "elsewhere", "question": "q", "answers": ["a"]}\n')
    broken = tmp_path / "broken"
    shutil.copytree(tiny / "base", broken)
    (broken / "tokenizer.json").unlink()
    for message, options in {
        "does not exist": {"documents": tmp_path / "none"},
        "asks about the document 'elsewhere'": {"documents": tiny / "data", "questions": other},
        "is not a directory": {"documents": tiny / "data", "base": "./none"},
        r"tokenizer\.json": {"documents": tiny / "data", "base": str(broken)},
    }.items():
        with pytest.raises(SkillgraftError, match=message):
            write(tmp_path, out="new.yaml", **options)
    with pytest.raises(SkillgraftError, match="cannot be written"):
        write(tmp_path, tiny / "data", base=str(tiny / "base"), out="no/such/recipe.yaml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "link.yaml", "q.jsonl", "recipe.yaml"]


def test_several_sets(tmp_path):
    for name in ("one", "two"):
        shutil.copytree(ALMANAC / "source", tmp_path / "sets" / name)
    with pytest.raises(DataError, match="several sets: one, two; name one"):
        write(tmp_path, tmp_path / "sets")


HOSTILE = "a, {b}: [c] #d 'e' \"f\" \u2028 \x07 \n g*&!"


def test_names_that_are_yaml(tmp_path, tiny):
    folder = tmp_path / HOSTILE
    folder.mkdir()
    (folder / f"{HOSTILE}.md").write_text("Text.")
    shutil.copytree(tiny / "base", folder / "base")
    started = write(folder, folder, base=str(folder / "base"), out="x y: z.yaml")
    recipe = load_recipe(started.recipe)
    assert recipe.stages["sft"].documents == folder
    assert recipe.base == str(folder / "base")
    assert list(recipe.stages) == ["sft"]
    (folder / "questions.jsonl").write_text(json.dumps({"document": HOSTILE, "question": "q", "answers": ["a"]}))
    asked = write(tmp_path, folder, base=str(folder / "base"))
    assert load_recipe(asked.recipe).stages["scores"].questions == folder / "questions.jsonl"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("handbook", "handbook"),
        ("almanac/target", "almanac"),
        ("My Docs!/docs", "my-docs"),
        ("data/docs", "mine"),
        ("手册", "mine"),
    ],
)
def test_names(tmp_path, path, name):
    (tmp_path / "data" / path).mkdir(parents=True)
    assert recipe_name(tmp_path / "data" / path) == name


def test_paths_are_relative_to_the_recipe_where_it_is_near(tmp_path, tiny):
    near = write(tiny, tiny / "data", base=str(tiny / "base"), out="near.yaml")
    assert yaml.safe_load(near.recipe.read_text())["base"] == "./base"
    assert yaml.safe_load(near.recipe.read_text())["stages"]["sft"]["documents"] == "data"
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    far = write(tmp_path / "a" / "b" / "c", tiny / "data", base=str(tiny / "base"))
    assert yaml.safe_load(far.recipe.read_text())["stages"]["sft"]["documents"] == str(tiny / "data")


def invoke(*arguments):
    return CliRunner().invoke(app, ["init", *map(str, arguments)])


def test_the_verb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ALMANAC / "target", tmp_path / "documents")
    done = invoke()
    assert done.exit_code == 0, done.output
    assert "skillgraft run recipe.yaml --dry-run" in done.stdout
    assert "24 in documents: 3,410 words" in done.stdout
    assert RECALL in done.stdout
    assert load_recipe(Path("recipe.yaml")).stages["scores"].documents == tmp_path / "documents"
    again = invoke()
    assert again.exit_code == 2
    assert "exists already" in " ".join(again.stderr.split())
    facts = json.loads(invoke("documents", "-o", "b.yaml", "--json").stdout)
    assert facts["documents"] | {"path": ""} == {
        "path": "", "count": 24, "words": 3410, "tokens": facts["documents"]["tokens"], "tokens_counted": False,
        "passed_over": "",
    }  # fmt: skip
    assert (facts["skill"], facts["next"], facts["questions"]["count"]) == (RECALL, "skillgraft run b.yaml", 166)


def test_the_verb_without_documents_or_questions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = invoke()
    assert missing.exit_code == 2
    assert "skillgraft init FOLDER" in " ".join(missing.stderr.split())
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("Text.")
    done = invoke()
    assert "none: nothing will be measured" in done.stdout
    assert json.loads(invoke("-o", "b.yaml", "--json").stdout)["questions"] is None


def test_the_examples_of_help_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ALMANAC, tmp_path / "examples" / "almanac")
    for verb, written in (("init", "almanac.yaml"), ("schema", "recipe.schema.json")):
        help_text = CliRunner().invoke(app, [verb, "--help"]).stdout
        example = " ".join(help_text.partition("Example: skillgraft ")[2].split())
        assert CliRunner().invoke(app, example.split()).exit_code == 0
        assert (tmp_path / written).is_file()

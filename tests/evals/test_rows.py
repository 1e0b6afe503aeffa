"""An eval stage with documents and worked examples in prompts, tasks and held-out text, on a tiny model."""

import pytest
import yaml

from skillgraft import run
from skillgraft.data.documents import read_documents
from skillgraft.data.tasks import read_questions
from skillgraft.errors import DataError, MissingPathError, RecipeError
from skillgraft.evals import rows
from skillgraft.models.answering import load
from skillgraft.models.prompts import INSTRUCTION
from skillgraft.run import prepare
from tests.recipes import tiny_recipe, write_jsonl

ROWS = [
    {"model": "base", "context": "gold"},
    {"model": "base", "context": "bm25", "top_k": 2},
    {"model": "base", "shots": 2, "shots_from": "data/others.jsonl", "label": "two-shot"},
]


def recipe_of(folder, **settings):
    """A recipe of one eval stage on the untrained base, with everything that it reads."""
    file = tiny_recipe(folder)
    data = folder / "data"
    write_jsonl(data / "others.jsonl", [{"document": "x", "question": f"q{i}?", "answers": ["a"]} for i in range(4)])
    arc = {"id": "1", "question": "q?", "choices": {"text": ["the", "harbour"], "label": ["A", "B"]}, "answerKey": "B"}
    write_jsonl(data / "arc_easy.jsonl", [arc, {**arc, "answerKey": "A"}, arc])
    write_jsonl(data / "boolq.jsonl", [{"question": "q", "answer": True, "passage": "the harbour"}])
    (folder / "held-out.txt").write_text("the lighthouse of the small island was built in the year 1900")
    scores = {
        "kind": "eval",
        "models": ["base"],
        "questions": "data/questions.jsonl",
        "documents": "data",
        "max_new_tokens": 4,
        "retention": False,
        **settings,
    }
    recipe = {"name": "tiny", "base": "./base", "stages": {"scores": scores}}
    file.write_text(yaml.safe_dump(recipe))
    return file


def key(file):
    return prepare(file, (), file.parent / "runs", print)[2][-1].key


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    retention = {"tasks": ["arc_easy", "boolq"], "data": "data", "text": "held-out.txt", "window": 16, "stride": 8}
    file = recipe_of(folder, rows=ROWS, retention=retention)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLGRAFT_CACHE", str(folder / "cache"))
        return file, run(file, runs=folder / "runs")


def test_rows_are_labelled_as_what_they_are(finished):
    _, result = finished
    (evaluation,) = result.evaluations
    table = {row["model"]: row for row in evaluation["rows"]}
    assert {name: (row["label"], row["role"]) for name, row in table.items()} == {
        "base": ("base", "base"),
        "base+gold": ("base, its document in the prompt", "open_book"),
        "base+bm25-2": ("base, BM25 top 2 in the prompt", "open_book"),
        "base+2-shot": ("two-shot", "few_shot"),
    }
    assert table["base+gold"]["found"]["recall"]["mean"] == 1.0
    assert table["base+bm25-2"]["found"]["recall"]["mean"] == 1.0  # each question names its place
    assert table["base+bm25-2"]["found"]["answer_in_context"]["mean"] == 1.0
    assert "found" not in table["base+2-shot"]
    lengths = [table[name]["prompt_tokens"] for name in ("base", "base+gold", "base+bm25-2")]
    assert lengths == sorted(set(lengths))
    costs = [table[name]["cost"]["eval_flops"] for name in ("base", "base+gold", "base+bm25-2")]
    assert costs == sorted(set(costs))  # longer prompts cost more
    assert [row["retention"] is None for row in evaluation["rows"]] == [False, True, True, True]
    assert {(c["row"], c["against"]) for c in evaluation["comparisons"]} >= {("two-shot", "base")}
    page = result.report.read_text()
    for said in ("open book", "More in the prompt", "prompt tokens on average", "arc_easy, acc_norm", "bits per byte"):
        assert said in page, said


def test_retention_has_every_task_and_the_text(finished):
    _, result = finished
    (row, *_) = result.evaluations[0]["rows"]
    by_name = {(each["task"], each["metric"]): each for each in row["retained"]}
    assert list(by_name) == [
        ("arc_easy", "acc_norm"),
        ("arc_easy", "acc"),
        ("boolq", "acc"),
        ("held-out text", "bits per byte"),
        ("held-out text", "token perplexity"),
    ]
    # every task counts alike, whatever its number of questions
    arc, boolq = by_name["arc_easy", "acc_norm"]["score"], by_name["boolq", "acc"]["score"]
    assert row["retention"]["mean"] == pytest.approx((arc["mean"] + boolq["mean"]) / 2)
    assert (arc["n"], boolq["n"], row["retention"]["n"]) == (3, 1, 4)
    assert all(each["change"] is None for each in row["retained"])  # it is the row before


def test_what_the_prompts_say(finished):
    file, _ = finished
    (planned,) = prepare(file, (), file.parent / "runs", print)[2]
    documents = read_documents(planned.settings.documents)
    asked = rows.EvaluationTask(planned.settings, read_questions(planned.settings.questions), documents, seed=0)
    _, tokenizer = load(planned.inputs["base"])
    gold, bm25, shots = planned.settings.rows
    (first, *_), facts = rows.row_prompts(asked, gold, tokenizer)
    text = documents[0].rendered()
    assert first[-1]["content"] == f"{text}\n\nQuestion: {asked.questions[0].question}"
    assert facts["found"]["answer_in_context"] == [1.0] * 4
    (first, *_), _ = rows.row_prompts(asked, bm25, tokenizer)
    assert first[-1]["content"].startswith(f"{text}\n\n")  # the best first, and one more
    (first, *_), facts = rows.row_prompts(asked, shots, tokenizer)
    assert [turn["role"] for turn in first] == ["system", *["user", "assistant"] * 2, "user"]
    assert first[0]["content"] == INSTRUCTION
    assert facts == {}
    (plain, *_), _ = rows.row_prompts(asked, None, tokenizer)
    assert [turn["content"] for turn in plain] == [INSTRUCTION, asked.questions[0].question]


def test_a_killed_stage_goes_on_with_the_row_that_it_was_at(tmp_path, monkeypatch):
    retention = {"tasks": ["arc_easy", "boolq"], "data": "data", "text": "held-out.txt"}
    file = recipe_of(tmp_path, rows=ROWS, retention=retention)
    asked = []
    real = rows.answer_and_score

    def counted(model, tokenizer, questions, **options):
        asked.append(len(str(options["prompts"][0])))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(model, tokenizer, questions, **options)

    monkeypatch.setattr(rows, "answer_and_score", counted)
    with pytest.raises(KeyboardInterrupt):
        run(file, runs=tmp_path / "runs")
    monkeypatch.setattr(rows, "measure", None)  # it was there already
    result = run(file, runs=tmp_path / "runs")
    assert len(asked) == 5  # closed-book, gold, bm25 (killed), then bm25 and few-shot
    assert len(result.evaluations[0]["rows"]) == 4
    assert not list((tmp_path / "runs" / "stages").glob("*.work"))


def test_what_is_read_decides_the_address_and_where_it_lies_does_not(tmp_path):
    retention = {"tasks": ["arc_easy"], "data": "data"}
    first = key(recipe_of(tmp_path / "a", rows=ROWS, retention=retention))
    assert key(recipe_of(tmp_path / "b", rows=ROWS, retention=retention)) == first
    file = recipe_of(tmp_path / "b", rows=[*ROWS[:1], {**ROWS[1], "top_k": 3}, ROWS[2]], retention=retention)
    assert key(file) != first
    assert key(recipe_of(tmp_path / "b", rows=ROWS, retention=retention | {"limit": 2})) != first
    assert key(recipe_of(tmp_path / "b", rows=ROWS, retention=retention | {"text": "held-out.txt"})) != first
    changed = {
        "others.jsonl": '{"document": "x", "question": "new?", "answers": ["a"]}\n',
        "arc_easy.jsonl": '{"id": "1", "question": "n?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, '
        '"answerKey": "B"}\n',
    }
    for name, line in changed.items():
        file = recipe_of(tmp_path / "b", rows=ROWS, retention=retention)
        with (tmp_path / "b" / "data" / name).open("a") as out:
            out.write(line)
        assert key(file) != first, name


def test_documents_that_bm25_searches_count_beyond_the_limit(tmp_path):
    """A document that no evaluated question is about changes what BM25 finds, and nothing of a gold row."""
    keys = {}
    for name, row in (("bm25", ROWS[1]), ("gold", ROWS[0])):
        file = recipe_of(tmp_path / name, rows=[row], limit_documents=2)
        before = key(file)
        documents = tmp_path / name / "data" / "documents.jsonl"
        documents.write_text(documents.read_text().replace("Issk", "Issk the great"))
        questions = tmp_path / name / "data" / "questions.jsonl"
        questions.write_text("\n".join(questions.read_text().split("\n")[:2]))
        keys[name] = (before, key(file))
    assert keys["bm25"][0] != keys["bm25"][1]
    assert keys["gold"][0] == keys["gold"][1]


def test_mistakes_are_found_before_anything_runs(tmp_path, monkeypatch):
    file = recipe_of(tmp_path, rows=[{"model": "base", "shots": 1, "shots_from": "data/questions.jsonl"}])
    with pytest.raises(DataError, match="holds a question that is evaluated: 'When was Vell's harbour built"):
        key(file)
    with pytest.raises(MissingPathError, match="no questions of 'openbookqa' in"):
        key(recipe_of(tmp_path, retention={"tasks": ["openbookqa"], "data": "data"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs the package bm25s: pip install 'skillgraft\[retrieval\]'"):
        key(recipe_of(tmp_path, rows=[ROWS[1]]))


def test_a_prompt_that_does_not_fit_says_which(tmp_path):
    file = recipe_of(tmp_path, rows=[ROWS[0]], max_new_tokens=430)
    with pytest.raises(DataError, match=r"rows: base\+gold: a prompt of \d+ tokens .* context of 512; lower top_k"):
        run(file, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs" / "stages").glob("eval-*/evaluation.json"))

"""The verb `retention`, with lm-evaluation-harness where that is installed."""

import importlib.util
import json

import pytest
from typer.testing import CliRunner

from skillgraft.cli.app import app
from skillgraft.errors import RecipeError
from skillgraft.evals import compare_retention as compare_retention_module
from skillgraft.evals.compare_retention import compare_retention
from skillgraft.evals.harness import run_harness
from skillgraft.evals.retention import accuracies, choice_likelihoods
from skillgraft.evals.tasks import read_items
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.settings.evaluation import RetentionSettings
from tests.evals.test_tasks import ARC, BOOLQ, COMMONSENSE
from tests.recipes import write_jsonl
from tests.tiny import tiny_checkpoint, tiny_finetune

WITHOUT_LM_EVAL = importlib.util.find_spec("lm_eval") is None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retention")
    tiny_finetune(tiny_checkpoint(folder / "base", seed=4), folder / "sft", size=0.5)
    questions = [
        {**ARC, "id": str(i), "question": f"Is it {i}, the harbour?", "answerKey": "12"[i % 2]} for i in range(12)
    ]
    write_jsonl(folder / "arc_easy.jsonl", questions)
    write_jsonl(folder / "openbookqa.jsonl", [{**q, "question_stem": q["question"]} for q in questions])
    write_jsonl(folder / "commonsense_qa.jsonl", [{**COMMONSENSE, "answerKey": letter} for letter in "ABCDE"])
    write_jsonl(folder / "boolq.jsonl", [{**BOOLQ, "answer": bool(i % 2), "question": f"q {i}"} for i in range(6)])
    write_jsonl(
        folder / "mine.jsonl",
        [{"id": str(i), "question": f"q{i}?", "choices": ["a", "the island"], "answer": i % 2} for i in range(6)],
    )
    (folder / "text.txt").write_text("the lighthouse of the small island")
    return folder


def test_scores_and_changes_are_those_of_the_functions(place):
    arguments = ["retention", str(place / "base"), str(place / "sft"), "--data", str(place), "--json"]
    arguments += ["--task", "arc_easy", "--task", "boolq", "--limit", "8", "--text", str(place / "text.txt")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    base, sft = json.loads(result.stdout)["models"]
    items = read_items("arc_easy", place, 8)
    means = []
    for row in (base, sft):
        model, tokenizer = load_model(place / row["model"]).eval(), load_tokenizer(place / row["model"])
        means.append(accuracies(items, choice_likelihoods(model, tokenizer, items)[0])["acc_norm"])
        assert row["retained"][0]["score"]["mean"] == pytest.approx(sum(means[-1]) / 8)
    assert [each["change"] for each in base["retained"]] == [None] * 5
    assert sft["retained"][0]["change"]["mean"] == pytest.approx((sum(means[1]) - sum(means[0])) / 8)
    assert sft["retained"][3]["change"]["mean"] > 0  # noise makes text harder to predict
    assert sft["seconds"] > 0


def test_a_table_is_printed(place):
    arguments = ["retention", str(place / "base"), str(place / "sft"), "--data", str(place), "--task", "mine"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "acc_norm" in result.output
    assert "change from the" in result.output


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--task", "boolq", "--task", "boolq"], "stands there twice"),
        (["--task", "../boolq"], "--task: must match pattern"),
        (["--window", "16", "--stride", "32", "--text", "t.txt"], "more than the window of 16"),
        (["--stride", "32"], "retention.stride: says how held-out text is cut; it needs text"),
        (["--task", "mine", "--window", "1024", "--text", "TEXT"], "window: 1024 tokens are more than the 512 that"),
        (["--task", "arc_challenge"], "no questions of 'arc_challenge'"),
    ],
)
def test_mistakes_are_one_message(place, more, says):
    more = [str(place / "text.txt") if each == "TEXT" else each for each in more]
    result = CliRunner().invoke(app, ["retention", str(place / "base"), "--data", str(place), *more])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_a_misspelt_task_without_data(place):
    result = CliRunner().invoke(app, ["retention", str(place / "base"), "--task", "genral"])
    assert result.exit_code == 2
    assert "did you mean 'general'? available: arc_challenge, arc_easy" in " ".join(result.output.split())


def test_lm_eval_that_is_not_installed_is_said_before_a_model_is_loaded(place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(compare_retention_module, "resolve_base", None)
    with pytest.raises(RecipeError, match=r"pip install 'skillgraft\[eval\]'"):
        compare_retention([str(place / "base")], RetentionSettings(), lm_eval=True)


@pytest.mark.skipif(WITHOUT_LM_EVAL, reason="lm-eval is not installed: pip install 'skillgraft[eval]'")
def test_the_harness_says_the_same_of_every_item(place):
    tasks = ["arc_easy", "openbookqa", "commonsense_qa", "boolq", "mine", "general"]
    model, tokenizer = load_model(place / "base").eval(), load_tokenizer(place / "base")
    theirs = run_harness(place / "base", tasks, place, 20, "float32")
    for task in tasks:
        items = read_items(task, place, 20)
        ours = accuracies(items, choice_likelihoods(model, tokenizer, items)[0])
        for metric, scores in theirs[task].items():
            assert scores == ours[metric], (task, metric)
    assert sorted(theirs["boolq"]) == ["acc"]
    assert sorted(theirs["openbookqa"]) == ["acc", "acc_norm"]


@pytest.mark.skipif(WITHOUT_LM_EVAL, reason="lm-eval is not installed: pip install 'skillgraft[eval]'")
def test_the_verb_counts_the_items_that_agree(place):
    settings = RetentionSettings(tasks=["arc_easy"], data=place)
    (row,) = compare_retention([str(place / "base")], settings, lm_eval=True)["models"]
    agreed = [(each["metric"], each["n"], each["same"]) for each in row["lm_eval"]]
    assert agreed == [("acc", 12, 12), ("acc_norm", 12, 12)]

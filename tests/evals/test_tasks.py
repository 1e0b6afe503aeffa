"""The public tasks' prompts, choices and places, against the harness's task files read by hand."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from skillgraft.errors import DataError, MissingPathError
from skillgraft.evals.tasks import read_items, read_retention, read_settings
from skillgraft.settings.evaluation import RetentionSettings
from tests.recipes import write_jsonl

SHARED = Path(__file__).parents[2] / "data" / "retention"
ARC = {
    "id": "a1",
    "question": "Which is warm?",
    "choices": {"text": ["ice", "fire"], "label": ["1", "2"]},
    "answerKey": "2",
}
OPENBOOKQA = {**ARC, "question_stem": "Fire is"}
COMMONSENSE = {
    "id": "c1",
    "question": " Where is fish sold? ",
    "choices": {"label": list("ABCDE"), "text": ["market", "sky", "moon", "sun", "cloud"]},
    "answerKey": "A",
}
BOOLQ = {"question": "is fire warm", "answer": True, "passage": "Fire is warm."}


def test_prompts_are_the_harness_s(tmp_path):
    write_jsonl(tmp_path / "arc_easy.jsonl", [ARC])
    write_jsonl(tmp_path / "openbookqa.jsonl", [OPENBOOKQA])
    write_jsonl(tmp_path / "commonsense_qa.jsonl", [COMMONSENSE])
    write_jsonl(tmp_path / "boolq.jsonl", [BOOLQ, {"question": "q", "label": 0, "passage": "P", "idx": 7}])
    write_jsonl(tmp_path / "mine.jsonl", [{"id": "m", "question": "Q?", "choices": ["x", "y"], "answer": 1}])
    (arc,) = read_items("arc_easy", tmp_path)
    assert (arc.prompt, arc.choices, arc.answer) == ("Question: Which is warm?\nAnswer:", ("ice", "fire"), 1)
    (book,) = read_items("openbookqa", tmp_path)
    assert (book.prompt, book.choices, book.answer) == ("Fire is", ("ice", "fire"), 1)
    (common,) = read_items("commonsense_qa", tmp_path)
    lines = ["Question: Where is fish sold?", "A. market", "B. sky", "C. moon", "D. sun", "E. cloud", "Answer:"]
    assert (common.prompt, common.choices, common.answer) == ("\n".join(lines), tuple("ABCDE"), 0)
    yes, no = read_items("boolq", tmp_path)
    assert (yes.prompt, yes.choices, yes.answer) == (
        "Fire is warm.\nQuestion: is fire warm?\nAnswer:",
        ("no", "yes"),
        1,
    )
    assert no.answer == 0
    (mine,) = read_items("mine", tmp_path)
    assert (mine.prompt, mine.choices, mine.answer) == ("Question: Q?\nAnswer:", ("x", "y"), 1)


def test_the_hub_s_layout_is_read_as_it_is(tmp_path):
    """`hf download allenai/ai2_arc --local-dir data/ai2_arc` leaves parquet by configuration and split."""
    folder = tmp_path / "ai2_arc" / "ARC-Easy"
    folder.mkdir(parents=True)
    for split, name in (("test", "one"), ("validation", "other")):
        table = pyarrow.Table.from_pylist([{**ARC, "id": f"{name}-{i}"} for i in range(3)])
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    assert [item.id for item in read_items("arc_easy", tmp_path)] == ["one-0", "one-1", "one-2"]  # what it scores
    assert [item.id for item in read_items("arc_easy", tmp_path, limit=2)] == ["one-0", "one-1"]
    (tmp_path / "boolq" / "data").mkdir(parents=True)
    write_jsonl(tmp_path / "boolq" / "data" / "validation.jsonl", [BOOLQ])
    assert len(read_items("boolq", tmp_path)) == 1


def test_a_parquet_file_and_its_records_as_json_are_the_same(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([COMMONSENSE]), tmp_path / "a" / "commonsense_qa.parquet")
    write_jsonl(tmp_path / "b" / "commonsense_qa.jsonl", [COMMONSENSE])
    assert read_items("commonsense_qa", tmp_path / "a") == read_items("commonsense_qa", tmp_path / "b")


@pytest.mark.parametrize(
    ("task", "record", "says"),
    [
        ("arc_easy", {**ARC, "answerKey": "3"}, "line 1: no question of arc_easy"),
        ("arc_easy", {k: v for k, v in ARC.items() if k != "choices"}, "'choices' is missing"),
        ("commonsense_qa", {**COMMONSENSE, "answerKey": ""}, "no question of commonsense_qa"),
        ("boolq", {**BOOLQ, "answer": "maybe"}, "answer is 'maybe', expected true or false"),
        ("mine", {"question": "q", "choices": ["a", "b"], "answer": 2}, "expected the index of one of 2 choices"),
        ("mine", {"question": "q", "choices": ["a", "b"], "answer": True}, "expected the index"),
        ("mine", {"question": "q", "choices": ["a", ""], "answer": 0}, "expected two or more texts"),
        ("mine", {"question": "q", "choices": ["a"], "answer": 0}, "expected two or more texts"),
    ],
)
def test_a_broken_record_is_named(tmp_path, task, record, says):
    write_jsonl(tmp_path / f"{task}.jsonl", [record])
    with pytest.raises(DataError, match=says):
        read_items(task, tmp_path)


def test_what_is_missing_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(MissingPathError, match=r"expected arc_easy.jsonl.*ai2_arc/ARC-Easy/test\*.*allenai/ai2_arc"):
        read_items("arc_easy", tmp_path)
    with pytest.raises(MissingPathError, match="did you mean 'arc_easy'"):
        read_items("arc_eazy", tmp_path)
    with pytest.raises(MissingPathError, match="needs data"):
        read_items("boolq", None)
    with pytest.raises(MissingPathError, match="is not a directory"):
        read_items("boolq", tmp_path / "none")
    (tmp_path / "boolq.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a parquet file"):
        read_items("boolq", tmp_path)
    with pytest.raises(MissingPathError, match=r"text: .* does not exist"):
        read_settings(RetentionSettings(tasks=[], text=tmp_path / "none.txt"))


def test_the_switch_and_the_default_settings_are_the_shipped_questions(tmp_path):
    assert read_retention(False) is None
    shipped = read_retention(True)
    assert [len(items) for items in shipped.tasks.values()] == [100]
    assert read_settings(RetentionSettings()) == shipped
    file = tmp_path / "held-out.txt"
    file.write_text("Some text.")
    assert [d.rendered() for d in read_settings(RetentionSettings(text=file)).text] == ["Some text."]
    file.write_text(" \n")
    with pytest.raises(DataError, match="is empty"):
        read_settings(RetentionSettings(text=file))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the public sets in data/retention (recipes/retention.yaml)")
def test_every_question_of_the_public_sets_is_read():
    for name in ("arc_easy", "arc_challenge", "openbookqa", "commonsense_qa", "boolq"):
        items = read_items(name, SHARED)
        file = SHARED / f"{name}.jsonl"
        if file.exists():
            assert len(items) == len([line for line in file.read_text().split("\n") if line])
        assert len({item.answer for item in items}) > 1

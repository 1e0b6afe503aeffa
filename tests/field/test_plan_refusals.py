"""What a stage would refuse hours later, the plan refuses before anything runs, where the data exist already."""

import json

import pytest
import yaml

from skillgraft.errors import SkillgraftError
from skillgraft.pipeline.preflight import check_plan
from skillgraft.run import prepare
from tests.recipes import PLACES, tiny_recipe, write_jsonl
from tests.tiny import edit_json

QUESTIONS = "data/questions.jsonl"
SFT = {"kind": "sft", "from": "base", "documents": "data"}
ASK = {"kind": "sft", "from": "base", "questions": QUESTIONS, "about": "data"}
RL = {"kind": "rl", "from": "base", "questions": QUESTIONS}
DISTILL = {"kind": "distill", "from": "base", "documents": "data", "questions": QUESTIONS}
EDIT = {"kind": "self_edit", "from": "base", "documents": "data", "questions": QUESTIONS, "max_new_tokens": 64}
SINGLE = {"kind": "single_passage", "documents": "data", "questions": QUESTIONS}
WRITE = {"kind": "synthesize", "documents": "data", "styles": ["rewrite"]}
MIX = {"kind": "mix", "questions": QUESTIONS, "documents": "data", "teacher_sees": "both"}
EVAL = {"kind": "eval", "models": ["base"], "documents": "data", "questions": QUESTIONS, "retention": False}
LONG = "the harbour of the island was built " * 120


def planned(folder):
    """Plan the recipe in `folder` and return the remarks."""
    runs = folder / "runs"
    try:
        return check_plan(prepare(folder / "recipe.yaml", [], runs, lambda _: None)[2])
    finally:
        assert not runs.exists()


def made(folder, documents=None, questions=None, **stages):
    recipe = yaml.safe_load(tiny_recipe(folder).read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "stages": stages}))
    write_jsonl(folder / "one.jsonl", [{"document": "a", "question": "What is a?", "answers": ["b"]}])
    if documents is not None:
        write_jsonl(folder / "data" / "documents.jsonl", documents)
    if questions is not None:
        write_jsonl(folder / "data" / "questions.jsonl", questions)
    return folder


def refused(folder):
    with pytest.raises(SkillgraftError) as error:
        planned(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (RL, "stages.x: rl: 4 questions are left, one step needs 8; give more questions, or lower"),
        (
            {**RL, "documents": "data", "limit_documents": 1, "trainer": {"per_device_train_batch_size": 16}},
            "stages.x: rl: 1 questions are left, one step needs 2; give more questions",
        ),
        (
            {**RL, "documents": "data", "part": "2/2", "trainer": {"per_device_train_batch_size": 32}},
            "stages.x: rl: 2 questions are left, one step needs 4; give more questions",
        ),
        (
            {**RL, "trainer": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 8}},
            "stages.x: rl: 4 questions are left, one step needs 8; give more questions",
        ),
        (
            {**RL, "trainer": {"max_completion_length": 500, "per_device_train_batch_size": 8}},
            "its answer of up to 500 do not fit into the model's context",
        ),
        (
            {**RL, "trainer": {"max_completion_length": None}},
            "max_completion_length is None, expected at least 1 tokens",
        ),
        (DISTILL, "stages.x: distill: 4 prompts are fewer than one step's 16; give more, or lower"),
        (
            {**DISTILL, "trainer": {"per_device_train_batch_size": 2, "max_completion_length": 500}},
            "which with an answer of 500 do not fit into the model's context of 512; cut the document into several",
        ),
        (
            {**EDIT, "max_new_tokens": 400},
            "its answer of up to 400 do not fit into the model's context of 512; cut them",
        ),
        ({**EDIT, "max_answer_tokens": 500}, "context of 512; shorten it, or lower max_answer_tokens"),
        ({**SINGLE, "max_new_tokens": 500}, "context of 512; shorten it, or lower max_new_tokens"),
        (
            {**SFT, "trainer": {"dataloader_drop_last": True}},
            "sft: 4 rows are fewer than one batch of 8, and trainer.dataloader_drop_last leaves such a batch out",
        ),
        ({**ASK, "trainer": {"max_length": 20}}, "more than max_length = 20: the answer would be cut off; raise"),
        (
            {**SFT, "replay": {"text": "nowhere", "ratio": 1}},
            "nowhere does not exist; expected a folder of text files",
        ),
        (
            {**EVAL, "rows": [{"model": "base", "shots": 2, "shots_from": "one.jsonl"}]},
            "one.jsonl has 1 questions, but shots: 2 are asked for",
        ),
        (
            {**EVAL, "rows": [{"model": "base", "shots": 1, "shots_from": QUESTIONS}]},
            "data/questions.jsonl holds a question that is evaluated: 'When was Vell's harbour built?'",
        ),
        ({**SFT, "trainer": {"router_aux_loss_coef": 0.1}}, "is for mixtures of experts, and the start is none; leave"),
        ({**WRITE, "max_new_tokens": 500}, "do not fit into the model's context of 512; lower chunk_tokens or max_new"),
        ({**MIX, "max_new_tokens": 480}, "do not fit into the model's context of 512; cut the documents, or lower"),
    ],
)
def test_settings_that_the_data_at_hand_rule_out(tmp_path, stage, message):
    assert message in refused(made(tmp_path, x=stage))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {**SFT, "trainer": {"max_length": None}},
            "does not fit into the model's context of 512; lower text.chunk_tokens",
        ),
        ({**SINGLE, "trainer": {"max_length": 1024}}, "single_passage: a row of "),
        (EDIT, "self_edit: a row of "),
        (
            {**DISTILL, "trainer": {"per_device_train_batch_size": 2}},
            "the document 'Vell' in the teacher's prompt takes",
        ),
        ({**WRITE, "chunk_tokens": [900]}, "do not fit into the model's context of 512; lower chunk_tokens"),
        ({**EVAL, "rows": [{"model": "base", "context": "gold"}]}, "rows: base+gold: a prompt of "),
        (MIX, "do not fit into the model's context of 512; cut the documents, or lower max_new_tokens"),
    ],
)
def test_a_document_longer_than_the_context(tmp_path, stage, message):
    documents = [{"id": place, "title": place, "text": LONG} for place in PLACES]
    assert message in refused(made(tmp_path, documents, x=stage))


@pytest.mark.parametrize(
    "stage",
    [{**ASK, "trainer": {"max_length": None}}, {**RL, "trainer": {"per_device_train_batch_size": 8}}, SINGLE, EDIT],
)
def test_a_question_longer_than_the_context(tmp_path, stage):
    asked = [{"document": place, "question": LONG, "answers": ["1900"]} for place in PLACES]
    assert "context of 512" in refused(made(tmp_path, questions=asked, x=stage))


def test_a_title_that_fills_a_row(tmp_path):
    documents = [{"id": place, "title": LONG, "text": "It was built."} for place in PLACES]
    folder = made(tmp_path, documents, x={**SFT, "trainer": {"max_length": 64}})
    assert "the title of 'Vell' alone fills" in refused(folder)


def test_a_title_that_is_missing_where_titles_are_asked_about(tmp_path):
    documents = [{"id": place, "title": "", "text": "It was built."} for place in PLACES]
    stage = {**DISTILL, "questions": None, "trainer": {"per_device_train_batch_size": 2}}
    assert "the document 'Vell' has no title to be asked about" in refused(made(tmp_path, documents, x=stage))


@pytest.mark.parametrize(
    "stage",
    [
        SFT,
        ASK,
        {**RL, "trainer": {"per_device_train_batch_size": 8}},
        {**DISTILL, "trainer": {"per_device_train_batch_size": 2}},
        SINGLE,
        EDIT,
    ],
)
def test_a_tokenizer_without_an_end_token(tmp_path, stage):
    folder = made(tmp_path, x=stage)
    edit_json(folder / "base" / "tokenizer_config.json", eos_token=...)
    (folder / "base" / "special_tokens_map.json").unlink(missing_ok=True)
    assert "the tokenizer has no end-of-text token" in refused(folder)


def test_questions_about_no_document_of_a_part(tmp_path):
    folder = made(
        tmp_path,
        questions=[{"document": "Vell", "question": "When was it built?", "answers": ["1900"]}],
        x={**RL, "documents": "data", "part": "2/2"},
    )
    assert "names no known document: it asks about 'Vell'" in refused(folder)


def test_a_self_edit_that_may_be_cut_off_is_a_remark(tmp_path):
    folder = made(tmp_path, x={**EDIT, "trainer": {"max_length": 250}})
    (remark,) = planned(folder)
    assert remark.startswith("a prompt of ")
    assert "and a self-edit of up to 64 can be more than trainer.max_length = 250, which ends the stage" in remark


def test_given_renderings_of_nothing_that_is_there(tmp_path):
    folder = made(tmp_path, x={"kind": "synthesize", "documents": "data", "given": "given.jsonl"})
    (folder / "given.jsonl").write_text(json.dumps({"document": "elsewhere", "text": "A text."}) + "\n")
    assert "stages.x: " in refused(folder)

"""What a recipe trains on must not hold what it asks: a planted leak is found, and can be left out."""

import json

import pytest

from skillgraft import run
from skillgraft.errors import DataError
from tests.data.synthesis.test_synthesize import recipe_with
from tests.recipes import write_jsonl

pytestmark = pytest.mark.train

TRAINER = {"max_steps": 1, "per_device_train_batch_size": 2, "warmup_steps": 0}
GIVEN = {
    "kind": "synthesize",
    "documents": "data",
    "given": "given.jsonl",
    "filters": {"min_words": 1, "repetition": 1, "near_duplicate": 1},
}
SFT = {"kind": "sft", "from": "base", "documents": "given", "trainer": TRAINER}
SCORES = {
    "kind": "eval",
    "models": ["base", "sft"],
    "questions": "data/questions.jsonl",
    "documents": "data",
    "max_new_tokens": 2,
    "retention": False,
}
LEAK = "Some ask: when was THE harbour of Vell's-harbour, no, when was Vell's harbour built? In 1900."
CLEAN = "The harbour at Orm was opened in 1901."


def planted(tmp_path, **stages):
    file = recipe_with(tmp_path, **{"given": GIVEN, "sft": SFT, "scores": SCORES, **stages})
    write_jsonl(tmp_path / "given.jsonl", [{"document": "Orm", "text": CLEAN}, {"document": "Vell", "text": LEAK}])
    return file


def test_a_planted_leak_stops_the_run_before_it_trains(tmp_path):
    file = planted(tmp_path)
    said = r"stages.sft: 1 of the 4 questions that 'scores' asks stand in the renderings of 'given', .*Vell's harbour "
    with pytest.raises(DataError, match=said + r"built\?', in 'Vell#given-1'; .*data/questions.jsonl"):
        run(file, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs" / "stages").glob("sft-*"))
    result = run(file, overrides=["given.held_out=[data/questions.jsonl]"], runs=tmp_path / "runs")
    texts = (result.stages["given"] / "documents.jsonl").read_text()
    assert CLEAN in texts
    assert LEAK not in texts


def test_a_finished_stage_is_asked_again_when_the_evaluation_is_another(tmp_path):
    file = planted(tmp_path)
    run(file, overrides=["scores.documents=data", "scores.questions=other.jsonl"], runs=_with_others(tmp_path))
    with pytest.raises(DataError, match="stand in the renderings"):
        run(file, runs=tmp_path / "runs")


def _with_others(tmp_path):
    write_jsonl(tmp_path / "other.jsonl", [{"document": "Vell", "question": "Where is Vell?", "answers": ["there"]}])
    return tmp_path / "runs"


def test_only_what_is_asked_counts(tmp_path):
    file = planted(tmp_path)
    run(file, overrides=["scores.limit_documents=2", "scores.questions=late.jsonl"], runs=_late(tmp_path))


def _late(tmp_path):
    """Questions on Orm, and the leaked one said of a document beyond the limit."""
    write_jsonl(
        tmp_path / "late.jsonl",
        [
            {"document": "Orm", "question": "When was Orm's harbour built?", "answers": ["1901"]},
            {"document": "Tarn", "question": "When was Vell's harbour built?", "answers": ["1900"]},
        ],
    )
    return tmp_path / "runs"


def test_documents_as_given_and_question_files_are_the_users_choice(tmp_path):
    file = planted(tmp_path)
    lines = (tmp_path / "data" / "documents.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    first["text"] += " When was Vell's harbour built?"
    write_jsonl(tmp_path / "data" / "documents.jsonl", [first, *map(json.loads, lines[1:])])
    write_jsonl(tmp_path / "given.jsonl", [{"document": "Orm", "text": CLEAN}])
    on_questions = {"kind": "sft", "from": "base", "questions": "data/questions.jsonl", "trainer": TRAINER}
    planted_file = recipe_with(tmp_path, given=GIVEN, sft=SFT, asked=on_questions, scores=SCORES)
    write_jsonl(tmp_path / "data" / "documents.jsonl", [first, *map(json.loads, lines[1:])])
    assert file == planted_file
    run(planted_file, runs=tmp_path / "runs")


def test_a_question_among_mixed_answers_is_a_leak_too(tmp_path, monkeypatch):
    from skillgraft.data.synthesis import mixsd

    def says_the_answer(model, tokenizer, asked, *_, **settings):
        return [mixsd.Mixed("1900 1901 1902 1903", (False,), 1) for _ in asked]

    monkeypatch.setattr(mixsd, "mix_answers", says_the_answer)
    mixed = {"kind": "mix", "questions": "data/questions.jsonl"}
    sft = {"kind": "sft", "from": "base", "questions": "mixed", "trainer": TRAINER}
    file = recipe_with(tmp_path, mixed=mixed, sft=sft, scores=SCORES)
    with pytest.raises(DataError, match="4 of the 4 questions that 'scores' asks stand in the renderings of 'mixed'"):
        run(file, runs=tmp_path / "runs")


def test_only_what_an_evaluated_model_comes_of_counts(tmp_path):
    """One recipe may ask a model that learnt from half of the questions the other half, and other models all."""
    clean = {"kind": "sft", "from": "base", "documents": "data", "trainer": TRAINER}
    file = planted(tmp_path, clean=clean, scores={**SCORES, "models": ["base", "clean"]})
    run(file, runs=tmp_path / "runs")
    skill = {"kind": "extract", "rl": "sft", "sft": "clean"}
    grafted = {"kind": "inject", "target": "clean", "skill": "skill"}
    stages = {"clean": clean, "skill": skill, "grafted": grafted}
    file = planted(tmp_path, **stages, scores={**SCORES, "models": ["base", "grafted"]})
    with pytest.raises(DataError, match=r"stages.sft: 1 of the 4 questions that 'scores' asks"):
        run(file, runs=tmp_path / "runs")

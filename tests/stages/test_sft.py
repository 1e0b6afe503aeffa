"""The regimes of fine-tuning as recipes: replay, chains of documents and questions, chunks; what is refused."""

import json

import pytest
import torch
import yaml

from skillgraft import run
from skillgraft.data.replay import read_replay
from skillgraft.errors import DataError, MissingPathError, RecipeError, TrainingError, naming
from skillgraft.models.loading import load_tokenizer
from skillgraft.pipeline.plan import plan
from skillgraft.recipe.load import load_recipe
from skillgraft.stages.sft import SftStage, check_chain
from tests.recipes import PLACES, tiny_recipe, write_jsonl
from tests.tiny import weights

TRAINER = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0}
GENERAL = [{"text": " ".join(f"general-{i}-{j}" for j in range(30))} for i in range(12)]


def regimes_recipe(folder, **stages):
    """A tiny recipe of the given sft stages; `from: base` and the trainer are filled in."""
    tiny_recipe(folder)
    write_jsonl(folder / "general.jsonl", GENERAL)
    filled = {
        name: {"kind": "sft", "from": "base", "trainer": TRAINER, **stage} if "kind" not in stage else stage
        for name, stage in stages.items()
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"name": "tiny", "base": "./base", "stages": filled}))
    return file


def facts(result, stage):
    return json.loads((result.stages[stage] / "stage.json").read_text())["facts"]


def planned(recipe_file):
    recipe = load_recipe(recipe_file)
    stages = {stage.name: stage for stage in plan(recipe, recipe_file.parent / "base", recipe_file.parent / "store")}
    for name, stage in stages.items():
        if isinstance(stage.settings, SftStage):
            with naming(f"stages.{name}"):
                check_chain(stages, stage.settings)
    return stages


def own_tokens(folder):
    documents = [json.loads(line) for line in (folder / "data" / "documents.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(folder / "base")
    return sum(len(tokenizer(f"{d['title']}\n\n{d['text']}")["input_ids"]) + 1 for d in documents)


@pytest.mark.train
def test_replay_at_a_ratio_is_the_same_wherever_it_runs(tmp_path):
    replay = {"text": "general.jsonl", "ratio": 0.75}
    stages = {"plain": {"documents": "data"}, "mixed": {"documents": "data", "replay": replay}}
    result = run(regimes_recipe(tmp_path / "one", **stages), runs=tmp_path / "one" / "runs")
    own = own_tokens(tmp_path / "one")
    assert facts(result, "plain")["replayed_tokens"] == 0
    assert facts(result, "plain")["tokens"] == 2 * own
    assert facts(result, "mixed")["replayed_tokens"] == round(0.75 * own)
    assert facts(result, "mixed")["tokens"] == 2 * (own + round(0.75 * own))
    elsewhere = run(regimes_recipe(tmp_path / "two", **stages), runs=tmp_path / "two" / "runs")
    assert elsewhere.stages["mixed"].name == result.stages["mixed"].name
    plain, mixed, again = (
        weights(each) for each in (result.stages["plain"], result.stages["mixed"], elsewhere.stages["mixed"])
    )
    assert all(torch.equal(value, again[name]) for name, value in mixed.items())
    assert not all(torch.equal(value, plain[name]) for name, value in mixed.items())


def test_replay_decides_the_address(tmp_path):
    def key(**replay):
        stages = {"mixed": {"documents": "data", "replay": {"text": "general.jsonl", **replay}}}
        return planned(regimes_recipe(tmp_path, **stages))["mixed"].key

    first = key()
    assert first == key(ratio=0.1)
    assert first != key(ratio=0.2)
    write_jsonl(tmp_path / "same.jsonl", GENERAL)
    assert first == key(text="same.jsonl")
    write_jsonl(tmp_path / "other.jsonl", GENERAL[1:])
    assert first != key(text="other.jsonl")


@pytest.mark.train
def test_questions_can_be_mixed_with_general_text(tmp_path):
    stage = {"questions": "data/questions.jsonl", "replay": {"text": "general.jsonl", "ratio": 0.5}}
    result = run(regimes_recipe(tmp_path, sft=stage), runs=tmp_path / "runs")
    assert facts(result, "sft")["replayed_tokens"] > 0


def test_too_little_text_to_replay(tmp_path):
    stage = {"documents": "data", "replay": {"text": "general.jsonl", "ratio": 50}}
    with pytest.raises(DataError, match=r"stages\.sft: replay: the text gives \d+ tokens and \d+ are asked for"):
        run(regimes_recipe(tmp_path, sft=stage), runs=tmp_path / "runs")
    assert not list((tmp_path / "runs" / "stages").glob("sft-*[!k]/stage.json"))


def test_texts_to_replay_are_read_from_files_of_all_kinds(tmp_path):
    (tmp_path / "b.md").write_text("zweite")
    (tmp_path / "a.txt").write_text("\ufefffirst")
    (tmp_path / "c.py").write_text("print()")
    (tmp_path / "empty.txt").write_text(" \n")
    assert read_replay(tmp_path) == ["first", "zweite"]
    assert read_replay(tmp_path / "b.md") == ["zweite"]
    write_jsonl(tmp_path / "d.jsonl", [{"text": "ein"}, {"text": "", "id": 2}, {"text": "早い"}])
    assert read_replay(tmp_path / "d.jsonl") == ["ein", "早い"]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("nowhere.txt", None, MissingPathError, r"replay: .*nowhere.txt does not exist; expected a folder"),
        ("a.bin", b"text", DataError, r"replay: .*a.bin is a .bin, expected a folder of text files"),
        ("a.txt", b"\xff\xfe\x00", DataError, "not UTF-16 text"),
        ("a.txt", b"one\x00two", DataError, "a zero byte after 3 characters"),
        ("a.txt", b" \n ", DataError, "holds no text"),
        ("a.jsonl", b'{"txt": "a"}', DataError, r"line 1: 'text' is None, expected a string; the record has \['txt'\]"),
        ("a.jsonl", b'{"text": ', DataError, "line 1: not JSON"),
    ],
)
def test_bad_texts_to_replay_are_found_before_anything_runs(tmp_path, name, content, error, message):
    recipe = regimes_recipe(tmp_path, sft={"documents": "data", "replay": {"text": f"new/{name}"}})
    (tmp_path / "new").mkdir()
    if content is not None:
        (tmp_path / "new" / name).write_bytes(content)
    with pytest.raises(error, match=message):
        run(recipe, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.train
def test_two_stages_with_questions_about_what_was_read(tmp_path):
    """Documents, then the questions about them alone: tokens as counted by hand, and where the second one starts."""
    stages = {
        "read": {"documents": "data", "limit_documents": 2},
        "answer": {"from": "read", "questions": "data/questions.jsonl", "about": "data", "limit_documents": 2},
    }
    result = run(regimes_recipe(tmp_path, **stages), runs=tmp_path / "runs")
    tokenizer = load_tokenizer(tmp_path / "base")
    answers = sum(len(tokenizer(f"{1900 + i}<|im_end|>\n")["input_ids"]) for i in range(2))
    assert facts(result, "answer")["questions"] == 2
    assert facts(result, "answer")["tokens"] == 2 * answers
    started = json.loads((result.stages["answer"] / "skillgraft.json").read_text())
    assert started["inputs"]["from"] != started["base"]["fingerprint"]


def test_questions_about_nothing_that_was_read(tmp_path):
    asked = [{"document": place, "question": f"Where is {place}?", "answers": ["there"]} for place in PLACES[2:]]
    stages = {"read": {"documents": "data", "limit_documents": 2}, "answer": {"from": "read", "questions": "new.jsonl"}}
    recipe = regimes_recipe(tmp_path, **stages)
    write_jsonl(tmp_path / "new.jsonl", asked)
    message = "stages.answer: its questions are about 'Issk' and others, and none of the 2 documents learnt before it"
    with pytest.raises(DataError, match=message):
        planned(recipe)
    write_jsonl(tmp_path / "new.jsonl", [*asked, {**asked[0], "document": PLACES[0]}])
    planned(recipe)  # some are about what was read
    write_jsonl(tmp_path / "new.jsonl", asked)
    stages["answer"]["about"] = "data"
    planned(regimes_recipe(tmp_path, **stages))  # said to be meant
    stages["answer"] = {"questions": "new.jsonl"}
    planned(regimes_recipe(tmp_path, **stages))  # from the base: a format, learnt without documents
    stages["middle"] = {"from": "read", "questions": "data/questions.jsonl"}
    stages["answer"] = {"from": "middle", "questions": "new.jsonl"}
    with pytest.raises(DataError, match=r"stages\.answer: its questions are about"):
        planned(regimes_recipe(tmp_path, **stages))


def test_questions_of_a_synthesize_stage_are_about_what_it_renders(tmp_path):
    synth = {"kind": "synthesize", "documents": "data", "limit_documents": 2, "styles": ["questions", "rewrite"]}
    stages = {"synth": synth, "read": {"documents": "synth"}, "answer": {"from": "read", "questions": "synth"}}
    planned(regimes_recipe(tmp_path, **stages))
    write_jsonl(tmp_path / "new.jsonl", [{"document": PLACES[3], "question": "?", "answers": ["a"]}])
    stages["answer"]["questions"] = "new.jsonl"
    with pytest.raises(DataError, match=f"about '{PLACES[3]}', and none of the 2 documents"):
        planned(regimes_recipe(tmp_path, **stages))


@pytest.mark.train
def test_chunks_with_overlap_and_masked_titles_as_settings(tmp_path):
    text = {"chunk_tokens": 20, "overlap_tokens": 4, "mask_title": True}
    result = run(regimes_recipe(tmp_path, sft={"documents": "data", "text": text}), runs=tmp_path / "runs")
    tokenizer = load_tokenizer(tmp_path / "base")
    expected = 0
    for i, place in enumerate(PLACES):
        title = len(tokenizer(f"{place}\n\n")["input_ids"])
        left, room = len(tokenizer(f"The harbour of {place} was built in {1900 + i}.")["input_ids"]), 20 - title - 1
        while left > 0:  # each chunk's text and its end; the next one begins `overlap` earlier
            expected += min(left, room) + 1
            left = left - room + 4 if left > room else 0
    assert facts(result, "sft")["tokens"] == 2 * expected


def test_an_answer_that_the_trainer_would_cut_off(tmp_path):
    trainer = {**TRAINER, "max_length": 24}
    recipe = regimes_recipe(tmp_path, sft={"questions": "data/questions.jsonl", "trainer": trainer})
    with pytest.raises(TrainingError, match=r"stages\.sft: .* 'When was Vell.* the answer would be cut off"):
        run(recipe, runs=tmp_path / "runs")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"documents": "data", "about": "data"}, "stages.sft: about needs questions"),
        ({"questions": "data", "limit_documents": 2}, "limit_documents needs documents, or about"),
        (
            {"questions": "data", "text": {"mask_title": True}},
            "text says how .* become rows; it needs documents",
        ),
        ({"documents": "data", "questions": "data"}, "make two sft stages of it, the second one `from` the first"),
        ({"documents": "data", "replay": {"ratio": 0.1}}, "'stages.sft.replay.text' is missing"),
        ({"documents": "data", "replay": {"text": "x", "ratio": 0}}, "replay.ratio': must be greater than 0"),
        ({"documents": "data", "replay": {"text": "x", "ratio": float("nan")}}, "'stages.sft.replay.ratio'"),
        ({"documents": "data", "text": {"chunk_tokens": 4}}, "greater than or equal to 8"),
        ({"documents": "data", "text": {"overlap_tokens": 1024}}, "leaves rows of 1024 tokens nothing new"),
        ({"documents": "data", "text": {"chunk_token": 64}}, "unknown key 'stages.sft.text.chunk_token'"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, stage, message):
    with pytest.raises(RecipeError, match=message):
        run(regimes_recipe(tmp_path, sft=stage), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()

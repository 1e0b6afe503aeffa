"""What `run --dry-run` refuses, and what it remarks on, before anything runs."""

import json

import pytest
from typer.testing import CliRunner

from skillgraft.arithmetic import extract
from skillgraft.cli.app import app
from tests.recipes import tiny_recipe, write_jsonl
from tests.tiny import tiny_finetune

QUESTIONS = "data/questions.jsonl"
SFT = {"kind": "sft", "from": "base", "documents": "data"}
RL = {"kind": "rl", "from": "sft", "questions": QUESTIONS}
DISTIL = {"kind": "distill", "from": "base", "documents": "data"}
EDIT = {"kind": "self_edit", "from": "base", "documents": "data", "questions": QUESTIONS}
SINGLE = {"kind": "single_passage", "documents": "data", "questions": QUESTIONS}
WRITE = {"kind": "synthesize", "documents": "data", "styles": ["rewrite"]}
INJECT = {"kind": "inject", "target": "sft", "skill": "skill"}
EVAL = {"kind": "eval", "models": ["base"], "questions": QUESTIONS, "documents": "data"}
FOUND = {"model": "base", "context": "bm25"}
ENDPOINT = {"url": "http://127.0.0.1:9/v1", "model": "m", "key_variable": "SKILLGRAFT_NO_SUCH_KEY"}
SMALL = {"per_device_train_batch_size": 8}
OWN = "tests.domains.own_reward.vowels"


def plan(folder, **stages):
    runs = folder / "runs"
    arguments = ["run", str(tiny_recipe(folder, **stages)), "--runs", str(runs), "--dry-run", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert not runs.exists()
    return result


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {**SFT, "adapt": {"kind": "lora", "target_modules": ["q_proj", "foo"]}},
            "stages.x: adapt: target_modules: 'foo' matches no module; available: down_proj, embed_tokens, gate_proj,",
        ),
        (
            {**RL, "adapt": {"kind": "lora", "target_modules": ["v_pro"]}},
            "'v_pro' matches no module; did you mean 'v_proj'?",
        ),
        (
            {**DISTIL, "adapt": {"kind": "lora", "target_modules": "q_proj"}},
            "'q_proj' matches no module, as a regular expression of",
        ),
        (
            {**SINGLE, "adapt": {"kind": "lora", "target_modules": ["foo"]}},
            "stages.x: adapt: target_modules: 'foo' matches no module",
        ),
        (
            {**EDIT, "learn": {"adapt": {"kind": "lora", "target_modules": ["foo"]}}},
            "target_modules: 'foo' matches no module",
        ),
        ({**SFT, "adapt": {"kind": "lora", "target_modules": "*"}}, "'*' is not a regular expression"),
        (
            {**SFT, "adapt": {"kind": "lora", "target_modules": [3]}},
            "target_modules is [3], expected names such as [q_proj, v_proj]",
        ),
        (
            {**SFT, "adapt": {"kind": "lora", "target_modules": ["q_proj"], "layers_to_transform": [9]}},
            "stages.x: adapt: PEFT refuses this: ",
        ),
        ({**EDIT, "rounds": 5}, "stages.x: rounds: 4 documents have questions, fewer than 5 rounds"),
        ({**EDIT, "rounds": 3, "limit_documents": 2}, "rounds: 2 documents have questions, fewer than 3 rounds"),
        (
            {**SFT, "replay": {"text": "data/documents.jsonl", "ratio": 3}},
            "stages.x: replay: the text gives 86 tokens and 324 are asked for; lower replay.ratio or give more text",
        ),
        ({**SFT, "trainer": {"max_length": 1}}, "stages.x: trainer: max_length is 1, expected at least 2 tokens"),
        ({**SFT, "trainer": {"max_length": 0}}, "trainer: max_length is 0, expected at least 2 tokens"),
        ({**SFT, "trainer": {"max_length": -8}}, "trainer: max_length is -8, expected at least 2 tokens"),
        ({**RL, "trainer": {"max_completion_length": 0}}, "max_completion_length is 0, expected at least 1 tokens"),
        ({**DISTIL, "trainer": {"max_completion_length": -1}}, "max_completion_length is -1, expected at least 1"),
        ({**SFT, "trainer": {"learning_rate": "fast"}}, "learning_rate is the text 'fast', expected a number see:"),
        ({**SFT, "trainer": {"learning_rate": "1e-4"}}, "expected a number; YAML reads 1e-4 as text: 0.0001 see:"),
        ({**SFT, "trainer": {"learning_rate": "3e-6"}}, "expected a number; YAML reads 3e-6 as text: 3.0e-06 see:"),
        ({**WRITE, "endpoint": ENDPOINT}, "stages.x: key_variable: the environment has no SKILLGRAFT_NO_SUCH_KEY"),
        (
            {**RL, "reward": {"judge": 1}, "judge_endpoint": ENDPOINT},
            "stages.x: key_variable: the environment has no SKILLGRAFT_NO_SUCH_KEY",
        ),
        (
            {**INJECT, "scales": {"*.mpl.*": 0.5}},
            "stages.x: scales: '*.mpl.*' matches none of the operand's 20 tensors",
        ),
        ({**INJECT, "skill": "./v", "scales": {"*.embed_tokens.*": 2}}, "matches none of the operand's 1 tensors"),
        ({**RL, "reward": {}}, "stages.x.reward: is empty; name rewards, such as {containment: 1.0}, or leave it out"),
        ({**RL, "reward": {"f1": 0, "brevity": 0}}, "stages.x.reward: f1: 0, brevity: 0: no weight is above 0"),
        ({**RL, "reward": {"f1": -1, OWN: 0}}, "no weight is above 0, so that nothing is paid for"),
        ({**RL, "reward": {"f1": float("nan")}}, "stages.x.reward: f1: nan: weights must be finite numbers"),
        ({**RL, "reward": {"juge": 1.0}}, "'juge' is not known; did you mean 'judge'? available: brevity, containment"),
        ({**RL, "questions": "data"}, "data is a folder; name the file itself: questions.jsonl in it"),
        ({**EVAL, "questions": "base"}, "base is a folder; name the file itself: a JSONL file in it"),
        ({**EVAL, "rows": [{"model": "base", "context": "gold", "top_k": 3}]}, "base: top_k is for context: bm25"),
        (
            {**EVAL, "rows": [{"model": "base", "shots": 1, "shots_from": QUESTIONS, "chunk_tokens": 64}]},
            "chunk_tokens is for context: bm25; leave it out",
        ),
        ({**EVAL, "retention": {"stride": 512}}, "stages.x.retention.stride: says how held-out text is cut; it needs"),
        (
            {**EVAL, "retention": {"text": "data", "window": 1024}},
            "stages.x: retention.window: 1024 tokens are more than the 512 that 'base' can see; lower it",
        ),
        ({**WRITE, "filters": {"min_words": 9, "max_words": 8}}, "min_words: 9 is more than max_words: 8, which drops"),
        ({**DISTIL, "skip_tokens": 64}, "stages.x.skip_tokens: 64 of at most 64 tokens leaves none to learn from"),
        (
            {**EVAL, "models": ["base", "sft"], "labels": {"base": "one", "sft": "one"}},
            "stages.x: two rows are labelled 'one'; give each a label of its own",
        ),
        ({**EVAL, "labels": {"base": "one"}, "rows": [{**FOUND, "label": "one"}]}, "two rows are labelled 'one'"),
    ],
)
def test_what_is_refused(tmp_path, stage, message):
    if stage.get("skill") == "./v":
        base = tiny_recipe(tmp_path).parent / "base"
        extract(tiny_finetune(base, tmp_path / "rl", names=["model.norm.weight"]), base, tmp_path / "v")
    result = plan(tmp_path, x=stage)
    assert result.exit_code == 2, (result.output, result.exception)
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "stage",
    [
        {**SFT, "adapt": {"kind": "lora", "target_modules": ["q_proj", "layers.1.mlp.up_proj"]}},
        {**SFT, "adapt": {"kind": "lora", "target_modules": r".*\.[qv]_proj"}},
        {**SFT, "trainer": {"max_length": None}},
        {**SFT, "replay": {"text": "data/documents.jsonl", "ratio": 0.5}},
        {**EDIT, "rounds": 4, "max_new_tokens": 64},
        {**INJECT, "scales": {"*.mlp.*": 0.5, "default": 1}},
        {**RL, "reward": {OWN: -1.0}, "trainer": SMALL},
        {**RL, "reward": {"f1": 1.0, "brevity": -0.5}, "trainer": SMALL},
        {**EVAL, "retention": {"text": "data"}},
        {**EVAL, "rows": [{**FOUND, "top_k": 3, "chunk_tokens": 300}]},
        {**DISTIL, "skip_tokens": 63, "trainer": SMALL | {"per_device_train_batch_size": 4}},
    ],
)
def test_what_is_allowed(tmp_path, stage):
    result = plan(tmp_path, x=stage)
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout)["remarks"] == []


def test_what_bm25_finds_must_fit_into_the_context(tmp_path):
    tiny_recipe(tmp_path)
    long = [{"id": "Vell", "title": "Vell", "text": "The harbour of Vell was built in the year 1900. " * 20}]
    write_jsonl(tmp_path / "long.jsonl", long)
    write_jsonl(tmp_path / "one.jsonl", [{"document": "Vell", "question": "When was Vell built?", "answers": ["1900"]}])
    stage = {**EVAL, "documents": "long.jsonl", "questions": "one.jsonl", "rows": [FOUND]}
    result = plan(tmp_path, x=stage)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "stages.x: rows: base+bm25-3: a prompt of" in said
    assert "fit into the model's context of 512; lower top_k" in said
    assert plan(tmp_path, x={**stage, "rows": [{**FOUND, "top_k": 1}]}).exit_code == 0


def test_a_limit_above_what_is_there_is_a_remark(tmp_path):
    limits = {
        "x": {**SFT, "limit_documents": 5},
        "y": {**SFT, "limit_documents": 4},
        "z": {**EVAL, "limit_documents": 9},
    }
    result = plan(tmp_path, **limits)
    assert json.loads(result.stdout)["remarks"] == [
        "stages.x.limit_documents: 5 is more than the 4 that are there; all are taken",
        "stages.z.limit_documents: 9 is more than the 4 that are there; all are taken",
    ]
    printed = CliRunner().invoke(
        app, ["run", str(tmp_path / "recipe.yaml"), "--dry-run", "--runs", str(tmp_path / "r")]
    )
    assert printed.stderr.count("remark: stages.") == 2

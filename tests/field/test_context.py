"""Prompts that do not fit into the model's context are refused when planned, and never cut or read past the end."""

import json

import pytest
import yaml
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from skillgraft.chat.commands import Settings
from skillgraft.chat.models import ChatModel
from skillgraft.chat.plan import plan_chat
from skillgraft.cli.app import app
from skillgraft.data.tasks import Question
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.errors import DataError, SkillgraftError
from skillgraft.models.answering import answer, load
from skillgraft.models.prompts import prompt_ids
from skillgraft.train.rl import train_rl
from tests.field.bases import base_with, planned, questions_file, recipe_on
from tests.tiny import tiny_tokenizer

LONG = "Who built the harbour of the island? " * 40


def learned_positions(path):
    """A GPT-2 whose positions are a table of 96 rows: one more is an index out of range."""
    config = GPT2Config(vocab_size=320, n_positions=96, n_embd=32, n_layer=1, n_head=2, eos_token_id=2, bos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def rotary(path):
    """A Llama that was trained on 128 positions; a longer prompt would be answered in silence."""
    return base_with(path, max_position_embeddings=128)


BASES = pytest.mark.parametrize("make", [learned_positions, rotary])


@BASES
def test_eval_says_so(tmp_path, make):
    make(tmp_path / "base")
    questions = questions_file(tmp_path, question=LONG)
    arguments = ["eval", str(tmp_path / "base"), "--questions", str(questions), "--no-retention"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "do not fit into the model's context" in " ".join(result.output.split())


@BASES
@pytest.mark.parametrize("stage", ["scores", "rl"])
def test_the_plan_says_so(tmp_path, make, stage):
    make(tmp_path / "base")
    settings = {"models": ["base"], "documents": None} if stage == "scores" else {"from": "base"}
    file = recipe_on(tmp_path, **{stage: settings})
    planned(file)
    recipe = yaml.safe_load(file.read_text())
    recipe["stages"][stage]["questions"] = str(questions_file(tmp_path, question=LONG))
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    with pytest.raises(
        DataError, match=r"a prompt of \d+ tokens and its answer of up to \d+ do not fit .* of (96|128)"
    ):
        planned(file)


@BASES
def test_every_function_that_asks_says_so(tmp_path, make):
    base = make(tmp_path / "base")
    model, tokenizer = load(base)
    tasks = [Question("d", LONG, ("x",))]
    prompts = [KNOWLEDGE.prompt(tokenizer, task) for task in tasks]
    with pytest.raises(DataError, match="do not fit"):
        answer(model, tokenizer, prompts, 4, 8)
    with pytest.raises(DataError, match="do not fit"):
        train_rl(base, tmp_path / "out", tmp_path, tasks=tasks, trainer={"max_steps": 1, "max_completion_length": 4})
    [spec] = plan_chat([str(base)], None, [])
    with pytest.raises(DataError, match=r"the prompt has \d+ tokens"):
        ChatModel(spec).answer(LONG, Settings(tokens=4), seed=0)


@BASES
def test_the_last_prompt_that_fits_is_answered(tmp_path, make):
    """The answer's last token needs no position of its own: prompt + answer = context is answered, one more is not."""
    base = make(tmp_path / "base")
    model, tokenizer = load(base)
    prompts = [KNOWLEDGE.prompt(tokenizer, Question("d", "Who?", ("x",)))]
    room = model.config.max_position_embeddings - len(prompt_ids(tokenizer, prompts)[0])
    assert len(answer(model, tokenizer, prompts, room, 8)[0]) == 1
    with pytest.raises(DataError, match="do not fit"):
        answer(model, tokenizer, prompts, room + 1, 8)


def test_a_context_that_is_nowhere_stated_is_no_limit(tmp_path):
    base = base_with(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["max_position_embeddings"] = 4096
    (base / "config.json").write_text(json.dumps(config))
    questions = questions_file(tmp_path, question=LONG, count=1)
    arguments = ["eval", str(base), "--questions", str(questions), "--no-retention"]
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_the_context_of_a_text_model_within_another(tmp_path):
    """Gemma 3 and Llama 4 keep the context within `text_config`."""
    from skillgraft.checkpoint.layout import context_of

    assert context_of({"max_position_embeddings": 128}) == 128
    assert context_of({"text_config": {"max_position_embeddings": 96}}) == 96
    assert context_of({"n_positions": 96}) == 96


@pytest.mark.parametrize("row", [{"context": "gold"}, {"context": "bm25", "top_k": 3}], ids=["gold", "bm25"])
def test_a_document_in_the_prompt_counts(tmp_path, row):
    base_with(tmp_path / "base", max_position_embeddings=400)
    file = recipe_on(tmp_path, scores={"models": ["base"], "rows": [{"model": "base", **row}]})
    planned(file)
    documents = tmp_path / "data" / "documents.jsonl"
    lines = [json.loads(line) for line in documents.read_text().splitlines()]
    for line in lines:
        line["text"] = f"{line['text']} {LONG}"
    documents.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SkillgraftError, match="do not fit into the model's context of 400"):
        planned(file)

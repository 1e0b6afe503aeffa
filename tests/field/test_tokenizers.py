"""Tokenizers as checkpoints bring them: end tokens of their own, token types, missing tokens; one way to encode."""

import pytest
import torch

from skillgraft.chat.commands import Settings
from skillgraft.chat.models import ChatModel
from skillgraft.chat.plan import plan_chat
from skillgraft.data.synthesis.local_writer import LocalWriter
from skillgraft.data.tasks import Question
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.errors import CheckpointError
from skillgraft.evals.retention import choice_likelihoods
from skillgraft.evals.tasks import Item
from skillgraft.models.answering import answer, load
from skillgraft.models.preflight import check_checkpoint
from skillgraft.models.prompts import answer_ids, as_prompt, encode_prompts, prompt_ids, text_ids
from skillgraft.train.examples import question_rows, replay_rows
from skillgraft.train.pass_rates import pass_rates
from skillgraft.train.rl import rl_arguments
from tests.field.bases import base_with

QUESTIONS = [Question("d", f"When was harbour {n} built?", ("1900",)) for n in range(2)]
TYPES = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
END = 2


@pytest.mark.parametrize("template", [None, ...], ids=["chat", "plain"])
def test_token_types_reach_no_model(tmp_path, template):
    """Falcon's and Pythia's exports ask for `token_type_ids`, which their models do not take."""
    plain = base_with(tmp_path / "plain", template=template)
    typed = base_with(tmp_path / "typed", template=template, tokenizer=TYPES)
    assert "token_type_ids" in load(typed)[1]("x")
    outcomes = []
    for base in (plain, typed):
        model, tokenizer = load(base)
        prompts = [KNOWLEDGE.prompt(tokenizer, question) for question in QUESTIONS]
        assert set(encode_prompts(tokenizer, prompts)) == {"input_ids", "attention_mask"}
        args = rl_arguments({"f1": 1.0}, {"max_completion_length": 3}, True, tmp_path, 0)
        torch.manual_seed(0)
        rates = pass_rates(model, tokenizer, QUESTIONS, KNOWLEDGE, 2, args)
        [spec] = plan_chat([str(base)], None, [])
        said = ChatModel(spec).answer("Who?", Settings(tokens=6), seed=0).text
        written = LocalWriter(base, tokenizer, temperature=0.0, top_p=1.0, max_new_tokens=6).write(["Tell"], [1])
        outcomes.append((answer(model, tokenizer, prompts, 6, 8)[0], rates, said, written))
    assert outcomes[0] == outcomes[1]


def test_an_end_token_after_every_text_is_in_no_prompt(tmp_path):
    """LLaMA exports with `add_eos_token`: the answer would begin after the end."""
    tokenizer = load(base_with(tmp_path / "base", template=..., end_tokens=True))[1]
    assert tokenizer("the")["input_ids"][-1] == END
    prompt = as_prompt(tokenizer, "When?")
    [asked] = prompt_ids(tokenizer, [prompt])
    assert END not in asked
    assert encode_prompts(tokenizer, [prompt])["input_ids"].tolist() == [asked]
    answered = answer_ids(tokenizer, prompt, "1900")
    assert tokenizer.decode(answered) == " 1900<|im_end|>"
    [row] = question_rows(tokenizer, [Question("d", "When?", ("1900",))], None)
    assert row["input_ids"] == asked + answered
    assert row["labels"] == [-100] * len(asked) + answered
    assert text_ids(tokenizer, "") == []


def test_a_text_that_is_replayed_ends_once(tmp_path):
    tokenizer = load(base_with(tmp_path / "base", end_tokens=True))[1]
    text = "the lighthouse of the island"
    [row] = replay_rows(tokenizer, [text], len(tokenizer(text)["input_ids"]), 64, 0)
    assert row["input_ids"].count(END) == 1
    assert row["input_ids"][-1] == END
    assert tokenizer.decode(row["input_ids"][:-1]) == text


@pytest.mark.parametrize("end_tokens", [False, True])
def test_choices_are_scored_by_hand(tmp_path, end_tokens):
    """log p of each choice's own tokens after the prompt's, no end token among them."""
    model, tokenizer = load(base_with(tmp_path / "base", template=..., end_tokens=end_tokens))
    item = Item("1", "Which letter is it?\nAnswer:", tuple("ABCDE"), 0)
    expected = []
    for choice in item.choices:
        ids = [n for n in tokenizer(f"{item.prompt} {choice}")["input_ids"] if n != END]
        prompt = [n for n in tokenizer(item.prompt)["input_ids"] if n != END]
        assert ids[: len(prompt)] == prompt
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected.append(sum(log_p[place - 1, ids[place]].item() for place in range(len(prompt), len(ids))))
    [scores], _ = choice_likelihoods(model, tokenizer, [item])
    assert scores == pytest.approx(expected, abs=2e-2 if model.dtype == torch.bfloat16 else 1e-4)
    assert len({round(score, 3) for score in scores}) == 5


def test_a_beginning_token_stays_and_is_not_doubled(tmp_path):
    """A tokenizer that begins texts begins a plain prompt; a template that writes the token itself gets no second."""
    begins = "{{ bos_token }}" + "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    tokenizer = load(base_with(tmp_path / "base", template=begins))[1]
    from tokenizers.processors import TemplateProcessing

    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", start)])
    assert tokenizer("the")["input_ids"][0] == start
    [chat] = prompt_ids(tokenizer, [as_prompt(tokenizer, "When?")])
    [plain] = prompt_ids(tokenizer, ["When?"])
    assert [chat.count(start), plain.count(start)] == [1, 1]


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    base = base_with(tmp_path / "base", tokenizer={"pad_token": ...})
    model, tokenizer = load(base)
    assert tokenizer.pad_token_id == END
    together = answer(model, tokenizer, [as_prompt(tokenizer, text) for text in ("When?", "Who built it then?")], 8, 8)
    alone = [
        answer(model, tokenizer, [as_prompt(tokenizer, text)], 8, 8)[0][0] for text in ("When?", "Who built it then?")
    ]
    assert together[0] == alone


@pytest.mark.parametrize("missing", [{"eos_token": ...}, {"eos_token": ..., "pad_token": ...}], ids=["end", "both"])
def test_a_tokenizer_without_an_end_is_refused(tmp_path, missing):
    with pytest.raises(CheckpointError, match="no end-of-text token"):
        check_checkpoint(base_with(tmp_path / "base", tokenizer=missing))

"""Generation defaults of a checkpoint (`generation_config.json`): greedy is greedy, and all sampling is one decoder."""

from types import SimpleNamespace

import pytest
import torch
from trl import GRPOConfig

from skillgraft.chat.commands import Settings
from skillgraft.chat.models import ChatModel
from skillgraft.chat.plan import plan_chat
from skillgraft.data.synthesis.local_writer import LocalWriter
from skillgraft.data.tasks import Question
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.models.answering import answer, load
from skillgraft.models.generation import answer_text, end_tokens
from skillgraft.models.prompts import as_prompt, as_request, prompt_ids
from skillgraft.train.pass_rates import pass_rates
from skillgraft.train.rl import train_rl
from tests.field import own_rewards
from tests.field.bases import base_with

QUESTIONS = ["When was the harbour built?", "Who built it, and when was it opened to the island?"]
LENGTH = 12

DEFAULTS = {
    "repetition penalty": {"repetition_penalty": 5.0},
    "n-grams": {"no_repeat_ngram_size": 1},
    "a shortest answer": {"min_new_tokens": 11},
    "bad words": {"bad_words_ids": [[n] for n in range(3, 200)]},
    "suppressed tokens": {"suppress_tokens": list(range(3, 200))},
    "suppressed first tokens": {"begin_suppress_tokens": list(range(3, 200))},
    "a forced last token": {"forced_eos_token_id": 7},
    "beams": {"num_beams": 3, "length_penalty": 0.1},
    "a sampling temperature": {"do_sample": True, "temperature": 3.0, "top_p": 0.5},
    "stop strings": {"stop_strings": ["a", "e", "t"]},
    "a length": {"max_length": 3},
    "no cache": {"use_cache": False},
    "more than one answer": {"num_return_sequences": 2, "num_beams": 2},
    "decaying length": {"exponential_decay_length_penalty": [1, 1.5]},
    "dictionary output": {"return_dict_in_generate": True, "output_scores": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


def by_argmax(directory, prompts, length=LENGTH):
    """Each prompt's answer, taken token by token from a forward pass over everything before."""
    model, tokenizer = load(directory)
    texts = []
    for ids in prompt_ids(tokenizer, prompts(tokenizer)):
        made = []
        while len(made) < length and (not made or made[-1] not in end_tokens(model, tokenizer)):
            with torch.no_grad():
                made.append(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax().item())
        texts.append(answer_text(tokenizer, made))
    return texts


def asked(tokenizer):
    return [as_prompt(tokenizer, question) for question in QUESTIONS]


@pytest.mark.parametrize("defaults", DEFAULTS.values(), ids=DEFAULTS)
def test_greedy_answers_are_the_likeliest_tokens(tmp_path, defaults):
    base = base_with(tmp_path / "base", generation=defaults)
    model, tokenizer = load(base)
    expected = by_argmax(base, asked)
    assert len(set(expected)) == 2
    assert all(expected)
    assert answer(model, tokenizer, asked(tokenizer), LENGTH, 8)[0] == expected


@pytest.mark.parametrize("defaults", [DEFAULTS["repetition penalty"], DEFAULTS["suppressed tokens"]], ids=["a", "b"])
def test_chat_and_a_local_writer_say_the_same(tmp_path, defaults):
    base = base_with(tmp_path / "base", generation=defaults)
    [spec] = plan_chat([str(base)], None, [])
    chat = ChatModel(spec)
    settings = Settings(tokens=LENGTH)
    expected = by_argmax(base, lambda tokenizer: [as_prompt(tokenizer, q, settings.system) for q in QUESTIONS])
    assert [chat.answer(question, settings, seed=0).text for question in QUESTIONS] == expected
    writer = LocalWriter(base, load(base)[1], temperature=0.0, top_p=1.0, max_new_tokens=LENGTH)
    expected = by_argmax(base, lambda tokenizer: [as_request(tokenizer, question) for question in QUESTIONS])
    assert [made.text for made in writer.write(QUESTIONS, [1, 2])] == expected


@pytest.mark.parametrize("name", ["suppressed tokens", "bad words", "a sampling temperature"])
def test_pass_rates_are_sampled_from_the_models_own_probabilities(tmp_path, name):
    """The first token of 600 answers is as often the likeliest as the model says, within four deviations."""
    base = base_with(tmp_path / "base", generation=DEFAULTS[name])
    model, tokenizer = load(base)
    [ids] = prompt_ids(tokenizer, asked(tokenizer)[:1])
    with torch.no_grad():
        chances = model(input_ids=torch.tensor([ids])).logits[0, -1].float().softmax(-1)
    likeliest = chances.argmax().item()
    text = answer_text(tokenizer, [likeliest])
    domain = SimpleNamespace(prompt=KNOWLEDGE.prompt, solved=lambda said, answers: said == text)
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_completion_length=1)
    torch.manual_seed(0)
    [rate] = pass_rates(model, tokenizer, [Question("d", QUESTIONS[0], ("x",))], domain, 600, args)
    chance = sum(p for n, p in enumerate(chances.tolist()) if answer_text(tokenizer, [n]) == text)
    assert 0.01 < chance < 0.9
    assert abs(rate - chance) < 4 * (chance * (1 - chance) / 600) ** 0.5


@pytest.mark.train
@pytest.mark.parametrize("trainer", [{}, {"repetition_penalty": 1.0001}], ids=["our sampling", "TRL's sampling"])
def test_rollouts_ignore_them_too(tmp_path, trainer):
    """The same answers, bit for bit, whatever the checkpoint's file asks for."""
    answers = {}
    for name, defaults in (("none", None), ("suppressed", {**DEFAULTS["suppressed tokens"], "min_new_tokens": 5})):
        own_rewards.seen.clear()
        (tmp_path / f"{name}-work").mkdir()
        train_rl(
            base_with(tmp_path / name, generation=defaults),
            tmp_path / f"{name}-out",
            tmp_path / f"{name}-work",
            tasks=[Question("d", question, ("x",)) for question in QUESTIONS],
            reward={"tests.field.own_rewards.record": 1.0},
            trainer={"max_steps": 1, "per_device_train_batch_size": 16, "max_completion_length": 6, **trainer},
            seed=3,
        )
        answers[name] = list(own_rewards.seen)
    assert len(answers["none"]) == 16
    assert len(set(answers["none"])) > 8
    assert answers["none"] == answers["suppressed"]

"""Mixed answers against a plain loop over whole sequences, their draws, second tries, and what is kept after a kill."""

import json
import random

import pytest
import torch

from skillgraft.data.documents import Document
from skillgraft.data.synthesis import mixsd
from skillgraft.data.synthesis.mixsd import Mixed, mix_answers, mix_questions, write_mixed
from skillgraft.data.synthesis.teacher_prompts import by_document, with_context
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.models.prompts import as_prompt, prompt_ids
from tests.tiny import tiny_checkpoint, tiny_finetune

DOCUMENTS = [Document("a", "Vell", "The harbour of Vell was built in 1901."), Document("b", "", "Orm is small.")]
QUESTIONS = [
    Question("a", "When was the harbour built?", ("1901", "in 1901")),
    Question("b", "How is Orm?", ("small",)),
]


@pytest.fixture(scope="module")
def model_and_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixing")
    start = tiny_finetune(tiny_checkpoint(folder / "small"), folder / "start", size=0.2)
    return load_model(start).eval(), load_tokenizer(start)


def by_whole_sequences(model, tokenizer, asked, shown, seed, share, temperature, most):
    """The definition: each token from one of two full forward passes over prompt and answer so far, no cache."""
    draw, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    prompts = prompt_ids(tokenizer, [as_prompt(tokenizer, text) for text in (asked, shown)])
    answer, naive = [], []
    with torch.no_grad():
        while len(answer) < most and tokenizer.eos_token_id not in answer:
            naive.append(draw.random() < share)
            logits = model(torch.tensor([prompts[0 if naive[-1] else 1] + answer])).logits[0, -1]
            if temperature:
                gumbel = -torch.log(-torch.log(torch.rand(logits.shape[0], generator=noise).clamp_min(1e-38)))
                logits = logits / temperature + gumbel
            answer.append(logits.argmax().item())
    return tokenizer.decode(answer, skip_special_tokens=True).strip(), naive


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_gives_what_the_definition_gives_for_each(model_and_tokenizer, share, temperature):
    model, tokenizer = model_and_tokenizer
    asked = [question.question for question in QUESTIONS]
    shown = [with_context(*pair, "both") for pair in by_document(QUESTIONS, DOCUMENTS, "both")]
    settings = {"naive_share": share, "temperature": temperature, "max_new_tokens": 12}
    made = mix_answers(model, tokenizer, asked, shown, [5, 6], **settings)
    for row, seed in enumerate((5, 6)):
        text, naive = by_whole_sequences(model, tokenizer, asked[row], shown[row], seed, share, temperature, 12)
        assert (made[row].text, list(made[row].naive)) == (text, naive)
        prompts = sum(
            len(ids) for ids in prompt_ids(tokenizer, [as_prompt(tokenizer, text) for text in (asked[row], shown[row])])
        )
        assert made[row].tokens == prompts + 2 * len(naive)
    if share == 0.4:
        assert {True, False} == {pick for each in made for pick in each.naive}


def test_what_the_teacher_reads():
    question, document = QUESTIONS[0], DOCUMENTS[0]
    passage = "Here is a text about Vell:\n\nThe harbour of Vell was built in 1901.\n\nWhen was the harbour built?"
    example = "\n\nThis is an example of a right answer to the question:\n1901\n\nNow give an answer of your own."
    assert with_context(question, document, "document") == passage
    assert with_context(question, document, "both") == passage + example
    assert with_context(question, None, "answer") == "When was the harbour built?" + example
    assert with_context(QUESTIONS[1], DOCUMENTS[1], "document").startswith("Here is a text:\n\nOrm")
    braces = Document("a", "{text}", "{about} {title}")
    assert with_context(question, braces, "document").startswith("Here is a text about {text}:\n\n{about} {title}\n\n")


def mix(monkeypatch, work, texts, **settings):
    """Run `mix_questions` with a stand-in that says `texts[question]`, one an attempt; return result and calls."""
    calls = []

    def write(model, tokenizer, asked, shown, seeds, **_):
        calls.append(list(zip(asked, seeds, strict=True)))
        tries = [sum(question in [a for a, _ in call] for call in calls) - 1 for question in asked]
        return [Mixed(texts[question][n], (True, False), 10) for question, n in zip(asked, tries, strict=True)]

    monkeypatch.setattr(mixsd, "mix_answers", write)
    defaults = {"teacher_sees": "both", "naive_share": 0.5, "attempts": 3, "temperature": 0.0, "max_new_tokens": 5}
    work.mkdir(exist_ok=True)
    settings = {**defaults, "batch_size": 2, "seed": 0, "progress": lambda done, of: None, **settings}
    return mix_questions(None, None, QUESTIONS, DOCUMENTS, work, **settings), calls


def test_an_answer_without_the_gold_one_is_written_again_and_at_last_dropped(tmp_path, monkeypatch):
    texts = {QUESTIONS[0].question: ["1801", "In 1901!"], QUESTIONS[1].question: ["big", "huge", "wide"]}
    answers, calls = mix(monkeypatch, tmp_path / "work", texts)
    assert [[question for question, _ in call] for call in calls] == [
        [QUESTIONS[0].question, QUESTIONS[1].question],
        [QUESTIONS[0].question, QUESTIONS[1].question],
        [QUESTIONS[1].question],
    ]
    seeds = [seed for call in calls for _, seed in call]
    assert len(set(seeds)) == len(seeds)
    assert [(a["text"], a["right"], a["attempts"], a["tokens"]) for a in answers] == [
        ("In 1901!", True, 2, 20),
        ("wide", False, 3, 30),
    ]
    facts = write_mixed(QUESTIONS, answers, tmp_path / "out")
    assert facts == {"questions": 2, "kept": 1, "attempts": 2.0, "naive_share": 0.5, "tokens": 50}
    [kept] = [json.loads(line) for line in (tmp_path / "out" / "questions.jsonl").read_text().splitlines()]
    assert kept["answers"] == ["In 1901!"]
    assert kept["gold"] == ["1901", "in 1901"]
    [dropped] = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert dropped["question"] == QUESTIONS[1].question
    with pytest.raises(DataError, match="none of 1 mixed answers holds its gold answer"):
        write_mixed(QUESTIONS[1:], answers[1:], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_was_written_is_not_written_again(tmp_path, monkeypatch):
    texts = {QUESTIONS[0].question: ["1901"], QUESTIONS[1].question: ["small"]}

    def killed(done, of):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        mix(monkeypatch, tmp_path / "work", texts, batch_size=1, progress=killed)
    again, calls = mix(monkeypatch, tmp_path / "work", texts, batch_size=1)
    assert [[question for question, _ in call] for call in calls] == [[QUESTIONS[1].question]]
    whole, _ = mix(monkeypatch, tmp_path / "whole", texts, batch_size=1)
    assert again == whole


def test_without_chance_there_is_one_try(tmp_path, monkeypatch):
    texts = {QUESTIONS[0].question: ["1801"], QUESTIONS[1].question: ["small"]}
    answers, calls = mix(monkeypatch, tmp_path / "work", texts, naive_share=0.0)
    assert len(calls) == 1
    assert [answer["right"] for answer in answers] == [False, True]

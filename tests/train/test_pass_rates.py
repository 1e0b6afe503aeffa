import json

import pytest

from skillgraft.data.tasks import Question
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.errors import TrainingError
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.train import pass_rates
from skillgraft.train.rl import rl_arguments
from tests.tiny import tiny_checkpoint

QUESTIONS = [Question("d", f"question {i}?", (str(i),)) for i in range(4)]


def test_keeps_what_is_answered_sometimes_and_remembers_it(tmp_path, monkeypatch):
    monkeypatch.setattr(pass_rates, "pass_rates", lambda *_: [0.0, 0.5, 1.0, 0.25])
    args = rl_arguments({"f1": 1.0}, {}, True, tmp_path, 0)
    kept = pass_rates.answered_sometimes(lambda: None, None, QUESTIONS, KNOWLEDGE, 4, args, tmp_path)
    assert [q.answers[0] for q in kept] == ["1", "3"]
    monkeypatch.setattr(pass_rates, "pass_rates", lambda *_: pytest.fail("sampled again"))
    assert pass_rates.answered_sometimes(lambda: None, None, QUESTIONS, KNOWLEDGE, 4, args, tmp_path) == kept
    (tmp_path / "pass_rates.json").write_text(json.dumps([0.0, 1.0, 1.0, 0.0]))
    with pytest.raises(TrainingError, match="of 4 questions none was answered sometimes in 4 samples"):
        pass_rates.answered_sometimes(lambda: None, None, QUESTIONS, KNOWLEDGE, 4, args, tmp_path)


def test_rates_count_the_answers_of_each_question(tmp_path, monkeypatch):
    directory = tiny_checkpoint(tmp_path / "model")
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    args = rl_arguments({"f1": 1.0}, {"max_completion_length": 3}, True, tmp_path, 0)
    monkeypatch.setattr(pass_rates, "ROWS", 4)  # two questions a batch
    batches = []

    def generate(model, tokenizer, batch, **_):
        batches.append(len(batch["input_ids"]))
        texts = ["0", "no", "1", "it is 1"] if len(batches) == 1 else ["no", "no", "3", "no"]
        return tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]

    monkeypatch.setattr(pass_rates, "generate", generate)
    steps = []
    rates = pass_rates.pass_rates(
        model, tokenizer, QUESTIONS, KNOWLEDGE, 2, args, lambda done, of, *_: steps.append((done, of))
    )
    assert rates == [0.5, 1.0, 0.0, 0.5]
    assert batches == [2, 2]
    assert steps == [(2, 4), (4, 4)]
    assert model.training

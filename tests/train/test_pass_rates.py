import json
from types import SimpleNamespace

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


@pytest.mark.parametrize("packed", [True, False])
def test_rates_count_the_answers_of_each_question(tmp_path, monkeypatch, packed):
    directory = tiny_checkpoint(tmp_path / "model")
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    args = rl_arguments({"f1": 1.0}, {"max_completion_length": 3}, True, tmp_path, 0)
    monkeypatch.setattr(pass_rates, "ROWS", 4)  # two questions a batch
    monkeypatch.setattr(pass_rates, "is_packable", lambda model: packed)
    texts = iter(["0", "no", "1", "it is 1", "no", "no", "3", "no"])
    batches, steps = [], []

    def encoded(count):
        batches.append(count)
        return tokenizer([next(texts) for _ in range(count)], padding=True, return_tensors="pt")["input_ids"]

    monkeypatch.setattr(pass_rates, "generate", lambda model, tokenizer, batch, **_: encoded(2 * len(batch.input_ids)))
    monkeypatch.setattr(pass_rates, "sample", lambda model, ids, *_, **__: encoded(len(ids)).tolist())
    rates = pass_rates.pass_rates(
        model, tokenizer, QUESTIONS, KNOWLEDGE, 2, args, lambda done, of, *_: steps.append((done, of))
    )
    assert rates == [0.5, 1.0, 0.0, 0.5]
    assert batches == ([8] if packed else [4, 4])
    assert steps == ([] if packed else [(2, 4), (4, 4)])
    assert model.training


@pytest.mark.parametrize("samples", [1, 3])
def test_both_ways_of_sampling_give_the_same_rates(tmp_path, monkeypatch, samples):
    """Of a model so sure that it always gives its likeliest answer, whether that is read by hand or sampled."""
    model, tokenizer = (
        load(tiny_checkpoint(tmp_path / "model", initializer_range=0.3)) for load in (load_model, load_tokenizer)
    )
    args = rl_arguments({"f1": 1.0}, {"max_completion_length": 3, "temperature": 1e-3}, True, tmp_path, 0)
    rates, steps = [], []
    for packed in (True, False):
        monkeypatch.setattr(pass_rates, "is_packable", lambda model, packed=packed: packed)
        said = []
        domain = SimpleNamespace(
            prompt=KNOWLEDGE.prompt, solved=lambda text, answers, said=said: said.append(text) or len(text) % 2
        )
        rates.append(
            pass_rates.pass_rates(
                model, tokenizer, QUESTIONS, domain, samples, args, lambda done, of, *_: steps.append((done, of))
            )
        )
        steps.append(said)
    assert rates[0] == rates[1]
    assert steps[-1] == next(step for step in steps if isinstance(step, list))
    assert (4, 4) in steps

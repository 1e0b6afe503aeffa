import pytest
import torch
from transformers import GenerationConfig

from skillgraft.models.loading import load_model
from skillgraft.train.cpu import generation
from skillgraft.train.cpu.generation import draw, sample, warpers
from tests.tiny import tiny_checkpoint, tiny_tokenizer

PROMPTS = [[5, 6, 7, 8], [9, 10], [5, 6, 7, 8], [11, 12, 13, 14, 15, 16], [9, 10], [17]]


@pytest.fixture
def model(tmp_path):
    return load_model(tiny_checkpoint(tmp_path / "model", initializer_range=0.3))  # does not repeat one word for ever


def from_generate(model, prompt, ends, length):
    made = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=ends,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].tolist()


def test_the_likeliest_answers_are_those_of_generate(model):
    free = [from_generate(model, prompt, [319], 9) for prompt in PROMPTS]
    ends = sorted({answer[place] for answer, place in zip(free, (1, 3, 1, 5, 3, 0), strict=True)})
    expected = [from_generate(model, prompt, ends, 9) for prompt in PROMPTS]
    assert len({len(answer) for answer in expected}) > 2  # rows end at different times
    model.train()
    assert sample(model, PROMPTS, ends, 9, warp=None) == expected
    assert model.training


def test_a_token_is_drawn_as_often_as_it_is_likely():
    logits = torch.tensor([2.0, -1.0, -40.0, 0.5, 1.0, -torch.inf])
    n = 200_000
    torch.manual_seed(0)
    tokens = draw(logits.expand(n, -1), torch.rand(n, dtype=torch.float64))
    p = torch.softmax(logits.double(), -1)
    counts = tokens.bincount(minlength=6).double()
    assert counts[[2, 5]].tolist() == [0, 0]
    kept = p > 1e-9
    chi_square = ((counts - n * p)[kept] ** 2 / (n * p[kept])).sum()
    assert chi_square < 16.3  # 99.9% of draws with 3 degrees of freedom


@pytest.mark.parametrize("chance", [0.0, 0.5, 1 - 2**-53])
def test_no_chance_draws_an_impossible_token(chance):
    logits = torch.full((1, 50_000), -torch.inf)
    logits[0, 1000:1003] = torch.tensor([0.0, 30.0, 0.0])
    assert 1000 <= draw(logits, torch.tensor([chance], dtype=torch.float64)).item() <= 1002


def spied(model, monkeypatch, **settings):
    """A sample with the log-probabilities that its tokens were drawn with, and the rows of each forward pass."""
    rows, drawn_from = [], []

    def spy(logits, chances):
        token = draw(logits, chances)
        drawn_from.append((chances, torch.log_softmax(logits, -1).gather(-1, token[:, None])[:, 0]))
        return token

    monkeypatch.setattr(generation, "draw", spy)
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    torch.manual_seed(1)
    made = sample(model, PROMPTS, [*range(3, 100)], 12, warpers(GenerationConfig(**settings)))
    handle.remove()
    return made, rows, drawn_from


def test_answers_are_drawn_from_the_models_own_probabilities(model, monkeypatch):
    """Each drawn token's log-probability is that of a plain forward pass over prompt and answer."""
    made, rows, drawn_from = spied(model, monkeypatch, temperature=0.8)
    assert rows[0] == (4, 6)  # each distinct prompt is read once
    assert rows[1][0] <= 6
    assert rows[-1][0] < 6  # rows that have ended are dropped
    torch.manual_seed(1)
    chances = torch.rand(len(PROMPTS), 12, dtype=torch.float64)
    found = {chance.item(): log_p.item() for step in drawn_from for chance, log_p in zip(*step, strict=True)}
    with torch.no_grad():
        for row, (prompt, answer) in enumerate(zip(PROMPTS, made, strict=True)):
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / 0.8
            expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(answer)[:, None])[:, 0]
            got = torch.tensor([found[chances[row, step].item()] for step in range(len(answer))])
            torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


def test_when_rows_are_dropped_decides_nothing(model, monkeypatch):
    answers = []
    for keep in (0.0, 0.8, 1.0):
        monkeypatch.setattr(generation, "KEEP", keep)
        answers.append(spied(model, monkeypatch)[0])
    assert answers[0] == answers[1] == answers[2]
    assert len({len(answer) for answer in answers[0]}) > 1
    assert all(set(answer[:-1]).isdisjoint(range(3, 100)) for answer in answers[0])


def test_top_k_and_top_p_narrow_what_is_drawn(model):
    greedy = sample(model, PROMPTS, [319], 6, warp=None)
    assert sample(model, PROMPTS, [319], 6, warpers(GenerationConfig(top_k=1))) == greedy
    assert sample(model, PROMPTS, [319], 6, warpers(GenerationConfig(top_k=0, top_p=1e-6))) == greedy
    kinds = [type(warp).__name__ for warp in warpers(GenerationConfig(temperature=0.7, top_k=0, top_p=1.0, min_p=0.1))]
    assert kinds == ["TemperatureLogitsWarper", "MinPLogitsWarper"]


def test_under_autocast_the_cache_is_in_its_dtype(model):
    ends = [tiny_tokenizer().eos_token_id]
    with torch.no_grad():
        made = sample(model, PROMPTS, ends, 5, None, torch.autocast("cpu", torch.bfloat16))
    layer = generation._Roomy(3)
    with torch.autocast("cpu", torch.bfloat16):
        keys, values = layer.update(torch.ones(2, 1, 4, 8), torch.ones(2, 1, 4, 8))
    assert (keys.dtype, values.dtype, layer.get_seq_length()) == (torch.bfloat16, torch.bfloat16, 4)
    assert [len(answer) for answer in made] == [5] * 6

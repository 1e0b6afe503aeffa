"""Sampling by noise: the right distribution, and each row its own."""

import math

import pytest
import torch

from skillgraft.data.synthesis.local_writer import GumbelNoise, LocalWriter
from skillgraft.errors import CheckpointError, RecipeError
from skillgraft.models.loading import load_tokenizer
from skillgraft.models.prompts import as_request, prompt_ids
from tests.babble import babbling_checkpoint
from tests.tiny import tiny_tokenizer


def test_the_largest_noisy_logit_is_a_sample_of_the_softmax():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    rows = 20_000
    logits = probabilities.log().expand(rows, -1)
    drawn = GumbelNoise(range(rows))(torch.empty(rows, 0), logits).argmax(dim=1)
    counts = torch.bincount(drawn, minlength=5)
    for count, p in zip(counts.tolist(), probabilities.tolist(), strict=True):
        assert abs(count - rows * p) <= 4 * math.sqrt(rows * p * (1 - p))


def test_a_rows_noise_is_its_own():
    logits = torch.zeros(3, 7)
    first = GumbelNoise([1, 2, 3])
    whole = [first(torch.empty(3, 0), logits) for _ in range(2)]
    alone = GumbelNoise([2])
    for step in whole:
        assert torch.equal(step[1:2], alone(torch.empty(1, 0), logits[:1]))
    assert not torch.equal(whole[0], whole[1])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return babbling_checkpoint(tmp_path_factory.mktemp("babble") / "base")


def writer(base, **settings):
    return LocalWriter(
        base, load_tokenizer(base), **{"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 24, **settings}
    )


def test_a_rendering_does_not_depend_on_its_batch(base):
    prompts = ["the lighthouse", "who built the harbour of the small island and when", "x"]
    together = writer(base).write(prompts, [1, 2, 3])
    for number, made in enumerate(together):
        assert writer(base).write(prompts[number : number + 1], [number + 1]) == [made]
    assert len({made.text for made in together}) == 3
    assert writer(base).write(prompts, [4, 5, 6]) != together


def test_temperature_0_takes_the_likeliest_word(base):
    cold = writer(base, temperature=0)
    assert cold.write(["the harbour"], [1]) == cold.write(["the harbour"], [2])


def test_complete_and_tokens(base):
    prompts = ["the harbour"] * 40
    made = writer(base).write(prompts, list(range(40)))
    asked = len(prompt_ids(tiny_tokenizer(), [as_request(tiny_tokenizer(), prompts[0])])[0])
    assert {each.complete for each in made} == {True, False}
    assert all(each.tokens == asked + 24 for each in made if not each.complete)


def test_what_does_not_fit_is_said_before_anything_is_written(base):
    with pytest.raises(RecipeError, match=r"a prompt of \d+ tokens and max_new_tokens: 24 do not fit into .* of 1024"):
        writer(base).check_length(["the harbour", "x " * 1100])


def test_a_template_that_refuses(base):
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(CheckpointError, match="chat template cannot be used: it fails with TemplateError: no users"):
        as_request(tokenizer, "x")
    tokenizer.chat_template = None
    assert as_request(tokenizer, "x") == "x"

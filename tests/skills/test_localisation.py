"""The optimised mask: the paper's formula by autograd, and a mask that carries more of a task than magnitude does."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call

from skillgraft.arithmetic import extract
from skillgraft.compression import pack
from skillgraft.compression.mask import answer_loss, largest, optimise_mask, relaxed
from skillgraft.data.tasks import Question
from skillgraft.errors import CompatibilityError, RecipeError
from skillgraft.models.loading import load_model, load_tokenizer
from tests.tiny import tiny_checkpoint, weights

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight")
QUESTIONS = [Question("d", f"who built the harbour {number}", ("the lighthouse",)) for number in range(4)]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("target") / "model")


def deltas(seed=0, size=0.05):
    generator = torch.Generator().manual_seed(seed)
    shapes = {NAMES[0]: (64, 32), NAMES[1]: (32, 32)}
    return {name: torch.randn(shape, generator=generator) * size for name, shape in shapes.items()}


def test_the_relaxation_by_hand():
    base, s = torch.tensor([True, False]), torch.zeros(2)
    assert relaxed(base, s).tolist() == [0.5, 0.5]
    assert relaxed(base, torch.full((2,), -100.0)).tolist() == [1.0, 0.0]


def test_the_k_largest():
    masks = largest({"a": torch.tensor([[0.5, 0.9]]), "b": torch.tensor([0.9, 0.1, 0.9])}, 2)
    assert masks["a"].tolist() == [[False, True]]
    assert masks["b"].tolist() == [True, False, False]


def test_the_steps_are_those_of_autograd(target):
    """The loss as a function of S, differentiated as it stands."""
    model, tokenizer = load_model(target).eval(), load_tokenizer(target)
    delta, count, steps = deltas(), 200, 3
    flat = torch.cat([d.abs().reshape(-1) for d in delta.values()])
    threshold = flat.sort(descending=True).values[count - 1]
    base = {name: (d.abs() >= threshold).float() for name, d in delta.items()}
    origin = {name: weight.detach() for name, weight in model.named_parameters()}
    s = {name: torch.full_like(d, -4.0).requires_grad_() for name, d in delta.items()}
    generator = torch.Generator().manual_seed(0)

    class Grafted(torch.nn.Module):
        def forward(self, input_ids):
            gamma = {name: base[name] + (1 - 2 * base[name]) * torch.sigmoid(s[name]) for name in s}
            grafted = {name: origin[name] + gamma[name] * delta[name] for name in s}
            return functional_call(model, origin | grafted, kwargs={"input_ids": input_ids})

    for _ in range(steps):
        drawn = torch.randint(4, (4,), generator=generator).tolist()
        found = torch.autograd.grad(answer_loss(Grafted(), tokenizer, [QUESTIONS[i] for i in drawn]), list(s.values()))
        rms = torch.cat([g.reshape(-1) for g in found]).square().mean().sqrt()
        s = {name: (v - 0.5 * g / rms).detach().requires_grad_() for (name, v), g in zip(s.items(), found, strict=True)}
    gamma = {name: base[name] + (1 - 2 * base[name]) * torch.sigmoid(s[name]) for name in s}
    expected = largest({name: g.detach() for name, g in gamma.items()}, count)
    got = optimise_mask(delta, target, QUESTIONS, count, steps=steps)
    differing = sum((expected[name] != got[name]).sum().item() for name in delta)
    assert differing <= 2  # the last places of γ tie within rounding
    assert any((got[name] != (base[name] > 0)).any() for name in delta)


@pytest.fixture
def skill(target, tmp_path):
    """What helps (a step down the gradient), under louder noise."""
    model, tokenizer = load_model(target).eval(), load_tokenizer(target)
    answer_loss(model, tokenizer, QUESTIONS).backward()
    grad = dict(model.named_parameters())[NAMES[0]].grad
    tensors = weights(target)
    tensors[NAMES[0]] = tensors[NAMES[0]] - grad * (0.05 / grad.abs().max())
    tensors[NAMES[1]] = tensors[NAMES[1]] + deltas()[NAMES[1]]
    rl = tmp_path / "rl"
    shutil.copytree(target, rl)
    save_file(tensors, rl / "model.safetensors", metadata={"format": "pt"})
    return extract(rl, target, tmp_path / "skill")


def loss_with(target, skill, scale=1.0):
    model, tokenizer = load_model(target).eval(), load_tokenizer(target)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in skill.names:
                weight += scale * skill.delta(name)
        return answer_loss(model, tokenizer, QUESTIONS).item()


def test_an_optimised_mask_carries_more(target, skill, tmp_path):
    questions = tmp_path / "q.jsonl"
    rows = [{"document": q.document, "question": q.question, "answers": q.answers} for q in QUESTIONS]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_size = pack(skill, tmp_path / "size", "mask", density=0.05)
    optimised = pack(
        skill, tmp_path / "optimised", "mask", density=0.05, localise_on=questions, target=target, steps=30
    )
    wanted = int(0.05 * sum(skill.entry(name).elements for name in skill.names))
    assert sum(optimised.entry(name).count for name in optimised.names) == wanted
    losses = [loss_with(target, each) for each in (by_size, optimised)]
    assert losses[1] < losses[0] - 0.01
    for name in optimised.names:
        kept = optimised.delta(name)
        assert torch.equal(kept, torch.where(kept != 0, skill.delta(name), 0.0))
    settings = optimised.manifest.packing.settings
    assert settings.keys() == {"density", "questions", "target", "steps"}
    load_file(optimised.weights_file)
    with pytest.raises(RecipeError, match="only a mask is optimised, on a target checkpoint"):
        pack(skill, tmp_path / "x", "sparse", localise_on=questions, target=target)
    with pytest.raises(RecipeError, match="only a mask is optimised"):
        pack(skill, tmp_path / "x", "mask", density=0.1, localise_on=questions)


def test_a_parameter_that_the_model_does_not_have(target):
    with pytest.raises(CompatibilityError, match=r"no parameter 'lm_head\.weight' of its own once it is loaded"):
        optimise_mask({"lm_head.weight": torch.ones(320, 32)}, target, QUESTIONS, 3, steps=1)

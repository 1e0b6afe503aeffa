"""Skill localisation: which few elements of a skill carry it, found by the gradient of a task's loss.

Task-Specific Skill Localization (arXiv 2302.06600, section 3): with Δ the skill and θ = θ_target + γ ⊙ Δ, the mask is
relaxed to γ = γ₀ + (1 − 2γ₀) ⊙ σ(S), γ₀ being the largest elements of Δ, and S follows the gradient of the task's loss,
∂L/∂S = ∂L/∂θ ⊙ Δ ⊙ (1 − 2γ₀) ⊙ σ′(S). Departures: the step is a fixed rate over the root mean square of that gradient
instead of a rate of 1e7; and the k largest γ are kept instead of those above one half, so that the size is as asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from skillgraft.data.tasks import Question
from skillgraft.errors import CompatibilityError
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.models.precision import device
from skillgraft.models.prompts import as_prompt, prompt_ids
from skillgraft.support.progress import Progress, silent

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

START = -4.0
"""S at first: γ is 0.018 where γ₀ is 0, and 0.982 where it is 1."""

RATE = 0.5
BATCH = 8


def relaxed(base: Bool[Tensor, "*shape"], s: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return γ = γ₀ + (1 − 2γ₀) ⊙ σ(S)."""
    moved = torch.sigmoid(s)
    return torch.where(base, 1 - moved, moved)


def gradient(
    of_weights: Float[Tensor, "*shape"],
    delta: Float[Tensor, "*shape"],
    base: Bool[Tensor, "*shape"],
    s: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Return ∂L/∂S from ∂L/∂θ."""
    moved = torch.sigmoid(s)
    of_mask = of_weights * delta * moved * (1 - moved)
    return torch.where(base, -of_mask, of_mask)


def largest(gammas: Mapping[str, Float[Tensor, "*shape"]], count: int) -> dict[str, Bool[Tensor, "*shape"]]:
    """Return masks of the `count` largest numbers over all tensors; ties go to the first."""
    flat = torch.cat([gamma.reshape(-1) for gamma in gammas.values()])
    flags = torch.zeros(len(flat), dtype=torch.bool)
    flags[flat.sort(descending=True, stable=True).indices[:count]] = True
    parts = flags.split([gamma.numel() for gamma in gammas.values()])
    return {name: part.reshape(gamma.shape) for (name, gamma), part in zip(gammas.items(), parts, strict=True)}


def optimise_mask(
    deltas: Mapping[str, Float[Tensor, "*shape"]],
    target: Path,
    questions: Sequence[Question],
    count: int,
    *,
    steps: int,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Bool[Tensor, "*shape"]]:
    """Return the mask of `count` elements after `steps` steps on the loss of the questions' first answers.

    Everything is in fp32: model, gradients, Δ and S, four times the model's size. Batches of 8 questions are drawn by
    `seed`. Raises `CompatibilityError` for a tensor that the loaded model does not train.
    """
    model = load_model(target, torch.float32).to(device()).eval()
    tokenizer = load_tokenizer(target)
    weights = dict(model.named_parameters())
    for name in deltas:
        if name not in weights:
            raise CompatibilityError(
                f"{target}: the model has no parameter {name!r} of its own once it is loaded; a mask cannot be "
                "optimised for it: leave the optimisation out"
            )
    for name, weight in weights.items():
        weight.requires_grad_(name in deltas)
    deltas = {name: delta.to(device()) for name, delta in deltas.items()}
    magnitudes = {name: delta.abs().cpu() for name, delta in deltas.items()}
    base = {name: mask.to(device()) for name, mask in largest(magnitudes, count).items()}
    s = {name: torch.full_like(delta, START) for name, delta in deltas.items()}
    origin = {name: weights[name].detach().clone() for name in deltas}
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        drawn = torch.randint(len(questions), (min(BATCH, len(questions)),), generator=generator).tolist()
        with torch.no_grad():
            for name, delta in deltas.items():
                weights[name].copy_(origin[name] + relaxed(base[name], s[name]) * delta)
        model.zero_grad(set_to_none=True)
        answer_loss(model, tokenizer, [questions[number] for number in drawn]).backward()
        with torch.no_grad():
            gradients = {n: gradient(weights[n].grad, d, base[n], s[n]) for n, d in deltas.items()}
            squares = sum(float(g.double().square().sum()) for g in gradients.values())
            size = (squares / sum(g.numel() for g in gradients.values())) ** 0.5
            for name, g in gradients.items():
                if size > 0:
                    s[name].sub_(g, alpha=RATE / size)
        progress(step + 1, steps)
    return largest({name: relaxed(base[name], s[name]).cpu() for name in deltas}, count)


def answer_loss(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood of the tokens of the first answers and the end after them."""
    total, tokens = torch.zeros((), device=device()), 0
    for question in questions:
        (prompt,) = prompt_ids(tokenizer, [as_prompt(tokenizer, question.question)])
        answer = tokenizer(question.answers[0], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]], device=device())
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum")
        tokens += len(answer) + 1
    return total / tokens

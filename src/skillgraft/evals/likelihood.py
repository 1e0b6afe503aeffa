"""Log-likelihood of given texts: scores of choices, and a smooth stand-in for answering a question."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.data.tasks import Question
from skillgraft.models.answering import batches
from skillgraft.models.prompts import as_prompt, prompt_ids

if TYPE_CHECKING:
    from jaxtyping import Float


@torch.no_grad()
def answer_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], batch_size: int = 16
) -> list[float]:
    """Return for each question the mean log-likelihood (natural log) a token of its likeliest gold answer.

    The prompt is that of `evals.answers`; the gold answer follows it token by token (teacher forcing), and only its own
    tokens count, neither spaces around it nor the end of the turn. One pass and no sampling: far less noisy than what
    a model happens to say, but blind to whether it would stop there.
    """
    pairs, owners = [], []
    for number, question in enumerate(questions):
        (prompt,) = prompt_ids(tokenizer, [as_prompt(tokenizer, question.question)])
        for answer in dict.fromkeys(question.answers):
            pairs.append((prompt, tokenizer(answer.strip(), add_special_tokens=False)["input_ids"]))
            owners.append(number)
    means = [0.0] * len(pairs)
    for rows in batches([len(prompt) + len(answer) for prompt, answer in pairs], batch_size):
        for row, total in zip(rows, log_likelihood(model, [pairs[i] for i in rows]).tolist(), strict=True):
            means[row] = total / len(pairs[row][1])
    best = [float("-inf")] * len(questions)
    for owner, mean in zip(owners, means, strict=True):
        best[owner] = max(mean, best[owner]) if mean == mean else mean  # NaN must not be passed over
    return best


def log_likelihood(
    model: PreTrainedModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Float[Tensor, " pairs"]:
    """Return the summed log-probability (natural log) of each pair's second tokens after its first, not empty ones.

    Pairs whose tokens differ in the last alone, as one-word choices do, share one row of the model's input. Rows are
    padded on the left, so that logits are computed for the last positions only.
    """
    inputs = [(*context, *ending[:-1]) for context, ending in pairs]
    rows = {row: number for number, row in enumerate(dict.fromkeys(inputs))}
    width, longest = max(map(len, rows)), max(len(ending) for _, ending in pairs)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, number in rows.items():
        ids[number, width - len(row) :] = torch.tensor(row)
        mask[number, width - len(row) :] = 1
    log_probabilities = torch.log_softmax(_last_logits(model, ids, mask, longest), dim=-1)
    totals = torch.empty(len(pairs))
    for number, (row, (_, ending)) in enumerate(zip(inputs, pairs, strict=True)):
        here = log_probabilities[rows[row], longest - len(ending) :]
        totals[number] = here.gather(-1, torch.tensor(ending, device=here.device)[:, None]).sum()
    return totals


def _last_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, kept: int) -> Float[Tensor, "rows kept words"]:
    """Return the logits after the last `kept` positions of left-padded rows, in fp32."""
    optional = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0).to(model.device), "logits_to_keep": kept}
    known = inspect.signature(model.forward).parameters  # not every architecture takes them
    arguments = {name: value for name, value in optional.items() if name in known}
    output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False, **arguments)
    return output.logits[:, -kept:].float()

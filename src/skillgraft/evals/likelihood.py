"""How likely a model finds given texts: the score of a choice, and a smooth stand-in for answering a question."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.domains.knowledge import Question
from skillgraft.train.prompts import encode


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
        (prompt,) = encode(tokenizer, [question.question])["input_ids"].tolist()
        for answer in dict.fromkeys(question.answers):
            pairs.append((prompt, tokenizer(answer.strip(), add_special_tokens=False)["input_ids"]))
            owners.append(number)
    means = [0.0] * len(pairs)
    by_length = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    for start in range(0, len(pairs), batch_size):
        rows = by_length[start : start + batch_size]
        for row, total in zip(rows, log_likelihood(model, [pairs[i] for i in rows]).tolist(), strict=True):
            means[row] = total / len(pairs[row][1])
    best = [float("-inf")] * len(questions)
    for owner, mean in zip(owners, means, strict=True):
        best[owner] = max(mean, best[owner]) if mean == mean else mean  # NaN must not be passed over
    return best


def log_likelihood(
    model: PreTrainedModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Float[Tensor, " pairs"]:
    """Return the summed log-probability (natural log) of each pair's second tokens after its first."""
    width = max(len(c) + len(e) for c, e in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    counted = torch.zeros_like(ids)
    for row, (context, ending) in enumerate(pairs):
        length = len(context) + len(ending)
        ids[row, :length] = torch.tensor([*context, *ending])
        mask[row, :length] = 1
        counted[row, len(context) : length] = 1
    ids, mask, counted = (t.to(model.device) for t in (ids, mask, counted))
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    log_probabilities = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (log_probabilities * counted[:, 1:]).sum(dim=1).cpu()

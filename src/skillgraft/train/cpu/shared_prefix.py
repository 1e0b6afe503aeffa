"""Log-probabilities of sampled answers with each prompt computed once for all its answers, and nothing for padding.

TRL pads every prompt with its answer to one rectangle, so that a prompt of which eight answers were sampled is computed
eight times, with its gradient. Here a prompt without its last token is a prefix, and that token with the answer's (but
the last, after which nothing is scored) a branch (see `train.packing`): log-probabilities and gradients are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from skillgraft.train.cpu.varlen_attention import Branches


def flat_batch(
    ids: Tensor,  # (rows, prompt + answer)
    mask: Tensor,  # (rows, prompt + answer), prompts padded on the left, answers on the right
    width: int,  # of the answers' part
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Return the model's arguments, and row and column of each scored token.

    The row of tokens is: each distinct prompt without its last token, then each one's branches.
    """
    lengths = mask[:, -width:].sum(-1).tolist()
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, (tokens, present) in enumerate(zip(ids[:, :-width], mask[:, :-width], strict=True)):
        if lengths[row]:
            groups.setdefault(tuple(tokens[present.bool()].tolist()), []).append(row)
    flat = [token for prompt in groups for token in prompt[:-1]]
    positions = [place for prompt in groups for place in range(len(prompt) - 1)]
    labels = [-100] * len(flat)
    row_of: list[int] = []
    column_of: list[int] = []
    for prompt, rows in groups.items():
        for row in rows:
            answer = ids[row, -width:][: lengths[row]].tolist()
            flat += [prompt[-1], *answer[:-1]]
            positions += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
            labels += answer
            row_of += [row] * len(answer)
            column_of += range(len(answer))
    starts = torch.tensor([0, *(len(prompt) - 1 for prompt in groups)]).cumsum(0)
    inputs = {
        "input_ids": torch.tensor([flat]),
        "position_ids": torch.tensor([positions]),
        "shift_labels": torch.tensor([labels]),
        "cu_seq_lens_q": starts,
        "branches": [Branches.of([lengths[row] for row in rows]) for rows in groups.values()],
    }
    return inputs, torch.tensor(row_of, dtype=torch.long), torch.tensor(column_of, dtype=torch.long)


def score(
    model: PreTrainedModel | PeftModel, ids: Tensor, mask: Tensor, width: int, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Return log-probability and, if asked, entropy of each token of the answers, (rows, width), 0 at padding.

    `model` has TRL's fused head and attends by `packing.RAGGED`. Where every answer is masked (all were cut off, and
    `mask_truncated_completions` is set), one token is computed and counts 0.
    """
    scale = float(mask[:, -width:].any())
    if not scale:
        mask = mask.clone()
        mask[0, -width] = 1
    inputs, rows, columns = flat_batch(ids, mask, width)
    out = model(**inputs, fused_lm_head=True)
    scored = inputs["shift_labels"][0] != -100

    def back(flat: Tensor) -> Tensor:
        return flat.new_zeros(len(ids), width).index_put((rows, columns), flat[0, scored] * scale)

    return back(out.log_probs), back(out.entropy) if entropy else None

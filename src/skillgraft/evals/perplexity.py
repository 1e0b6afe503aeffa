"""Perplexity of held-out text: negative log-likelihood in a sliding window, by blocks of tokens and bytes.

    bits per byte = Σ −ln p(token) / (ln 2 · bytes)        token perplexity = exp(Σ −ln p(token) / tokens)

Bits per byte can be compared between tokenizers, token perplexity cannot. The definition is that of
lm-evaluation-harness's rolling log-likelihood (`bits_per_byte` of its wikitext task), which it equals where the stride
is the window.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.evals.likelihood import log_likelihood
from skillgraft.evals.tasks import Retention
from skillgraft.models.loading import context_length


def blocks(tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Return (first, start, end) of each block: tokens [start, end) are scored, seen from those at [first, end − 1).

    Every token is scored once. The first block is as long as the window, the next ones as the stride; at most `window`
    tokens are seen at once, of which −1 stands for the one before the text. The last window ends with the text.
    """
    ends = [*range(min(window, tokens), tokens, stride), tokens]
    starts = [0, *ends[:-1]]
    return [(max(end - 1 - window, -1), start, end) for start, end in zip(starts, ends, strict=True)]


@torch.no_grad()
def score_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, retention: Retention) -> dict[str, Any]:
    """Return per block the nats (Σ −ln p), tokens and UTF-8 bytes, and which document it is of; window, stride, cost.

    Before a document's first token stands the tokenizer's beginning-of-text token, else its end-of-text token.
    """
    start = time.monotonic()
    window = min(retention.window, context_length(model))
    stride = min(retention.stride, window)
    before = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    found: dict[str, list[Any]] = {"nats": [], "tokens": [], "bytes": [], "documents": []}
    computed = 0
    for document in retention.text:
        text = document.rendered()
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, places = [before, *encoded["input_ids"]], [at for at, _ in encoded["offset_mapping"]] + [len(text)]
        if len(ids) == 1:  # nothing but what the tokenizer drops
            continue
        places[0] = 0
        for first, begin, end in blocks(len(ids) - 1, window, stride):
            context, ending = ids[first + 1 : begin + 1], ids[begin + 1 : end + 1]
            found["nats"].append(-log_likelihood(model, [(context, ending)]).item())
            found["tokens"].append(len(ending))
            found["bytes"].append(len(text[places[begin] : places[end]].encode()))
            found["documents"].append(document.id)
            computed += len(context) + len(ending) - 1
    seconds = time.monotonic() - start
    return {**found, "window": window, "stride": stride, "computed": computed, "seconds": seconds}

"""Renderings by a local checkpoint, each sampled with a generator of its own.

Sampling is exact by the Gumbel-max trick: the argmax of log p + noise, with noise drawn by a generator that the
request's seed starts. So a rendering does not depend on which others stand in its batch, except where the last bits of
the logits do (padding, another batch size) and decide between two words; the batches of one stage are always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from skillgraft.data.synthesis.generation import Generated
from skillgraft.errors import RecipeError
from skillgraft.models.generation import answer_text, end_tokens, generate
from skillgraft.models.loading import context_length, count_parameters, load_model
from skillgraft.models.precision import bf16_pays, device
from skillgraft.models.prompts import as_request, encode_prompts, prompt_ids


class GumbelNoise(LogitsProcessor):
    """Adds standard Gumbel noise to each row's logits, from that row's generator."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores + noise, (rows, words), in fp32."""
        uniform = torch.stack([torch.rand(scores.shape[1], generator=each) for each in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float32).tiny)))
        return scores.float() + noise.to(scores.device)


def check_requests_fit(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int, context: int | None
) -> None:
    """Raise `RecipeError` where a prompt and its rendering do not fit into the model's context."""
    longest = max(
        (len(ids) for ids in prompt_ids(tokenizer, [as_request(tokenizer, each) for each in prompts])), default=0
    )
    if context is not None and longest + max_new_tokens > context:
        raise RecipeError(
            f"a prompt of {longest} tokens and max_new_tokens: {max_new_tokens} do not fit into the model's "
            f"context of {context}; lower chunk_tokens or max_new_tokens"
        )


class LocalWriter:
    """A checkpoint that writes; `parameters` is how many it has."""

    def __init__(
        self,
        directory: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.model = load_model(directory, torch.bfloat16 if bf16_pays() else torch.float32).to(device()).eval()
        self.parameters = count_parameters(self.model)
        self.temperature, self.top_p, self.max_new_tokens = temperature, top_p, max_new_tokens

    def check_length(self, prompts: Sequence[str]) -> None:
        """Raise `RecipeError` where a prompt and its rendering do not fit into the model's context."""
        check_requests_fit(self.tokenizer, prompts, self.max_new_tokens, context_length(self.model))

    @torch.no_grad()
    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
        """Return one rendering for each prompt, in one batch; temperature 0 takes the likeliest word each time."""
        batch = encode_prompts(self.tokenizer, [as_request(self.tokenizer, prompt) for prompt in prompts])
        processors = LogitsProcessorList()
        if self.temperature > 0:
            processors.append(TemperatureLogitsWarper(self.temperature))
            if self.top_p < 1:
                processors.append(TopPLogitsWarper(self.top_p))
            processors.append(GumbelNoise(seeds))
        output = generate(
            self.model,
            self.tokenizer,
            batch.to(self.model.device),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            logits_processor=processors,
        )
        sizes = batch["attention_mask"].sum(1).tolist()
        return [self._written(size, row.tolist()) for size, row in zip(sizes, output, strict=True)]

    def _written(self, prompt_tokens: int, made: list[int]) -> Generated:
        ends = {*end_tokens(self.model, self.tokenizer), self.tokenizer.pad_token_id}
        length = next((i for i, word in enumerate(made) if word in ends), len(made))
        text = answer_text(self.tokenizer, made[:length])
        return Generated(text, length < len(made), prompt_tokens + min(length + 1, len(made)))

"""Renderings by a local checkpoint, each sampled with a generator of its own.

Sampling is exact by the Gumbel-max trick: the argmax of log p + noise, with noise drawn by a generator that the
request's seed starts. So a rendering does not depend on which others stand in its batch, except where the last bits of
the logits do (padding, another batch size) and decide between two words; the batches of one stage are always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jinja2 import TemplateError
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from skillgraft.data.synthesis.generation import Generated
from skillgraft.errors import RecipeError
from skillgraft.models.loading import count_parameters, load_model
from skillgraft.models.precision import bf16_pays, device


class GumbelNoise(LogitsProcessor):
    """Adds standard Gumbel noise to each row's logits, from that row's generator."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores + noise, (rows, words), in fp32."""
        uniform = torch.stack([torch.rand(scores.shape[1], generator=each) for each in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float32).tiny)))
        return scores.float() + noise.to(scores.device)


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
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(len(self._tokens(prompt)) for prompt in prompts)
        if context is not None and longest + self.max_new_tokens > context:
            raise RecipeError(
                f"a prompt of {longest} tokens and max_new_tokens: {self.max_new_tokens} do not fit into the model's "
                f"context of {context}; lower chunk_tokens or max_new_tokens"
            )

    def _tokens(self, prompt: str) -> list[int]:
        text = as_chat(self.tokenizer, prompt)
        return self.tokenizer(text, add_special_tokens=text == prompt)["input_ids"]

    @torch.no_grad()
    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
        """Return one rendering for each prompt, in one batch; temperature 0 takes the likeliest word each time."""
        rows = [self._tokens(prompt) for prompt in prompts]
        batch = self.tokenizer.pad({"input_ids": rows}, padding=True, padding_side="left", return_tensors="pt")
        processors = LogitsProcessorList()
        if self.temperature > 0:
            processors.append(TemperatureLogitsWarper(self.temperature))
            if self.top_p < 1:
                processors.append(TopPLogitsWarper(self.top_p))
            processors.append(GumbelNoise(seeds))
        output = self.model.generate(
            **batch.to(self.model.device),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            logits_processor=processors,
            pad_token_id=self.tokenizer.pad_token_id,
        )[:, batch["input_ids"].shape[1] :]
        return [self._written(tokens, row.tolist()) for tokens, row in zip(rows, output, strict=True)]

    def _written(self, prompt: list[int], made: list[int]) -> Generated:
        ends = ends_of(self.model, self.tokenizer)
        length = next((i for i, word in enumerate(made) if word in ends), len(made))
        text = self.tokenizer.decode(made[:length], skip_special_tokens=True).strip()
        return Generated(text, length < len(made), len(prompt) + min(length + 1, len(made)))


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    """Return the tokens that end what a model writes: its own and the tokenizer's ends, and padding."""
    stops = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, tokenizer.pad_token_id, *(stops if isinstance(stops, list) else [stops])}


def as_chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Return the prompt as a user's message by the chat template, or as it is where the tokenizer has none."""
    if tokenizer.chat_template is None:
        return prompt
    try:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise RecipeError(f"the model's chat template refuses a user's message: {error}") from error

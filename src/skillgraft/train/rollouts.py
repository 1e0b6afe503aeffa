"""TRL's trainers for RL, faster on the CPU: the same loss and gradient from fewer tokens, answers drawn alike.

What differs lies in three methods of TRL 1.16 that GRPO and RLOO share; ReMax is GRPO with other advantages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import trl
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from trl import RLOOTrainer

from skillgraft.adapters.lora import merged
from skillgraft.models.decoding.sampling import sample, warpers
from skillgraft.models.generation import without_defaults
from skillgraft.models.prompts import Prompt, prompt_ids
from skillgraft.train.cpu.shared_prefix import score
from skillgraft.train.cpu.varlen_attention import RAGGED, packs, use_attention

CHECKED = "1.16"
"""The version of TRL whose inner methods are overridden here and in `algorithms`; under another this adds nothing."""

NEGLIGIBLE = 1e-6
"""Up to here an advantage, in deviations of the reward, is the rounding of a group's mean: all rewards were equal."""


class OwnPrompts:
    """To put before one of TRL's trainers that sample: prompts and sampling are those of evaluation.

    Prompts are encoded by `models.prompts`, and the checkpoint's own generation settings are left out.
    """

    def _tokenize_prompts(self: Any, prompts: list[Prompt]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompt_ids(self.processing_class, prompts), None, {}

    def _generate_single_turn(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        with without_defaults(model.get_base_model() if isinstance(model, PeftModel) else model):
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]


class SharedPrompts(OwnPrompts):
    """To put before TRL's `GRPOTrainer` or `RLOOTrainer`: a prompt is computed once for all its answers.

    Where the model or the settings do not allow it (see `packs`), the trainer stays as it is. Answers whose advantage
    is 0 are scored without a gradient, as it would be 0.
    """

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        models = [model for model in (self.model, self.ref_model) if model is not None]
        self._packed = (
            trl.__version__.startswith(f"{CHECKED}.")
            and all(packs(model) for model in models)
            and not self.aux_loss_enabled
        )
        self._learning: Tensor | None = None
        if self._packed:
            for model in models:
                use_attention(model, RAGGED)

    def _generate_single_turn(
        self: Any, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, *args: Any, **kwargs: Any
    ) -> Any:
        known = {"do_sample", "temperature", "top_p", "top_k", "min_p"}  # ReMax sets them for its greedy answers
        ours = self._packed and not (self.use_vllm or self.use_transformers_continuous_batching or images)
        if not ours or set(self.args.generation_kwargs or {}) - known or self.args.repetition_penalty != 1:
            with _attending_as_loaded(self.model) if self._packed else nullcontext():
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        lora = isinstance(model, PeftModel)
        with _attending_as_loaded(model), merged(model) if lora else nullcontext():
            sampled = sample(
                model.get_base_model() if lora else model,
                prompt_ids,
                self.eos_token_ids,
                self.max_completion_length,
                warpers(self.generation_config) if self.generation_config.do_sample else None,
                self.accelerator.autocast(),
            )
        return sampled if isinstance(self, RLOOTrainer) else (sampled, None)

    def _compute_loss(self: Any, model: Any, inputs: dict[str, Any]) -> Tensor:
        moving = inputs["advantages"].abs() > NEGLIGIBLE
        only_policy = self.beta == 0 and not vars(self).get("_entropy_bonus_enabled") and moving.dim() == 1
        self._learning = moving if only_policy and moving.any() and torch.is_grad_enabled() else None
        try:
            return super()._compute_loss(model, inputs)  # type: ignore[misc]
        finally:
            self._learning = None

    def _get_per_token_logps_and_entropies(
        self: Any,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if not self._packed:
            return super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **others,
            )
        whole = torch.arange(len(input_ids))
        parts = [whole] if self._learning is None else [whole[self._learning], whole[~self._learning]]
        chunks = [chunk for part in parts for chunk in part.split(batch_size or len(whole)) if len(chunk)]
        results = []
        for rows in chunks:
            idle = self._learning is not None and not self._learning[rows[0]]
            scorer = self.accelerator.unwrap_model(model) if idle else model  # DDP counts on one forward pass a step
            with torch.no_grad() if idle else nullcontext(), self.accelerator.autocast():
                results.append(score(scorer, input_ids[rows], attention_mask[rows], logits_to_keep, compute_entropy))
        order = torch.cat(chunks).argsort()
        log_p, entropy = (
            torch.cat(each)[order] if each[0] is not None else None for each in zip(*results, strict=True)
        )
        return log_p, entropy, None


@contextmanager
def _attending_as_loaded(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Let `model` attend to padded batches and caches meanwhile."""
    use_attention(model, "sdpa")
    try:
        yield
    finally:
        use_attention(model, RAGGED)

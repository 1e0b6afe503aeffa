"""Loaded models of a chat: each answers prompts, and can take a skill with another λ in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from skillgraft.arithmetic.injection.live_weights import LiveWeights
from skillgraft.arithmetic.merging import engine_for
from skillgraft.chat.commands import Settings
from skillgraft.chat.plan import ChatAnswer, ChatModelSpec
from skillgraft.errors import DataError
from skillgraft.models.generation import end_tokens, generate
from skillgraft.models.loading import context_length, load_model, load_tokenizer
from skillgraft.models.precision import bf16_pays, device
from skillgraft.models.prompts import as_prompt, encode_prompts


def bytes_per_parameter() -> int:
    """Return the bytes of a weight in memory: 2 where bf16 pays, as in evaluation, else 4."""
    return 2 if bf16_pays() else 4


class ChatModel:
    """One loaded model."""

    def __init__(self, spec: ChatModelSpec) -> None:
        self.spec = spec
        self._tokenizer = load_tokenizer(spec.directory)
        dtype = torch.bfloat16 if bytes_per_parameter() == 2 else torch.float32
        self._model = load_model(spec.directory, dtype).to(device()).eval()
        self._weights = LiveWeights(self._model, engine_for(None, "cpu")) if spec.injection else None
        self._scale = 0.0 if spec.injection else None

    def inject(self, scale: float) -> None:
        """Make the weights those of target + `scale` · skill; nothing where no skill belongs to this model."""
        if self._weights is not None and self.spec.injection is not None and scale != self._scale:
            self._scale = math.nan  # until all is changed: Ctrl-C may leave a part of it
            self._weights.become(self.spec.injection, scale)
            self._scale = scale

    @torch.no_grad()
    def answer(self, prompt: str, settings: Settings, seed: int) -> ChatAnswer:
        """Return the answer to one prompt, greedy at temperature 0, else sampled with `seed`.

        Raises:
            DataError: prompt and longest answer exceed what the model can attend to.
        """
        asked = as_prompt(self._tokenizer, prompt, settings.system)
        batch = encode_prompts(self._tokenizer, [asked]).to(self._model.device)
        length, room = batch["input_ids"].shape[1], context_length(self._model)
        if length + settings.tokens > room:
            raise DataError(
                f"{self.spec.label}: the prompt has {length} tokens and the answer may have {settings.tokens}, the "
                f"model takes {room} in all; shorten the prompt, or lower /tokens"
            )
        sampling: dict[str, Any] = {"do_sample": False}
        if settings.temperature:
            sampling = {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
        began = time.monotonic()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            output = generate(self._model, self._tokenizer, batch, max_new_tokens=settings.tokens, **sampling)
        new = output[0].tolist()
        ended = bool(new) and new[-1] in end_tokens(self._model, self._tokenizer)
        text = self._tokenizer.decode(new, skip_special_tokens=True).strip()
        return ChatAnswer(
            self.spec.label,
            text,
            len(new),
            time.monotonic() - began,
            not ended and len(new) >= settings.tokens,
            self._scale,
        )


def record(prompt: str, settings: Settings, answers: Sequence[ChatAnswer]) -> dict[str, Any]:
    """Return one prompt with its settings and answers for a JSON line."""
    return {
        "prompt": prompt,
        "system": settings.system,
        "max_new_tokens": settings.tokens,
        "temperature": settings.temperature,
        "answers": [
            {
                "model": each.model,
                "scale": each.scale,
                "text": each.text,
                "tokens": each.tokens,
                "cut": each.cut,
                "seconds": round(each.seconds, 3),
            }
            for each in answers
        ],
    }

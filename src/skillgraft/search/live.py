"""Candidates on a live model: the base is loaded once, and each candidate's tensors are computed straight into it.

The numbers are those of `skillgraft merge`, rounded to the dtype that it would store, so that a candidate scores what
its checkpoint would score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skillgraft.arithmetic.in_memory import make_tensors
from skillgraft.arithmetic.merge_recipe import MergeRecipe
from skillgraft.arithmetic.merging import machine_for
from skillgraft.arithmetic.plan import plan_merge
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.checkpoint.tensor_io import torch_dtype
from skillgraft.domains.knowledge import Question
from skillgraft.errors import CompatibilityError
from skillgraft.evals.answers import answer
from skillgraft.evals.likelihood import answer_likelihood
from skillgraft.evals.metrics import METRICS
from skillgraft.search.searching import LIKELIHOOD
from skillgraft.train.common import load_model, load_tokenizer
from skillgraft.train.precision import bf16_pays, device


class _Parameters:
    """Takes the bytes of tensors as they are made and copies them into a model's parameters."""

    def __init__(self, parameters: Mapping[str, Tensor], dtypes: Mapping[str, str]) -> None:
        self._flat = {name: parameters[name].detach().view(-1) for name in dtypes}
        self._dtypes = dtypes

    def write(self, name: str, begin: int, data: memoryview | np.ndarray) -> None:
        code = self._dtypes[name]
        values = torch.frombuffer(bytearray(data), dtype=torch_dtype(code))
        start = begin // DTYPE_BYTES[code]
        self._flat[name][start : start + len(values)].copy_(values)


class LiveModel:
    """The model at `base`, held in bf16 where that pays, as evaluation does; `score` makes it a recipe's first."""

    def __init__(self, base: Path, metrics: Sequence[str], max_new_tokens: int, batch_size: int, threads: int | None):
        self._tokenizer = load_tokenizer(base)
        self._model = load_model(base, torch.bfloat16 if bf16_pays() else torch.float32).to(device()).eval()
        self._parameters = dict(self._model.named_parameters(remove_duplicate=False)) | dict(
            self._model.named_buffers()
        )
        self._metrics, self._max_new_tokens, self._batch_size = metrics, max_new_tokens, batch_size
        self._machine = machine_for(threads, "cpu")
        self._changed: set[str] = set()
        self._cast: set[str] = set()

    def become(self, recipe: MergeRecipe) -> None:
        """Give the model the weights that `skillgraft merge` would write for a recipe on the same base.

        Raises as `plan_merge`, and `CompatibilityError` for a tensor that the loaded model has under no such name.
        """
        plan = plan_merge(recipe)
        # Once for all candidates, which share a dtype: what `merge` casts though no operand changes it.
        casts = {t.spec.name for t in plan.tensors if t.spec.dtype != t.target.dtype} - self._cast
        tensors = [t for t in plan.tensors if t.operands or t.spec.name in self._changed | casts]
        for tensor in tensors:
            held = self._parameters.get(tensor.spec.name)
            if held is None or tuple(held.shape) != tensor.spec.shape:
                raise CompatibilityError(
                    f"{recipe.base}: tensor {tensor.spec.name!r} has no counterpart of its shape in the loaded model; "
                    "a search needs a checkpoint that Transformers loads as it is stored"
                )
        self._changed |= {tensor.spec.name for tensor in tensors if tensor.operands}
        self._cast |= casts
        sink = _Parameters(self._parameters, {tensor.spec.name: tensor.spec.dtype for tensor in tensors})
        make_tensors(plan, tensors, sink, self._machine)

    def score(self, recipe: MergeRecipe, questions: Sequence[Question]) -> dict[str, list[float]]:
        """Return every metric's value for each question."""
        self.become(recipe)
        found: dict[str, list[float]] = {}
        if any(name in METRICS for name in self._metrics):
            texts, _ = answer(self._model, self._tokenizer, questions, self._max_new_tokens, self._batch_size)
            for name in self._metrics:
                if name in METRICS:
                    found[name] = [METRICS[name](text, q.answers) for text, q in zip(texts, questions, strict=True)]
        if LIKELIHOOD in self._metrics:
            rows = min(self._batch_size, 16)  # logits of whole texts: some 50 MB a row
            found[LIKELIHOOD] = answer_likelihood(self._model, self._tokenizer, questions, rows)
        return found

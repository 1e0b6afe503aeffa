"""Inject into a loaded model: its parameters become what a plan would store, without writing a file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from skillgraft.arithmetic.in_memory import make_tensors
from skillgraft.arithmetic.plan import Plan
from skillgraft.arithmetic.stream import Engine
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.checkpoint.tensor_io import torch_dtype
from skillgraft.checkpoint.weight_names import name_in_memory
from skillgraft.errors import CompatibilityError


class _Parameters:
    """Copies the bytes of tensors, as they are computed, into a model's parameters."""

    def __init__(self, parameters: Mapping[str, Tensor], dtypes: Mapping[str, str]) -> None:
        self._flat = {name: parameters[name].detach().view(-1) for name in dtypes}
        self._dtypes = dtypes

    def write(self, name: str, begin: int, data: memoryview | np.ndarray) -> None:
        code = self._dtypes[name]
        values = torch.frombuffer(bytearray(data), dtype=torch_dtype(code))
        start = begin // DTYPE_BYTES[code]
        self._flat[name][start : start + len(values)].copy_(values)


class LiveWeights:
    """The weights of `model`, loaded from a plan's target; `become` changes them in place, in the model's own dtype."""

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        self._name = name_in_memory(model)
        self._engine = engine
        self._changed: set[str] = set()
        self._cast: set[str] = set()

    def become(self, plan: Plan, scale: float = 1.0) -> None:
        """Give the model the weights that the plan, one on the same target, would store for λ = `scale`.

        Raises `CompatibilityError` for a tensor that the loaded model has under no such name.
        """
        # Once for all plans, which share a dtype: what the plan casts though no operand changes it.
        casts = {t.spec.name for t in plan.tensors if t.spec.dtype != t.target.dtype} - self._cast
        tensors = [t for t in plan.tensors if t.operands or t.spec.name in self._changed | casts]
        for tensor in tensors:
            held = self._parameters.get(self._name(tensor.spec.name) or "")
            if held is None or tuple(held.shape) != tensor.spec.shape:
                raise CompatibilityError(
                    f"{plan.target.path}: tensor {tensor.spec.name!r} has no counterpart of its shape in the loaded "
                    "model; this needs a checkpoint that Transformers loads as it is stored"
                )
        self._changed |= {tensor.spec.name for tensor in tensors if tensor.operands}
        self._cast |= casts
        held = {t.spec.name: self._parameters[self._name(t.spec.name) or ""] for t in tensors}
        sink = _Parameters(held, {tensor.spec.name: tensor.spec.dtype for tensor in tensors})
        make_tensors(plan, tensors, sink, self._engine, scale)

"""Compute a tile on a GPU: the methods' `combine` on Torch tensors, the same bits as the CPU's kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.cpu_tiles import ComputedTile
from skillgraft.arithmetic.methods.method import Method
from skillgraft.arithmetic.plan_types import Operand, TensorPlan
from skillgraft.arithmetic.rounding import is_finite, round_once
from skillgraft.arithmetic.tensor_sources import TensorSource
from skillgraft.arithmetic.tiles import Tile
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.checkpoint.tensor_io import tensor_bytes, torch_dtype


def on_device(device: torch.device) -> Callable[..., ComputedTile]:
    """Return the function that computes a tile on `device`, with the arguments of `cpu_tiles.compute`."""

    def compute(
        method: Method,
        parameters: Any,
        tensor: TensorPlan,
        operands: Sequence[Operand],
        tile: Tile,
        statistics: Any,
        scales: Sequence[float],
        buffers: Buffers,
        files: Files,
    ) -> ComputedTile:
        with_target, tensors = method.inputs == "vectors", {}

        def wide(source: TensorSource) -> Tensor:
            if source not in tensors:
                count = tile.stop - tile.start
                raw = buffers.empty("raw", (count * DTYPE_BYTES[source.dtype],), np.uint8)
                source.read(tile.start, tile.stop, files, raw)
                tensors[source] = torch.from_numpy(raw).view(torch_dtype(source.dtype)).to(device).double()
            return tensors[source]

        values = []
        for operand in operands:
            total = wide(operand.terms[0].source).clone().mul_(operand.terms[0].sign)
            for term in operand.terms[1:]:
                total = total.add_(wide(term.source)) if term.sign > 0 else total.sub_(wide(term.source))
            values.append(total)
        finite = all(is_finite(value) for value in values)  # an election would pass over NaN in silence
        combined = method.combine(values, method.context(parameters, tensor, operands, tile, statistics))
        outs, losses, squared_stored = [], [], 0.0
        for scale in scales:
            exact = combined * scale + wide(tensor.target) if with_target else combined
            stored = round_once(exact, torch_dtype(tensor.spec.dtype))
            finite = finite and is_finite(stored)
            losses.append((stored.double() - exact).square().sum().item())
            squared_stored = stored.double().square().sum().item()
            outs.append(np.frombuffer(tensor_bytes(stored), dtype=np.uint8))
        return ComputedTile(np.stack(outs), combined.square().sum().item(), losses, squared_stored, finite)

    return compute

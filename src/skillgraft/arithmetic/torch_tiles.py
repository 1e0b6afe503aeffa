"""One tile on a GPU: the methods' own functions on Torch tensors, the same bits as the CPU's kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.combine import COMBINED, part_of
from skillgraft.arithmetic.cpu_tiles import Computed
from skillgraft.arithmetic.methods import Part
from skillgraft.arithmetic.methods.dare import drop_and_rescale, keep_mask
from skillgraft.arithmetic.methods.linear import linear, task_arithmetic
from skillgraft.arithmetic.methods.model_stock import model_stock, stock_ratio
from skillgraft.arithmetic.methods.slerp import slerp, slerp_weights
from skillgraft.arithmetic.methods.ties import elect_and_average, ties
from skillgraft.arithmetic.plan import Operand, Plan, TensorPlan
from skillgraft.arithmetic.rounding import is_finite, round_once
from skillgraft.arithmetic.tensor_sources import TensorSource
from skillgraft.arithmetic.tiles import Tile
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.checkpoint.tensor_io import tensor_bytes, torch_dtype


def _slerp(values: list[Tensor], part: Part) -> Tensor:
    (aa, ab), (_, bb) = part.facts
    return slerp(values[0], values[1], slerp_weights(part.parameters.t, ab, aa**0.5, bb**0.5))


def _ties(values: list[Tensor], part: Part) -> Tensor:
    return ties(values, part.weights, part.facts, part.parameters.normalize, part.parameters.scale)


def _dropped(values: list[Tensor], part: Part) -> list[Tensor]:
    density, seed = part.parameters.density, part.parameters.seed
    return [
        drop_and_rescale(value, keep_mask(seed, number, part.name, part.start, len(value), density), density)
        for value, number in zip(values, part.numbers, strict=True)
    ]


COMBINE: dict[str, Callable[[list[Tensor], Part], Tensor]] = {
    "linear": lambda values, part: linear(values, part.weights, part.parameters.normalize),
    "task_arithmetic": lambda values, part: task_arithmetic(values, part.weights),
    "slerp": _slerp,
    "ties": _ties,
    "dare": lambda values, part: task_arithmetic(_dropped(values, part), part.weights),
    "dare_ties": lambda values, part: elect_and_average(
        _dropped(values, part), part.weights, part.parameters.normalize
    ),
    "model_stock": lambda values, part: model_stock(values, stock_ratio(part.facts)),
    "ratatouille": lambda values, part: linear(values, part.weights),
    "copa": lambda values, part: task_arithmetic(values, part.weights),
    "instruction_residual": lambda values, part: task_arithmetic(values, part.weights),
    **COMBINED,
}


def on_device(device: torch.device) -> Callable[..., Computed]:
    """Return the function that computes a tile on `device`, with the arguments of `cpu_tiles.compute`."""

    def compute(
        plan: Plan,
        tensor: TensorPlan,
        operands: Sequence[Operand],
        tile: Tile,
        facts: Any,
        scales: Sequence[float],
        buffers: Buffers,
        files: Files,
    ) -> Computed:
        vectors, read = plan.method.of == "vectors", {}

        def wide(source: TensorSource) -> Tensor:
            if source not in read:
                count = tile.stop - tile.start
                raw = buffers.empty("raw", (count * DTYPE_BYTES[source.dtype],), np.uint8)
                source.read(tile.start, tile.stop, files, raw)
                read[source] = torch.from_numpy(raw).view(torch_dtype(source.dtype)).to(device).double()
            return read[source]

        values = []
        for operand in operands:
            total = wide(operand.terms[0].source).clone().mul_(operand.terms[0].sign)
            for term in operand.terms[1:]:
                total = total.add_(wide(term.source)) if term.sign > 0 else total.sub_(wide(term.source))
            values.append(total)
        part = part_of(plan, tensor, operands, tile, facts)
        finite = all(is_finite(value) for value in values)  # an election would pass over NaN in silence
        made = COMBINE[plan.method.name](values, part)
        outs, losses, kept = [], [], 0.0
        for scale in scales:
            exact = made * scale + wide(tensor.target) if vectors else made
            stored = round_once(exact, torch_dtype(tensor.spec.dtype))
            finite = finite and is_finite(stored)
            losses.append((stored.double() - exact).square().sum().item())
            kept = stored.double().square().sum().item()
            outs.append(np.frombuffer(tensor_bytes(stored), dtype=np.uint8))
        return Computed(np.stack(outs), made.square().sum().item(), losses, kept, finite)

    return compute

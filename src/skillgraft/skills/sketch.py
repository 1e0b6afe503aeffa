"""Recognising a base by a few of its weights, for checkpoints without provenance.

Fine-tuning moves weights by far less than their spread, so that two fine-tunes of one base correlate above 0.9
element by element, while independently trained or random models correlate near 0 (64 elements: ±0.125).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from skillgraft.checkpoint.layout import Layout
from skillgraft.checkpoint.tensor_io import read_elements
from skillgraft.errors import CompatibilityError

SKETCH_TENSORS = 32
SKETCH_ELEMENTS = 64
SIGNIFICANT_DIGITS = 6


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` distinct positions from 0 to `count` − 1, first and last included."""
    if count <= wanted:
        return list(range(count))
    return [position * (count - 1) // (wanted - 1) for position in range(wanted)]


def sketch_weights(layout: Layout) -> dict[str, list[float]]:
    """Return 64 evenly spaced elements of up to 32 evenly spaced float matrices, rounded to 6 significant digits.

    Raises `CompatibilityError`, naming the tensor, for an element that is NaN or infinite.
    """
    matrices = [info for info in layout.tensors.values() if info.is_float and len(info.shape) == 2 and info.elements]
    matrices.sort(key=lambda info: info.name)  # sharding must not change which are taken
    sketch = {}
    for position in evenly_spaced(len(matrices), SKETCH_TENSORS):
        info = matrices[position]
        values = read_elements(info, evenly_spaced(info.elements, SKETCH_ELEMENTS))
        if not all(map(math.isfinite, values)):
            raise CompatibilityError(
                f"{info.file}: tensor {info.name!r} holds NaN or infinity; expected finite weights: the checkpoint is "
                "damaged or its training diverged"
            )
        sketch[info.name] = [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values]
    return sketch


def sketch_correlation(layout: Layout, sketch: Mapping[str, Sequence[float]]) -> float | None:
    """Return the median over tensors of Pearson's correlation of `layout`'s elements with the sketched ones.

    None when no tensor can be compared: absent, of another size, or constant.
    """
    values = {}
    for name, expected in sketch.items():
        info = layout.tensors.get(name)
        if info is None or not info.is_float or len(expected) < 2:
            continue
        positions = evenly_spaced(info.elements, SKETCH_ELEMENTS)
        if len(positions) == len(expected):
            values[name] = read_elements(info, positions)
    return correlation_of_sketches(values, sketch)


def correlation_of_sketches(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> float | None:
    """Return the median of Pearson's correlation over the tensors of two sketches, or None as `sketch_correlation`."""
    correlations = [_correlation(values, other[name]) for name, values in one.items() if name in other]
    known = [correlation for correlation in correlations if correlation is not None]
    return statistics.median(known) if known else None


def _correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    if len(one) != len(other) or len(one) < 2 or not all(map(math.isfinite, (*one, *other))):
        return None
    if len(set(one)) == 1 or len(set(other)) == 1:
        return None
    try:
        correlation = statistics.correlation(list(one), list(other))
    except (statistics.StatisticsError, OverflowError):  # numbers that no weights have
        return None
    return correlation if math.isfinite(correlation) else None

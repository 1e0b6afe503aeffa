"""The geometry of the page's drawings: numbers in, coordinates and labels out; the templates write the SVG.

Coordinates are in the units of each drawing's viewBox, x to the right and y downwards, rounded to a tenth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from skillgraft.support.formatting import MINUS, finite

PLOT_WIDTH, PLOT_MARGIN = 120.0, 5.0
CHART_WIDTH, CHART_HEIGHT = 340.0, 190.0
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 44.0, 10.0, 10.0, 34.0
DRAWN_POINTS = 400
SMOOTHED_FROM_POINTS = 20

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear axis: the values at its ends and round values between them."""

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def place(self, value: float, start: float, end: float) -> float:
        """Return where `value` lies between the coordinates of the axis' ends."""
        return round(start + (end - start) * (value - self.low) / (self.high - self.low), 1)


@dataclass(frozen=True)
class Dot:
    """A mean with its interval on a shared axis; `reference` is where a dashed line is drawn."""

    mean: float
    low: float
    high: float
    reference: float | None


@dataclass(frozen=True)
class LineChart:
    """One metric over steps: the raw line, its moving average where there are points enough, and the axes."""

    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    raw: str  # of an SVG polyline
    smooth: str
    window: int  # points of the moving average, 0 for none
    minimum: Point  # step, value
    maximum: Point
    last: Point
    marks: tuple[Point, Point]  # where minimum and maximum are drawn


@dataclass(frozen=True)
class BandChart:
    """Means over a setting with their intervals as a band, and the axes."""

    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    line: str  # of an SVG polyline
    band: str  # of an SVG polygon
    dots: tuple[Point, ...]


def axis(values: Sequence[float], ticks: int = 4, with_zero: bool = False) -> Axis:
    """Return an axis of round numbers that covers `values`, and zero where asked for or where it is near."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if with_zero or 0 < low < 0.35 * high:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = (low - abs(low) * 0.1, high + abs(high) * 0.1) if high else (0.0, 1.0)
    step = _round_step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    at = tuple(number * step for number in range(first, last + 1))
    return Axis(at[0], at[-1], at, tuple(_tick_label(value, step) for value in at))


def dot(on: Axis, mean: object, low: object, high: object, reference: object = None) -> Dot | None:
    """Return a dot plot's coordinates, or None where the mean or an end of its interval is missing."""
    known = [finite(value) for value in (mean, low, high)]
    at = [_place(on, value) for value in known if value is not None]
    if len(at) < 3:
        return None
    line = finite(reference)
    return Dot(at[0], at[1], at[2], None if line is None else _place(on, line))


def line_chart(points: Sequence[Point]) -> LineChart | None:
    """Return the chart of (step, value) points, which are finite and in order of step; None without a point."""
    if not points:
        return None
    window = _window(len(points))
    smooth = list(zip([x for x, _ in points], moving_average([y for _, y in points], window), strict=True))
    x_axis, y_axis = _axes([x for x, _ in points], [y for _, y in points])

    def place(point: Point) -> Point:
        return _place_in_chart(x_axis, y_axis, point)

    def polyline(line: Sequence[Point]) -> str:
        return " ".join(f"{x:g},{y:g}" for x, y in map(place, thin(line)))

    minimum, maximum = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    return LineChart(
        x_ticks=_x_ticks(x_axis),
        y_ticks=_y_ticks(y_axis),
        raw=polyline(points),
        smooth=polyline(smooth) if window else "",
        window=window,
        minimum=minimum,
        maximum=maximum,
        last=points[-1],
        marks=(place(minimum), place(maximum)),
    )


def band_chart(points: Sequence[tuple[float, float, float, float]]) -> BandChart:
    """Return the chart of (x, mean, low, high) points, at least two, in order of x."""
    x_axis, y_axis = _axes([x for x, *_ in points], [value for _, *ends in points for value in ends])

    def path(line: Sequence[Point]) -> str:
        return " ".join(f"{x:g},{y:g}" for x, y in (_place_in_chart(x_axis, y_axis, point) for point in line))

    means = [(x, mean) for x, mean, _, _ in points]
    around = [(x, low) for x, _, low, _ in points] + [(x, high) for x, _, _, high in reversed(points)]
    dots = tuple(_place_in_chart(x_axis, y_axis, point) for point in means)
    return BandChart(_x_ticks(x_axis), _y_ticks(y_axis), path(means), path(around), dots)


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the `window` values around each value, of fewer at the ends."""
    half = window // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = [(max(0, at - half), min(len(values), at + half + 1)) for at in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in ends]


def thin(points: Sequence[Point], most: int = DRAWN_POINTS) -> list[Point]:
    """Return at most `most` points that keep the extremes: the lowest and the highest of each of most/2 spans."""
    if len(points) <= most:
        return list(points)
    spans = most // 2
    edges = [round(len(points) * span / spans) for span in range(spans + 1)]
    extremes: list[Point] = []
    for start, end in itertools.pairwise(edges):
        span = points[start:end]
        extremes += sorted({min(span, key=lambda point: point[1]), max(span, key=lambda point: point[1])})
    return extremes


def _axes(xs: Sequence[float], ys: Sequence[float]) -> tuple[Axis, Axis]:
    """Return round axes, of which the horizontal one begins and ends with the first and the last point."""
    x_axis = axis(xs)
    return (Axis(xs[0], xs[-1], x_axis.ticks, x_axis.labels) if len(xs) > 1 else x_axis), axis(ys)


def _place_in_chart(x_axis: Axis, y_axis: Axis, point: Point) -> Point:
    x = x_axis.place(point[0], CHART_LEFT, CHART_WIDTH - CHART_RIGHT)
    return x, y_axis.place(point[1], CHART_HEIGHT - CHART_BOTTOM, CHART_TOP)


def _x_ticks(on: Axis) -> tuple[tuple[float, str], ...]:
    return tuple(
        (on.place(value, CHART_LEFT, CHART_WIDTH - CHART_RIGHT), label)
        for value, label in zip(on.ticks, on.labels, strict=True)
        if on.low <= value <= on.high
    )


def _y_ticks(on: Axis) -> tuple[tuple[float, str], ...]:
    return tuple(
        (on.place(value, CHART_HEIGHT - CHART_BOTTOM, CHART_TOP), label)
        for value, label in zip(on.ticks, on.labels, strict=True)
    )


def _place(on: Axis, value: float) -> float:
    return on.place(value, PLOT_MARGIN, PLOT_WIDTH - PLOT_MARGIN)


def _window(points: int) -> int:
    return 0 if points < SMOOTHED_FROM_POINTS else max(5, points // 20) | 1


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _tick_label(value: float, step: float) -> str:
    if abs(value) < step / 2:
        return "0"
    if not 1e-4 <= step < 1e5:
        return f"{value:.2g}".replace("-", MINUS)
    digits = next(digits for digits in range(6) if abs(step * 10**digits - round(step * 10**digits)) < 1e-6)
    return f"{value:,.{digits}f}".replace("-", MINUS)

"""Heat maps of layer × module kind: cells in, coordinates and strengths out; the templates write the SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skillgraft.geometry.modules import KINDS
from skillgraft.geometry.pair_wording import signed
from skillgraft.report.facts import Geometry
from skillgraft.support.formatting import finite, one_decimal, significant

CELL_WIDTH, CELL_HEIGHT, MAP_LEFT, MAP_TOP = 38.0, 10.0, 22.0, 16.0
RELATIVE = "Norm relative to the base"


@dataclass(frozen=True)
class Cell:
    """One rectangle of a heat map: its place, how strong its colour is from 0 to 1, its sign, and its text."""

    x: float
    y: float
    strength: float
    sign: str
    text: str


@dataclass(frozen=True)
class HeatMap:
    """A map of one measure: columns are module kinds, rows are layers; the strongest colour stands for `most`."""

    title: str
    largest: float
    most: str
    least: str
    signed: bool
    width: float
    height: float
    columns: tuple[tuple[float, str], ...]
    rows: tuple[tuple[float, str], ...]
    cells: tuple[Cell, ...]


def heat_map(
    title: str, cells: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], Any], show: Callable[..., str]
) -> HeatMap | None:
    """Return the map of `value` over `cells` (each with layer and kind); None where no cell has a finite one."""
    known = [(cell, n) for cell in cells if cell["kind"] in KINDS and (n := finite(value(cell))) is not None]
    if not known:
        return None
    most = max(abs(number) for _, number in known)
    kinds = [kind for kind in KINDS if any(cell["kind"] == kind for cell, _ in known)]
    layers = sorted({cell["layer"] for cell, _ in known})
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(layers) / step <= 16)
    lowest = MAP_TOP + CELL_HEIGHT * len(layers)
    return HeatMap(
        title=title,
        largest=most,
        most=show(most),
        least=show(-most),
        signed=any(number < 0 for _, number in known),
        width=MAP_LEFT + CELL_WIDTH * len(kinds),
        height=lowest + 2,
        columns=tuple((MAP_LEFT + CELL_WIDTH * (place + 0.5), kind) for place, kind in enumerate(kinds)),
        rows=tuple(
            (MAP_TOP + CELL_HEIGHT * (place + 0.8), str(layers[place])) for place in range(0, len(layers), step)
        ),
        cells=tuple(
            Cell(
                x=MAP_LEFT + CELL_WIDTH * kinds.index(cell["kind"]),
                y=MAP_TOP + CELL_HEIGHT * layers.index(cell["layer"]),
                strength=round(abs(number) / most, 3) if most else 0.0,
                sign="negative" if number < 0 else "positive",
                text=f"layer {cell['layer']}, {cell['kind']}: {show(number)}",
            )
            for cell, number in known
        ),
    )


def on_one_scale(maps: Sequence[HeatMap]) -> list[HeatMap]:
    """Return maps of one measure with the strongest colour for the largest magnitude of all of them."""
    top = max(maps, key=lambda one: one.largest)
    return [
        replace(
            one,
            most=top.most,
            least=top.least,
            cells=tuple(
                replace(cell, strength=round(cell.strength * one.largest / top.largest, 3) if top.largest else 0.0)
                for cell in one.cells
            ),
        )
        for one in maps
    ]


def heat_maps(cells: Sequence[Mapping[str, Any]], labels: Sequence[str], pairs: Sequence[str]) -> list[dict[str, Any]]:
    """Return the maps by measure: norms, effective ranks and cosines, left out where nothing is known.

    `cells` have `layer`, `kind`, and measures of `vectors` and `pairs` in the order of `labels` and `pairs`.
    """

    def vectors(measure: Callable[[Mapping[str, Any]], Any], show: Callable[..., str]) -> list[HeatMap]:
        maps = [
            heat_map(label, cells, lambda cell, i=i: measure(cell["vectors"][i]), show)  # type: ignore[misc]
            for i, label in enumerate(labels)
        ]
        return [one for one in maps if one is not None]

    cosines = [
        heat_map(name, cells, lambda cell, i=i: cell["pairs"][i]["cosine"], signed)  # type: ignore[misc]
        for i, name in enumerate(pairs)
    ]
    maps_by_title = {
        "Norm": vectors(lambda one: one["norm"], significant),
        RELATIVE: vectors(lambda one: one.get("relative_norm"), significant),
        "Effective rank": vectors(_effective_rank, one_decimal),
        "Cosine": [one for one in cosines if one is not None],
    }
    return [{"title": title, "figures": figures} for title, figures in maps_by_title.items() if figures]


def _effective_rank(vector: Mapping[str, Any]) -> Any:
    return vector.get("effective_rank", vector.get("spectrum", {}).get("effective_rank"))


def geometry_view(geometry: Geometry | None) -> dict[str, Any] | None:
    """Return the geometry as the template needs it: maps, pairs, vectors; None without `geometry`."""
    if geometry is None:
        return None
    labels = [vector["label"] for vector in geometry["vectors"]]
    names = [f"{pair['one']}, {pair['other']}" for pair in geometry["pairs"]]
    maps = heat_maps(geometry["cells"], labels, names)
    titles = [measure["title"] for measure in maps]
    return {
        "missing": geometry["missing"],
        "ranks": geometry["ranks"],
        "vectors": geometry["vectors"],
        "pairs": [
            {"name": name, "sentence": pair["sentence"]} for name, pair in zip(names, geometry["pairs"], strict=True)
        ],
        "maps": [measure for measure in maps if measure["title"] != "Norm" or RELATIVE not in titles],
    }

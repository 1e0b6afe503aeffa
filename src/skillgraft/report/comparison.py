"""A comparison's facts to one HTML page: what the pairs say, tables by part, heat maps of layer × module kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skillgraft.errors import OutputExistsError, StorageError
from skillgraft.geometry.modules import KINDS
from skillgraft.geometry.wording import plain, signed, z_text
from skillgraft.report.formatting import MISSING, finite, one_decimal, percent, significant
from skillgraft.report.page import environment, frame_view, replace_together
from skillgraft.report.visible import visible_tree

CELL_WIDTH, CELL_HEIGHT, MAP_LEFT, MAP_TOP = 38.0, 10.0, 22.0, 16.0


@dataclass(frozen=True)
class Cell:
    """One rectangle of a heat map: its place, how strong its colour is from 0 to 1, its sign, and what it says."""

    x: float
    y: float
    strength: float
    sign: str
    text: str


@dataclass(frozen=True)
class HeatMap:
    """A map of one measure: columns are module kinds, rows are layers; the strongest colour stands for `most`."""

    title: str
    most: str
    least: str
    signed: bool
    width: float
    height: float
    columns: tuple[tuple[float, str], ...]
    rows: tuple[tuple[float, str], ...]
    cells: tuple[Cell, ...]


def render_comparison(facts: Mapping[str, Any]) -> str:
    """Return the page of a comparison's facts (see `geometry.compare`)."""
    return environment().get_template("comparison.html.j2").render(**_view(visible_tree(facts)))


def write_comparison(facts: Mapping[str, Any], path: Path) -> None:
    """Write the page to the new file `path`, whole or not at all; `OutputExistsError`, `StorageError`."""
    text = render_comparison(facts)
    if path.exists():
        raise OutputExistsError(f"{path} exists already and nothing is overwritten; choose another file or delete it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_together(path.parent, {path.name: text})
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}; free space or choose another place") from error


def heat_map(
    title: str, cells: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], Any], show: Callable[..., str]
) -> HeatMap | None:
    """Return the map of `value` over `cells` (each with layer and kind); None where no cell has a finite one."""
    known = [(cell, number) for cell in cells if (number := finite(value(cell))) is not None]
    if not known:
        return None
    most = max(abs(number) for _, number in known)
    kinds = [kind for kind in KINDS if any(cell["kind"] == kind for cell, _ in known)]
    layers = sorted({cell["layer"] for cell, _ in known})
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(layers) / step <= 16)
    lowest = MAP_TOP + CELL_HEIGHT * len(layers)
    return HeatMap(
        title=title,
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


def _view(facts: Mapping[str, Any]) -> dict[str, Any]:
    parts = {**facts["kinds"], **facts["layers"]}
    relative = any("relative_norm" in vector for vector in facts["vectors"])
    norm = "relative_norm" if relative else "norm"
    labels = [vector["label"] for vector in facts["vectors"]]
    pairs = [f"{pair['one']}, {pair['other']}" for pair in facts["pairs"]]
    return {
        "title": f"{', '.join(labels[:-1])} and {labels[-1]} compared",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "skillgraft_version": version("skillgraft"),
        "recipe_path": "",
        "machine": {},
        "facts": facts,
        "relative": relative,
        "with_spectra": any("spectrum" in vector for vector in facts["vectors"]),
        "groups": [_group_view(group) for group in facts["groups"]],
        "pairs": [_pair_view(pair) for pair in facts["pairs"]],
        "tables": [
            {
                "title": "Norm relative to the base" if relative else "Norm",
                "columns": labels,
                "rows": _rows(parts, len(labels), lambda part, i: significant(part["vectors"][i].get(norm))),
            },
            {
                "title": "Cosine",
                "columns": pairs,
                "rows": _rows(parts, len(pairs), lambda part, i: signed(part["pairs"][i]["cosine"])),
            },
        ],
        "maps": _maps(facts, labels, pairs, relative),
        "method": facts["method"],
        **frame_view("comparison.css"),
    }


def _rows(parts: Mapping[str, Any], columns: int, cell: Callable[[Any, int], str]) -> list[dict[str, Any]]:
    return [{"name": name, "cells": [cell(part, place) for place in range(columns)]} for name, part in parts.items()]


def _group_view(group: Mapping[str, Any]) -> dict[str, Any]:
    cosine = group["cosine"]
    return {
        "name": group["groups"],
        "pairs": group["pairs"],
        **{key: signed(cosine[key]) for key in ("mean", "least", "most")},
        "chance": plain(group["chance_sd"]),
        "same_sign": percent(group["same_sign"]),
    }


def _pair_view(pair: Mapping[str, Any]) -> dict[str, Any]:
    known = [sd for sd in pair["chance_sd"].values() if sd is not None]
    view = {
        "name": f"{pair['one']}, {pair['other']}",
        "groups": pair["groups"],
        "cosine": signed(pair["cosine"]),
        "chance": f"± {plain(max(known))}" if known else MISSING,
        "z": z_text(pair["z"]),
        "rms_z": one_decimal(pair["rms_z"]),
        "same_sign": percent(pair["same_sign"]),
        "overlap": percent(pair["overlap"]),
        "sentence": pair["sentence"],
    }
    for side in ("left", "right"):
        found = pair.get("subspaces", {}).get(side)
        view[side] = f"{percent(found['overlap'])} ({percent(found['expected'])})" if found else MISSING
    return view


def _maps(
    facts: Mapping[str, Any], labels: Sequence[str], pairs: Sequence[str], relative: bool
) -> list[dict[str, Any]]:
    """Return the heat maps by measure: norms, effective ranks and cosines, left out where nothing is known."""
    cells = facts["cells"]

    def vectors(measure: Callable[[Mapping[str, Any]], Any], show: Callable[..., str]) -> list[HeatMap]:
        made = [
            heat_map(label, cells, lambda cell, i=i: measure(cell["vectors"][i]), show)  # type: ignore[misc]
            for i, label in enumerate(labels)
        ]
        return [one for one in made if one is not None]

    cosines = [
        heat_map(name, cells, lambda cell, i=i: cell["pairs"][i]["cosine"], signed)  # type: ignore[misc]
        for i, name in enumerate(pairs)
    ]
    found = {
        "Norm": vectors(lambda one: one["norm"], significant),
        "Norm relative to the base": vectors(lambda one: one.get("relative_norm"), significant) if relative else [],
        "Effective rank": vectors(lambda one: one.get("spectrum", {}).get("effective_rank"), one_decimal),
        "Cosine": [one for one in cosines if one is not None],
    }
    return [{"title": title, "figures": figures} for title, figures in found.items() if figures]

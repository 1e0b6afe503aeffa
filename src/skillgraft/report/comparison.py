"""A comparison's facts to one HTML page: what the pairs say, tables by part, heat maps of layer × module kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skillgraft.errors import OutputExistsError, StorageError
from skillgraft.geometry.pair_wording import plain, signed, z_text
from skillgraft.report.heat import heat_maps
from skillgraft.report.page import environment, frame_view
from skillgraft.support.atomic import atomic_write_text
from skillgraft.support.escape import escape_tree
from skillgraft.support.formatting import MISSING, one_decimal, percent, significant


def render_comparison(facts: Mapping[str, Any]) -> str:
    """Return the page of a comparison's facts (see `geometry.compare`)."""
    return environment().get_template("comparison.html.j2").render(**_view(escape_tree(facts)))


def write_comparison(facts: Mapping[str, Any], path: Path) -> None:
    """Write the page to the new file `path`, whole or not at all; `OutputExistsError`, `StorageError`."""
    text = render_comparison(facts)
    if path.exists():
        raise OutputExistsError(f"{path} exists already and nothing is overwritten; choose another file or delete it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, text, durable=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}; free space or choose another place") from error


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
        "maps": heat_maps(facts["cells"], labels, pairs),
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
        subspace = pair.get("subspaces", {}).get(side)
        view[side] = f"{percent(subspace['overlap'])} ({percent(subspace['expected'])})" if subspace else MISSING
    return view

"""The comparison's page: what it shows, that hostile text stays text, and the places and colours of heat maps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from skillgraft.errors import OutputExistsError, StorageError
from skillgraft.report.comparison import render_comparison, write_comparison
from skillgraft.report.heat import heat_map
from tests.report.test_page import BIDI, EVIL, EVIL_TAGS, Page


def measures(cosine: float | None = -0.25) -> dict[str, Any]:
    vector = {"norm": 2.0, "zeros": 0.5, "relative_norm": 0.0125, "below_bf16": 0.25}
    spectrum = {"matrices": 1, "effective_rank": 12.34, "stable_rank": 2.5, "rank": 20, "energy": {"8": 0.875}}
    side = {"overlap": 0.5, "expected": 0.125, "sd": 0.01, "z": 37.5}
    pair = {
        "cosine": cosine,
        "chance_sd": {"isotropic": 0.001, "sign_flips": 0.002},
        "z": -125.0,
        "same_sign": 0.4,
        "same_sign_of_all": 0.2,
        "overlap": 0.75,
        "rms_z": 30.5,
        "rms_z_limit": 1.5,
        "subspaces": {"matrices": 1, "left": side, "right": side},
    }
    return {"elements": 1000, "vectors": [{**vector, "spectrum": spectrum}] * 2, "pairs": [pair]}


def facts(label: str = "one") -> dict[str, Any]:
    part = measures()
    names = [{"label": label, "group": "sft", "kind": "checkpoint", "path": f"/{label}"}]
    names.append({"label": "two", "group": "rl", "kind": "difference", "path": "/rl", "minus": "/sft"})
    return {
        "base": "/base",
        "elements": 1000,
        "vectors": [name | vector for name, vector in zip(names, part["vectors"], strict=True)],
        "pairs": [{"one": label, "other": "two", "groups": "sft – rl", "sentence": f"{label}: so", **part["pairs"][0]}],
        "groups": [
            {
                "groups": "sft – rl",
                "pairs": 1,
                "cosine": {"mean": -0.25, "least": -0.25, "most": -0.25},
                "chance_sd": 0.002,
                "same_sign": 0.4,
            }
        ],
        "kinds": {"q": part, "norm": measures(None)},
        "layers": {"layers 0–1": part},
        "cells": [{"layer": layer, "kind": "q", **part} for layer in range(2)],
        "tensors": {},
        "settings": {"spectra": True, "rank": 8, "allow": []},
        "method": {"exact": "sums", "spectra": "values", "nulls": "variances"},
        "remarks": [f"remark on {label}"],
    }


def test_values_appear() -> None:
    page = Page(render_comparison(facts()))
    assert not page.open
    for shown in (
        "one and two compared",
        "Cosine −0.250; chance gives 0 ± 0.0020.",
        "−125.0",
        "30.5",
        "40.0%",
        "75.0%",
        "50.0% (12.5%)",
        "0.0125",
        "12.3",
        "87.5%",
        "layers 0–1",
        "/rl − /sft",
        "/one − base",
        "remark on one",
        "layer 1, q: −0.250",
    ):
        assert shown in page.text, shown


def test_hostile_text_stays_text() -> None:
    html = render_comparison(facts(f"{EVIL}\u202e\x00\x1b[31m"))
    page = Page(html)
    for bad in EVIL_TAGS:
        assert bad not in html
    assert not BIDI.search(html)
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.tags for name in attributes)
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "link", "object")]
    assert not re.search(r"(src|href)=\"(?!#)", html)


def test_a_map_has_a_cell_for_each_layer_and_kind() -> None:
    cells = [{"layer": 0, "kind": "q"}, {"layer": 1, "kind": "q"}, {"layer": 1, "kind": "norm"}]
    values = {(0, "q"): 2.0, (1, "q"): -4.0, (1, "norm"): None}
    found = heat_map("title", cells, lambda cell: values[cell["layer"], cell["kind"]], lambda value: f"{value:g}")
    assert found is not None
    assert [(cell.strength, cell.sign, cell.text) for cell in found.cells] == [
        (0.5, "positive", "layer 0, q: 2"),
        (1.0, "negative", "layer 1, q: -4"),
    ]
    assert (found.most, found.least, found.signed) == ("4", "-4", True)
    assert [label for _, label in found.columns] == ["q"]
    assert [label for _, label in found.rows] == ["0", "1"]
    assert found.cells[1].y > found.cells[0].y
    assert heat_map("none", cells, lambda cell: None, str) is None


def test_zero_everywhere_is_drawn_without_colour() -> None:
    found = heat_map("zero", [{"layer": 0, "kind": "q"}], lambda cell: 0.0, str)
    assert found is not None
    assert found.cells[0].strength == 0


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_comparison(facts(), tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text().endswith("</html>")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    with pytest.raises(OutputExistsError, match="exists already"):
        write_comparison(facts(), tmp_path / "new" / "page.html")
    with pytest.raises(StorageError, match="cannot write"):
        write_comparison(facts(), tmp_path / "new" / "page.html" / "below.html")

"""The page: values appear, hostile text stays text, nothing is loaded from outside, files are written whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from skillgraft.errors import DataError, MissingPathError, StorageError
from skillgraft.geometry.modules import KINDS
from skillgraft.report import read_report, render, write_report
from tests.report import report_sample as sample

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"
EVIL_TAGS = ("<script>alert", "<img", "onerror=alert(2)>{{")
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class Page(HTMLParser):
    """Collects start tags with attributes, the text of each tag that matters, and whether tags are balanced."""

    VOID = frozenset({"meta", "input", "line", "circle", "polyline", "polygon", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def poison(value: Any, key: str = "") -> Any:
    """Put hostile text before every string that is free text, and into the labels, which must agree."""
    if isinstance(value, str):
        return value if key in ("role", "metric", "headline") else f"{EVIL}\u202e\u2066\x00\x1b[31m\ud800{value}"
    if isinstance(value, dict):
        return {name: poison(item, name) for name, item in value.items()}
    return [poison(item, key) for item in value] if isinstance(value, list) else value


def test_values_appear_formatted() -> None:
    page = Page(render(sample.facts()))
    for shown in [
        "0.352",
        "0.323–0.381",  # a score and its interval
        "+0.106",
        "+0.075 to +0.137",  # a paired difference
        "−0.029",
        "no difference shown, kept",
        "1 h 42 min",
        "49.0 PFLOP",
        "9.8 MB",
        "97.1%",
        "1,843,200 tokens",
        "500 questions from 120 documents",
        "20 November 2025, 05:38 UTC",
        "max 4",
        "mean of 11 points",
        "skillgraft run recipes/past-squad.yaml",
        "blake3:2e2ef84f",
    ]:
        assert shown in page.text, shown
    assert page.open == []


def test_order_of_sections() -> None:
    page = Page(render(sample.facts()))
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "h2" and "id" in attrs]
    assert ids == ["scores", "gain", "differences", "retention", "training", "examples", "settings"]
    ids = [attrs["id"] for tag, attrs in Page(render(sample.swept())).tags if tag == "h2" and "id" in attrs]
    assert ids[3:6] == ["retention", "where", "scales"]
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_hostile_text_is_never_markup() -> None:
    html = render(poison(sample.swept()))
    tags = Page(html).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [tag for tag, _ in tags if tag == "img"]
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    for piece in EVIL_TAGS:
        assert piece not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 300
    assert "{{ 7 * 7 }}" in html


@pytest.mark.parametrize(
    "where",
    [
        ("title",),
        ("recipe_path",),
        ("recipe_yaml",),
        ("command",),
        ("skillgraft_version",),
        ("created",),
        ("machine", "cpu"),
        ("versions", "torch"),
        ("stages", 0, "directory"),
        ("stages", 0, "name"),
        ("base", "name"),
        ("base", "fingerprint"),
        ("geometry", "missing"),
        ("geometry", "vectors", 0, "label"),
        ("geometry", "vectors", 0, "stage"),
        ("geometry", "pairs", 0, "one"),
        ("geometry", "pairs", 0, "sentence"),
        ("sweeps", 0, "skill"),
        ("sweeps", 0, "target"),
        ("skills", 0, "base"),
        ("training", 0, "stage"),
        ("evaluations", 0, "rows", 0, "label"),
        ("evaluations", 0, "rows", 0, "note"),
        ("evaluations", 0, "comparisons", 0, "metric"),
        ("evaluations", 0, "examples", 0, "title"),
        ("evaluations", 0, "examples", 0, "document"),
        ("evaluations", 0, "examples", 0, "question"),
        ("evaluations", 0, "examples", 0, "gold", 0),
        ("evaluations", 0, "examples", 0, "answers", 0, "text"),
    ],
    ids=lambda where: ".".join(map(str, where)),
)
def test_each_free_text_is_shown_escaped(where: tuple[str | int, ...]) -> None:
    facts: Any = sample.swept()
    place = facts
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = EVIL
    html = render(facts)
    assert "&lt;script&gt;alert(1)" in html
    assert not any(piece in html for piece in EVIL_TAGS)


def test_bidirectional_and_control_characters_are_shown_as_symbols() -> None:
    html = render(poison(sample.swept()))
    assert not BIDI.search(html)
    for symbol in ("⟨U+202E⟩", "⟨U+2066⟩", "⟨U+0000⟩", "⟨U+001B⟩", "⟨U+D800⟩"):
        assert symbol in html
    html.encode("utf-8")


def test_answers_are_isolated() -> None:
    facts = sample.facts()
    facts["evaluations"][0]["examples"][0]["answers"][0]["text"] = "مرحبا"
    assert "<bdi>مرحبا</bdi>" in render(facts)


def test_a_megabyte_answer_is_cut_and_says_so() -> None:
    facts = sample.facts()
    facts["evaluations"][0]["examples"][0]["answers"][1]["text"] = "x" * 1_000_000
    html = render(facts)
    assert "… (1,000,000 characters)" in html
    assert "x" * 601 not in html
    assert len(html.encode()) < 3_000_000


def test_many_long_answers_stay_under_three_megabytes() -> None:
    facts = sample.facts()
    one = facts["evaluations"][0]["examples"][0]
    for answer in one["answers"]:
        answer["text"] = '"<' * 5_000
    facts["evaluations"][0]["examples"] = [one] * 1_000
    html = render(facts)
    assert len(html.encode()) < 3_000_000
    assert "of 1,000 examples; all are in" in html


def test_nothing_is_loaded_from_outside() -> None:
    html = render(sample.facts())
    page = Page(html)
    links = [
        attrs[name] or "" for _, attrs in page.tags for name in ("src", "href", "srcset", "action") if name in attrs
    ]
    assert all(link.startswith("#") or link == "report.json" for link in links)
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", html)
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_empty_sections_are_left_out() -> None:
    facts = sample.facts()
    for section in ("evaluations", "training", "stages", "skills"):
        facts[section] = []
    page = Page(render(facts))
    assert [attrs.get("id") for tag, attrs in page.tags if tag == "h2"] == ["settings"]
    for word in ("Scores", "Paired differences", "Retention", "Training", "Examples", "Skills", "Stages"):
        assert word not in page.text, word
    facts = sample.facts()
    facts["evaluations"][0]["comparisons"] = []
    facts["evaluations"][0]["examples"] = []
    html = render(facts)
    assert 'id="differences"' not in html
    assert 'href="#examples"' not in html


def test_missing_numbers_are_dashes() -> None:
    facts = sample.facts()
    rows = facts["evaluations"][0]["rows"]
    rows[0]["scores"] = {"f1": {"mean": float("nan"), "low": None, "high": None, "n": 500}}
    rows[0]["retention"] = None
    rows[0]["answer_words"] = None
    html = render(facts)
    assert "nan" not in Page(html).text.lower().split()
    assert "<td>–</td>" in html


def test_two_evaluations_each_get_a_headline_and_their_name() -> None:
    facts = sample.facts()
    facts["evaluations"].append({**sample.evaluation(), "stage": "second_scores"})
    html = render(facts)
    assert html.count('class="finding"') == 2
    assert Page(html).text.count("second_scores") == 6  # result, scores, gain, differences, retention, examples


def test_filter_counts_match_the_examples() -> None:
    page = Page(render(sample.facts()))
    changes = [attrs["data-change"] for tag, attrs in page.tags if tag == "article"]
    assert len(changes) == 40
    for change in ("gained", "lost", "unchanged"):
        assert f"{change.capitalize()} {changes.count(change)}" in page.text


def test_rendering_twice_gives_the_same_page_and_leaves_facts_alone() -> None:
    facts = sample.facts()
    assert render(facts) == render(facts)
    assert facts == sample.facts()


def test_write_report_writes_page_and_strict_json(tmp_path: Path) -> None:
    facts = sample.facts()
    facts["training"][0]["curve"][0]["loss"] = float("inf")
    path = write_report(facts, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    assert sorted(item.name for item in path.parent.iterdir()) == ["report.html", "report.json"]
    assert path.read_text(encoding="utf-8") == render(facts)
    kept = json.loads((path.parent / "report.json").read_text())
    assert kept["training"][0]["curve"][0]["loss"] is None
    facts["training"][0]["curve"][0]["loss"] = None
    assert kept == facts


def test_a_failed_write_leaves_the_former_report_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(sample.facts(), tmp_path)
    former = {item.name: item.read_bytes() for item in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write the report to .*No space left"):
        write_report({**sample.facts(), "title": "Another"}, tmp_path)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == former


def test_facts_that_cannot_be_rendered_touch_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_report({**sample.facts(), "evaluations": [{"rows": [{}]}]}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_the_change_sits() -> None:
    page = Page(render(sample.swept()))
    for shown in (
        "SFT with RL",
        "sft_target",
        "12.5%",
        "layer 3, down: 0.04",
        "layer 3, q: 32.0",
        "layer 0, q: −0.010",
        "Norm relative to the base",
        "Effective rank",
        "Cosine",
    ):
        assert shown in page.text, shown
    assert [tag for tag, _ in page.tags].count("figure") == 9 + 4 + 4  # maps, λ curves, training
    facts = sample.swept()
    facts["geometry"] = {**sample.geometry(), "cells": [], "missing": "The checkpoints are gone."}
    html = render(facts)
    assert "The checkpoints are gone." in html
    assert "sft_target with" not in html
    facts["geometry"] = {**sample.geometry(), "ranks": False}
    assert "Ranks were not computed" in render(facts)


def test_the_timeline_lays_stages_end_to_end() -> None:
    page = Page(render(sample.facts()))
    bars = [attrs for tag, attrs in page.tags if tag == "rect" and "bar" in str(attrs["class"])]
    starts = [float(str(bar["x"]).rstrip("%")) for bar in bars]
    widths = [float(str(bar["width"]).rstrip("%")) for bar in bars]
    assert starts[0] == 0
    for at in (1, 4):  # after long stages
        assert starts[at] == pytest.approx(starts[at - 1] + widths[at - 1], abs=0.6)
    assert starts == sorted(starts)


def test_a_deep_model_stays_under_three_megabytes() -> None:
    facts = sample.facts()
    facts["geometry"] = sample.geometry(layers=126)
    cells = facts["geometry"]["cells"]
    facts["geometry"]["cells"] = [{**cell, "kind": kind} for cell in cells[::2] for kind in KINDS[:9]]
    one = facts["evaluations"][0]["examples"][0]
    for answer in one["answers"]:
        answer["text"] = '"<' * 5_000
    facts["evaluations"][0]["examples"] = [one] * 1_000
    assert len(render(facts).encode()) < 3_000_000


def test_a_report_is_read_back(tmp_path: Path) -> None:
    facts = sample.swept()
    write_report(facts, tmp_path)
    assert read_report(tmp_path) == facts
    with pytest.raises(MissingPathError, match=r"has no report\.json; expected the folder of a finished run"):
        read_report(tmp_path / "elsewhere")
    for text in ("", "[]", "{}", '{"title": 1, "evaluations": [{"rows": [{}]}], "stages": []}', '{"runs": {}}'):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(
            DataError, match=r"is not the report of a run .*expected a file that `skillgraft run` wrote"
        ):
            read_report(tmp_path)


@pytest.mark.process
def test_importing_the_package_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, skillgraft.report; print({'torch', 'matplotlib', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

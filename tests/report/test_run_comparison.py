"""Several runs on one page: the same rows in columns, what differs, and hostile text in every place."""

from __future__ import annotations

from itertools import pairwise

import pytest

from skillgraft.report.heat import heat_map, on_one_scale
from skillgraft.report.run_comparison import render_runs
from tests.report import report_sample as sample
from tests.report.test_page import BIDI, EVIL, EVIL_TAGS, Page, poison


def two():
    one, other = sample.swept(), sample.swept()
    other["title"] = "Another run"
    other["recipe_yaml"] = other["recipe_yaml"].replace("seed: 0\nstages", "seed: 7\nstages")
    other["versions"] = {**other["versions"], "torch": "2.14.0"}
    rows = other["evaluations"][0]["rows"]
    rows[2]["scores"] = {**rows[2]["scores"], "f1": sample.interval(0.5)}
    return {"first": one, "second": other}


def test_rows_stand_side_by_side():
    page = Page(render_runs(two()))
    assert page.open == []
    text = " ".join(page.text.split())
    assert "SFT + skill (λ = 1) 0.352 0.323–0.381 0.500 0.470–0.530" in text
    assert "SFT + skill minus SFT, paired +0.106 +0.075 to +0.137 +0.106" in text
    assert "All runs asked the same questions" in text
    assert "All stages 3 h 36 min 3 h 36 min" in text
    for shown in ("first: SFT", "second: skill", "first: rl_source", "Another run", "2 runs side by side"):
        assert shown in text, shown
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "h2" and "id" in attrs]
    assert ids == ["scores", "costs", "where", "training", "examples", "settings"]


def test_maps_of_one_vector_share_a_scale():
    one, other = (
        heat_map("SFT", [{"layer": 0, "kind": "q"}, {"layer": 1, "kind": "q"}], by_layer, str)
        for by_layer in (lambda cell: 1.0 + cell["layer"], lambda cell: -8.0 * cell["layer"])
    )
    small, large = on_one_scale([one, other])
    assert [cell.strength for cell in small.cells] == [0.125, 0.25]
    assert [cell.strength for cell in large.cells] == [0, 1]
    assert (small.most, small.least) == (large.most, large.least) == ("8.0", "-8.0")
    zero = heat_map("SFT", [{"layer": 0, "kind": "q"}], lambda cell: 0.0, str)
    assert [map.cells[0].strength for map in on_one_scale([zero, zero])] == [0, 0]


def test_only_what_differs_is_listed():
    text = " ".join(Page(render_runs(two())).text.split())
    differs = text[text.index("What differs Setting") : text.index("How to get them again")]
    assert differs == "What differs Setting first second seed 0 7 version of torch 2.13.0 2.14.0 "
    same = " ".join(Page(render_runs({"a": sample.facts(), "b": sample.facts()})).text.split())
    assert "Recipes, versions and machines are the same." in same


def test_answers_of_one_question_side_by_side():
    runs = two()
    runs["second"]["evaluations"][0]["examples"] = runs["second"]["evaluations"][0]["examples"][:3]
    answers = runs["second"]["evaluations"][0]["examples"][1]["answers"]
    answers[2]["text"] = "the second run's own words"
    page = Page(render_runs(runs))
    assert [tag for tag, _ in page.tags].count("article") == 3
    assert "the second run's own words" in page.text
    assert "first: SFT + skill (λ = 1) before" in " ".join(page.text.split())


def test_other_questions_are_said():
    runs = two()
    runs["second"]["evaluations"][0]["questions"] = 20
    text = Page(render_runs(runs)).text
    assert "The runs did not ask the same questions (first: 500; second: 20)" in text


def test_a_run_without_evaluations_has_empty_columns():
    runs = two()
    runs["second"]["evaluations"] = []
    page = Page(render_runs(runs))
    assert "Nothing was evaluated." in page.text
    assert "0.323–0.381" in page.text
    assert 'id="examples"' not in render_runs(runs)


def test_hostile_text_stays_text():
    runs = {f"{EVIL}\u202e{name}": poison(facts) for name, facts in two().items()}
    html = render_runs(runs)
    tags = Page(html).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [tag for tag, _ in tags if tag in ("img", "iframe", "link", "object")]
    assert not any(name.startswith("on") or name == "style" for _, attributes in tags for name in attributes)
    assert not any(piece in html for piece in EVIL_TAGS)
    assert not BIDI.search(html)


@pytest.mark.parametrize(
    "recipe",
    [
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in pairwise("abcdef")),
        "a: &a\n  b: *a\n",
        "a: [unclosed",
        "!!python/object/apply:os.system [echo]",
        "[]",
    ],
)
def test_a_hostile_recipe_is_no_bomb(recipe):
    runs = two()
    runs["second"]["recipe_yaml"] = recipe
    assert len(render_runs(runs)) < 3_000_000

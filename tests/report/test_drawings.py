"""Numbers, text and geometry under the page."""

from __future__ import annotations

import math

import pytest

from skillgraft.report.charts import PLOT_MARGIN, PLOT_WIDTH, axis, dot, line_chart, moving_average, thin
from skillgraft.report.curves import training_view
from skillgraft.support import formatting
from skillgraft.support.escape import escape, escape_line, escape_tree


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.4115, "0.411"), (0, "0.000"), (-0.5, "−0.500"), (None, "–"), (math.nan, "–"), (math.inf, "–"), (True, "–")],
)
def test_score(value: object, shown: str) -> None:
    assert formatting.score(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.1, "+0.100"), (-0.1, "−0.100"), (0, "0.000"), (1e-5, "+0.000")])
def test_signed(value: float, shown: str) -> None:
    assert formatting.signed(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.42, "0.4 s"),
        (42, "42 s"),
        (59.6, "1.0 min"),
        (3596, "59.9 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert formatting.duration(seconds) == shown


def test_units() -> None:
    assert formatting.size(999) == "999 B"
    assert formatting.size(999_600) == "1.0 MB"
    assert formatting.operations(3.1e15) == "3.1 PFLOP"
    assert formatting.operations(0) == "–"
    assert formatting.significant(1.8342) == "1.83"
    assert formatting.significant(2e-5) == "2.00 × 10^-5"
    assert formatting.count(1_234_567) == "1,234,567"
    assert formatting.moment("yesterday") == "yesterday"


def test_visible_keeps_text_and_names_what_it_cut() -> None:
    assert escape("tab\tand\r\nnewline é 日本 👍🏽") == "tab\tand\nnewline é 日本 👍🏽"
    assert escape("a\u202eb\x00") == "a⟨U+202E⟩b⟨U+0000⟩"
    assert escape("x" * 1_000) == "x" * 600 + "… (1,000 characters)"
    assert escape("x" * 600) == "x" * 600
    assert escape_line(" two\n lines ") == "two lines"


def test_visible_tree_reaches_every_string_and_leaves_numbers() -> None:
    tree = {"a\x00": ["\u2066", {"b": 1.5, "c": None, "d": True}], "recipe_yaml": "y" * 10_000}
    assert escape_tree(tree) == {
        "a⟨U+0000⟩": ["⟨U+2066⟩", {"b": 1.5, "c": None, "d": True}],
        "recipe_yaml": "y" * 10_000,
    }


@pytest.mark.parametrize(
    ("values", "ends"),
    [([0.084, 0.381], (0, 0.4)), ([0.55, 0.66], (0.55, 0.7)), ([5.0], (4.5, 5.5)), ([0.0], (0, 1)), ([], (0, 1))],
)
def test_axis_covers_its_values_with_round_ends(values: list[float], ends: tuple[float, float]) -> None:
    on = axis(values)
    assert on.low <= min(values, default=0)
    assert on.high >= max(values, default=0)
    assert (on.low, on.high) == pytest.approx(ends)
    assert len(on.ticks) == len(on.labels) <= 8


def test_axis_labels_and_zero() -> None:
    assert axis([-0.05, 0.13], with_zero=True).labels == ("−0.05", "0", "0.05", "0.10", "0.15")
    assert axis([0.2, 0.3], with_zero=True).low == 0
    assert axis([1e-7, 2e-5]).labels[-1] == "2e−05"


def test_dot_lies_between_the_margins() -> None:
    on = axis([0.0, 1.0])
    drawn = dot(on, 0.5, 0.0, 1.0, 0.25)
    assert drawn is not None
    assert (drawn.low, drawn.mean, drawn.high, drawn.reference) == (PLOT_MARGIN, 60.0, PLOT_WIDTH - PLOT_MARGIN, 32.5)
    assert dot(on, 0.5, None, 1.0) is None


def test_moving_average() -> None:
    assert moving_average([1, 2, 6, 3], 3) == pytest.approx([1.5, 3, 11 / 3, 4.5])
    assert moving_average([4.0], 5) == [4.0]


def test_thin_keeps_the_extremes_and_the_order() -> None:
    points = [(float(step), math.sin(step / 50)) for step in range(5_000)]
    points[1_234] = (1_234.0, 9.0)
    points[4_321] = (4_321.0, -9.0)
    kept = thin(points, 400)
    assert len(kept) <= 400
    assert kept == sorted(kept)
    assert {points[1_234], points[4_321]} <= set(kept)
    assert thin(points[:10]) == points[:10]


def test_line_chart() -> None:
    chart = line_chart([(float(step), step / 100) for step in range(1, 101)])
    assert chart is not None
    assert chart.window == 5
    assert (chart.minimum, chart.maximum, chart.last) == ((1, 0.01), (100, 1.0), (100, 1.0))
    assert chart.raw.split()[0].startswith("44,")
    assert chart.raw.split()[-1].startswith("330,")
    assert [label for _, label in chart.y_ticks] == ["0", "0.25", "0.50", "0.75", "1.00"]
    assert line_chart([]) is None
    single = line_chart([(3.0, 0.5)])
    assert single is not None
    assert single.smooth == ""


def test_training_view_skips_what_is_not_finite_and_what_is_not_there() -> None:
    curve = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 1.0}, {"step": 3}, {"step": 4, "loss": 0.5}]
    training = {"stage": "s", "kind": "sft", "seconds": 1.0, "tokens": None, "curve": curve, "headline": ["loss", "kl"]}
    view = training_view(training)
    assert [chart["name"] for chart in view["charts"]] == ["Loss"]
    assert view["charts"][0]["last"] == {"value": "0.5", "step": "4"}
    assert training_view({**training, "headline": []})["charts"][0]["name"] == "Loss"

"""What controls explain of a gain, and the curve over λ: hand-computed cases."""

from __future__ import annotations

import pytest

from skillgraft.report.charts import CHART_BOTTOM, CHART_HEIGHT, CHART_LEFT, CHART_RIGHT, CHART_WIDTH, band_chart
from skillgraft.report.gains import gain_view
from skillgraft.report.scales import sweep_view, sweeps
from skillgraft.report.wording import find_comparison
from tests.report import report_sample as sample


def evaluation(**means):
    """Return an evaluation of one metric: a row for each name and mean, and grafted compared with SFT."""
    roles = {"base": "base", "sft": "sft", "grafted": "grafted"}
    rows = [{**sample.row("base"), "model": name, "label": name, "role": roles.get(name, "control")} for name in means]
    for row, mean in zip(rows, means.values(), strict=True):
        row["scores"] = {"f1": sample.interval(mean)}
    gain = {"metric": "f1", "row": "grafted", "against": "sft", "difference": means["grafted"] - means["sft"]}
    gain |= {"low": gain["difference"] - 0.02, "high": gain["difference"] + 0.02}
    return {**sample.evaluation(), "rows": rows, "comparisons": [gain]}


def test_the_share_of_each_control():
    given = evaluation(base=0.1, sft=0.2, grafted=0.3, random=0.21, on_base=0.14)
    given["rows"][4]["on"] = "base"
    found = gain_view(given)
    assert [(row["label"], row["start"], row["cells"][0]["percent"]) for row in found["rows"]] == [
        ("random", "sft", "10.0%"),
        ("on_base", "base", "40.0%"),
    ]
    assert found["gain"][0]["interval"] == "+0.080 to +0.120"
    assert found["rows"][0]["cells"][0]["interval"] == "not compared in pairs"
    assert found["sentences"] == [
        "Of the gain of +0.100 on F1 the controls explain at most 40.0%: on_base gains +0.040 over base."
    ]


def test_a_control_that_loses_explains_nothing():
    found = gain_view(evaluation(sft=0.2, grafted=0.3, random=0.1))
    assert found["rows"][0]["cells"][0]["share"] == 0
    assert found["sentences"] == ["Of the gain of +0.100 on F1 the controls explain nothing: none of them gains."]


@pytest.mark.parametrize("grafted", [0.21, 0.1])
def test_what_is_no_gain_needs_no_explanation(grafted):
    found = gain_view(evaluation(sft=0.2, grafted=grafted, random=0.25))
    assert found["rows"][0]["cells"][0]["percent"] == ""
    assert found["sentences"] == ["On F1 no gain is shown, so there is nothing for the controls to explain."]


def test_nothing_without_a_pair_or_controls():
    assert gain_view(evaluation(sft=0.2, grafted=0.3)) is None
    lone = evaluation(sft=0.2, grafted=0.3, random=0.1)
    lone["rows"] = [row for row in lone["rows"] if row["role"] != "sft"]
    assert gain_view(lone) is None


def test_a_comparison_is_found_from_both_sides():
    given = evaluation(sft=0.2, grafted=0.3)
    turned = find_comparison(given, "f1", "sft", "grafted")
    assert turned["difference"] == pytest.approx(-0.1)
    assert (turned["low"], turned["high"]) == pytest.approx((-0.12, -0.08))
    assert find_comparison(given, "f1", "sft", "base") is None


def record(target, scale, skill="skill", kind="inject"):
    return {"kind": kind, "settings": {"target": target, "skill": skill, "scale": scale}, "inputs": {}}


def test_models_that_differ_in_scale_alone_are_one_sweep():
    given = evaluation(sft=0.2, grafted=0.3, half=0.25, other=0.1, double=0.2)
    records = {
        "grafted": record("sft", 1.0),
        "half": record("sft", 0.5),
        "other": record("base", 2.0),
        "double": record("sft", 2.0, skill="another"),
        "unscored": record("sft", 3.0),
        "scores": {"kind": "eval", "settings": {}, "inputs": {}},
    }
    [found] = sweeps(records, [given])
    assert (found["target"], found["skill"], found["evaluation"]) == ("sft", "skill", "scores")
    assert found["points"] == [
        {"scale": 0.0, "row": "sft"},
        {"scale": 0.5, "row": "half"},
        {"scale": 1.0, "row": "grafted"},
    ]
    assert sweeps({"grafted": record("sft", 1.0)}, [given]) == []


def test_curves_of_a_sweep():
    facts = sample.swept()
    view = sweep_view(facts["sweeps"][0], facts["evaluations"])
    assert [chart["name"] for chart in view["charts"]] == ["F1", "containment", "exact match", "retention"]
    assert view["charts"][0]["best"] == {"scale": "1", "value": "0.352"}
    assert [point["scale"] for point in view["charts"][0]["points"]] == ["0", "0.25", "0.5", "1", "1.5"]
    assert sweep_view({**facts["sweeps"][0], "evaluation": "gone"}, facts["evaluations"]) is None


def test_the_band_runs_along_the_lows_and_back_along_the_highs():
    drawn = band_chart([(0.0, 0.5, 0.25, 0.75), (2.0, 0.5, 0.0, 1.0)])
    left, right, bottom = CHART_LEFT, CHART_WIDTH - CHART_RIGHT, CHART_HEIGHT - CHART_BOTTOM
    low, high, top = (round(bottom + (10 - bottom) * share, 1) for share in (0.25, 0.75, 1.0))
    assert drawn.band == f"{left:g},{low:g} {right:g},{bottom:g} {right:g},{top:g} {left:g},{high:g}"
    assert [x for x, _ in drawn.dots] == [left, right]
    assert drawn.dots[0][1] == drawn.dots[1][1]

"""The headline says what the intervals say, for a gain, a loss, no difference, and what the controls reached."""

from __future__ import annotations

from typing import Any

from skillgraft.report import headline
from skillgraft.report.wording import compared_pair, headline_parts, retention_remark, verdict
from tests.report import report_sample as sample


def evaluation(f1: tuple[float, float], containment: tuple[float, float], **changes: Any) -> Any:
    """Return the sample with other intervals (low, high) for grafted against SFT."""
    comparisons = [
        {**sample.comparison(metric, "grafted", "sft_target", (low + high) / 2, 0.0), "low": low, "high": high}
        for metric, (low, high) in (("f1", f1), ("containment", containment))
    ]
    return {**sample.evaluation(), "comparisons": comparisons, **changes}


def test_gain() -> None:
    text = headline(evaluation((0.075, 0.137), (0.019, 0.087)))
    assert text.startswith("SFT + skill (λ = 1) scores higher than SFT on F1 and containment. F1 0.352 against 0.246, ")
    assert "a difference of +0.106 (95% interval +0.075 to +0.137, which excludes zero)" in text
    assert "containment 0.331 against 0.278, a difference of +0.053 (95% interval +0.019 to +0.087" in text
    assert "n = 500 questions from 120 documents." in text


def test_loss() -> None:
    text = headline(evaluation((-0.2, -0.1), (-0.09, -0.01)))
    assert text.startswith("SFT + skill (λ = 1) scores lower than SFT on F1 and containment.")
    assert "a difference of −0.150 (95% interval −0.200 to −0.100, which excludes zero)" in text
    assert "higher than" not in text.split(".")[0]


def test_no_difference_shown() -> None:
    text = headline(evaluation((-0.02, 0.03), (0.0, 0.04)))
    assert text.startswith(
        "No difference between SFT + skill (λ = 1) and SFT is shown on F1 or containment. F1 0.352 against 0.246, a "
        "difference of +0.005 (95% interval −0.020 to +0.030, which includes zero)"
    )
    assert "0.000 to +0.040, which includes zero" in text


def test_mixed_results_name_each_metric() -> None:
    gain, loss, none = (0.01, 0.1), (-0.1, -0.01), (-0.1, 0.1)
    assert headline_parts(evaluation(gain, none)).finding == (
        "SFT + skill (λ = 1) scores higher than SFT on F1; on containment no difference is shown."
    )
    assert headline_parts(evaluation(gain, loss)).finding == (
        "SFT + skill (λ = 1) scores higher than SFT on F1 but lower on containment."
    )
    assert headline_parts(evaluation(loss, gain)).finding == (
        "SFT + skill (λ = 1) scores higher than SFT on containment but lower on F1."
    )
    assert headline_parts(evaluation(none, loss)).finding == (
        "SFT + skill (λ = 1) scores lower than SFT on containment; on F1 no difference is shown."
    )
    nan = float("nan")
    assert headline_parts(evaluation(gain, (nan, nan))).finding == (
        "SFT + skill (λ = 1) scores higher than SFT on F1; containment was not compared with a paired interval."
    )


def test_without_paired_intervals_nothing_is_claimed() -> None:
    text = headline(evaluation((0, 0), (0, 0), comparisons=[]))
    assert text.startswith("SFT + skill (λ = 1) and SFT were scored, but not compared with a paired interval.")
    assert "zero" not in text


def test_strongest_control_is_named_per_metric() -> None:
    controls = headline_parts(sample.evaluation()).controls
    assert controls == (
        "The strongest controls reached F1 0.291 (SFT + format vector) and containment 0.274 (SFT + random vector). "
        "SFT + skill (λ = 1) is above that on F1 and containment, by intervals that exclude zero."
    )
    controls = headline_parts(evaluation((0.1, 0.2), (0.1, 0.2))).controls
    assert controls.endswith("has the higher mean; the two were not compared in pairs.")


def test_a_control_as_strong_as_the_skill_is_said_to_be() -> None:
    changed: Any = sample.evaluation()
    random_row = next(row for row in changed["rows"] if row["model"] == "random_vector")
    random_row["scores"]["f1"]["mean"] = 0.352
    random_row["scores"]["containment"]["mean"] = 0.5
    assert headline_parts(changed).controls == (
        "The strongest control, SFT + random vector, reached F1 0.352 and containment 0.500. On F1 and containment, "
        "SFT + skill (λ = 1) is not above that, so the score is not evidence of a skill."
    )


def test_without_controls_the_headline_says_so() -> None:
    changed: Any = sample.evaluation()
    changed["rows"] = [row for row in changed["rows"] if row["role"] != "control"]
    assert "No control was evaluated" in headline(changed)


def test_without_a_grafted_row_the_best_row_is_named() -> None:
    changed: Any = sample.evaluation()
    changed["rows"] = [row for row in changed["rows"] if row["role"] != "grafted"]
    assert headline(changed) == (
        "No row of this evaluation carries a skill. The highest F1 is 0.381, of RL on the target (n = 500 questions)."
    )


def test_the_first_grafted_row_is_taken_not_the_best() -> None:
    changed: Any = sample.evaluation()
    better = sample.row("grafted")
    better["label"], better["scores"]["f1"]["mean"] = "SFT + skill (λ = 2)", 0.9
    changed["rows"].append(better)
    _, grafted = compared_pair(changed)
    assert grafted is not None
    assert grafted["label"] == "SFT + skill (λ = 1)"
    assert "Of 2 rows that carry a skill, this is the first." in headline(changed)


def test_verdict_at_the_edges() -> None:
    base: Any = sample.comparison("f1", "grafted", "base", 0.0, 0.0)
    assert verdict({**base, "low": 0.0, "high": 0.1}) == "none"
    assert verdict({**base, "low": -0.1, "high": 0.0}) == "none"
    assert verdict({**base, "low": 1e-9, "high": 0.1}) == "gain"
    assert verdict({**base, "low": None, "high": 0.1}) == "unknown"
    assert verdict(None) == "unknown"


def test_retention_remark() -> None:
    changed: Any = sample.evaluation()
    changed["rows"][3]["retention"] = sample.interval(0.4, 0.03)
    remark = retention_remark(changed)
    assert remark[0] == ("On tasks that adapting must not damage, Base reaches 0.621 (0.587 to 0.655) (n = 800).")
    assert remark[1].startswith("SFT: 0.598 (0.564 to 0.632), which overlaps the interval of Base: no change shown")
    assert remark[2] == "SFT + skill (λ = 1): 0.594, −0.027 (−0.058 to +0.004), no change shown."
    assert remark[3] == "RL on the target: 0.400 (0.370 to 0.430), wholly below the interval of Base: a loss."
    assert len(remark) == 4
    changed["rows"] = changed["rows"][:1]
    assert retention_remark(changed) == []

"""Golden training curves: a fine-tuning run and a GRPO run by the command line, every metric of every step."""

import json

from tests.golden import entry
from tests.golden.recipe import LORA, QUESTIONS, RL_TRAINER, TRAINER, write_recipe

STAGES = {
    "sft": {"kind": "sft", "from": "base", "documents": "data", "trainer": {**TRAINER, "max_steps": 24}},
    "rl": {
        "kind": "rl",
        "from": "sft",
        "questions": QUESTIONS,
        "reward": {entry.REWARD: 1.0, "f1": 2.0},
        "adapt": LORA,
        "trainer": {**RL_TRAINER, "max_steps": 12, "learning_rate": 1e-2},
    },
}
STEPS = {"sft": 24, "rl": 12}
UNSTEADY = ("epoch", "step_time", "runtime", "second", "time")
"""Parts of the names of metrics that say how long a step took."""


def results(folder):
    """The metrics of each step, as `skillgraft run --json` tells them, and the curves that the stages recorded."""
    with entry.one_thread():
        runs = folder / "runs"
        said = entry.command("run", write_recipe(folder, "curves", STAGES), "--runs", runs, "--json")
    assert said.code == 0, said.error
    events = [json.loads(line) for line in said.out.splitlines()]
    told = {name: {} for name in STAGES}
    for event in events:
        if event["event"] == "stage_progress" and event["metrics"]:
            metrics = {k: v for k, v in event["metrics"].items() if not any(part in k for part in UNSTEADY)}
            told[event["stage"]].setdefault(str(event["step"]), {}).update(metrics)
    recorded = {name: entry.facts(runs / "curves" / name)["curve"] for name in STAGES}
    return {"told": told, "recorded": recorded}

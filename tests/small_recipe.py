"""A shipped recipe made small: all of its stages, on few documents, with a step or two of training each."""

import yaml

DOCUMENTS = 4


def make_small(file):
    """Rewrite the recipe in `file` so that the default model runs it in a minute or two, and return what it says now.

    Stages, references, styles and rows stay as they are; documents, steps, samples and lengths shrink.
    """
    recipe = yaml.safe_load(file.read_text())
    for stage in recipe["stages"].values():
        if "limit_documents" in stage or any("/" in stage.get(field, "") for field in ("documents", "about")):
            stage["limit_documents"] = min(stage.get("limit_documents", DOCUMENTS), DOCUMENTS)
        SHRINK.get(stage["kind"], lambda stage: None)(stage)
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return recipe


def _trainer(stage, **settings):
    stage["trainer"] = {**stage.get("trainer", {}), "warmup_steps": 0, **settings}


def _sft(stage):
    _trainer(stage, max_steps=2, per_device_train_batch_size=2)


def _rl(stage):
    """One step; untrained answers of 8 tokens earn nothing else, so that they are paid for vowels too."""
    stage |= {"pass_rate_samples": 0, "reward": {**stage.get("reward", {}), "tests.domains.own_reward.vowels": 0.1}}
    _trainer(stage, max_steps=1, per_device_train_batch_size=8, max_completion_length=8)


def _refine(stage):
    _sft(stage["sft"])
    _rl(stage["rl"])


def _distil(stage):
    _trainer(stage, max_steps=2, per_device_train_batch_size=1, max_completion_length=8)


def _synthesize(stage):
    """The filters of questions are loosened: in 64 tokens the default model writes few that hold."""
    if "styles" in stage:
        stage |= {"limit_documents": 2, "max_new_tokens": 48}
    if "questions" in stage.get("styles", ()):
        stage |= {"max_new_tokens": 64, "filters": {"support": 0, "repetition": 1}}


def _self_edit(stage):
    stage |= {"limit_documents": 2, "samples": 2, "max_new_tokens": 96, "max_answer_tokens": 8}
    stage["learn"] = {"trainer": {"max_steps": 2, "learning_rate": 1.0e-3, "per_device_train_batch_size": 1}}
    _trainer(stage, max_steps=1)


def _single_passage(stage):
    stage |= {"retention_passages": 0, "max_new_tokens": 8}
    stage["limit_documents"] = 2
    _trainer(stage, max_steps=6)


def _eval(stage):
    stage["max_new_tokens"] = 8
    retention = stage.get("retention", True)
    if retention is not False:
        stage["retention"] = {"tasks": ["general"], **({} if retention is True else retention), "limit": 2}


SHRINK = {
    "sft": _sft,
    "rl": _rl,
    "refine": _refine,
    "distill": _distil,
    "synthesize": _synthesize,
    "self_edit": _self_edit,
    "single_passage": _single_passage,
    "eval": _eval,
}
"""Kind of stage -> what makes it small."""

"""Imported by processes that run recipes: what a run imports, out of the reach of the collector that trainers call."""

import gc
import os
from importlib import import_module

MODULES = (
    *("tests.conftest", "tests.domains.own_reward", "transformers.models.llama.modeling_llama"),
    *("trl.trainer.sft_trainer", "trl.trainer.grpo_trainer"),
    *("skillgraft.stages", "skillgraft.train.sft", "skillgraft.train.rl"),
    *("skillgraft.train.tracking", "skillgraft.evals.answers", "skillgraft.evals.table", "skillgraft.run"),
    *("skillgraft.arithmetic.injection.inject", "skillgraft.geometry.comparison", "skillgraft.report.page"),
)
try:
    for name in MODULES:
        import_module(name)
except ImportError as error:
    raise RuntimeError(error) from error  # the server passes over an `ImportError` without a word
os.sync = lambda: None  # of the whole machine's disks, for every stage and checkpoint
gc.freeze()

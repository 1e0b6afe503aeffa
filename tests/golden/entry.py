"""The only place where golden results touch the package: its functions, its command line, the files of a stage."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from typer.testing import CliRunner

from skillgraft import extract, inject, load_skill, merge, pack, run
from skillgraft.arithmetic.methods import METHODS
from skillgraft.cli.app import app

__all__ = ["METHODS", "command", "extract", "facts", "inject", "load_skill", "merge", "one_thread", "pack", "run"]

ROOT = Path(__file__).parents[2]
STAGE_RECORD, REPORT = "stage.json", "report.json"
REWARD = "tests.domains.own_reward.vowels"
"""A reward that answers of an untrained model differ in."""


@dataclass(frozen=True)
class Said:
    """What a command ended with."""

    code: int
    out: str
    error: str


def command(*arguments):
    """Call the command line in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="skillgraft")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


def facts(stage):
    """What a finished stage in the directory `stage` recorded of itself."""
    return json.loads((Path(stage) / STAGE_RECORD).read_text())["facts"]


class one_thread:  # noqa: N801 - reads as a phrase: with one_thread()
    """Sums in one order: Torch computes with one thread inside."""

    def __enter__(self):
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_):
        torch.set_num_threads(self.before)

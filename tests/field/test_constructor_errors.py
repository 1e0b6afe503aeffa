"""Whatever stands in `trainer:` or `adapt:`, the plan says a sentence or nothing.

Never another exception: what Transformers, TRL and PEFT raise when something is made of it is no message.
"""

import dataclasses
import os

import pytest
from peft import LoraConfig
from transformers import TrainingArguments
from trl import DistillationConfig, GRPOConfig, RLOOConfig, SFTConfig

from skillgraft.adapters import get_adapter
from skillgraft.adapters.lora import empty_model
from skillgraft.errors import SkillgraftError
from skillgraft.train.distill import distill_arguments
from skillgraft.train.rl import rl_arguments
from skillgraft.train.sft import sft_arguments
from tests.tiny import tiny_checkpoint

ILL = [None, True, -1, 0, 2.5, "x", float("nan"), float("inf"), [], [0], {}, {"x": 1}]
SHARED = {field.name for field in dataclasses.fields(TrainingArguments)}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = dict(os.environ)
    yield
    assert not list(tmp_path.iterdir())
    os.environ.clear()
    os.environ.update(kept)


def sentence(act, *arguments):
    """Return what is refused, None where nothing is; any other exception fails the test."""
    try:
        act(*arguments)
        message = None
    except SkillgraftError as error:
        message = str(error)
    assert message != ""
    assert "\n" not in (message or "")
    return message


def fields(config):
    return [field.name for field in dataclasses.fields(config) if field.init]


def own(config):
    return [name for name in fields(config) if name not in SHARED]


@pytest.mark.parametrize("value", ILL, ids=repr)
def test_every_argument_of_a_fine_tuning_trainer(value, tmp_path):
    refused = {name: sentence(sft_arguments, {name: value}, tmp_path, 0) for name in fields(SFTConfig)}
    made = (
        "trainer: optim: ",
        "trainer: lr_scheduler_type: ",
        "trainer: dataloader_num_workers: ",
        "trainer: SFTConfig",
    )
    assert all(name in message or message.startswith(made) for name, message in refused.items() if message)
    if value == "x":
        assert refused["learning_rate"] == "trainer: learning_rate is the text 'x', expected a number"
    if isinstance(value, dict) and value:
        assert all(refused.values())


@pytest.mark.parametrize("value", ILL, ids=repr)
@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "remax"])
def test_every_argument_of_an_rl_trainer(algorithm, value, tmp_path):
    config = RLOOConfig if algorithm == "rloo" else GRPOConfig
    for name in own(config):
        sentence(rl_arguments, {"f1": 1.0}, {name: value}, False, tmp_path, 0, algorithm)


@pytest.mark.parametrize("value", ILL, ids=repr)
def test_every_argument_of_the_distilling_trainer(value, tmp_path):
    for name in own(DistillationConfig):
        sentence(distill_arguments, {name: value}, False, tmp_path, 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("value", ILL, ids=repr)
def test_every_argument_of_lora(value, base):
    def made(name):
        get_adapter({"kind": "lora", name: value}).check(empty_model(base))

    for name in fields(LoraConfig):
        sentence(made, name)

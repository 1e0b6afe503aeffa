import json
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer, RLOOTrainer

from skillgraft import run
from skillgraft.errors import RecipeError
from skillgraft.train import data_parallel
from skillgraft.train.algorithms import Rloo
from skillgraft.train.rl import rl_arguments
from skillgraft.train.sft import sft_arguments
from tests.once import once
from tests.pair import start_pair
from tests.tiny import weights
from tests.train import data_parallel_scenarios as scenarios
from tests.train.test_rollouts import trainer

pytestmark = [pytest.mark.process, pytest.mark.train]

NAMES = ("gradients", "fine_tunings", "reinforcements", "runs", "runs_again", "refused")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What the two processes found, by scenario, and where they worked."""
    folder, found = once(tmp_path_factory, "pair", lambda folder: start_pair(folder, scenarios.__name__, *NAMES))
    return found, folder


def alone(name, folder):
    """The gradient by TRL's own trainer, in one process, on all answers."""
    kind, config, lora, settings, advantages = scenarios.LOSSES[name]
    made = trainer(RLOOTrainer if kind is Rloo else GRPOTrainer, config, folder, lora, **settings)
    return scenarios.gradient(made, made.model, scenarios.answers(advantages))


@pytest.mark.parametrize("name", [name for name in scenarios.LOSSES if name != "bnpo"])
def test_the_gradient_of_two_halves_is_that_of_trls_whole(pair, name, tmp_path):
    wanted = alone(name, tmp_path)
    assert max(value.abs().max() for value in wanted.values()) > 1e-3
    for found in pair[0]["gradients"]:
        assert found[name].keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")


def test_a_mean_over_a_processs_own_tokens_would_be_another_gradient(pair, tmp_path):
    wanted, found = alone("bnpo", tmp_path), pair[0]["gradients"][0]["bnpo"]
    assert max((found[key] - wanted[key]).abs().max() for key in wanted) > 1e-3


@pytest.mark.parametrize("name", scenarios.FINE_TUNINGS)
def test_fine_tuning_in_two_processes_gives_the_weights_of_one(pair, name, tmp_path):
    """In fp32 up to rounding; also where a batch does not go round, and one process has no row at all."""
    wanted = scenarios.fine_tune(scenarios.prepared(tmp_path), name)
    start = weights(tmp_path / "start")
    first, second = (found[name] for found in pair[0]["fine_tunings"])
    assert max((wanted["weights"][key] - start[key]).abs().max() for key in start) > 1e-2
    for key, value in wanted["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key])
        torch.testing.assert_close(first["weights"][key], value, rtol=0, atol=2e-6, msg=f"{name}: {key}")
    assert first["tokens"] == second["tokens"] == wanted["tokens"]
    assert second["curve"] == []  # the first logs
    for ours, theirs in zip(first["curve"], wanted["curve"], strict=True):
        for key in {"loss", "mean_token_accuracy", "grad_norm", "num_tokens", "learning_rate"} & theirs.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key


def test_a_signal_to_one_process_stops_both_with_a_checkpoint_from_which_they_go_on(pair):
    """In the second of three epochs: the order goes on too."""
    for found in pair[0]["fine_tunings"]:
        assert found["stopped"]["kept"] == ["rng_state_0.pth", "rng_state_1.pth"]
        for key, value in found["rest"]["weights"].items():
            assert torch.equal(found["stopped"]["weights"][key], value), key


def test_what_two_processes_began_one_can_end(pair):
    ended = scenarios.stop_and_go_on(pair[1] / "fine_tunings" / "left", stop=False)
    for key, value in pair[0]["fine_tunings"][0]["rest"]["weights"].items():
        torch.testing.assert_close(ended["weights"][key], value, rtol=0, atol=2e-6, msg=key)
    resumed = (pair[1] / "fine_tunings" / "left" / "work" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in resumed] == [1, 2, 3, 4, 4, 5, 6, 6]  # and what it all cost


def test_rl_asks_in_two_processes_what_one_asks_and_ends_with_the_same_weights_in_both(pair, tmp_path):
    """Each process answers half of a step's questions, whole ones; also after a stop in the second epoch."""
    wanted = scenarios.reinforce(scenarios.prepared(tmp_path), stop=3)
    both = [found["grpo"] for found in pair[0]["reinforcements"]]
    steps = [found["asked"][start : start + 4] for start in range(0, 4 * sum(scenarios.ROUNDS), 4) for found in both]
    assert [name for half in steps for name in half] == wanted["asked"]
    assert all(len(set(half)) == 1 for half in steps)
    assert len({tuple(half) for half in steps}) == 4
    assert [found["measured"] for found in both] == [2, 0]  # a round's pass rates, by the first process
    assert [point["step"] for point in both[0]["curve"]] == [1, 2, 3, 4, 5, 6, 7]
    assert [len(found["weights"]) for found in both] == [3, 3]  # when stopped, and after each round
    folder = pair[1] / "reinforcements" / "grpo"
    start, saved = weights(folder / "start"), weights(folder / "out")
    for first, second in zip(*(found["weights"] for found in both), strict=True):
        for key, value in first.items():
            assert torch.equal(second[key], value), key
    for key, value in both[0]["weights"][-1].items():
        assert torch.equal(saved[key], value)
    assert max((saved[key] - start[key]).abs().max() for key in start) > 1e-4


@pytest.mark.parametrize("name", ["remax", "rloo"])
def test_other_algorithms_train_in_two_processes(pair, name):
    first, second = (found[name] for found in pair[0]["reinforcements"])
    assert len(first["asked"]) == len(second["asked"]) == 2 * 4 * sum(scenarios.ROUNDS)  # greedy too; in two parts
    for ours, theirs in zip(first["weights"], second["weights"], strict=True):
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    out = pair[1] / "reinforcements" / name / "out"
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    before = weights(out.parent / "start")
    assert any(not torch.equal(value, before[key]) for key, value in weights(out).items())
    assert all(json.dumps(point) for point in first["curve"])


def test_a_run_of_two_processes_makes_what_one_process_finds_finished(pair):
    first, second = pair[0]["runs"]
    assert second == {"code": 0}
    assert not first["cached"]
    counts = {name: facts["processes"] for name, facts in first["facts"].items() if "processes" in facts}
    assert counts == {"sft": 2, "rl": 2}
    assert first["facts"]["alone"]["passages"] == 4
    assert first["machine"]["precision"] == "fp32, 2 processes"
    assert first["seen"] == []  # what is the first one's alone sees one process
    again, second = pair[0]["runs_again"]
    assert again["cached"]
    assert second == {"code": 0}
    folder = pair[1] / "runs"
    assert run(folder / "recipe.yaml", overrides=scenarios.BATCHES, runs=folder / "runs").cached
    assert not [path for path in (folder / "runs" / "stages").iterdir() if path.suffix in (".work", ".lock")]


def test_a_batch_that_does_not_go_round_ends_both_processes_with_one_error(pair):
    first, second = pair[0]["refused"]
    assert second == {"code": 0}
    assert "stages.sft: trainer: per_device_train_batch_size is 3, the batch of all 2 processes" in first["error"]


def test_a_share_is_a_part_in_order_and_none_is_empty(monkeypatch):
    monkeypatch.setattr(data_parallel, "processes", lambda: 3)
    rows = [{"labels": [number, number]} for number in range(6)]
    shares = {}
    for rank in range(3):
        monkeypatch.setattr(data_parallel, "rank", lambda rank=rank: rank)
        shares[rank] = data_parallel.Share(lambda part: [row["labels"][0] for row in part])
    assert [shares[rank](rows) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert [shares[rank](rows[:4]) for rank in range(3)] == [[0, 1], [2, 3], [-100]]
    assert [shares[rank](rows[:1]) for rank in range(3)] == [[0], [-100], [-100]]


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"per_device_train_batch_size": 6}, r"is 6, the batch of all 4 processes together.*give a multiple of 4"),
        ({"train_sampling_strategy": "group_by_length"}, "'group_by_length', by which 4 processes.*expected 'random'"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices is False"),
    ],
)
def test_settings_under_which_processes_would_compute_something_else_are_refused(trainer, message, tmp_path):
    args = sft_arguments(trainer, tmp_path, 0)
    data_parallel.check_shares(args, 1)
    with pytest.raises(RecipeError, match=message):
        data_parallel.check_shares(args, 4)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"per_device_train_batch_size": 16}, r"16 answers in 4 equal parts are 4, which is no multiple of num_gener"),
        ({"loss_type": "bnpo"}, "loss_type is 'bnpo', by which 4 processes"),
        ({"entropy_coef": 0.1}, "entropy_coef is 0.1"),
    ],
)
def test_rl_that_processes_cannot_share_is_refused(trainer, message, tmp_path):
    args = rl_arguments({"f1": 1.0}, trainer, False, tmp_path, 0)
    data_parallel.check_shares(args, 1)
    with pytest.raises(RecipeError, match=message):
        data_parallel.check_shares(args, 4)


def test_what_a_recipe_usually_says_is_shared(tmp_path):
    data_parallel.check_shares(sft_arguments({}, tmp_path, 0), 4)
    data_parallel.check_shares(rl_arguments({"f1": 1.0}, {"gradient_accumulation_steps": 2}, True, tmp_path, 0), 4)
    data_parallel.check_shares(rl_arguments({"f1": 1.0}, {}, True, tmp_path, 0, "rloo"), 2)


def test_of_several_gpus_in_sight_one_process_takes_one(monkeypatch, tmp_path):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: vars(self).get("_n_gpu", 0) or 4))
    assert SimpleNamespace(**vars(sft_arguments({}, tmp_path, 0)))._n_gpu == 1

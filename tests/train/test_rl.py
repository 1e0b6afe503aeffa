import pytest
import torch

from skillgraft.adapters.lora import LoraAdapter
from skillgraft.data.tasks import Question
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.errors import RecipeError, TrainingError
from skillgraft.models.loading import load_model
from skillgraft.train.rl import _for_trl, curve, rl_arguments, train_rl
from tests.tiny import tiny_checkpoint, tiny_tokenizer

pytestmark = pytest.mark.train


def test_the_output_head_gets_contiguous_rows(tmp_path):
    model = load_model(tiny_checkpoint(tmp_path / "model"), torch.bfloat16)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda head, inputs, _: seen.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=torch.arange(5, 25).reshape(2, 10), logits_to_keep=1)
    assert seen[0].shape == (2, 1, 32)
    assert seen[0].is_contiguous()


def test_rewards_see_the_answers_text():
    tasks = [Question("d", "Where?", ("north",)), Question("d", "When?", ("1900",))]
    tokenizer = tiny_tokenizer()
    reward = _for_trl("f1", tokenizer, tasks, KNOWLEDGE)
    ids = tokenizer([" 1900 <|im_end|>", "wrong", "<think>1900</think>\n\n1901"])["input_ids"]
    assert reward(prompts=["When?"] * 3, completion_ids=ids, task=[1, 1, 1], log_metric=None) == [1.0, 0.0, 0.0]
    assert reward.__name__ == "f1"


def test_curve_names_what_a_person_is_shown():
    log = [
        {"step": 1, "reward": 0.5, "share_without_variance": 0.25, "completions/mean_length": 9.0, "loss": 0.1},
        {"step": 1, "train_runtime": 3.0},
    ]
    log[0]["rewards/f1/mean"] = 0.3
    assert curve(log) == [
        {"step": 1, "reward": 0.5, "share_without_variance": 0.25, "completion_tokens": 9.0, "reward:f1": 0.3}
    ]


def test_learning_rate_depends_on_what_is_trained(tmp_path):
    assert rl_arguments({"f1": 1.0}, {}, True, tmp_path, 0).learning_rate == 3e-4
    assert rl_arguments({"f1": 1.0}, {}, False, tmp_path, 0).learning_rate == 3e-5
    assert rl_arguments({"f1": 1.0}, {"learning_rate": 1e-6}, True, tmp_path, 0).learning_rate == 1e-6
    with pytest.raises(RecipeError, match="max_steps is -1"):
        rl_arguments({"f1": 1.0}, {"max_steps": -1}, True, tmp_path, 0)


def test_no_questions(tmp_path):
    with pytest.raises(TrainingError, match="no question"):
        train_rl(tmp_path, tmp_path, tmp_path, tasks=[])
    start = tiny_checkpoint(tmp_path / "start")
    with pytest.raises(TrainingError, match="1 questions are left, one step needs 8"):
        train_rl(start, tmp_path, tmp_path, tasks=[Question("d", "When?", ("1",))])


def test_full_rl_changes_all_weights_and_keeps_no_factors(tmp_path):
    start = tiny_checkpoint(tmp_path / "start")
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    trained = train_rl(
        start,
        out,
        work,
        tasks=[Question("d", "When was the harbour built?", ("1900",))] * 2,
        reward={"tests.domains.own_reward.vowels": 1.0},
        trainer={"max_steps": 2, "per_device_train_batch_size": 8, "max_completion_length": 6, "warmup_steps": 0},
    )
    assert [point["step"] for point in trained.curve] == [1, 2]
    assert not (out / "adapter").exists()
    before, after = load_model(start).state_dict(), load_model(out).state_dict()
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])


def test_a_second_round_goes_on_from_the_first(tmp_path):
    from safetensors.torch import load_file

    start = tiny_checkpoint(tmp_path / "start")
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    rate = 1e-2
    trained = train_rl(
        start,
        out,
        work,
        tasks=[Question("d", "When was the harbour built?", ("1900",))] * 2,
        reward={"tests.domains.own_reward.vowels": 1.0},
        rounds=[4, 1],
        adapter=LoraAdapter({"r": 2}),
        trainer={
            "per_device_train_batch_size": 8,
            "max_completion_length": 6,
            "warmup_steps": 0,
            "learning_rate": rate,
            "lr_scheduler_type": "constant",
        },
    )
    assert [point["step"] for point in trained.curve] == [1, 2, 3, 4, 5]
    first = load_file(work / "round-0" / "finished" / "adapter_model.safetensors")
    last = load_file(out / "adapter" / "adapter_model.safetensors")
    moved = {name: (last[name] - first[name]).abs().max().item() for name in first}
    grown = [first[name].abs().max().item() for name in first if "lora_B" in name]
    assert max(grown) > 2.5 * rate  # four steps of Adam from zero
    assert 0 < max(moved.values()) < 1.1 * rate  # one step from where the first round ended
    model = load_model(start).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    a, b = (last[f"base_model.model.{name.removesuffix('.weight')}.lora_{f}.weight"] for f in "AB")
    torch.testing.assert_close(load_model(out).state_dict()[name], model[name] + 8 * b @ a, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stop", [4, 7])
def test_a_stop_in_any_epoch_changes_nothing(tmp_path, stop):
    """Four questions are an epoch of four steps: each later epoch has an order of its own, also when resumed."""
    start = tiny_checkpoint(tmp_path / "start")
    questions = [Question("d", f"When was harbour {name} built?", (str(1900 + i),)) for i, name in enumerate("ABCD")]

    def train(name, progress=None):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / f"{name}.work").mkdir(exist_ok=True)
        train_rl(
            start,
            tmp_path / name,
            tmp_path / f"{name}.work",
            tasks=questions,
            reward={"tests.domains.own_reward.vowels": 1.0},
            trainer={"max_steps": 8, "per_device_train_batch_size": 8, "max_completion_length": 6, "warmup_steps": 0},
            checkpoint_seconds=0,
            progress=progress,
        )
        return load_model(tmp_path / name).state_dict()

    def cut_off(step, steps, metrics):
        if step == stop + 1:  # the checkpoint of step `stop` is whole, and nothing of this step is
            raise RuntimeError("killed")

    expected = train("whole")
    with pytest.raises(RuntimeError, match="killed"):
        train("cut", cut_off)
    assert (tmp_path / "cut.work" / "round-0" / f"checkpoint-{stop}").is_dir()
    got = train("cut")
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())

"""RLOO, ReMax, the filter for groups and the reference model, against what the papers' formulas give by hand."""

import pytest
import torch

from skillgraft.adapters import get_adapter
from skillgraft.data.tasks import Question
from skillgraft.domains.kind import RewardInput
from skillgraft.errors import RecipeError, TrainingError
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.train import algorithms
from skillgraft.train.algorithms import ALGORITHMS, only_rows, with_variance
from skillgraft.train.rl import rl_arguments, train_rl
from tests.domains.own_reward import vowels, vowels_where_asked
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.train

ASKED = [Question("d", "When was the harbour built?", ("1900",)), Question("d", "Who built it?", ("nobody",))]
PLAIN = {  # one plain step of gradient descent, so that what moved is the gradient
    **{"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 5, "max_steps": 1},
    **{"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0},
}


class Seen:
    """What went through a trainer's steps."""

    def __init__(self):
        self.batches, self.answers, self.questions, self.state, self.trainers = [], [], [], [], []


def spied(monkeypatch, name):
    """Let the algorithm note its batches, answers and weights before each step."""
    seen, made = Seen(), ALGORITHMS[name]

    class Spy(made.trainer):
        def _generate_and_score_completions(self, inputs):
            seen.questions.append([row["prompt"][-1]["content"] for row in inputs])
            seen.state.append({k: v.clone() for k, v in self.model.state_dict().items()})
            seen.trainers.append(self)
            batch = super()._generate_and_score_completions(inputs)
            seen.batches.append({k: v.clone() for k, v in batch.items()})
            return batch

    scored = algorithms._Ours._calculate_rewards

    def noted(self, inputs, prompts, completions, ids):
        seen.answers.append([each[0]["content"] for each in completions])
        return scored(self, inputs, prompts, completions, ids)

    monkeypatch.setattr(algorithms._Ours, "_calculate_rewards", noted)
    monkeypatch.setitem(ALGORITHMS, name, made._replace(trainer=Spy))
    return seen


def given(completion, answers=()):
    return RewardInput("", completion, [], answers)


def train(tmp_path, name="out", reward="vowels", questions=ASKED, trainer=None, **settings):
    out, work = tmp_path / name, tmp_path / f"{name}.work"
    out.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    start = tmp_path / "start"
    if not start.exists():
        tiny_checkpoint(start)
    rewards = {f"tests.domains.own_reward.{reward}": 0.5}
    trained = train_rl(
        start, out, work, tasks=questions, reward=rewards, trainer={**PLAIN, **(trainer or {})}, **settings
    )
    return trained, out


def log_probabilities(model, batch):
    """Log-probabilities of the answers' tokens and which of them count, by a plain forward pass, one answer a time."""
    rows = []
    for prompt, prompt_mask, answer in zip(
        batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], strict=True
    ):
        ids = torch.cat([prompt[prompt_mask.bool()], answer])
        logits = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        rows.append(logits[-len(answer) - 1 : -1].gather(1, answer[:, None])[:, 0])
    return torch.stack(rows), batch["completion_mask"]


def assert_moved_by(start, out, loss_of, seen):
    """Assert that the step was that of gradient descent on `loss_of(log-probabilities, mask)`."""
    model = load_model(start).double()
    loss_of(*log_probabilities(model, seen.batches[0])).backward()
    after = load_model(out).state_dict()
    moved = 0.0
    for name, parameter in model.named_parameters():
        step = after[name].double() - parameter.detach()
        torch.testing.assert_close(step, -parameter.grad, rtol=1e-3, atol=2e-7)
        moved = max(moved, step.abs().max().item())
    assert moved > 1e-4


def greedy_answers(directory, questions, length):
    """The likeliest answers, token by token."""
    model, tokenizer = load_model(directory).eval(), load_tokenizer(directory)
    texts = []
    for question in questions:
        chat = [{"role": "system", "content": "Answer with a short phrase."}, {"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        made = []
        with torch.no_grad():
            while len(made) < length and (not made or made[-1] != tokenizer.eos_token_id):
                made.append(
                    int(model(torch.cat([ids, torch.tensor([made], dtype=torch.long)], 1)).logits[0, -1].argmax())
                )
        texts.append(tokenizer.decode(made, skip_special_tokens=True))
    return texts


def test_remax_compares_with_the_greedy_answer(tmp_path, monkeypatch):
    seen = spied(monkeypatch, "remax")
    trained, _ = train(tmp_path, algorithm="remax")
    greedy, sampled = seen.answers  # the greedy ones are scored first
    firsts = greedy_answers(tmp_path / "start", seen.questions[0][::4], 5)
    assert greedy == [text for text in firsts for _ in range(4)]
    assert len(set(sampled)) > 2
    expected = [0.5 * (vowels(given(a)) - vowels(given(g))) for a, g in zip(sampled, greedy, strict=True)]
    torch.testing.assert_close(seen.batches[0]["advantages"], torch.tensor(expected))
    assert list(seen.trainers[0]._logs["advantages"]) == pytest.approx(expected)
    assert trained.curve[0]["greedy_reward"] == pytest.approx(sum(0.5 * vowels(given(g)) for g in greedy) / 8)
    assert trained.curve[0]["reward"] == pytest.approx(sum(0.5 * vowels(given(a)) for a in sampled) / 8)


def test_remax_moves_along_reinforce_with_that_baseline(tmp_path, monkeypatch):
    seen = spied(monkeypatch, "remax")
    _, out = train(tmp_path, algorithm="remax")
    advantages = seen.batches[0]["advantages"].double()
    # the gradient of the mean over answers of A · log π(answer), by TRL's constant divisor
    assert_moved_by(tmp_path / "start", out, lambda logs, mask: -((logs * mask).sum(1) * advantages).mean() / 5, seen)


def test_remax_leaves_what_trl_reports_of_samples_alone_and_counts_its_tokens(tmp_path, monkeypatch):
    seen = spied(monkeypatch, "remax")
    trained, _ = train(tmp_path, algorithm="remax")
    batch = seen.batches[0]
    assert trained.curve[0]["completion_tokens"] == pytest.approx(batch["completion_mask"].sum().item() / 8)
    sampled = int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())
    prompts = int(batch["prompt_mask"][::4].sum())
    tokenizer = load_tokenizer(tmp_path / "start")
    assert prompts < trained.tokens - sampled <= prompts + 2 * 5  # two greedy answers of at most 5 tokens
    assert tokenizer.eos_token_id is not None
    share = sampled / trained.tokens
    assert trained.flops == pytest.approx((2 + 6 * share) * trained.parameters * trained.tokens)


def test_rloo_compares_with_the_mean_of_the_others(tmp_path, monkeypatch):
    seen = spied(monkeypatch, "rloo")
    _, out = train(tmp_path, algorithm="rloo")
    rewards = [0.5 * vowels(given(text)) for text in seen.answers[0]]
    expected = []
    for group in (rewards[:4], rewards[4:]):
        expected += [reward - (sum(group) - reward) / 3 for reward in group]
    torch.testing.assert_close(seen.batches[0]["advantages"], torch.tensor(expected))
    assert_moved_by(
        tmp_path / "start",
        out,
        lambda logs, mask: -((logs * mask).sum(1) * torch.tensor(expected, dtype=torch.float64)).mean(),
        seen,
    )


def test_grpo_is_as_it_was(tmp_path, monkeypatch):
    seen = spied(monkeypatch, "grpo")
    trained, _ = train(tmp_path)
    rewards = torch.tensor([0.5 * vowels(given(text)) for text in seen.answers[0]])
    means = rewards.view(2, 4).mean(1).repeat_interleave(4)
    torch.testing.assert_close(seen.batches[0]["advantages"], (rewards - means) / (rewards.std() + 1e-4))
    assert trained.flops == 8.0 * trained.parameters * trained.tokens
    assert trained.curve[0]["share_without_variance"] == 0.0


@pytest.mark.parametrize("name", ["grpo", "rloo", "remax"])
def test_a_group_without_variance_is_as_good_as_absent(tmp_path, monkeypatch, name):
    seen = spied(monkeypatch, name)
    trained, out = train(tmp_path, reward="vowels_where_asked", algorithm=name, skip_without_variance=True)
    rewards = torch.tensor(
        [
            0.5 * vowels_where_asked(given(text, (n,)))
            for text, n in zip(
                seen.answers[-1], ["1900" if "When" in q else "nobody" for q in seen.questions[0]], strict=True
            )
        ]
    )
    kept = rewards.view(2, 4).std(1) > 0
    assert kept.sum() == 1
    batch = seen.batches[0]
    assert len(batch["advantages"]) == len(batch["completion_ids"]) == len(batch["prompt_mask"]) == 4
    assert trained.curve[0]["share_without_variance"] == 0.5
    advantages, tokens = batch["advantages"].double(), batch["completion_mask"].sum()
    losses = {
        "grpo": lambda logs, mask: -((logs * mask).sum(1) * advantages).sum() / tokens,
        "rloo": lambda logs, mask: -((logs * mask).sum(1) * advantages).mean(),
        "remax": lambda logs, mask: -((logs * mask).sum(1) * advantages).mean() / 5,
    }
    assert_moved_by(tmp_path / "start", out, losses[name], seen)
    everything = trained.tokens
    mine = int(batch["prompt_mask"].sum() + tokens)
    assert trained.flops == pytest.approx((2 + 6 * mine / everything) * trained.parameters * everything)


def test_nothing_with_variance_is_no_error(tmp_path):
    before = tiny_checkpoint(tmp_path / "start")
    for name in ALGORITHMS:
        _, out = train(
            tmp_path,
            name,
            "nothing_at_all",
            algorithm=name,
            skip_without_variance=True,
            trainer={"steps_per_generation": 2, "max_steps": 2, "per_device_train_batch_size": 4},
        )
        one, two = load_model(before).state_dict(), load_model(out).state_dict()
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_which_groups_have_variance():
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.3, 0.1, 0.3, 0.3, 0.3, 0.3 + 1e-8])
    assert with_variance(rewards, 3).tolist() == [False] * 3 + [True] * 3 + [False] * 3
    baselines = torch.tensor([0.1] * 3 + [0.3] * 3 + [0.1] * 3)
    assert with_variance(rewards, 3, baselines).tolist() == [False] * 3 + [True] * 6
    assert not with_variance(torch.zeros(4), 2).any()


def test_rows_are_filled_up_to_equal_parts():
    batch = {"ids": torch.arange(12).view(6, 2), "advantages": torch.arange(6.0), "items": torch.tensor(9)}
    keep = torch.tensor([False, True, False, True, False, True])
    assert only_rows(batch, keep, 1)["advantages"].tolist() == [1, 3, 5]
    assert only_rows(batch, keep, 2)["advantages"].tolist() == [0, 1, 3, 5]
    assert only_rows(batch, keep, 3)["ids"].tolist() == [[2, 3], [6, 7], [10, 11]]
    assert only_rows(batch, torch.zeros(6, dtype=torch.bool), 3)["advantages"].tolist() == [0, 1, 2]
    assert only_rows(batch, keep, 1)["items"] == 9


@pytest.mark.parametrize("name", ["grpo", "rloo"])
@pytest.mark.parametrize("adapt", [None, {"kind": "lora", "r": 2}])
def test_the_reference_is_the_start_in_every_round(tmp_path, monkeypatch, name, adapt):
    seen = spied(monkeypatch, name)
    references = []
    scored = ALGORITHMS[name].trainer._get_per_token_logps_and_entropies

    def noted(self, model, *rest, **more):
        found = scored(self, model, *rest, **more)
        references.append(found[0].detach())
        return found

    monkeypatch.setattr(ALGORITHMS[name].trainer, "_get_per_token_logps_and_entropies", noted)
    monkeypatch.delitem(PLAIN, "max_steps")
    trainer = {"beta": 0.3, "optim": "adamw_torch", "learning_rate": 1e-2}
    trained, _ = train(tmp_path, algorithm=name, adapter=get_adapter(adapt), rounds=[2, 1], trainer=trainer)
    with torch.no_grad():
        expected, mask = log_probabilities(load_model(tmp_path / "start"), seen.batches[-1])
    last = [found for found in references[-3:] if found.shape == expected.shape]
    distances = [((found - expected) * mask).abs().max().item() for found in last]
    assert min(distances) < 1e-5  # one of them is the start itself
    assert max(distances) > 1e-3  # and the model has left it
    assert trained.curve[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert abs(trained.curve[2]["kl"]) > 1e-4  # the first step of the second round


def test_rloo_has_its_own_arguments(tmp_path):
    assert rl_arguments({"f1": 1.0}, {}, True, tmp_path, 0, "rloo").beta == 0.0
    assert rl_arguments({"f1": 1.0}, {"beta": 0.1}, True, tmp_path, 0, "rloo").beta == 0.1
    with pytest.raises(RecipeError, match="'scale_rewards' is not an argument of RLOOConfig"):
        rl_arguments({"f1": 1.0}, {"scale_rewards": "none"}, True, tmp_path, 0, "rloo")


@pytest.mark.parametrize(
    ("key", "value"),
    [("scale_rewards", "group"), ("multi_objective_aggregation", "normalize_then_sum"), ("use_vllm", True)],
)
def test_remax_refuses_what_would_be_another_method(tmp_path, key, value):
    with pytest.raises(RecipeError, match=f"{key} is .*; remax needs"):
        rl_arguments({"f1": 1.0}, {key: value}, True, tmp_path, 0, "remax")


def test_another_trl_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms.trl, "__version__", "1.17.1")
    with pytest.raises(RecipeError, match=r"made for trl 1\.16 and this is 1\.17\.1"):
        rl_arguments({"f1": 1.0}, {}, True, tmp_path, 0, "remax")
    rl_arguments({"f1": 1.0}, {}, True, tmp_path, 0, "rloo")
    monkeypatch.setattr(ALGORITHMS["grpo"].trainer, "_calculate_rewards", algorithms.GRPOTrainer._calculate_rewards)
    with pytest.raises(TrainingError, match=r"scores answers in another place; install trl 1\.16"):
        train(tmp_path)


@pytest.mark.parametrize("name", ["rloo", "remax"])
def test_a_stop_changes_nothing(tmp_path, name):
    trainer = {"max_steps": 5, "optim": "adamw_torch", "learning_rate": 1e-3}

    def cut_off(step, steps, metrics):
        if step == 4:
            raise RuntimeError("killed")

    settings = {"algorithm": name, "trainer": trainer, "checkpoint_seconds": 0, "skip_without_variance": True}
    _, whole = train(tmp_path, "whole", **settings)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, "cut", progress=cut_off, **settings)
    trained, cut = train(tmp_path, "cut", **settings)
    expected, got = load_model(whole).state_dict(), load_model(cut).state_dict()
    assert all(torch.equal(tensor, got[key]) for key, tensor in expected.items())
    assert [point["step"] for point in trained.curve] == [1, 2, 3, 4, 5]


def test_questions_come_from_easy_to_hard(tmp_path, monkeypatch):
    seen = spied(monkeypatch, "grpo")
    rates = [0.25, 0.75, 0.0, 0.5, 1.0]
    monkeypatch.setattr("skillgraft.train.pass_rates.pass_rates", lambda *_: rates)
    questions = [Question("d", f"Question {rate}?", ("1",)) for rate in rates]
    trainer = {"max_steps": 6, "per_device_train_batch_size": 4}
    for order, expected in {"easy_to_hard": [0.75, 0.5, 0.25], "hard_to_easy": [0.25, 0.5, 0.75]}.items():
        seen.questions.clear()
        train(tmp_path, order, questions=questions, trainer=trainer, pass_rate_samples=4, order=order)
        assert [step[0] for step in seen.questions] == [f"Question {rate}?" for rate in expected * 2]

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from skillgraft.models.loading import load_model, load_tokenizer, quiet
from skillgraft.train import rollouts
from skillgraft.train.cpu.fused_logprobs import fast_head
from skillgraft.train.cpu.varlen_attention import RAGGED
from skillgraft.train.rollouts import SharedPrompts
from tests.tiny import tiny_checkpoint


class Grpo(SharedPrompts, GRPOTrainer):
    pass


class Rloo(SharedPrompts, RLOOTrainer):
    pass


QUESTIONS = [{"prompt": text} for text in ("who built the harbour", "when was it opened", "what", "a")]


def trainer(kind, config, path, lora=False, **settings):
    quiet()
    start = path / "start"
    if not start.exists():
        tiny_checkpoint(start)
    given = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False, "seed": 3}
    given |= {"per_device_train_batch_size": 12, "num_generations": 3, "max_completion_length": 7, "disable_tqdm": True}
    made = kind(
        model=load_model(start),
        reward_funcs=lambda completions, **_: [float(len(set(text)) % 5) for text in completions],
        args=config(output_dir=str(path / "work"), **{**given, **settings}),
        train_dataset=Dataset.from_list(QUESTIONS),
        processing_class=load_tokenizer(start),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )
    generator = torch.Generator().manual_seed(5)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return made


PROMPTS = [[5, 6, 7, 8], [9], [10, 11]]
ANSWERS = [[20, 21, 22], [23], [24, 25, 26, 27, 28], [29, 30], [31], [32, 33, 34], [35, 36], [37, 38], [39, 40, 41]]
ORDER = [3, 0, 7, 1, 8, 2, 4, 5, 6]
"""Rows of a group need not stand together."""


def padded(rows, left):
    width = max(map(len, rows))
    ids = [[0] * (width - len(row)) + row if left else row + [0] * (width - len(row)) for row in rows]
    mask = [
        [0] * (width - len(row)) + [1] * len(row) if left else [1] * len(row) + [0] * (width - len(row)) for row in rows
    ]
    return torch.tensor(ids), torch.tensor(mask)


def batch(advantages):
    prompts, prompt_mask = padded([PROMPTS[row // 3] for row in ORDER], left=True)
    answers, answer_mask = padded([ANSWERS[row] for row in ORDER], left=False)
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": answers,
        "completion_mask": answer_mask,
        "advantages": torch.tensor(advantages)[ORDER],
        "num_items_in_batch": answer_mask.sum(),
        "old_logps": torch.full((9,), -12.0),
    }


MIXED = [1.0, -0.4, -0.6, 0.0, 1e-9, 0.0, 0.3, 0.0, -0.3]


def loss_gradient_and_metrics(made, inputs):
    made.model.train()
    made.model.zero_grad()
    made.current_gradient_accumulation_steps = 1
    with fast_head():
        loss = made.compute_loss(made.model, inputs)
        loss.backward()
    gradient = {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
    metrics = {name: values[-1] for name, values in made._metrics["train"].items()}
    return loss.detach(), gradient, metrics


SETTINGS = [
    (Grpo, GRPOTrainer, GRPOConfig, {}),
    (Grpo, GRPOTrainer, GRPOConfig, {"loss_type": "grpo", "temperature": 0.7}),
    (Grpo, GRPOTrainer, GRPOConfig, {"loss_type": "cispo"}),
    (Grpo, GRPOTrainer, GRPOConfig, {"entropy_coef": 0.1}),
    (Grpo, GRPOTrainer, GRPOConfig, {"gradient_checkpointing": True}),
    (Rloo, RLOOTrainer, RLOOConfig, {"beta": 0.0}),
]


@pytest.mark.parametrize(("ours", "theirs", "config", "settings"), SETTINGS)
@pytest.mark.parametrize("lora", [False, True])
def test_loss_gradient_and_metrics_are_trls(tmp_path, ours, theirs, config, settings, lora):
    """Also where some advantages are 0, a prompt has one token, and a group's rows are apart."""
    fast = trainer(ours, config, tmp_path, lora, **settings)
    assert fast._packed
    got = loss_gradient_and_metrics(fast, batch(MIXED))
    wanted = loss_gradient_and_metrics(trainer(theirs, config, tmp_path, lora, **settings), batch(MIXED))
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-6)
    assert got[1].keys() == wanted[1].keys()
    assert max(value.abs().max() for value in wanted[1].values()) > 1e-3
    for name, value in wanted[1].items():
        torch.testing.assert_close(got[1][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert got[2] == pytest.approx(wanted[2], rel=1e-5, abs=1e-6)


def test_kl_to_the_start_is_trls_and_every_row_learns(tmp_path):
    parts = {}
    for kind in (Grpo, GRPOTrainer):
        made = trainer(kind, GRPOConfig, tmp_path, beta=0.1)
        inputs = batch(MIXED)
        inputs["ref_per_token_logps"] = -3.0 * inputs["completion_mask"]
        parts[kind] = loss_gradient_and_metrics(made, inputs)
    torch.testing.assert_close(parts[Grpo][0], parts[GRPOTrainer][0], rtol=1e-5, atol=1e-6)
    for name, value in parts[GRPOTrainer][1].items():
        torch.testing.assert_close(parts[Grpo][1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_rows_without_advantage_need_no_gradient_and_a_batch_of_them_still_has_one(tmp_path, monkeypatch):
    made = trainer(Grpo, GRPOConfig, tmp_path)
    seen = []

    def spy(model, ids, *rest):
        seen.append((torch.is_grad_enabled(), len(ids)))
        return original(model, ids, *rest)

    original = rollouts.score
    monkeypatch.setattr(rollouts, "score", spy)
    loss_gradient_and_metrics(made, batch(MIXED))
    assert seen == [(True, 5), (False, 4)]
    loss, gradient, _ = loss_gradient_and_metrics(made, batch([0.0] * 9))
    assert seen[2:] == [(True, 9)]
    assert loss == 0
    assert all(value.abs().max() == 0 for value in gradient.values())


def test_scoring_in_chunks_changes_nothing(tmp_path):
    made = trainer(Grpo, GRPOConfig, tmp_path)
    inputs = batch(MIXED)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    mask[2, -5:] = 0  # an answer that is left out as a whole, as `mask_truncated_completions` does
    with torch.no_grad(), fast_head():
        whole, entropy, _ = made._get_per_token_logps_and_entropies(made.model, ids, mask, 5, compute_entropy=True)
        parts, nothing, _ = made._get_per_token_logps_and_entropies(made.model, ids, mask, 5, batch_size=2)
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-6)
    assert nothing is None
    assert torch.equal(whole == 0, mask[:, -5:] == 0)
    assert torch.equal(entropy == 0, mask[:, -5:] == 0)


@pytest.mark.train
@pytest.mark.parametrize("kind", [Grpo, Rloo])
@pytest.mark.parametrize("lora", [False, True])
def test_training_runs_without_generate_and_a_seed_gives_one_result(tmp_path, monkeypatch, kind, lora):
    config = GRPOConfig if kind is Grpo else RLOOConfig
    learnt = []
    for _ in range(2):
        made = trainer(
            kind, config, tmp_path, lora, max_steps=3, learning_rate=1e-3, save_strategy="no", logging_steps=1
        )
        monkeypatch.setattr(made.model, "generate", None)  # would raise
        made.train()
        learnt.append({name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad})
    assert all(torch.equal(value, learnt[1][name]) for name, value in learnt[0].items())
    before = dict(trainer(kind, config, tmp_path, lora).model.named_parameters())
    assert any(not torch.equal(value, before[name]) for name, value in learnt[0].items())


def test_what_is_not_known_here_is_left_to_trl(tmp_path):
    made = trainer(Grpo, GRPOConfig, tmp_path, repetition_penalty=1.2)
    calls = []
    original = made.model.generate
    made.model.generate = lambda *a, **k: (calls.append(made.model.config._attn_implementation), original(*a, **k))[1]
    answers, _ = made._generate_single_turn([[5, 6], [7]], None, {}, 1)
    assert len(answers) == 2
    assert calls == ["sdpa"]
    assert made.model.config._attn_implementation == RAGGED

import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from skillgraft.data.documents import Document
from skillgraft.errors import TrainingError
from skillgraft.models.loading import load_model
from skillgraft.train.cpu import varlen_attention
from skillgraft.train.cpu.fused_logprobs import fast_head
from skillgraft.train.cpu.varlen_attention import RAGGED, Branches, packs, ragged_attention, use_attention
from skillgraft.train.sft import train_sft
from tests.tiny import tiny_checkpoint

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (transformers.LlamaConfig, {}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 8}),
    "gpt_neox": (transformers.GPTNeoXConfig, {}),
    "olmo2": (transformers.Olmo2Config, {}),
    "phi3": (transformers.Phi3Config, {}),
    "granite": (transformers.GraniteConfig, {"logits_scaling": 2.0}),
    "gpt2": (transformers.GPT2Config, {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
}
REFUSED = {
    "mistral": (transformers.MistralConfig, {"sliding_window": 8}),
    "gemma2": (transformers.Gemma2Config, {"head_dim": 8}),
    "qwen2": (transformers.Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "gpt_oss": (transformers.GptOssConfig, {"head_dim": 8, "num_local_experts": 2}),
}
SEQUENCES = [list(range(1, 1 + length)) for length in (7, 20, 2, 13)]


def made(config, extra):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config(**SIZES, **extra))


def loss_and_gradient(model, sequences, ragged, weights=None):
    """Log-probabilities of all next tokens, sequence by sequence, and the gradient of their weighted sum."""
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    use_attention(model, RAGGED if ragged else "sdpa")
    batch = DataCollatorForLanguageModeling(0, padding_free=ragged)([{"input_ids": ids} for ids in sequences])
    with fast_head():
        found = model(**batch, fused_lm_head=True).log_probs
    labelled = batch["labels"][:, 1:] != -100
    parts = found[labelled].split([len(ids) - 1 for ids in sequences])
    model.zero_grad()
    sum(weight * part.sum() for weight, part in zip(weights or [1.0] * len(parts), parts, strict=True)).backward()
    return [part.detach() for part in parts], {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_batch_gives_the_loss_and_gradient_of_a_padded_one(family):
    model = made(*FAMILIES[family])
    assert packs(model)
    padded, padded_gradient = loss_and_gradient(model, SEQUENCES, ragged=False)
    ragged, gradient = loss_and_gradient(model, SEQUENCES, ragged=True)
    for got, wanted in zip(ragged, padded, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)
    for name, wanted in padded_gradient.items():
        torch.testing.assert_close(gradient[name], wanted, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_sequence_sees_another(family):
    model = made(*FAMILIES[family])
    other = [SEQUENCES[0], [60] * 20, SEQUENCES[2], SEQUENCES[3]]
    before, _ = loss_and_gradient(model, SEQUENCES, ragged=True)
    after, _ = loss_and_gradient(model, other, ragged=True)
    for number in (0, 2, 3):
        assert torch.equal(before[number], after[number])
    assert not torch.equal(before[1], after[1])
    _, gradient = loss_and_gradient(model, other, ragged=True, weights=[1.0, 0.0, 1.0, 1.0])
    embedded = gradient[next(name for name in gradient if "embed" in name or "wte" in name)]
    if not model.config.tie_word_embeddings:
        assert embedded[60].abs().max() == 0  # stands in the second sequence alone, which carries no loss
    assert embedded[5].abs().max() > 0


@pytest.mark.parametrize("family", REFUSED)
def test_models_with_more_than_plain_attention_stay_padded(family):
    assert not packs(made(*REFUSED[family]))


def test_attention_refuses_what_it_cannot_do():
    q = torch.zeros(1, 2, 5, 4)
    module = torch.nn.Module()
    with pytest.raises(TrainingError, match="cu_seq_lens_q"):
        ragged_attention(module, q, q, q, None)
    for more in ({"sliding_window": 4}, {"softcap": 30.0}, {"s_aux": q}):
        with pytest.raises(TrainingError, match="no sliding windows"):
            ragged_attention(module, q, q, q, None, cu_seq_lens_q=torch.tensor([0, 5]), **more)


def drawn(batch, queries, keys, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 6, queries, 8), (batch, 2, keys, 8), (batch, 2, keys, 8)]
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    return q, k, v, torch.randn(shapes[0], generator=generator).to(dtype)


@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (5, 12), (1, 1)])
def test_short_bf16_attention_is_as_exact_as_torchs(queries, keys):
    q, k, v, slope = drawn(3, queries, keys, torch.bfloat16)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = scaled_dot_product_attention(*exact, attn_mask=seen, scale=0.5, enable_gqa=True)
    wanted = [wanted, *torch.autograd.grad(wanted, exact, slope.double())]
    torchs = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.5, enable_gqa=True)
    torchs = [torchs, *torch.autograd.grad(torchs, (q, k, v), slope)]
    ours = varlen_attention._attend(q, k, v, 0.0, 0.5)
    ours = [ours, *torch.autograd.grad(ours, (q, k, v), slope)]
    for got, theirs, value in zip(ours, torchs, wanted, strict=True):
        error, allowed = (got.double() - value).norm(), (theirs.double() - value).norm()
        assert error <= 2 * allowed + 1e-3 * value.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_branch_attends_to_its_prefix_and_itself(dtype):
    prefixes, branches = [4, 0, 6], [[3, 5], [2], [1, 1, 4]]
    total = sum(prefixes) + sum(map(sum, branches))
    q, k, v, slope = drawn(1, total, total, dtype)
    starts = torch.tensor([0, *prefixes]).cumsum(0)
    given = {"cu_seq_lens_q": starts, "branches": [Branches.of(lengths) for lengths in branches]}
    out, _ = ragged_attention(torch.nn.Module(), q, k, v, None, scaling=0.5, **given)
    gradient = torch.autograd.grad(out, (q, k, v), slope.transpose(1, 2))

    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = torch.zeros(1, 6, total, 8, dtype=torch.float64)
    place = sum(prefixes)
    for start, length, group in zip(starts[:-1].tolist(), prefixes, branches, strict=True):
        before = list(range(start, start + length))
        for branch in group:
            chain = [*before, *range(place, place + branch)]
            alone = [x[:, :, chain] for x in exact]
            found = scaled_dot_product_attention(*alone, is_causal=True, scale=0.5, enable_gqa=True)
            wanted[:, :, chain] = found
            place += branch
    expected = torch.autograd.grad(wanted, exact, slope.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for got, value in zip((out.transpose(1, 2), *gradient), (wanted, *expected), strict=True):
        torch.testing.assert_close(got.double(), value, rtol=tolerance, atol=tolerance)


@pytest.mark.train
def test_training_ragged_or_padded_learns_the_same_and_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    start = tiny_checkpoint(tmp_path / "start")
    documents = [Document(str(n), "Vell", "The harbour was built in 1901. " * n) for n in (1, 4, 2, 3)]
    trainer = {"max_steps": 4, "per_device_train_batch_size": 3, "learning_rate": 1e-3, "warmup_steps": 0}
    learnt, curves = [], []
    for name in ("ragged", "padded"):
        out, work = tmp_path / name, tmp_path / f"{name}.work"
        out.mkdir()
        work.mkdir()
        if name == "padded":
            monkeypatch.setattr(varlen_attention, "packs", lambda model: False)
        trained = train_sft(start, out, work, documents=documents, trainer=trainer)
        learnt.append(load_model(out).state_dict())
        curves.append([point["loss"] for point in trained.curve if "loss" in point])
    assert len(curves[0]) == 4
    assert curves[0] == pytest.approx(curves[1], abs=2e-5)
    moved = [(learnt[0][name] - value).norm() for name, value in load_model(start).state_dict().items()]
    apart = [(learnt[0][name] - learnt[1][name]).norm() for name in learnt[0]]
    assert torch.stack(apart).norm() < 0.01 * torch.stack(moved).norm()
    assert (tmp_path / "ragged" / "config.json").read_text() == (tmp_path / "padded" / "config.json").read_text()


def test_after_training_a_model_generates_again(tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from skillgraft.train.cpu.varlen_attention import ragged_batches

    model = load_model(tiny_checkpoint(tmp_path / "start"))
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list([{"input_ids": [5, 6, 7]}]))
    with ragged_batches(trainer):
        assert model.config._attn_implementation == RAGGED
        assert trainer.data_collator.padding_free
    assert model.config._attn_implementation == "sdpa"
    assert model.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False).shape[1] <= 4

"""Attention of every kind: packed batches are right or off, and values may have another width than queries."""

import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from skillgraft.train.cpu.varlen_attention import RAGGED, _attend, packs, ragged_attention, use_attention
from tests.field.families import SMALL, checkpoint, deepseek_v3

HEADS, WIDTH, VALUES = 4, 12, 6


def drawn(keys, dtype, key_heads=HEADS):
    torch.manual_seed(0)
    shapes = ((1, HEADS, keys, WIDTH), (1, key_heads, keys, WIDTH), (1, key_heads, keys, VALUES))
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.03), (torch.float32, 1e-5)])
def test_values_of_another_width(dtype, atol, key_heads):
    """Multi-head latent attention: forward and gradient against fp64."""
    rounded = drawn(9, dtype, key_heads)
    exact = [x.double().requires_grad_() for x in rounded]
    given = [x.requires_grad_() for x in rounded]
    torch.manual_seed(1)
    weight = torch.randn(1, HEADS, 9, VALUES, dtype=torch.float64)
    expected = scaled_dot_product_attention(*exact, is_causal=True, scale=0.3, enable_gqa=True)
    got = _attend(*given, 0.0, 0.3)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)
    (expected * weight).sum().backward()
    (got.double() * weight).sum().backward()
    for mine, theirs in zip(given, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=0, atol=3 * atol)


def test_two_sequences_of_another_width():
    q, k, v = drawn(9, torch.bfloat16)
    starts = torch.tensor([0, 4, 9])
    module = torch.nn.Module()
    got, _ = ragged_attention(module, q, k, v, None, scaling=0.3, cu_seq_lens_q=starts)
    parts = [
        scaled_dot_product_attention(*(x[:, :, a:b].float() for x in (q, k, v)), is_causal=True, scale=0.3)
        for a, b in ((0, 4), (4, 9))
    ]
    torch.testing.assert_close(got.float(), torch.cat(parts, 2).transpose(1, 2), rtol=0, atol=0.03)
    assert ragged_attention(module, q, k, v, None, cu_seq_lens_q=torch.tensor([0, 0, 9]))[0].shape == (
        1,
        9,
        HEADS,
        VALUES,
    )


@pytest.mark.train
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_fine_tuning_with_latent_attention(tmp_path, monkeypatch, precision):
    """The curve in bf16 is that in fp32, up to its rounding."""
    from skillgraft.data.documents import Document
    from skillgraft.models import precision as probe
    from skillgraft.train.sft import train_sft

    monkeypatch.setattr(probe, "bf16_pays", lambda: precision == "bf16")
    monkeypatch.setenv("SKILLGRAFT_PRECISION", precision)
    probe._probe.cache_clear()
    base = checkpoint(tmp_path / "base", deepseek_v3())
    losses = {}
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    documents = [Document(str(n), "", f"The harbour of Vell was built in {1900 + n}.") for n in range(4)]
    trained = train_sft(
        base,
        tmp_path / "out",
        tmp_path / "work",
        documents=documents,
        trainer={"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0},
    )
    probe._probe.cache_clear()
    losses = [point["loss"] for point in trained.curve]
    assert losses[0] == pytest.approx(5.79, abs=0.1)
    assert losses[-1] < losses[0]


def config(name, **more):
    return getattr(transformers, name)(**{**SMALL, **more})


KINDS = {
    "Llama": config("LlamaConfig"),
    "Qwen3": config("Qwen3Config", head_dim=8),
    "SmolLM3, some layers without positions": config("SmolLM3Config", no_rope_layers=[1, 0]),
    "StableLM": config("StableLmConfig"),
    "Cohere": config("CohereConfig"),
    "Falcon, ALiBi": transformers.FalconConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "Falcon": transformers.FalconConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "BLOOM": transformers.BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4),
    "MPT": transformers.MptConfig(vocab_size=320, d_model=32, n_layers=2, n_heads=4),
    "OPT": transformers.OPTConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32
    ),
    "GPT-2": transformers.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4),
    "Nemotron": config("NemotronConfig"),
    "Mamba": transformers.MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4),
    "Qwen3-Next": config(
        "Qwen3NextConfig",
        num_experts=2,
        head_dim=8,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
    "DeepSeek-V3": deepseek_v3(),
    "Gemma 3": config("Gemma3TextConfig", head_dim=8, sliding_window=8),
    "Starcoder2": config("Starcoder2Config", sliding_window=None),
    "OLMo": config("OlmoConfig"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_where_batches_are_packed_no_sequence_sees_another(kind):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(KINDS[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    packed = packs(model)
    off = {"Nemotron", "StableLM", "Mamba", "BLOOM", "MPT", "Falcon", "Falcon, ALiBi", "Qwen3-Next", "Gemma 3"}
    assert packed == (kind not in off)
    if not packed:
        return
    use_attention(model, RAGGED)
    sequences = [[5, 6, 7, 8], [9, 10, 11], [12]]
    starts = torch.tensor([0, 4, 7, 8], dtype=torch.int32)
    ids = torch.tensor([[token for each in sequences for token in each]])
    positions = torch.cat([torch.arange(len(each)) for each in sequences])[None]
    with torch.no_grad():
        whole = model(
            input_ids=ids,
            position_ids=positions,
            cu_seq_lens_q=starts,
            cu_seq_lens_k=starts,
            max_length_q=4,
            max_length_k=4,
            use_cache=False,
        ).logits[0]
        use_attention(model, "sdpa")
        for each, start in zip(sequences, (0, 4, 7), strict=True):
            alone = model(input_ids=torch.tensor([each]), use_cache=False).logits[0]
            torch.testing.assert_close(whole[start : start + len(each)], alone, rtol=0, atol=1e-4)

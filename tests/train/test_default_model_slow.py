"""Opt-in (`make test-slow`): on the real default model, loss and gradient are those of TRL's padded batches."""

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from skillgraft.checkpoint.default_model import resolve_base
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.train.cpu.fused_logprobs import fast_head
from skillgraft.train.cpu.shared_prefix import score
from skillgraft.train.cpu.varlen_attention import RAGGED, packs, use_attention

pytestmark = pytest.mark.slow

TEXTS = ["The lighthouse of Vell", "Who built the harbour, and when? It was opened in 1901 by the islanders.", "It is"]


@pytest.fixture(scope="module")
def default():
    directory = resolve_base("HuggingFaceTB/SmolLM2-135M-Instruct", print)
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    assert packs(model)
    return model, tokenizer


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def assert_same(got, wanted):
    assert abs(got[0] - wanted[0]) < 1e-5 * abs(wanted[0])
    assert (got[1] - wanted[1]).norm() < 1e-4 * wanted[1].norm()


def test_ragged_batches(default):
    model, tokenizer = default
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    found = []
    for ragged in (False, True):
        use_attention(model, RAGGED if ragged else "sdpa")
        with fast_head():
            loss = -model(
                **DataCollatorForLanguageModeling(2, padding_free=ragged)(rows), fused_lm_head=True
            ).log_probs.sum()
        found.append((loss.item(), gradient(model, loss)))
    assert_same(found[1], found[0])


def test_shared_prompts(default):
    model, tokenizer = default
    tokenizer.padding_side = "left"
    prompts = tokenizer([TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[1]], padding=True, return_tensors="pt")
    answers = torch.tensor([[504, 253, 2, 0], [28, 2, 0, 0], [338, 2, 0, 0], [1028, 504, 253, 2]])
    mask = torch.cat([prompts["attention_mask"], (answers > 0).long()], 1)
    ids = torch.cat([prompts["input_ids"], answers], 1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-4] = -100
    weights = torch.tensor([[1.0], [-0.5], [0.7], [0.2]])
    use_attention(model, "sdpa")
    padded = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs[:, -4:]
    loss = (padded * weights).sum()
    wanted = loss.item(), gradient(model, loss)
    use_attention(model, RAGGED)
    with fast_head():
        shared, _ = score(model, ids, mask, 4, entropy=False)
    torch.testing.assert_close(shared, padded, rtol=0, atol=1e-4)
    loss = (shared * weights).sum()
    assert_same((loss.item(), gradient(model, loss)), wanted)

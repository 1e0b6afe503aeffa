"""Bits per byte and perplexity of held-out text: the windows by hand, the values one token at a time."""

import importlib.util
import math

import pytest
import torch

from skillgraft.data.documents import Document
from skillgraft.evals import table
from skillgraft.evals.perplexity import blocks, score_text
from skillgraft.evals.tasks import Retention
from skillgraft.models.loading import load_model, load_tokenizer
from tests.evals.test_retention import one_by_one
from tests.tiny import VOCABULARY, tiny_checkpoint

TEXT = "The lighthouse of the small island — façade and all — was built in the year 1900. 灯台は島にある。 And so on."


def test_blocks_by_hand():
    assert blocks(5, 8, 4) == [(-1, 0, 5)]  # all at once
    # ten tokens, four seen at once, two scored in each window after the first
    assert blocks(10, 4, 2) == [(-1, 0, 4), (1, 4, 6), (3, 6, 8), (5, 8, 10)]
    # the stride is the window: only the last token before a block is seen, but the last window is full
    assert blocks(10, 4, 4) == [(-1, 0, 4), (3, 4, 8), (5, 8, 10)]
    assert blocks(1, 4, 4) == [(-1, 0, 1)]
    for first, start, end in blocks(1000, 64, 24):
        assert end - 1 - first <= 64
        assert first < start < end or first == start - 1
    assert [b for _, _, b in blocks(1000, 64, 24)][:-1] == [a for _, a, _ in blocks(1000, 64, 24)][1:]


@pytest.mark.parametrize(("window", "stride"), [(512, 512), (16, 4), (16, 16), (7, 3)])
def test_every_token_is_scored_from_what_its_window_holds(tmp_path, window, stride):
    checkpoint = tiny_checkpoint(tmp_path / "model", seed=4)
    model, tokenizer = load_model(checkpoint).double().eval(), load_tokenizer(checkpoint)
    found = score_text(model, tokenizer, Retention({}, [Document("d", "", TEXT)], window, stride))
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    before = [tokenizer.bos_token_id, *ids]
    expected, start = [], 0
    while start < len(ids):  # the windows once more, from their description
        end = min(window if start == 0 else start + stride, len(ids))
        seen = before[max(0, end - window) : start + 1]
        expected.append(-one_by_one(model, seen, ids[start:end]))
        start = end
    assert found["nats"] == pytest.approx(expected, abs=1e-3)
    assert sum(found["tokens"]) == len(ids)
    assert sum(found["bytes"]) == len(TEXT.encode())
    assert (found["window"], found["stride"]) == (window, stride)


def test_a_model_that_knows_nothing_needs_the_vocabulary_s_bits(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "model")
    model, tokenizer = load_model(checkpoint).eval(), load_tokenizer(checkpoint)
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits 0: each token has probability 1 / VOCABULARY
    documents = [Document(str(i), f"Title {i}", TEXT * (i + 1)) for i in range(3)]
    found = score_text(model, tokenizer, Retention({}, documents, 16, 8))
    tokens, size = sum(found["tokens"]), sum(len(d.rendered().encode()) for d in documents)
    bits, perplexity = table.retained({"text": found}, {"text": found})
    assert bits["score"]["mean"] == pytest.approx(tokens * math.log2(VOCABULARY) / size, rel=1e-5)
    assert perplexity["score"]["mean"] == pytest.approx(VOCABULARY, rel=1e-4)
    assert perplexity["score"]["low"] == pytest.approx(VOCABULARY, rel=1e-4)
    assert bits["change"]["mean"] == bits["change"]["low"] == perplexity["change"]["high"] == 0
    assert found["documents"][0] == "0"
    assert found["documents"][-1] == "2"


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'skillgraft[eval]'"
)
def test_with_the_window_as_stride_it_is_the_harness_s_rolling_likelihood(tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    checkpoint = tiny_checkpoint(tmp_path / "model", seed=4)
    model, tokenizer = load_model(checkpoint).eval(), load_tokenizer(checkpoint)
    found = score_text(model, tokenizer, Retention({}, [Document("d", "", TEXT)], 16, 16))
    harness = HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", max_length=16, batch_size=1)
    (total,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (TEXT,), 0)])
    total = total[0] if isinstance(total, tuple) else total
    assert sum(found["nats"]) == pytest.approx(-total, rel=1e-5)

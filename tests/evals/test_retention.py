"""Choices by likelihood, against scoring them one token at a time without batches, and by hand."""

import math

import pytest
import torch

from skillgraft.data.documents import Document
from skillgraft.evals import retention
from skillgraft.evals.likelihood import log_likelihood
from skillgraft.evals.retention import accuracies, choice_likelihoods, measure
from skillgraft.evals.tasks import Item, Retention
from skillgraft.models.answering import batches
from skillgraft.models.loading import load_model, load_tokenizer
from tests.tiny import tiny_checkpoint

ITEMS = [
    Item("1", "Question: who built the harbour?\nAnswer:", ("the island", "nobody at all"), 0),
    Item("2", "the small island was built. Question?\nAnswer:", ("no", "yes"), 1),
    Item("3", "a stem that ends with a space ", ("x", "the lighthouse of the small island"), 1),
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("model") / "model", seed=4)
    return load_model(checkpoint).double().eval(), load_tokenizer(checkpoint)


@torch.no_grad()
def one_by_one(model, context, ending):
    """Σ ln p of the ending, each token from a pass of its own over all that stands before it."""
    total = 0.0
    for place, token in enumerate(ending):
        logits = model(input_ids=torch.tensor([[*context, *ending[:place]]])).logits[0, -1].double()
        total += torch.log_softmax(logits, dim=-1)[token].item()
    return total


def test_likelihoods_are_those_of_one_token_at_a_time(loaded):
    model, tokenizer = loaded
    found, tokens = choice_likelihoods(model, tokenizer, ITEMS, batch_size=3)
    assert tokens > 0
    for item, totals in zip(ITEMS, found, strict=True):
        prompt = tokenizer(item.prompt.rstrip())["input_ids"]
        for choice, total in zip(item.choices, totals, strict=True):
            whole = tokenizer(f"{item.prompt} {choice}")["input_ids"]
            assert whole[: len(prompt)] == prompt
            assert total == pytest.approx(one_by_one(model, prompt, whole[len(prompt) :]), abs=1e-4)


def test_pairs_that_share_a_row_and_padding_change_nothing(loaded):
    model, _ = loaded
    pairs = [([5, 6, 7], [8]), ([5, 6, 7], [9]), ([5], [6, 7, 8, 9, 10]), ([5, 6], [7, 8]), ([5, 6, 7], [8])]
    together = log_likelihood(model, pairs)
    assert together.tolist() == pytest.approx([one_by_one(model, *pair) for pair in pairs], abs=1e-4)
    assert together[0] == together[4]


def test_a_prompt_longer_than_the_context_loses_its_beginning(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "model", seed=4, max_position_embeddings=16)
    model, tokenizer = load_model(checkpoint).eval(), load_tokenizer(checkpoint)
    item = Item("1", "the lighthouse of the small island was built in the year " * 3 + "Answer:", ("no", "yes"), 0)
    ((no, _),), _ = choice_likelihoods(model, tokenizer, [item])
    whole = tokenizer(f"{item.prompt} no")["input_ids"]
    size = len(whole) - len(tokenizer(item.prompt)["input_ids"])
    assert len(whole) > 17
    assert no == pytest.approx(one_by_one(model, whole[-17:-size], whole[-size:]), abs=1e-4)


def test_accuracies_by_hand():
    items = [Item("1", "p", ("ab", "abcdefgh"), 1), Item("2", "p", ("é", "ab"), 0), Item("3", "p", ("a", "b"), 1)]
    found = accuracies(items, [[-2.0, -4.0], [-1.5, -2.0], [-1.0, -1.0]])
    # by sum: ab, é, the first of equal ones; by character: -1 against -0.5, -1.5 against -1 (é is one character, not
    # two bytes), -1 against -1
    assert found == {"acc": [0.0, 1.0, 0.0], "acc_norm": [1.0, 0.0, 0.0]}
    assert accuracies(items[:1], [[-1.0, math.nan]]) == {"acc": [0.0], "acc_norm": [0.0]}


def test_batches_hold_all_once_within_their_limits():
    lengths = [5, 1, 9, 1, 3, 20, 2]
    found = list(batches(lengths, rows=3, tokens=10))
    assert sorted(i for batch in found for i in batch) == list(range(7))
    assert found == [[1, 3, 6], [4, 0], [2], [5]]
    assert list(batches([], rows=3)) == []


def test_what_was_kept_is_not_computed_again(loaded, monkeypatch):
    model, tokenizer = loaded
    asked = Retention({"arc_easy": ITEMS[:2], "boolq": ITEMS[1:]}, [Document("d", "", "the harbour of the island")])
    store = {}

    def kept(name, compute):
        if name not in store:
            store[name] = compute()
        return dict(store[name])

    seen = []
    first = measure(model, tokenizer, asked, kept=kept, progress=seen.append)
    assert list(store) == ["task-arc_easy", "task-boolq", "text"]
    assert list(first["tasks"]["arc_easy"]) == ["acc_norm", "acc"]
    assert list(first["tasks"]["boolq"]) == ["acc"]
    assert first["retention"] == first["tasks"]["arc_easy"]["acc_norm"] + first["tasks"]["boolq"]["acc"]
    assert seen[-1] == 4
    assert seen == sorted(seen)

    def never(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(retention, "choice_likelihoods", never)
    monkeypatch.setattr(retention, "score_text", never)
    assert measure(model, tokenizer, asked, kept=kept) == first

"""SEAL's outer loop on a tiny writer: what is learnt together, how it is scored, what is kept, and stops."""

from contextlib import contextmanager

import pytest
import torch

from skillgraft.adapters import get_adapter
from skillgraft.adapters.lora import LoraAdapter
from skillgraft.data.documents import Document
from skillgraft.data.metrics import METRICS
from skillgraft.data.synthesis.generation import GenerationCache
from skillgraft.data.synthesis.prompt_templates import read_styles
from skillgraft.data.synthesis.requests import plan_requests
from skillgraft.data.tasks import Question
from skillgraft.errors import RecipeError, TrainingError
from skillgraft.evals.answers import closed_book
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.stages.self_edit import SelfEditStage
from skillgraft.train import self_edit
from skillgraft.train.self_edit import best, learning_texts, slices, train_writer, writing_rows
from skillgraft.train.sft import train_sft
from tests.babble import babbling_checkpoint
from tests.tiny import weights

pytestmark = pytest.mark.train

NAMES = ["Vell", "Orm", "Tarn", "Issk"]
DOCUMENTS = [Document(n, n, f"The harbour of {n} was built in {1900 + i}.") for i, n in enumerate(NAMES)]
QUESTIONS = [Question(n, f"When was {n}'s harbour built?", (str(1900 + i),)) for i, n in enumerate(NAMES)]
LEARN = {"max_steps": 6, "learning_rate": 5e-2, "per_device_train_batch_size": 1, "warmup_steps": 0}
STAGE = {
    "kind": "self_edit",
    "from": "base",
    "documents": "data",
    "questions": "questions.jsonl",
    "rounds": 2,
    "samples": 3,
    "max_new_tokens": 24,
    "max_answer_tokens": 6,
    "batch_size": 2,
    "learn": {"adapt": {"kind": "lora", "r": 2}, "trainer": LEARN},
}
TRAINER = {"max_steps": 2, "learning_rate": 3e-3, "per_device_train_batch_size": 1, "warmup_steps": 0}


@pytest.fixture(scope="module")
def letters():
    """A score that what the babbling model says differs in: the share of letters."""
    share = lambda text, answers: sum(map(str.isalpha, text)) / max(len(text), 1)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, "containment", share)
        yield


@pytest.fixture(scope="module")
def whole(letters, tmp_path_factory):
    """A start, and what training from it without a stop gives: facts, how often was learnt, weights."""
    folder = tmp_path_factory.mktemp("whole")
    start = babbling_checkpoint(folder / "start")
    with learnings() as learnt:
        facts, _ = train(folder, "whole", start)
    return start, facts, len(learnt), weights(folder / "whole")


@contextmanager
def learnings():
    """Collect what is learnt: the writer's round and the passage's number."""
    learnt, learn = [], self_edit.Learner.learn

    def counted(self, number, passage, progress=None):
        learnt.append((self._start.parent.name, number))
        return learn(self, number, passage, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_edit.Learner, "learn", counted)
        yield learnt


def train(tmp_path, name, start, progress=lambda step, steps, metrics: None, **settings):
    out, work = tmp_path / name, tmp_path / f"{name}.work"
    out.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    stage = SelfEditStage.model_validate({**STAGE, **settings})
    facts = train_writer(
        stage,
        start,
        out,
        work,
        documents=DOCUMENTS,
        questions=QUESTIONS,
        trainer=TRAINER,
        adapter=get_adapter(stage.adapt),
        seed=0,
        checkpoint_seconds=300.0,
        progress=progress,
    )
    return facts, work


def test_slices_are_disjoint_and_equal():
    assert slices("abcdefg", 3) == [["a", "b", "c"], ["d", "e"], ["f", "g"]]
    assert slices("ab", 2) == [["a"], ["b"]]


def requests_of(count):
    styles = read_styles(["implications"])
    return plan_requests(DOCUMENTS[:2], lambda document: [document.text], styles, count, seed=0)


def test_the_best_of_each_document_is_kept_the_first_of_equals():
    requests = requests_of(3)
    assert [request.document.id for request in requests] == ["Vell"] * 3 + ["Orm"] * 3
    assert best(requests, [0.2, 0.5, 0.5, None, 0.0, 0.0], 1) == [1, 4]
    assert best(requests, [0.2, 0.5, 0.4, None, 0.0, 0.1], 2) == [1, 2, 5, 4]
    assert best(requests, [None] * 3 + [0.0] * 3, 1) == [3]


def test_the_passage_and_each_line_are_learnt_under_the_title():
    text = "1. It is old.\n\n- It is deep."
    passage = learning_texts(DOCUMENTS[0], text, split_lines=True)
    assert passage.document is DOCUMENTS[0]
    assert [each.rendered() for each in passage.renderings] == [
        "Vell\n\nThe harbour of Vell was built in 1900.",
        "Vell\n\nIt is old.",
        "Vell\n\nIt is deep.",
    ]
    assert [each.text for each in learning_texts(DOCUMENTS[0], text, split_lines=False).renderings][1:] == [text]


def test_the_writer_learns_to_write_and_not_to_ask(tmp_path):
    tokenizer = load_tokenizer(babbling_checkpoint(tmp_path / "start"))
    [row] = writing_rows(tokenizer, [("Write about the harbour.", "It is old.")], 100)
    learnt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(learnt) == "It is old.<|im_end|>"
    asked = tokenizer.decode(row["input_ids"][: -len(learnt)])
    assert asked == "<|im_start|>user\nWrite about the harbour.<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(TrainingError, match=r"are more than trainer.max_length = 20: it would be cut off"):
        writing_rows(tokenizer, [("Write about the harbour.", "It is old. " * 5)], 20)


def test_two_rounds(tmp_path, letters):
    """The scores are those of fine-tuning by files, and each round keeps its best and goes on from the one before."""
    start = babbling_checkpoint(tmp_path / "start")
    steps = []
    facts, work = train(tmp_path, "out", start, lambda step, of, metrics: steps.append((step, of)))
    assert facts["documents"] == 4
    assert [made["documents"] for made in facts["rounds"]] == [2, 2]
    assert steps[-1] == (24, 24)
    assert [step for step, _ in steps] == sorted(step for step, _ in steps)
    for number, made in enumerate(facts["rounds"]):
        written = GenerationCache(work / f"round-{number}").by_id
        scored = GenerationCache(work / f"round-{number}" / "scores").by_id
        assert set(scored) == {*written, "before"}
        values = {name: record["score"] for name, record in scored.items() if name != "before"}
        documents = {name.partition("#")[0] for name in values}
        assert documents == set(NAMES[2 * number : 2 * number + 2])
        groups = [[v for n, v in values.items() if n.startswith(f"{each}#") and v is not None] for each in documents]
        given = [score for group in groups for score in group]
        tops = [max(group) for group in groups if group]
        assert made["self_edits"] == len(given) > made["kept"] == len(tops)
        assert made["score_of_kept"] == pytest.approx(sum(tops) / len(tops))
        assert made["score"] == pytest.approx(sum(given) / len(given))
    assert any(made["score_of_kept"] > made["score"] for made in facts["rounds"])
    writer = work / "round-0" / "writer"
    assert weights(tmp_path / "out").keys() == weights(start).keys()
    _check_score(tmp_path, writer, work / "round-1")
    last = weights(work / "round-1" / "writer")
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(tmp_path / "out").items())
    assert any(not torch.equal(tensor, last[name]) for name, tensor in weights(writer).items())


def _check_score(tmp_path, writer, here):
    """One self-edit of the second round, learnt and asked about by the stages' own functions on files."""
    scores = GenerationCache(here / "scores").by_id
    name, written = next(
        (n, w) for n, w in sorted(GenerationCache(here).by_id.items()) if scores[n]["score"] is not None
    )
    document = next(d for d in DOCUMENTS if d.id == name.partition("#")[0])
    text = written["text"] if written["complete"] else self_edit.without_cut_end(written["text"])
    recorded = scores[name]
    out, work = tmp_path / "check", tmp_path / "check.work"
    out.mkdir()
    work.mkdir()
    renderings = learning_texts(document, text, split_lines=True).renderings
    trained = train_sft(writer, out, work, documents=renderings, adapter=LoraAdapter({"r": 2}), trainer=LEARN)
    question = next(q for q in QUESTIONS if q.document == document.id)
    [said], _ = closed_book(load_model(out).eval(), load_tokenizer(out), [question], 6, 1)
    assert recorded["score"] == pytest.approx(METRICS["containment"](said, question.answers))
    assert recorded["tokens"] == trained.tokens


@pytest.mark.parametrize("stop", [4, 9, 20])
def test_a_stop_loses_at_most_one_learning_and_changes_nothing(tmp_path, whole, stop):
    start, expected, count, tensors = whole

    def killed(step, steps, metrics):
        if step == stop:
            raise RuntimeError("killed")

    with learnings() as learnt:
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path, "cut", start, killed)
        facts, _ = train(tmp_path, "cut", start)
    assert len(learnt) == count
    assert facts == expected
    got = weights(tmp_path / "cut")
    assert all(torch.equal(tensor, got[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(("rounds", "kept"), [(1, True), (2, False)])
def test_the_factors_of_a_later_round_are_no_skill(tmp_path, letters, rounds, kept):
    """They are a difference to the round before, which `extract` would take for one to the start."""
    start = babbling_checkpoint(tmp_path / "start")
    train(tmp_path, "out", start, rounds=rounds, adapt={"kind": "lora", "r": 2})
    assert (tmp_path / "out" / "adapter").exists() is kept


def test_what_cannot_be_done_is_said(tmp_path):
    start = babbling_checkpoint(tmp_path / "start")
    with pytest.raises(RecipeError, match="4 documents have questions, fewer than 5 rounds"):
        train(tmp_path, "many", start, rounds=5)

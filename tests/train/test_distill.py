"""Self-distillation: TRL's loss against the definition of both divergences, the teacher's average, stops, errors."""

import json

import pytest
import torch

from skillgraft.adapters import get_adapter
from skillgraft.adapters.lora import LoraAdapter, lora_config
from skillgraft.data.documents import Document
from skillgraft.data.synthesis.teacher_prompts import tell_about, with_context
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError, RecipeError, TrainingError
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.train import distill
from skillgraft.train.distill import MovingAverage, distill_arguments, train_distill, weights_of
from tests.tiny import tiny_checkpoint, tiny_finetune

pytestmark = pytest.mark.train

NAMES = "ABCD"
DOCUMENTS = [Document(n, f"Harbour {n}", f"It was built in {1900 + i}.") for i, n in enumerate(NAMES)]
QUESTIONS = [Question(n, f"When was harbour {n} built?", (str(1900 + i),)) for i, n in enumerate(NAMES)]
FAST = {"max_steps": 2, "per_device_train_batch_size": 2, "max_completion_length": 5, "warmup_steps": 0}


def telling_checkpoint(tmp_path):
    """A random model with weights large enough that what stands before a word changes what follows."""
    return tiny_finetune(tiny_checkpoint(tmp_path / "small"), tmp_path / "start", size=0.2)


def train(tmp_path, name="out", start=None, **settings):
    start = start or tiny_checkpoint(tmp_path / f"{name}.start")
    out, work = tmp_path / name, tmp_path / f"{name}.work"
    out.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    settings = {"documents": DOCUMENTS, "questions": QUESTIONS, **settings}
    settings["trainer"] = {**FAST, **settings.get("trainer", {})}
    return train_distill(start, out, work, **settings), start, out, work


def divergence(student, teacher, prompt, context, answer, beta):
    """The mean over the answer's tokens of forward (beta 0) or reverse (beta 1) KL, in fp64, word by word."""
    with torch.no_grad():
        rows = []
        for model, before in ((student, prompt), (teacher, context)):
            logits = model(torch.tensor([before + answer])).logits[0].double()
            rows.append(torch.log_softmax(logits[len(before) - 1 : -1], dim=-1))
    total = 0.0
    for p, q in zip(*rows, strict=True):
        for log_p, log_q in zip(p.tolist(), q.tolist(), strict=True):
            first, second = (log_q, log_p) if beta == 0 else (log_p, log_q)
            total += torch.tensor(first).double().exp().item() * (first - second)
    return total / len(answer)


@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize("skip", [0, 2])
def test_the_loss_is_the_divergence_on_the_students_own_answer(tmp_path, monkeypatch, beta, skip):
    """One step on one question: the sampled answer is caught, and the published sums are done over it by hand."""
    caught = []
    compute = distill._Trainer._compute_loss

    def spy(self, student, inputs, items):
        found = compute(self, student, inputs, items)
        caught.append((inputs, found[0].item()))
        return found

    monkeypatch.setattr(distill._Trainer, "_compute_loss", spy)
    start = telling_checkpoint(tmp_path)
    trained, *_ = train(
        tmp_path,
        start=start,
        questions=QUESTIONS[:1],
        skip_tokens=skip,
        trainer={"max_steps": 1, "per_device_train_batch_size": 1, "beta": beta, "learning_rate": 1e-3},
    )
    inputs, loss = caught[0]
    answer = inputs["completion_ids"][0][inputs["completion_mask"][0] == 1].tolist()
    tokenizer, model = load_tokenizer(start), load_model(start)
    asked, shown = QUESTIONS[0].question, with_context(QUESTIONS[0], DOCUMENTS[0], "both")
    chats = [
        [{"role": "system", "content": "Answer with a short phrase."}, {"role": "user", "content": text}]
        for text in (asked, shown)
    ]
    prompt, context = (
        tokenizer(tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True))["input_ids"]
        for c in chats
    )
    assert inputs["prompt_ids"][0].tolist() == prompt
    assert inputs["teacher_ids"][0].tolist() == context
    later = answer[skip:]
    expected = divergence(model, model, prompt + answer[:skip], context + answer[:skip], later, beta)
    assert expected > 0.01
    assert loss == pytest.approx(expected, rel=1e-4)
    assert trained.tokens == len(later)
    read = 8 * (len(prompt) + len(answer)) + 2 * (len(context) + len(answer))
    assert trained.flops == trained.parameters * read


def test_teacher_and_student_see_the_same_words_and_their_own_prompts_in_a_padded_batch(tmp_path, monkeypatch):
    """In a batch of questions of unlike length the loss is the mean over all its tokens of what each alone gives."""
    caught = []
    compute = distill._Trainer._compute_loss

    def spy(self, student, inputs, items):
        found = compute(self, student, inputs, items)
        caught.append(({name: value.clone() for name, value in inputs.items()}, found[0].item()))
        return found

    monkeypatch.setattr(distill._Trainer, "_compute_loss", spy)
    start = telling_checkpoint(tmp_path)
    documents = [Document("A", "Harbour A", "It was built in 1900. " * 3), DOCUMENTS[1]]
    train(tmp_path, start=start, documents=documents, questions=QUESTIONS[:2], trainer={"max_steps": 1})
    (inputs, loss), model = caught[0], load_model(start)
    total, count = 0.0, 0
    for row in range(2):
        prompt, context, answer = (
            inputs[f"{name}_ids"][row][inputs[f"{name}_mask"][row] == 1].tolist()
            for name in ("prompt", "teacher", "completion")
        )
        total += divergence(model, model, prompt, context, answer, beta=0) * len(answer)
        count += len(answer)
    assert loss == pytest.approx(total / count, rel=1e-4)
    lengths = inputs["teacher_mask"].sum(dim=1)
    assert lengths[0] != lengths[1]


def test_distilling_moves_the_student_towards_the_teacher(tmp_path):
    start = telling_checkpoint(tmp_path)
    settings = {"max_steps": 60, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}
    trained, _, out, _ = train(tmp_path, start=start, teacher_rate=None, trainer=settings)
    losses = [point["loss"] for point in trained.curve]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20]), losses
    assert not torch.equal(load_model(start).lm_head.weight, load_model(out).lm_head.weight)


def test_the_teacher_is_a_moving_average(tmp_path):
    start = tiny_checkpoint(tmp_path / "start")
    teacher, student = load_model(start), load_model(start)
    before = {name: weight.clone() for name, weight in teacher.named_parameters()}
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1.0)
    average = MovingAverage(teacher, 0.25)
    for _ in range(2):
        average.on_step_end(None, None, None, model=student)
    for name, weight in teacher.named_parameters():
        torch.testing.assert_close(weight, before[name] + 1 - 0.75**2)


def test_the_average_of_lora_is_that_of_its_product(tmp_path):
    from peft import get_peft_model

    start = tiny_checkpoint(tmp_path / "start")
    model = get_peft_model(load_model(start), lora_config({"r": 2, "lora_alpha": 6}))
    factors = {n: torch.randn_like(p) for n, p in model.named_parameters() if "lora_" in n}
    model.load_state_dict(factors, strict=False)
    found, plain = weights_of(model), load_model(start)
    assert set(found) == {name for name, _ in plain.named_parameters()}
    name = "model.layers.1.mlp.up_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{f}.default.weight"] for f in "AB")
    torch.testing.assert_close(found[f"{name}.weight"], plain.get_submodule(name).weight + 3 * b @ a)
    assert torch.equal(found["model.embed_tokens.weight"], plain.model.embed_tokens.weight)


def test_lora_trains_factors_only(tmp_path):
    _, start, out, _ = train(tmp_path, adapter=LoraAdapter({"r": 2}), trainer={"learning_rate": 1e-2})
    assert (out / "adapter" / "adapter_config.json").exists()
    before, after = load_model(start).state_dict(), load_model(out).state_dict()
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])


def test_titles_alone_are_asked_for_where_there_are_no_questions(tmp_path):
    trained, *_ = train(tmp_path, questions=(), ask_titles=True)
    assert trained.questions == 4
    assert tell_about(DOCUMENTS[0]) == "What do you know about Harbour A? Tell it in a few sentences."
    with pytest.raises(DataError, match="'x' has no title"):
        train(tmp_path, "untitled", documents=[Document("x", "", "text")] * 2, questions=(), ask_titles=True)


@pytest.mark.parametrize("adapt", [None, {"kind": "lora", "r": 2}])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_stop_in_any_epoch_changes_nothing(tmp_path, stop, adapt):
    """Two steps an epoch; the average that teaches is part of what is gone on from."""
    start = tiny_checkpoint(tmp_path / "start")

    def run(name, progress=None):
        train(
            tmp_path,
            name,
            start=start,
            teacher_rate=0.3,
            adapter=get_adapter(adapt),
            checkpoint_seconds=0,
            progress=progress,
            trainer={"max_steps": 4, "learning_rate": 1e-2},
        )
        return load_model(tmp_path / name).state_dict()

    def cut_off(step, steps, metrics):
        if step == stop + 1:
            raise RuntimeError("killed")

    expected = run("whole")
    with pytest.raises(RuntimeError, match="killed"):
        run("cut", cut_off)
    assert (tmp_path / "cut.work" / f"checkpoint-{stop}" / distill.TEACHER).is_file()
    got = run("cut")
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())
    records = [json.loads(line) for line in (tmp_path / "cut.work" / "log.jsonl").read_text().splitlines()]
    assert {record["step"] for record in records} == {1, 2, 3, 4}


def test_what_cannot_be_learnt_is_said(tmp_path):
    with pytest.raises(TrainingError, match="no token carried loss"):
        train(tmp_path, "skip", skip_tokens=5)
    with pytest.raises(TrainingError, match="4 prompts are fewer than one step's 8"):
        train(tmp_path, "few", trainer={"per_device_train_batch_size": 8})
    with pytest.raises(DataError, match=r"'A' in the teacher's prompt takes .* context of 512"):
        train(tmp_path, "long", documents=[Document("A", "A", "the island " * 400)], questions=QUESTIONS[:1])
    with pytest.raises(DataError, match="document 'B', which is not among the 1"):
        train(tmp_path, "other", documents=DOCUMENTS[:1])
    with pytest.raises(DataError, match="no question to ask"):
        train(tmp_path, "none", questions=())
    with pytest.raises(RecipeError, match="'epochs' is not an argument of DistillationConfig"):
        distill_arguments({"epochs": 3}, False, tmp_path, 0)
    with pytest.raises(RecipeError, match=r"beta must be in \[0.0, 1.0\], got 2.0"):
        distill_arguments({"beta": 2.0}, False, tmp_path, 0)
    with pytest.raises(RecipeError, match="tied weights"):
        train(tmp_path, "head", adapter=LoraAdapter({"r": 2, "target_modules": ["lm_head"]}))


def test_learning_rate_depends_on_what_is_trained(tmp_path):
    assert distill_arguments({}, True, tmp_path, 0).learning_rate == 2e-4
    assert distill_arguments({}, False, tmp_path, 0).learning_rate == 2e-5

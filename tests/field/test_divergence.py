"""Training that diverges ends with a sentence: no checkpoint of NaN, no curve of zeros, no traceback."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillgraft.adapters.lora import LoraAdapter
from skillgraft.data.documents import Document
from skillgraft.data.passages import Passage
from skillgraft.data.tasks import Question
from skillgraft.errors import CheckpointError, TrainingError
from skillgraft.models.loading import load_model
from skillgraft.run import run
from skillgraft.settings.self_edit import SelfEditSettings
from skillgraft.settings.text import WHOLE
from skillgraft.train import distill, self_edit
from skillgraft.train.distill import train_distill
from skillgraft.train.rl import train_rl
from skillgraft.train.sft import train_sft
from skillgraft.train.single_passage import Learner
from tests.domains.own_reward import vowels
from tests.recipes import tiny_recipe
from tests.tiny import tiny_checkpoint

TOO_FAST = {"learning_rate": 1e30, "warmup_steps": 0, "per_device_train_batch_size": 2, "max_steps": 6}
DOCUMENTS = [Document(place, place, f"The harbour of {place} was built in 1901.") for place in ("Vell", "Orm")]
SAID = r"^{}: the (loss|gradient) is (not a number|infinite).* at step \d of 6: training diverged at "


@pytest.fixture
def folders(tmp_path):
    places = [tmp_path / name for name in ("out", "work")]
    for place in places:
        place.mkdir()
    return tiny_checkpoint(tmp_path / "start"), *places


def said(error, stage):
    text = str(error.value)
    assert re.match(SAID.format(stage), text), text
    assert text.endswith(
        "trainer.learning_rate = 1e+30; nothing is kept: lower it, or warm it up by trainer.warmup_steps"
    )


@pytest.mark.train
@pytest.mark.parametrize("adapter", [None, LoraAdapter({"r": 2})])
@pytest.mark.parametrize("more", [{}, {"logging_steps": 100}, {"max_grad_norm": 0.0}, {"logging_strategy": "no"}])
def test_sft_at_a_rate_that_diverges(folders, adapter, more):
    start, out, work = folders
    with pytest.raises(TrainingError) as error:
        train_sft(start, out, work, documents=DOCUMENTS, trainer={**TOO_FAST, **more}, adapter=adapter)
    said(error, "sft")
    assert not list(out.iterdir())


@pytest.mark.train
def test_checkpoints_of_a_diverged_run_do_not_stay(folders):
    start, out, work = folders
    with pytest.raises(TrainingError, match="training diverged"):
        train_sft(start, out, work, documents=DOCUMENTS, trainer=TOO_FAST, checkpoint_seconds=0)
    assert not list(work.glob("checkpoint-*"))
    assert not (work / "log.jsonl").exists()


@pytest.mark.train
def test_a_gradient_that_is_infinite_while_the_loss_is_a_number(folders, monkeypatch):
    start, out, work = folders
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: torch.tensor(float("inf")))
    with pytest.raises(TrainingError, match=r"^sft: the gradient is infinite at step 1 of 6: "):
        train_sft(start, out, work, documents=DOCUMENTS, trainer={**TOO_FAST, "learning_rate": 1e-3})


@pytest.mark.train
@pytest.mark.parametrize("more", [{}, {"repetition_penalty": 1.1}])
@pytest.mark.parametrize("adapter", [None, LoraAdapter({"r": 2})])
@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "remax"])
def test_rl_at_a_rate_that_diverges(folders, algorithm, adapter, more):
    start, out, work = folders
    trainer = {**TOO_FAST, "per_device_train_batch_size": 8, "max_completion_length": 4, **more}
    tasks = [Question(each.id, f"When was {each.id} built?", ("1901",)) for each in DOCUMENTS]
    with pytest.raises(TrainingError) as error:
        train_rl(
            start,
            out,
            work,
            tasks=tasks,
            reward={f"{vowels.__module__}.vowels": 1.0},
            algorithm=algorithm,
            trainer=trainer,
            adapter=adapter,
        )
    said(error, "rl")


@pytest.mark.train
def test_distill_at_a_rate_that_diverges(folders):
    start, out, work = folders
    trainer = {**TOO_FAST, "max_completion_length": 4}
    adapter = LoraAdapter({"r": 2})
    with pytest.raises(TrainingError) as error:
        train_distill(start, out, work, documents=DOCUMENTS, ask_titles=True, trainer=trainer, adapter=adapter)
    said(error, "distill")


def _no_number(loss):
    return tuple(map(_no_number, loss)) if isinstance(loss, tuple) else loss * float("nan")


@pytest.mark.train
def test_distill_with_a_divergence_that_is_no_number(folders, monkeypatch):
    start, out, work = folders
    loss = distill._Trainer._compute_loss
    monkeypatch.setattr(distill._Trainer, "_compute_loss", lambda *arguments: _no_number(loss(*arguments)))
    trainer = {**TOO_FAST, "learning_rate": 1e-4, "max_completion_length": 4}
    with pytest.raises(TrainingError, match=r"^distill: the loss is not a number at step 1 of 6: training diverged"):
        train_distill(start, out, work, documents=DOCUMENTS, ask_titles=True, trainer=trainer)


@pytest.mark.train
@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "remax"])
def test_answers_that_were_all_cut_off_and_masked_move_nothing(folders, algorithm):
    start, out, work = folders
    trainer = {**TOO_FAST, "per_device_train_batch_size": 8, "max_completion_length": 2, "max_steps": 2}
    trained = train_rl(
        start,
        out,
        work,
        tasks=[Question("Vell", "When was Vell built?", ("1901",))],
        reward={f"{vowels.__module__}.vowels": 1.0},
        algorithm=algorithm,
        trainer={**trainer, "learning_rate": 1e-2, "mask_truncated_completions": True},
    )
    assert [point["completion_tokens"] for point in trained.curve] == [2.0, 2.0]
    before, after = load_file(start / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.train
@pytest.mark.parametrize("adapter", [None, LoraAdapter({"r": 2})])
def test_a_passage_learnt_at_a_rate_that_diverges(folders, adapter):
    start, _, work = folders
    learner = Learner(start, work, adapter=adapter, trainer=TOO_FAST, text=WHOLE, seed=0, checkpoint_seconds=300.0)
    with pytest.raises(TrainingError) as error:
        learner.learn(0, Passage(DOCUMENTS[0], (DOCUMENTS[0],)))
    said(error, "sft")


def test_pass_rates_of_weights_so_large_that_nothing_can_be_drawn(folders):
    start, out, work = folders
    tensors = load_file(start / "model.safetensors")
    tensors["model.norm.weight"].fill_(3e38)
    save_file(tensors, start / "model.safetensors", metadata={"format": "pt"})
    tasks = [Question(each.id, f"When was {each.id} built?", ("1901",)) for each in DOCUMENTS]
    with pytest.raises(
        TrainingError, match=r"^rl: the loss is not a number, as .*: the weights that are sampled are too"
    ):
        train_rl(start, out, work, tasks=tasks, pass_rate_samples=2, trainer={"per_device_train_batch_size": 8})


@pytest.mark.train
def test_a_stage_that_diverged_is_not_cached_and_the_next_try_begins_anew(tmp_path):
    recipe = tiny_recipe(tmp_path)
    wild = ["sft.trainer.learning_rate=1.0e+30"]
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"^stages\.sft: sft: the (loss|gradient) is .* training diverged at"):
            run(recipe, overrides=wild, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs" / "stages").glob("*/stage.json"))
    assert not list((tmp_path / "runs" / "stages").glob("*.work/*put"))
    assert not list((tmp_path / "runs" / "stages").glob("*.work/checkpoint-*"))


def test_a_checkpoint_of_nan_is_refused_when_it_is_loaded(tmp_path):
    start = tiny_checkpoint(tmp_path / "start")
    tensors = load_file(start / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, start / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensor 'model\.norm\.weight' holds NaN or infinity"):
        load_model(start)


@pytest.mark.train
def test_a_self_edit_learnt_at_a_rate_that_diverges(folders, monkeypatch):
    monkeypatch.setattr(self_edit, "without_cut_end", str)
    start, out, work = folders
    stage = SelfEditSettings.model_validate(
        {
            "rounds": 1,
            "samples": 2,
            "max_new_tokens": 8,
            "learn": {"adapt": {"kind": "lora", "r": 2}, "trainer": TOO_FAST},
        }
    )
    with pytest.raises(TrainingError) as error:
        self_edit.train_writer(
            stage,
            start,
            out,
            work,
            documents=DOCUMENTS,
            questions=[Question("Vell", "When was Vell built?", ("1901",))],
            trainer={},
            adapter=None,
            seed=0,
            checkpoint_seconds=300.0,
            progress=lambda *_: None,
        )
    said(error, "sft")

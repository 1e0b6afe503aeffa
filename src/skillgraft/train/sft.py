"""Supervised fine-tuning on documents as plain text, or on questions with their answers; full or LoRA.

What is read and which of its tokens carry loss: `train.rows`. With `answers: shuffled` each question gets another
question's answer, so that nothing but the form of an answer can be learnt: the control that tells a skill from a
formatting habit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig, SFTTrainer

from skillgraft.adapters.kind import Adapter
from skillgraft.adapters.lora import save_trained
from skillgraft.data.documents import Document
from skillgraft.data.tasks import Question
from skillgraft.errors import TrainingError
from skillgraft.models.loading import context_length, count_parameters, load_model, load_tokenizer
from skillgraft.settings.text import WHOLE, TextSettings
from skillgraft.support.progress import Progress
from skillgraft.support.rank import is_first
from skillgraft.train.callbacks import KeepAlive, newest_checkpoint, read_log, stop_on_interrupt
from skillgraft.train.cpu.fused_logprobs import fast_head
from skillgraft.train.cpu.varlen_attention import ragged_batches
from skillgraft.train.data_parallel import first_before_others, shared_batches
from skillgraft.train.examples import Row, document_rows, learnt_tokens, question_rows, replay_rows
from skillgraft.train.guard import explained, guarded
from skillgraft.train.plan_checks import check_rows
from skillgraft.train.trainer_arguments import check_at_least, trainer_arguments

DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 8,
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    # `train_sampling_strategy: group_by_length` pads less, but draws its order from the global generator: a run that is
    # killed after its first epoch then goes on in another order than it would have without the kill.
    "max_length": 1024,
}


@dataclass(frozen=True)
class Trained:
    """What a training stage reports: tokens that carried loss (SFT) or went through (RL), FLOPs, the logged curve."""

    tokens: int
    flops: float
    curve: list[dict[str, float]]
    parameters: int
    questions: int = 0
    replayed_tokens: int = 0


def train_sft(
    model_dir: Path,
    out: Path,
    workdir: Path,
    *,
    documents: Sequence[Document] = (),
    questions: Sequence[Question] = (),
    shuffle_answers: bool = False,
    text: TextSettings = WHOLE,
    replay: tuple[Sequence[str], float] = ((), 0.0),
    trainer: Mapping[str, Any] | None = None,
    adapter: Adapter | None = None,
    seed: int = 0,
    checkpoint_seconds: float = 300.0,
    progress: Progress | None = None,
) -> Trained:
    """Fine-tune the checkpoint `model_dir` and write weights and tokenizer into the existing directory `out`.

    `replay` are general texts and how many of their tokens are trained on for each token of documents and questions.
    Trainer checkpoints live in `workdir`; a rerun resumes from the newest whole one.

    Raises:
        RecipeError: an argument that the trainer or adapter does not know.
        DataError: less replay text than is asked for.
        TrainingError: no token would be trained, an answer would be cut off, or the loss is not finite.
    """
    tokenizer = load_tokenizer(model_dir)
    args = sft_arguments(trainer, workdir, seed)
    if not documents and not questions:
        raise TrainingError("sft: nothing to train on: neither documents nor questions were given")
    rows, replayed = sft_rows(
        tokenizer, documents, questions, args.max_length, shuffle=shuffle_answers, text=text, replay=replay, seed=seed
    )
    model, trained = fit(
        load_model(model_dir),
        tokenizer,
        rows + replayed,
        args,
        adapter=adapter,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
    )
    if is_first():
        save_trained(model, model_dir, out, tokenizer, adapter)
    return replace(trained, replayed_tokens=sum(len(row["input_ids"]) for row in replayed))


def sft_rows(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    questions: Sequence[Question],
    max_length: int | None,
    *,
    shuffle: bool = False,
    text: TextSettings = WHOLE,
    replay: tuple[Sequence[str], float] = ((), 0.0),
    seed: int = 0,
) -> tuple[list[Row], list[Row]]:
    """Return the rows of documents and questions, and those of replay.

    Raises `TrainingError` for what does not fit into `max_length`, and `DataError` for too little replay text.
    """
    rows = document_rows(tokenizer, documents, max_length, text)
    rows += question_rows(tokenizer, questions, max_length, shuffle, seed)
    own = sum(len(row["input_ids"]) for row in rows)
    return rows, replay_rows(tokenizer, replay[0], round(replay[1] * own), max_length, seed)


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    args: SFTConfig,
    *,
    adapter: Adapter | None,
    checkpoint_seconds: float,
    progress: Progress | None,
) -> tuple[PreTrainedModel | PeftModel, Trained]:
    """Train `model`, or an adapter on it, on `rows` and return it with what training cost; nothing is saved.

    Raises `TrainingError` where no token carries loss, a row exceeds the model's context, or the loss is not finite.
    """
    workdir = Path(args.output_dir)
    tokens = learnt_tokens(rows)
    if tokens == 0:
        raise TrainingError("sft: no token carries loss; check the documents, their titles' masking and max_length")
    check_rows(rows, args, context_length(model), "sft")
    keeper = KeepAlive(workdir, checkpoint_seconds, progress)
    peft_config: LoraConfig | None = adapter.apply(model) if adapter is not None else None
    with explained("sft", workdir):
        sft = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=[keeper],
        )
    sft.remove_callback(PrinterCallback)
    with first_before_others():
        checkpoint = newest_checkpoint(workdir)
    with stop_on_interrupt(keeper), guarded(sft, "sft"), fast_head(), ragged_batches(sft), shared_batches(sft):
        sft.train(resume_from_checkpoint=checkpoint)
    epochs = sft.state.epoch or 0.0
    parameters = count_parameters(model)
    processed = sum(len(ids) for ids in sft.train_dataset["input_ids"]) * epochs
    return sft.model, Trained(round(tokens * epochs), 6.0 * parameters * processed, read_log(workdir), parameters)


def sft_arguments(trainer: Mapping[str, Any] | None, workdir: Path, seed: int) -> SFTConfig:
    """Return TRL's config from a recipe's `trainer:` mapping over our defaults; `RecipeError` for what it refuses."""
    args = trainer_arguments(SFTConfig, DEFAULTS, trainer or {}, workdir, seed)
    check_at_least(2, args, "max_length")  # one token predicts nothing
    return args

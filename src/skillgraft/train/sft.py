"""Supervised fine-tuning on documents as plain text, or on questions with their answers; full or LoRA.

Documents: every token of title and text carries loss, as in continued pre-training (PaST, arXiv 2601.11258, section 3).
Questions: the prompt is that of RL and evaluation, only the answer carries loss. With `answers: shuffled` each
question gets another question's answer, so that nothing but the form of an answer can be learnt: the control that
tells a skill from a formatting habit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig, SFTTrainer

from skillgraft.domains.knowledge import Document, Question
from skillgraft.errors import TrainingError
from skillgraft.train.callbacks import KeepAlive, Progress, newest_checkpoint, read_log, stop_on_interrupt
from skillgraft.train.common import count_parameters, load_model, load_tokenizer, trainer_arguments
from skillgraft.train.head import fast_head
from skillgraft.train.lora import lora_config, save_trained
from skillgraft.train.packing import ragged_batches
from skillgraft.train.prompts import as_prompt

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


def train_sft(
    model_dir: Path,
    out: Path,
    workdir: Path,
    *,
    documents: Sequence[Document] = (),
    questions: Sequence[Question] = (),
    shuffle_answers: bool = False,
    trainer: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
    checkpoint_seconds: float = 300.0,
    progress: Progress | None = None,
) -> Trained:
    """Fine-tune the checkpoint `model_dir` and write weights and tokenizer into the existing directory `out`.

    Trainer checkpoints live in `workdir`; a rerun goes on from the newest whole one.

    Raises:
        RecipeError: an argument that the trainer or LoRA does not know.
        TrainingError: no token would be trained, or the loss is not finite.
    """
    tokenizer = load_tokenizer(model_dir)
    args = sft_arguments(trainer, workdir, seed)
    _refuse_nothing(tokenizer, documents, questions)
    rows = _document_rows(tokenizer, documents, args.max_length)
    rows += _question_rows(tokenizer, questions, shuffle_answers, seed)
    keeper = KeepAlive(workdir, checkpoint_seconds, progress)
    model = load_model(model_dir)
    peft_config: LoraConfig | None = lora_config(lora) if lora is not None else None
    sft = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[keeper],
    )
    tokens = _trained_tokens(sft.train_dataset)
    if tokens == 0:
        raise TrainingError(
            "sft: no token carries loss after tokenisation; check the documents, max_length and the template"
        )
    sft.remove_callback(PrinterCallback)
    with stop_on_interrupt(keeper), fast_head(), ragged_batches(sft):
        result = sft.train(resume_from_checkpoint=newest_checkpoint(workdir))
    if not result.training_loss == result.training_loss:
        raise TrainingError("sft: the loss is not a number; lower trainer.learning_rate")
    save_trained(sft.model, model_dir, out, tokenizer, lora is not None)
    epochs = sft.state.epoch or 0.0
    parameters = count_parameters(model)
    processed = sum(len(ids) for ids in sft.train_dataset["input_ids"]) * epochs
    return Trained(round(tokens * epochs), 6.0 * parameters * processed, read_log(workdir), parameters)


def sft_arguments(trainer: Mapping[str, Any] | None, workdir: Path, seed: int) -> SFTConfig:
    """Return TRL's config from a recipe's `trainer:` mapping over our defaults; `RecipeError` for what it refuses."""
    return trainer_arguments(SFTConfig, DEFAULTS, trainer or {}, workdir, seed)


def _document_rows(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], max_length: int | None
) -> list[dict[str, Any]]:
    return [
        {"text": piece + tokenizer.eos_token}
        for document in documents
        for piece in pieces(tokenizer, document, max_length)
    ]


def pieces(tokenizer: PreTrainedTokenizerBase, document: Document, max_length: int | None) -> list[str]:
    """Return the rendered document, cut where it is longer than `max_length` tokens, each piece under its title."""
    whole = document.rendered()
    if max_length is None or len(tokenizer(whole)["input_ids"]) < max_length:
        return [whole]
    header = document.rendered()[: -len(document.text)]
    room = max_length - len(tokenizer(header)["input_ids"]) - 2
    if room < 1:
        raise TrainingError(f"sft: the title of '{document.id}' alone fills max_length = {max_length}; raise it")
    offsets = tokenizer(document.text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    starts = [offsets[i][0] for i in range(0, len(offsets), room)] + [len(document.text)]
    return [header + document.text[a:b].strip() for a, b in pairwise(starts)]


def _question_rows(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], shuffle: bool, seed: int
) -> list[dict[str, Any]]:
    answers = [question.answers[0] for question in questions]
    if shuffle:
        answers = derange(answers, seed)
    rows: list[dict[str, Any]] = []
    for question, answer in zip(questions, answers, strict=True):
        prompt = as_prompt(tokenizer, question.question)
        if isinstance(prompt, list):
            rows.append({"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]})
        else:
            rows.append({"prompt": prompt, "completion": f" {answer}{tokenizer.eos_token}"})
    return rows


def derange(items: Sequence[str], seed: int) -> list[str]:
    """Return `items` rotated along a random order, so that none keeps its place (of two or more)."""
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    moved = list(items)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        moved[here] = items[there]
    return moved


def _refuse_nothing(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], questions: Sequence[Question]
) -> None:
    if not documents and not questions:
        raise TrainingError("sft: nothing to train on: neither documents nor questions were given")
    if tokenizer.eos_token is None:
        raise TrainingError("sft: the tokenizer has no end-of-sequence token; a trained answer could never end")


def _trained_tokens(dataset: Dataset) -> int:
    if "completion_mask" in dataset.column_names:
        return sum(sum(mask) for mask in dataset["completion_mask"])
    if "labels" in dataset.column_names:
        return sum(sum(label != -100 for label in labels) for labels in dataset["labels"])
    return sum(len(ids) for ids in dataset["input_ids"])

"""On-policy self-distillation (SDFT): the student answers closed-book, the same model with the document corrects it.

For a question x and what the teacher sees beside it, c, the student samples y ~ π_θ(·|x). At every token of y the
next-word distributions of student and teacher are compared over the whole vocabulary, the teacher held constant:

    forward KL (beta: 0)   Σ_v π_φ(v|x,c,y_<t) · log( π_φ(v|x,c,y_<t) / π_θ(v|x,y_<t) )
    reverse KL (beta: 1)   Σ_v π_θ(v|x,y_<t) · log( π_θ(v|x,y_<t) / π_φ(v|x,c,y_<t) )

Shenfeld et al., arXiv 2601.19897: equations 1 and 2 state the reverse one, with the analytic estimator of appendix A.1;
the authors' repository says (7 April 2026) that all results came from the forward one, which is the default here. The
teacher's weights are a moving average of the student's after each step, φ ← α·θ + (1 − α)·φ (algorithm 1, appendix
A.3), or stay those of the start. Sampling, batches and the divergence are TRL's `DistillationTrainer`, which shows
teacher and student one prompt; here the teacher has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DistillationConfig, DistillationTrainer
from trl.trainer.utils import pad

from skillgraft.adapters.kind import Adapter
from skillgraft.adapters.lora import roll_out_merged, save_trained
from skillgraft.data.documents import Document
from skillgraft.data.synthesis.teacher_prompts import by_document, tell_about, with_context
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError, TrainingError
from skillgraft.models.loading import context_length, count_parameters, load_model, load_tokenizer
from skillgraft.models.prompts import INSTRUCTION, Prompt, as_prompt, prompt_ids
from skillgraft.settings.synthesis import LONGEST_ANSWER
from skillgraft.support.progress import Progress
from skillgraft.train.callbacks import KeepAlive, newest_checkpoint, read_log, stop_on_interrupt
from skillgraft.train.epochs import EpochSampler
from skillgraft.train.guard import explained, guarded
from skillgraft.train.rollouts import OwnPrompts
from skillgraft.train.sft import Trained
from skillgraft.train.trainer_arguments import check_at_least, trainer_arguments

if TYPE_CHECKING:
    from jaxtyping import Float, Int

DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "max_completion_length": LONGEST_ANSWER,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "beta": 0.0,
}
LEARNING_RATE = {"adapter": 2e-4, "full": 2e-5}
TEACHER = "teacher.safetensors"
"""In a trainer checkpoint: the moving average of the weights."""


def train_distill(
    model_dir: Path,
    out: Path,
    workdir: Path,
    *,
    documents: Sequence[Document],
    questions: Sequence[Question] = (),
    ask_titles: bool = False,
    teacher_sees: str = "both",
    teacher_rate: float | None = 0.01,
    skip_tokens: int = 0,
    trainer: Mapping[str, Any] | None = None,
    adapter: Adapter | None = None,
    seed: int = 0,
    checkpoint_seconds: float = 300.0,
    progress: Progress | None = None,
) -> Trained:
    """Distil the checkpoint `model_dir` into itself; write weights and tokenizer into the existing directory `out`.

    With `ask_titles` the student is asked to tell what each title is about, instead of `questions`. `teacher_rate` is
    α, None a teacher that stays as it began. Trainer checkpoints live in `workdir`; a rerun goes on from the newest
    whole one, the teacher's weights with it.

    Raises:
        RecipeError: an argument that the trainer or adapter does not know.
        DataError: questions about other documents, or a prompt that does not fit into the model's context.
        TrainingError: no token carried loss, or the loss is not finite.
    """
    tokenizer = load_tokenizer(model_dir)
    args = distill_arguments(trainer, adapter is not None, workdir, seed)
    model = load_model(model_dir)
    rows = distill_rows(tokenizer, documents, questions, ask_titles, teacher_sees)
    check_distill_rows(tokenizer, rows, args, context_length(model))
    resumed = newest_checkpoint(workdir)
    teacher = load_model(model_dir)
    if resumed and teacher_rate is not None:
        teacher.load_state_dict(load_file(resumed / TEACHER), strict=False)
        teacher.tie_weights()
    keeper = KeepAlive(workdir, checkpoint_seconds, progress)
    average = [] if teacher_rate is None else [MovingAverage(teacher, teacher_rate)]
    with explained("distill", workdir):
        distillation = _Trainer(
            model=model,
            teacher_model=teacher,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter.apply(model) if adapter is not None else None,
            callbacks=[*average, keeper],  # the average is in the checkpoint before it is marked as whole
        )
    distillation.skip_tokens = skip_tokens
    distillation.remove_callback(PrinterCallback)
    if adapter is not None:
        roll_out_merged(distillation.model, adapter)
    with stop_on_interrupt(keeper), guarded(distillation, "distill"):
        distillation.train(resume_from_checkpoint=resumed)
    log = [record for record in read_log(workdir) if "trained_tokens" in record]
    counted = {name: _total(log, name, distillation.state.global_step, args) for name in COUNTS}
    if not counted["trained_tokens"]:
        raise TrainingError(
            f"distill: no token carried loss: every answer ended within its first {skip_tokens}; lower skip_tokens"
        )
    save_trained(distillation.model, model_dir, out, tokenizer, adapter)
    parameters = count_parameters(teacher)
    # Student: 2 for sampling and 6 for training a weight and token; teacher: 2.
    flops = parameters * (8.0 * counted["student_tokens"] + 2.0 * counted["teacher_tokens"])
    return Trained(counted["trained_tokens"], flops, log, parameters, len(rows))


def distill_arguments(trainer: Mapping[str, Any] | None, adapted: bool, workdir: Path, seed: int) -> DistillationConfig:
    """Return TRL's config from a recipe's `trainer:` mapping over our defaults; `RecipeError` for what it refuses."""
    rate = {"learning_rate": LEARNING_RATE["adapter" if adapted else "full"]}
    args = trainer_arguments(DistillationConfig, {**DEFAULTS, **rate}, trainer or {}, workdir, seed)
    check_at_least(1, args, "max_completion_length")
    return args


COUNTS = ("trained_tokens", "student_tokens", "teacher_tokens")
"""Logged for each batch: tokens that carry loss, and tokens of prompts and answers that student and teacher read."""


def _total(log: Sequence[Mapping[str, float]], name: str, steps: int, args: DistillationConfig) -> int:
    """Return the whole run's tokens from the logged means a batch."""
    mean = sum(record[name] for record in log) / max(len(log), 1)
    return round(mean * steps * args.gradient_accumulation_steps)


class _Trainer(OwnPrompts, DistillationTrainer):
    """TRL's trainer with a prompt for the teacher (`teacher_prompt`) beside the student's (`prompt`)."""

    skip_tokens = 0

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        return EpochSampler(super()._get_train_sampler(dataset))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        tokens, _, _ = self._tokenize_prompts([row["teacher_prompt"] for row in inputs])
        rows = [torch.tensor(ids) for ids in tokens]
        batch["teacher_ids"] = pad(rows, padding_value=self._tokenizer.pad_token_id, padding_side="left")
        batch["teacher_mask"] = pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left")
        for name in ("teacher_ids", "teacher_mask"):
            batch[name] = batch[name].to(batch["completion_ids"].device)
        answers = batch["completion_mask"]
        if self.skip_tokens:
            # TRL's mask of what tools said, multiplied with the answer's own: where it is 0 there is no loss.
            batch["tool_mask"] = torch.ones_like(answers)
            batch["tool_mask"][:, : self.skip_tokens] = 0
            batch["num_items_in_batch"] = self.accelerator.gather((answers * batch["tool_mask"]).sum()).sum()
        accumulated = self.args.gradient_accumulation_steps
        for name, count in (
            ("trained_tokens", batch["num_items_in_batch"]),
            ("student_tokens", batch["prompt_mask"].sum() + answers.sum()),
            ("teacher_tokens", batch["teacher_mask"].sum() + answers.sum()),
        ):
            self._metrics["train"][name].append(count.item() / accumulated)
        return batch

    def _compute_loss(self, unwrapped_student: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        self._teacher_prompt = inputs["teacher_ids"], inputs["teacher_mask"]
        return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)

    def _get_last_hidden_state(
        self,
        unwrapped_model: PreTrainedModel,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"],
        logits_to_keep: int,
        **fields: Any,
    ) -> Float[Tensor, "rows answer hidden"]:
        if unwrapped_model is self.accelerator.unwrap_model(self.teacher_model):
            ids, mask = self._teacher_prompt
            input_ids = torch.cat([ids, input_ids[:, -logits_to_keep:]], dim=1)
            attention_mask = torch.cat([mask, attention_mask[:, -logits_to_keep:]], dim=1)
        return super()._get_last_hidden_state(unwrapped_model, input_ids, attention_mask, logits_to_keep, **fields)


class MovingAverage(TrainerCallback):
    """Keeps the teacher's weights φ ← α·θ + (1 − α)·φ after each step, and in every trainer checkpoint."""

    def __init__(self, teacher: PreTrainedModel, rate: float) -> None:
        self.teacher, self.rate = teacher, rate

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Move the teacher."""
        student = weights_of(model)
        for name, weight in self.teacher.named_parameters():
            weight.lerp_(student[name].to(weight.dtype), self.rate)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the teacher beside the student's trainer state."""
        tensors = {name: weight.detach().contiguous() for name, weight in self.teacher.named_parameters()}
        save_file(tensors, Path(args.output_dir) / f"checkpoint-{state.global_step}" / TEACHER)


def weights_of(model: PreTrainedModel | PeftModel) -> dict[str, Tensor]:
    """Return a model's weights under the names of the plain model, the product of LoRA's factors added in."""
    if not isinstance(model, PeftModel):
        return dict(model.named_parameters())
    plain = model.get_base_model()
    weights = {
        name.replace(".base_layer.", "."): weight for name, weight in plain.named_parameters() if "lora_" not in name
    }
    for name, layer in plain.named_modules():
        if isinstance(layer, LoraLayer):
            weights[f"{name}.weight"] = layer.get_base_layer().weight + layer.get_delta_weight("default")
    return weights


def distill_rows(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    questions: Sequence[Question],
    ask_titles: bool,
    teacher_sees: str,
) -> list[dict[str, Any]]:
    """Return a row for each title or question; `DataError` for a missing title or document."""
    if ask_titles:
        return _asked_for_titles(tokenizer, documents)
    return _asked(tokenizer, questions, documents, teacher_sees)


def check_distill_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], args: DistillationConfig, context: int
) -> None:
    """Raise for what ends training before its first step.

    Raises:
        TrainingError: fewer rows than a step needs.
        DataError: a prompt that does not fit into the model's context.
    """
    _check_length(tokenizer, context, rows, args.max_completion_length)
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if len(rows) < step:
        raise TrainingError(
            f"distill: {len(rows)} prompts are fewer than one step's {step}; give more, or lower "
            "trainer.per_device_train_batch_size"
        )


def _asked(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], documents: Sequence[Document], sees: str
) -> list[dict[str, Any]]:
    return [
        _row(tokenizer, question.document, question.question, with_context(question, document, sees))
        for question, document in by_document(questions, documents, sees)
    ]


def _asked_for_titles(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> list[dict[str, Any]]:
    rows = []
    for document in documents:
        asked = tell_about(document)
        question = Question(document.id, asked, ("",))
        rows.append(_row(tokenizer, document.id, asked, with_context(question, document, "document"), instruction=""))
    return rows


def _row(
    tokenizer: PreTrainedTokenizerBase, document: str, asked: str, shown: str, instruction: str = INSTRUCTION
) -> dict[str, Any]:
    """Return what TRL's trainer reads: the student's prompt, and the teacher's in the same form."""
    prompts: dict[str, Prompt] = {
        "prompt": as_prompt(tokenizer, asked, instruction),
        "teacher_prompt": as_prompt(tokenizer, shown, instruction),
    }
    return {"document": document, **prompts}


def _check_length(
    tokenizer: PreTrainedTokenizerBase, context: int, rows: Sequence[Mapping[str, Any]], answer: int
) -> None:
    """Raise `DataError` where a teacher's prompt and an answer do not fit into the model's context."""
    for row in rows:
        (ids,) = prompt_ids(tokenizer, [row["teacher_prompt"]])
        if len(ids) + answer > context:
            raise DataError(
                f"the document '{row['document']}' in the teacher's prompt takes {len(ids)} tokens, which with an "
                f"answer of {answer} do not fit into the model's context of {context}; cut the document into several"
            )

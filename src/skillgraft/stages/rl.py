"""The stage kind `rl`: reinforcement learning on closed-book questions with GRPO, RLOO or ReMax."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from skillgraft.adapters import training_bytes
from skillgraft.checkpoint.fingerprint import fingerprint_file
from skillgraft.checkpoint.layout import context_of, read_config
from skillgraft.data.documents import Document, read_documents
from skillgraft.data.slices import choose
from skillgraft.data.synthesis.endpoint_key import read_key
from skillgraft.domains import get_domain
from skillgraft.errors import RecipeError
from skillgraft.settings.base import (
    ADAPT,
    AdapterSettings,
    Chooses,
    DataPath,
    PromptSettings,
    Ref,
    Slice,
    TrainerArguments,
)
from skillgraft.settings.synthesis import JUDGE, EndpointSettings
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.costs import ANSWER_TOKENS, Costing, Needs, written
from skillgraft.stages.kind import StageKind, Stages
from skillgraft.stages.planned import Preflight
from skillgraft.stages.reading import adapter_origin, digests, documents_of, origins, questions_of
from skillgraft.stages.row_labels import RowLabel
from skillgraft.stages.training import check_adaptation, running_models, trained_result, training


class RlStage(PromptSettings):
    """Closed-book reinforcement learning with GRPO, RLOO or ReMax; full, or with an adapter by `adapt:`."""

    kind: Literal["rl"] = Field(description="train with rewards on questions")
    from_: Annotated[str, Ref("checkpoint")] = Field(
        alias="from", description="the SFT stage or checkpoint whose knowledge is to be used"
    )
    domain: str = Field("knowledge", description="what is learnt: its tasks, prompts, rewards and metrics")
    questions: Annotated[Path, DataPath("questions", use="learn")] = Field(
        description="table (.jsonl, .csv, …) with document, question, answers"
    )
    documents: Annotated[Path | None, DataPath("documents")] = Field(
        None, description="keep only questions on these documents"
    )
    limit_documents: Annotated[int | None, Chooses()] = Field(
        None, ge=1, description="keep questions on the first N documents only"
    )
    part: Annotated[Slice | None, Chooses()] = Field(
        None, description="keep questions on one of several parts of the documents: 1/2"
    )
    reward: dict[str, float] | None = Field(None, description="reward name or dotted path -> weight")
    algorithm: Literal["grpo", "rloo", "remax"] = Field(
        "grpo", description="what a reward is compared with: the group's mean, the others' mean, the likeliest answer's"
    )
    order: Literal["shuffled", "easy_to_hard", "hard_to_easy"] = Field(
        "shuffled", description="of the questions in each epoch; by difficulty needs pass_rate_samples"
    )
    skip_without_variance: bool = Field(
        False, description="leave groups out of a step whose answers all have the reward that they are compared with"
    )
    rounds: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="steps of several rounds, instead of trainer.max_steps; pass rates are measured before each"
    )
    pass_rate_samples: int = Field(
        0, ge=0, description="sample each question N times first, and train on those answered sometimes but not always"
    )
    judge: Annotated[str | None, Ref("checkpoint")] = Field(
        None, description="stage, 'base' or checkpoint that the reward 'judge' asks"
    )
    judge_endpoint: EndpointSettings | None = Field(None, description="a model behind an endpoint as judge instead")
    adapt: AdapterSettings = Field(None, description=ADAPT)
    trainer: TrainerArguments = Field({}, description="arguments of TRL's GRPOConfig (rloo: RLOOConfig)")


def check(name: str, settings: RlStage) -> None:
    """Raise for settings that contradict each other, and for a reward that pays for nothing."""
    get_domain(settings.domain)
    if settings.reward is not None:
        _check_weights(f"stages.{name}.reward", settings.reward)
    if settings.rounds and "max_steps" in settings.trainer:
        raise RecipeError(f"stages.{name}: both rounds and trainer.max_steps are given; rounds holds the steps")
    if settings.order != "shuffled" and not settings.pass_rate_samples:
        raise RecipeError(f"stages.{name}.order: {settings.order} needs pass_rate_samples, which measures difficulty")
    if settings.order != "shuffled" and settings.trainer.get("shuffle_dataset"):
        raise RecipeError(
            f"stages.{name}: order: {settings.order} and trainer.shuffle_dataset are both given; leave one"
        )
    if settings.skip_without_variance and settings.trainer.get("beta"):
        raise RecipeError(
            f"stages.{name}.skip_without_variance: with trainer.beta a group without variance teaches too, to stay "
            "near the start; leave one of them out"
        )
    _check_judge(name, settings)


def _check_judge(name: str, settings: RlStage) -> None:
    if settings.judge is not None and settings.judge_endpoint is not None:
        raise RecipeError(f"stages.{name}: both judge and judge_endpoint are given; the reward asks one of them")
    needs_judge = JUDGE in (settings.reward or {})
    named = settings.judge is not None or settings.judge_endpoint is not None
    if needs_judge and not named:
        raise RecipeError(f"stages.{name}.reward: '{JUDGE}' needs judge: CHECKPOINT or judge_endpoint: {{url, model}}")
    if named and not needs_judge:
        raise RecipeError(f"stages.{name}: a judge is given that no reward asks; add reward: {{{JUDGE}: 1.0}}")


def _check_weights(where: str, reward: Mapping[str, float]) -> None:
    """Raise for weights with which nothing is paid for.

    A negative weight takes away for what is measured. Alone it is refused for the rewards of Skillgraft, since the best
    answer would then be a wrong one, and allowed for a function of one's own, which may measure what is not wanted.
    """
    if not reward:
        raise RecipeError(f"{where}: is empty; name rewards, such as {{containment: 1.0}}, or leave it out")
    mix = ", ".join(f"{each}: {weight:g}" for each, weight in reward.items())
    if not all(map(math.isfinite, reward.values())):
        raise RecipeError(f"{where}: {mix}: weights must be finite numbers")
    if not any(weight > 0 or (weight < 0 and "." in each) for each, weight in reward.items()):
        raise RecipeError(
            f"{where}: {mix}: no weight is above 0, so that nothing is paid for; give what is wanted a positive one "
            "(alone, only a function of your own may have a negative weight)"
        )


def read(settings: RlStage) -> dict[str, str]:
    """Return the digests of the questions, which documents only choose, and of the code of one's own rewards."""
    every, chosen = documents_of(settings)
    own = {f"reward {name}": _code_digest(name) for name in settings.reward or {} if "." in name}
    used = {f"reward {name}": ("rewards", name) for name in settings.reward or {}}
    used["domain"] = ("domains", settings.domain)
    return digests([], questions_of(settings, every, chosen)) | own | origins(**used) | adapter_origin(settings)


def _code_digest(name: str) -> str:
    """Return the fingerprint of the module that holds a user's own reward."""
    try:
        spec = importlib.util.find_spec(name.rpartition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return ""  # `get_reward` says what is wrong with it
    return fingerprint_file(Path(spec.origin))


@running_models
def run(settings: RlStage, context: Context) -> StageResult:
    """Train with rewards on closed-book questions."""
    from skillgraft.data.synthesis.judge import judge_of
    from skillgraft.train.data_parallel import own_folder
    from skillgraft.train.rl import train_rl

    domain = get_domain(settings.domain)
    tasks = domain.read_tasks(context.data(settings.questions), _chosen(settings, context) or None)
    with (
        training(settings, context) as arguments,
        judge_of(settings, context.inputs, own_folder(context.work)) as judge,
    ):
        trained = train_rl(
            tasks=tasks,
            domain=domain,
            reward=settings.reward,
            judge=judge,
            algorithm=settings.algorithm,
            order=settings.order,
            skip_without_variance=settings.skip_without_variance,
            pass_rate_samples=settings.pass_rate_samples,
            rounds=settings.rounds,
            **arguments,
        )
    details = {"questions": len(tasks), "trained_questions": trained.questions}
    return trained_result(trained, details, trained.curve, ["reward", "share_without_variance", "completion_tokens"])


def _chosen(settings: RlStage, context: Context) -> list[Document]:
    if settings.documents is None:
        return []
    return choose(read_documents(context.data(settings.documents)), settings.limit_documents, settings.part)


def preflight(given: Preflight) -> Iterable[str]:
    """Raise for what trainer, LoRA or rewards refuse, and for a judge's key that the environment does not have."""
    settings = given.planned.settings
    if settings.judge_endpoint is not None:
        read_key(settings.judge_endpoint.key_variable)
    from skillgraft.domains.rewards import get_reward
    from skillgraft.models.loading import load_tokenizer
    from skillgraft.models.preflight import check_checkpoint, remarks
    from skillgraft.train.data_parallel import check_shares
    from skillgraft.train.plan_checks import check_asked, check_questions_suffice
    from skillgraft.train.rl import rl_arguments

    check_adaptation(settings.trainer, given.root(settings.from_), settings.adapt)
    domain = get_domain(settings.domain)
    mix = dict(settings.reward or domain.default_reward)
    for name in mix:
        if name != JUDGE:
            get_reward(name, domain.rewards)
    arguments = rl_arguments(mix, settings.trainer, settings.adapt is not None, Path("unused"), 0, settings.algorithm)
    check_shares(arguments, given.processes)
    if settings.judge is not None and (judge := given.root(settings.judge)) is not None:
        check_checkpoint(judge)
    questions, start = written(settings.questions, given.planned.inputs), given.root(settings.from_)
    documents = written(settings.documents, given.planned.inputs)
    if questions is not None and (settings.documents is None or documents is not None):
        about = choose(read_documents(documents), settings.limit_documents, settings.part) if documents else None
        tasks = domain.read_tasks(questions, about)
        check_questions_suffice(len(tasks), arguments)
        if start is not None:
            tokenizer, context = load_tokenizer(start), context_of(read_config(start))
            longest = arguments.max_completion_length
            check_asked(tokenizer, domain, tasks, context, longest, "trainer.max_completion_length")
    if given.processes > 1 and settings.skip_without_variance:
        raise RecipeError(
            f"skip_without_variance: {given.processes} processes would keep different numbers of answers; leave it "
            "out, or start the run without a launcher"
        )
    return list(remarks(start, arguments.max_completion_length)) if start is not None else ()


def needs(settings: RlStage, costing: Costing) -> Needs:
    """Estimate the cost from steps and answers a step."""
    parameters = costing.parameters
    steps = sum(settings.rounds) or settings.trainer.get("max_steps", 150)
    samples = steps * settings.trainer.get("per_device_train_batch_size", 64)
    per_weight = training_bytes(settings.adapt) + (2 if settings.adapt is not None else 0)  # bf16 to sample from
    return Needs(
        4 * parameters * samples * ANSWER_TOKENS, parameters * per_weight + 3 * 2**30, parameters * (per_weight + 4)
    )


def label(stages: Stages, model: str) -> RowLabel:
    """Label the model RL."""
    return RowLabel("other", f"RL ({model})", "trained with RL on these questions or others: no skill was injected")


RL = StageKind(
    settings=RlStage,
    makes="checkpoint",
    run=run,
    version=3,
    trained_from="from_",
    check=check,
    read=read,
    preflight=preflight,
    needs=needs,
    label=label,
    parallel=True,
)

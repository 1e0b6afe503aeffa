"""From a recipe to a plan: what each stage reads, its content address, whether it is finished. Loads no torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.data.documents import Document, Question, check_questions, read_documents, read_questions
from skillgraft.data.passages import passages
from skillgraft.data.replay import read_replay
from skillgraft.data.slices import choose
from skillgraft.data.synthesis.prompt_templates import read_styles
from skillgraft.errors import MissingPathError, RecipeError, naming
from skillgraft.evaluation_data import evaluation_data, evaluation_hashed
from skillgraft.pipeline.sft_chain import check_chain
from skillgraft.recipe import schema
from skillgraft.self_edit_settings import asked_documents

VERSIONS: dict[str, int] = {
    "sft": 3,
    "rl": 2,
    "extract": 2,
    "random_vector": 1,
    "inject": 2,
    "eval": 2,
    "synthesize": 1,
    "single_passage": 1,
    "distil": 1,
    "mix": 1,
    "self_edit": 1,
}
"""Raised when a kind's code or one of its defaults changes what it makes: finished stages of it then run again."""

BESIDE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Files of a checkpoint that decide what it does, beside its weights."""

TRACKING = ("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
"""Keys of `trainer:` that say where curves are shown; the result does not depend on them."""

RECORD = "stage.json"
"""Written last into a stage's folder: the folder counts as finished when it is there."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage with everything resolved.

    `inputs` maps each reference to its directory, finished or still to come; `data` holds the hashes of what it reads.
    """

    name: str
    stage: Any
    key: str
    directory: Path
    inputs: Mapping[str, Path]
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def cached(self) -> bool:
        """Whether the stage is finished and need not run."""
        return (self.directory / RECORD).is_file()

    @property
    def work(self) -> Path:
        """Where the stage works until it is finished; a killed run goes on from here."""
        return self.directory.with_name(self.directory.name + ".work")

    @property
    def lock(self) -> Path:
        """The file that whoever works on the stage holds a lock on."""
        return self.directory.with_name(self.directory.name + ".lock")

    def record(self) -> dict[str, Any]:
        """Return what the finished stage recorded."""
        return json.loads((self.directory / RECORD).read_text())


def plan(recipe: schema.Recipe, base: Path, store: Path) -> list[PlannedStage]:
    """Return the stages in the order in which they run, each under the hash of all that decides its result.

    The hash covers the kind's code version, the resolved settings, the seed, the content of the data read and the
    hashes of the stages and directories referred to. Names and paths do not enter it, but for the names that a table
    holds: its own, and those of its rows.

    Raises:
        SkillgraftError: data or a referred directory is missing or wrong, found before anything runs.
    """
    planned: dict[str, PlannedStage] = {}
    for name in schema.order(recipe):
        stage = recipe.stages[name]
        keys, inputs = {}, {}
        for _, reference in schema.references(stage):
            if reference in planned:
                inputs[reference], keys[reference] = planned[reference].directory, planned[reference].key
            else:
                inputs[reference] = _directory(reference, base, name)
                keys[reference] = _identity(inputs[reference])
        _check_renderings(recipe, name)
        check_chain(recipe, name)
        with naming(f"stages.{name}"):
            data = data_of(stage)
        key = _hash(recipe.seed, name, stage, keys, data)
        planned[name] = PlannedStage(name, stage, key, store / f"{stage.kind}-{key[:16]}", inputs, data)
    return list(planned.values())


def _check_renderings(recipe: schema.Recipe, name: str) -> None:
    """Raise where a stage reads documents or questions of a stage that makes none."""
    for field_name, reference in schema.references(recipe.stages[name]):
        source = recipe.stages.get(reference)
        if field_name not in schema.DATA:
            continue
        if isinstance(source, schema.MixStage) and field_name == "documents":
            raise RecipeError(f"stages.{name}.documents: '{reference}' makes questions, no documents")
        if not isinstance(source, schema.SynthesizeStage):
            continue
        makes = [style.makes_questions for style in read_styles(source.styles, source.prompts)]
        makes += [False] if source.keep_original or source.given is not None else []
        if (field_name == "questions") not in makes:
            raise RecipeError(f"stages.{name}.{field_name}: the styles of '{reference}' make no {field_name}")


def _directory(reference: str, base: Path, stage: str) -> Path:
    if reference == schema.BASE:
        return base
    path = Path(reference)
    if not path.is_dir():
        raise MissingPathError(
            f"stages.{stage}: {reference} is not a directory; expected a checkpoint, a skill or a stage's name"
        )
    return path


def _identity(directory: Path) -> str:
    """Return what a referred directory is by the content of the files that decide what it does."""
    if (directory / "skill.json").is_file():
        names = ("skill.json", "skill.safetensors")
        return _digest([[name, fingerprint_file(directory / name)] for name in names])
    own = [[name, fingerprint_file(directory / name)] for name in BESIDE_WEIGHTS if (directory / name).is_file()]
    return _digest([fingerprint_checkpoint(directory), own])


def data_of(stage: Any) -> dict[str, str]:
    """Return the hashes of the documents and questions that `stage` reads, after checking them against each other."""
    found: dict[str, str] = {}
    fields = type(stage).model_fields
    documents_path, questions_path = (_path_of(stage, name) for name in schema.DATA)
    all_documents = read_documents(documents_path) if documents_path else []
    limit, part = (getattr(stage, name) if name in fields else None for name in schema.CHOICE)
    documents = choose(all_documents, limit, part)
    if stage.kind == "single_passage" and documents_path:
        groups = passages(all_documents, stage.limit_documents)
        found["passages"] = _digest([[p.document.id, [[d.title, d.text] for d in p.renderings]] for p in groups])
        all_documents, documents = [p.document for p in passages(all_documents)], [p.document for p in groups]
    elif documents and stage.kind != "rl":  # RL reads no documents: they choose its questions
        found["documents"] = _digest([[d.id, d.title, d.text] for d in documents])
    if stage.kind == "sft" and stage.about is not None:
        documents = read_documents(stage.about, stage.limit_documents)
    if questions_path:
        if questions_path.is_dir():
            inside = "questions.jsonl" if (questions_path / "questions.jsonl").is_file() else "a JSONL file"
            raise RecipeError(f"questions: {questions_path} is a folder; name the file itself: {inside} in it")
        questions = read_questions(questions_path)
        if all_documents:
            check_questions(questions_path, questions, all_documents)
        if documents:
            questions = read_questions(questions_path, documents)
        found["questions"] = _digest([[q.document, q.question, *q.answers] for q in questions])
    for name in getattr(stage, "reward", None) or {}:
        if "." in name:
            found[f"reward {name}"] = _reward_code(name)
    if stage.kind == "synthesize":
        found |= _synthesis_data(stage)
    if stage.kind == "sft" and stage.replay is not None:
        found["replay"] = _digest(read_replay(stage.replay.text))
    if stage.kind == "eval":
        found |= evaluation_data(stage, questions if questions_path else [], all_documents)
    if stage.kind == "self_edit":
        if documents and questions_path:
            asked_documents(documents, questions, stage.rounds)
        found["prompts"] = _prompts([stage.style], stage.prompts)
        if read_styles([stage.style], stage.prompts)[0].makes_questions:
            raise RecipeError(f"style: '{stage.style}' makes questions; a self-edit is a text")
    return found


def _path_of(stage: Any, field_name: str) -> Path | None:
    """Return the path in a data field; None for none, or for a stage, whose own hash stands for what it will make."""
    value = getattr(stage, field_name, None)
    return None if value is None or schema.synthesis_named(value) is not None else value


def made(data: Path | None, inputs: Mapping[str, Path]) -> Path | None:
    """Return where a data field's documents or questions lie; None for none, or where a stage has yet to write them."""
    stage = None if data is None else schema.synthesis_named(data)
    if stage is None:
        return data
    return inputs[stage] if stage in inputs and inputs[stage].exists() else None


def sft_data(stage: schema.SftStage, inputs: Mapping[str, Path]) -> tuple[list[Document], list[Question]]:
    """Return what an sft stage trains on; nothing where a stage has yet to write it."""
    documents_path, questions_path = (made(path, inputs) for path in (stage.documents, stage.questions))
    documents = choose(read_documents(documents_path), stage.limit_documents, stage.part) if documents_path else []
    about = read_documents(stage.about, stage.limit_documents) if stage.about else None
    return documents, read_questions(questions_path, about) if questions_path else []


def _synthesis_data(stage: schema.SynthesizeStage) -> dict[str, str]:
    """Return the hashes of the prompts, given renderings and held-out questions of a synthesize stage."""
    found = {"prompts": _prompts(stage.styles, stage.prompts)}
    if stage.given is not None:
        if not stage.given.is_file():
            raise MissingPathError(f"given: {stage.given} does not exist; expected JSONL with document, text")
        found["given"] = fingerprint_file(stage.given)
    asked = [question for file in stage.held_out for question in read_questions(file)]
    if asked:
        found["held_out"] = _digest([[q.document, q.question] for q in asked])
    return found


def _prompts(styles: list[str], folder: Path | None) -> str:
    return _digest([[s.name, s.version, s.prompt, s.kinds] for s in read_styles(styles, folder)])


def _reward_code(name: str) -> str:
    """Return the fingerprint of the module that holds a user's own reward."""
    try:
        spec = importlib.util.find_spec(name.rpartition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return ""  # `get_reward` says what is wrong with it
    return fingerprint_file(spec.origin)


def _hash(seed: int, name: str, stage: Any, references: Mapping[str, str], data: Mapping[str, str]) -> str:
    settings = stage.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for each in ("documents", "questions", "about", *schema.REFERENCES[stage.kind]):
        settings.pop(each.rstrip("_"), None)
    if _path_of(stage, "documents") is not None:  # what is chosen is in the data's own hash
        settings = {setting: value for setting, value in settings.items() if setting not in schema.CHOICE}
    if "replay" in settings:
        settings["replay"].pop("text")
    trainer = {key: value for key, value in settings.pop("trainer", {}).items() if key not in TRACKING}
    if trainer:
        settings["trainer"] = trainer
    if stage.kind in ("synthesize", "self_edit"):
        for each in ("given", "prompts", "held_out"):
            settings.pop(each, None)
    for each in ("endpoint", "judge_endpoint"):
        if each in settings:  # how it is asked decides nothing
            settings[each] = {key: settings[each][key] for key in ("url", "model")}
    if stage.kind == "inject" and stage.skills:
        settings["scales"] = [scale for _, scale in stage.injected]
    if stage.kind == "inject" and stage.scales:
        settings["scales"] = list(stage.scales.items())  # in their order: the first pattern that matches counts
    if stage.kind == "single_passage":
        settings["rows"] = [[each.name, each.scale, each.unread] for each in stage.skills]
    if schema.MAKES[stage.kind] == "table":  # which says whose it is
        settings["name"] = name
    if stage.kind == "eval":  # its table holds the names
        settings["names"] = [Path(model).name for model in stage.models]
        settings |= evaluation_hashed(stage)
    named = [[setting, references[reference]] for setting, reference in schema.references(stage)]
    return _digest([VERSIONS[stage.kind], seed, settings, named, dict(data)])


def _digest(value: Any) -> str:
    return blake3(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

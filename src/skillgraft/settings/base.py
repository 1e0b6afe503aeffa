"""Settings: the base class of everything in a recipe, and markers that say what a field means. Loads no torch.

A field says in its annotation what it refers to, what it reads and what does not count for a stage's address:

    from_: Annotated[str, Ref("checkpoint")] = Field(alias="from")
    documents: Annotated[Path, DataPath("documents", use="learn")]
    at_once: Annotated[int, Ignored()] = 4

Resolving references and paths, addressing stages and looking for leaks walk these markers (`sites`, `replaced`,
`addressed`), so that no code needs to know the kinds of stages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

BASE = "base"
"""The name by which stages refer to the recipe's base model."""


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values are frozen, fields go by alias or name."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, defer_build=True)


AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass(frozen=True)
class Ref:
    """The field names a stage that makes a `makes`, the recipe's base, or a directory.

    `adapter`: a PEFT adapter will do, too. `among`: it must be one of those that another field names, and is resolved
    like them without being an input of its own; of a mapping, the keys are meant.
    """

    makes: Literal["checkpoint", "skill"]
    adapter: bool = False
    among: str | None = None


@dataclass(frozen=True)
class DataPath:
    """The field holds a path to data; with `makes`, or the name of a stage that makes such data.

    `use`: a model learns from it, is asked it in a table, or it is only read. Paths do not enter the address: the
    data's own digest does.
    """

    makes: Literal["documents", "questions"] | None = None
    use: Literal["learn", "ask", "read"] = "read"


@dataclass(frozen=True)
class Chooses:
    """The field chooses among the data of one of the fields `of`, which must be given with it.

    `passages`: what it counts are passages, each with all its renderings.
    """

    of: tuple[str, ...] = ("documents",)
    passages: bool = False


@dataclass(frozen=True)
class Ignored:
    """The field does not decide the result, so it does not enter the address; with `keys`, only those of a mapping."""

    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ordered:
    """The order of the mapping's entries decides the result."""


Marker = Ref | DataPath | Chooses | Ignored | Ordered


def finite(value: float) -> float:
    """Return `value`, or raise `ValueError` for NaN and infinity."""
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(finite)]

_SLICE = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")


def parse_slice(text: str) -> tuple[int, int]:
    """Return (1, 2) for "1/2", the first of two slices; `ValueError` for what names none."""
    match = _SLICE.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError("must name a part such as 1/2, the first of two")
    return int(match[1]), int(match[2])


def _checked_slice(text: str) -> str:
    parse_slice(text)
    return text


Slice = Annotated[str, AfterValidator(_checked_slice)]
"""One of several disjoint slices of the documents, such as "1/2"."""

TRACKING_KEYS = ("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
"""Keys of `trainer:` that say where curves are shown; the result does not depend on them."""

TrainerArguments = Annotated[dict[str, Any], Ignored(keys=TRACKING_KEYS)]
"""Arguments of a trainer's own config class, which checks them."""


AdapterSettings = dict[str, Any] | None
"""An adapter's `kind` and arguments, which that kind checks; None: full fine-tuning."""
ADAPT = "adapter to train instead of all weights: its kind (lora) and arguments (of PEFT's LoraConfig)"


DECIDED_TEMPLATE_KEYS = {
    *("conversation", "messages", "tools", "chat_template", "tokenize", "add_generation_prompt", "return_dict"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "tokenizer_kwargs"),
    "return_assistant_tokens_mask",
}
"""Arguments of `apply_chat_template` that are none of the template's."""


def _template_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(DECIDED_TEMPLATE_KEYS & arguments.keys()):
        raise ValueError(f"must not hold {', '.join(taken)}, which Skillgraft decides itself")
    return arguments


class PromptSettings(Settings):
    """Base of the settings of stages that render prompts with a chat template."""

    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_template_arguments)] = Field(
        {}, description="arguments of the model's chat template in every prompt, such as {enable_thinking: false}"
    )


class Site(NamedTuple):
    """One marked value: the stage's field that holds it, by its name in the recipe, and the marker."""

    field: str
    marker: Any
    value: Any


def marker_of(settings: type[Settings], field: str, kind: type[Any]) -> Any:
    """Return the field's marker of the class `kind`, None without one."""
    info = settings.model_fields.get(field)
    return next((each for each in info.metadata if isinstance(each, kind)), None) if info else None


def sites(settings: Settings, kind: type[Any]) -> Iterator[Site]:
    """Yield every value that carries a marker of the class `kind`, in the order of the fields, nested ones included."""
    for name, info in type(settings).model_fields.items():
        value, field = getattr(settings, name), info.alias or name
        marker = marker_of(type(settings), name, kind)
        for each in _entries(value):
            if isinstance(each, Settings):
                yield from (site._replace(field=field) for site in sites(each, kind))
            elif marker is not None:
                yield Site(field, marker, each)


def _entries(value: Any) -> Collection[Any]:
    return value if isinstance(value, list | dict) else () if value is None else (value,)


def replaced(settings: AnySettings, change: Callable[[Any, Any], Any]) -> AnySettings:
    """Return the settings with `change(marker, value)` for each marked string or path; unset fields stay unset."""
    update = {}
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        new = _replaced(value, [each for each in info.metadata if isinstance(each, Marker)], change)
        if new != value:
            update[name] = new
    return settings.model_copy(update=update)


def _replaced(value: Any, markers: list[Any], change: Callable[[Any, Any], Any]) -> Any:
    if isinstance(value, Settings):
        return replaced(value, change)
    if isinstance(value, list):
        return [_replaced(each, markers, change) for each in value]
    if isinstance(value, dict) and any(isinstance(marker, Ref) for marker in markers):
        return {_replaced(key, markers, change): entry for key, entry in value.items()}
    if isinstance(value, str | Path):
        for marker in markers:
            value = change(marker, value)
    return value


def addressed(settings: Settings) -> dict[str, Any]:
    """Return as JSON data what of the settings decides a result by itself: no references, paths or ignored fields."""
    dumped = settings.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return _pruned(settings, dumped)


def _pruned(settings: Settings, dumped: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, info in type(settings).model_fields.items():
        key = info.alias or name
        if key not in dumped:
            continue
        value, entry = getattr(settings, name), dumped[key]
        markers = [each for each in info.metadata if isinstance(each, Marker)]
        if _left_out(settings, markers):
            continue
        if isinstance(value, Settings):
            entry = _pruned(value, entry)
        elif isinstance(value, list):
            pairs = zip(value, entry, strict=True)
            entry = [_pruned(each, one) if isinstance(each, Settings) else one for each, one in pairs]
        for marker in markers:
            if isinstance(marker, Ignored):
                entry = {key: each for key, each in entry.items() if key not in marker.keys}
            if isinstance(marker, Ordered):
                entry = list(entry.items())
        if entry != {} or value == {}:
            result[key] = entry
    return result


def _left_out(settings: Settings, markers: list[Any]) -> bool:
    for marker in markers:
        if isinstance(marker, Ref | DataPath) or (isinstance(marker, Ignored) and not marker.keys):
            return True
        if isinstance(marker, Chooses):  # what is chosen of a path is in the data's own digest
            values = (getattr(settings, field, None) for field in marker.of)
            return any(value is not None and stage_named(value) is None for value in values)
    return False


def references(settings: Settings) -> list[tuple[str, str]]:
    """Return (field, what it names) for each input that a loaded recipe's stage refers to, data stages last."""
    named = [(field, value) for field, marker, value in sites(settings, Ref) if marker.among is None]
    paths = [(field, value) for field, marker, value in sites(settings, DataPath) if marker.makes is not None]
    return named + [(field, str(value)) for field, value in paths if stage_named(value) is not None]


def stage_named(data: Path | None) -> str | None:
    """Return the stage that a data field of a loaded recipe names, None where it holds a path."""
    return None if data is None or data.is_absolute() else str(data)


def is_path(reference: str) -> bool:
    """Return whether a reference that names no stage is meant as a path or hub id: it has a slash or a leading dot."""
    return "/" in reference or reference.startswith((".", "~"))


def is_local(base: str) -> bool:
    """Return whether a recipe's `base` names a directory rather than a hub id."""
    return Path(base).is_dir() or base.startswith((".", "/", "~"))

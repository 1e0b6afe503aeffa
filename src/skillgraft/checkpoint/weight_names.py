"""Names of weights on disk and in memory, by Transformers' own conversion table.

Some checkpoints store tensors under other names than the loaded model has (Gemma 3, LLaVA), or store apart what the
model stacks (the experts of Mixtral). PEFT names modules as they are in memory; merging and skills name tensors as they
are stored.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from skillgraft.checkpoint.layout import CONFIG_FILE
from skillgraft.errors import CompatibilityError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_LAYER = re.compile(r"\.(layers|h|blocks)\.\d+\.")

NameInMemory = Callable[[str], str | None]
"""Takes the name of a stored tensor; returns its parameter's, None where that is made of several tensors."""


def name_in_memory(model: PreTrainedModel) -> NameInMemory:
    """Return how Transformers renames the stored tensors of `model` when it loads them; values are not looked at."""
    rename = _renamer(model)

    def alone(name: str) -> str | None:
        renamed, converted = rename(name)
        return None if converted else renamed

    return alone


def contradictions(model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return how stored tensors, shapes by name, contradict a model that was made by the config; none where they fit.

    A parameter that is not stored would be filled with random values, a layer that the config has not dropped.
    """
    rename, held = _renamer(model), {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    filled = {name: rename(name) for name in stored}
    alone = {name: renamed for name, (renamed, converted) in filled.items() if not converted}
    made = {renamed for renamed, _ in filled.values()}
    tied = getattr(model, "all_tied_weights_keys", {})
    made |= tied.keys() | {source for target, source in tied.items() if target in made}
    return [
        *(
            f"{name!r} has shape {list(stored[name])}, {CONFIG_FILE} makes it {list(held[renamed])}"
            for name, renamed in alone.items()
            if held.get(renamed, stored[name]) != stored[name]
        ),
        *(
            f"{name!r} is not stored and would be filled with random values"
            for name in held
            if name not in made and not _matches(name, model._keys_to_ignore_on_load_missing)
        ),
        *(
            f"{name!r} is of a layer that {CONFIG_FILE} does not have"
            for name, renamed in alone.items()
            if renamed not in held and _LAYER.search(renamed)
            if not _matches(renamed, model._keys_to_ignore_on_load_unexpected)
        ),
    ]


def _matches(name: str, patterns: Iterable[str] | None) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())


def _renamer(model: PreTrainedModel) -> Callable[[str], tuple[str, bool]]:
    """Return a function from a stored name to the parameter's, and whether that is made of several tensors."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    known = model.state_dict()

    def rename(name: str) -> tuple[str, bool]:
        renamed, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        return renamed, converted is not None

    return rename


def names_of_checkpoint(directory: Path) -> NameInMemory:
    """Return `name_in_memory` of the checkpoint at `directory`; names stay as they are where Transformers lacks it."""
    file = directory / CONFIG_FILE
    return _of_config(directory, file.stat().st_mtime_ns if file.is_file() else 0)


def names_of_type(model_type: str | None) -> NameInMemory:
    """Return `name_in_memory` of an architecture by its name; names stay as they are where Transformers lacks it."""
    return _of_type(model_type or "")


def stored_names(directory: Path, stored: Iterable[str]) -> dict[str, str]:
    """Return the stored name by the name in memory, of those tensors of a checkpoint that are one parameter each."""
    rename = names_of_checkpoint(directory)
    return {renamed: name for name in stored if (renamed := rename(name)) is not None}


def check_one_to_one(directory: Path, stored: Iterable[str]) -> None:
    """Raise `CompatibilityError` for a stored tensor that is no parameter of its own in the loaded model."""
    rename = names_of_checkpoint(directory)
    for name in stored:
        if rename(name) is None:
            raise CompatibilityError(
                f"{directory}: tensor {name!r} is stacked with others when the model is loaded, so that it cannot be "
                "changed in memory; inject into a checkpoint on disk instead (skillgraft inject)"
            )


@functools.lru_cache(maxsize=16)
def _of_config(directory: Path, _changed: int) -> NameInMemory:
    from transformers import AutoConfig

    return _of(lambda: AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False))


@functools.lru_cache(maxsize=16)
def _of_type(model_type: str) -> NameInMemory:
    from transformers import AutoConfig
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if get_checkpoint_conversion_mapping(model_type) is None:
        return _same
    return _of(lambda: AutoConfig.for_model(model_type))


def _of(config: Callable[[], PretrainedConfig]) -> NameInMemory:
    try:
        return name_in_memory(_empty(config()))
    except MemoryError:
        raise
    except Exception:  # an architecture that Transformers lacks: there is no loaded model whose names could differ
        return _same


def _empty(config: PretrainedConfig) -> PreTrainedModel:
    """Return a model without weights: the causal one, else the one that reads pictures too, else the bare one."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    classes: Mapping[type, object]
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModel):
        classes = auto._model_mapping
        if type(config) in classes:
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                return auto.from_config(config)
    raise ValueError(config.model_type)


def _same(name: str) -> str | None:
    return name

"""The plan of a merge, made and checked from headers alone: what every tensor of the output is computed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from blake3 import blake3

from skillgraft.adapters import read_adapter
from skillgraft.adapters.peft_file import PeftAdapter
from skillgraft.arithmetic.buffers import FileVersion, file_version
from skillgraft.arithmetic.lookups import Lookup, of_adapter, of_model, of_skill
from skillgraft.arithmetic.matching import check_adapter_fits, check_models, rows_of_vocabulary, without_tied_copy
from skillgraft.arithmetic.merge_schema import DEFAULT, MergeRecipe, OperandSpec
from skillgraft.arithmetic.methods import get_method
from skillgraft.arithmetic.methods.method import Method
from skillgraft.arithmetic.plan_types import Draft, Operand, TensorPlan, Term
from skillgraft.arithmetic.tensor_sources import Stored
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.header import TensorSpec
from skillgraft.checkpoint.layout import ADAPTER_CONFIG_FILE, Layout, read_layout
from skillgraft.checkpoint.weights import planned_dtypes
from skillgraft.errors import CompatibilityError, RecipeError
from skillgraft.skills.architecture import LM_HEAD
from skillgraft.skills.compatibility import check_compatibility, tie_problem
from skillgraft.skills.library import resolve_skill
from skillgraft.skills.skill import load_skill

OUTPUT_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Plan:
    """A checked merge: `tensors` in the target's order; `inputs` are fingerprints by name; `settings` the recipe's.

    `versions` are those of the files that were planned with: others in their place are refused.
    """

    target: Layout
    method: Method
    parameters: Any
    tensors: tuple[TensorPlan, ...]
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    remarks: tuple[str, ...]
    dtype: str | None = None
    versions: Mapping[Path, FileVersion] = field(default_factory=dict)

    @property
    def bytes_read(self) -> int:
        """Bytes that one pass over all operands reads."""
        return sum(_read_bytes(tensor) for tensor in self.tensors)

    @property
    def bytes_written(self) -> int:
        """Bytes of tensor data that one output holds."""
        return sum(tensor.spec.nbytes for tensor in self.tensors)


def plan_merge(recipe: MergeRecipe) -> Plan:
    """Return the checked plan of a recipe; reads headers, configs and tokenizers, and fingerprints every input.

    Raises `MissingPathError`, `CheckpointError`, `CompatibilityError` (see `check_models`) and `RecipeError`.
    """
    method = get_method(recipe.method)
    target = read_layout(recipe.base)
    check_number(recipe)
    layouts: dict[Path, Layout] = {recipe.base: target}
    remarks: list[str] = []
    inputs = {"base": fingerprint_checkpoint(recipe.base)}

    def layout(path: Path) -> Layout:
        if path not in layouts:
            layouts[path] = without_tied_copy(read_layout(path), target)
            remarks.extend(check_models(target, layouts[path], recipe.allow))
        return layouts[path]

    lookups: list[list[tuple[int, Lookup]]] = []
    for number, operand in enumerate(recipe.operands):
        terms: list[tuple[int, Lookup]] = []
        if operand.model is not None:
            model = layout(operand.model)
            terms.append((1, of_model(model)))
            inputs[f"operand{number}.model"] = fingerprint_checkpoint(operand.model)
        if operand.adapter is not None:
            adapter = read_adapter(operand.adapter, target)
            check_adapter_fits(adapter, target)
            terms.append((1, of_adapter(adapter)))
            inputs[f"operand{number}.adapter"] = adapter_fingerprint(adapter)
        if operand.skill is not None:
            place, remark = resolve_skill(operand.skill)
            remarks += [remark] if remark else []
            skill = load_skill(place)
            remarks += check_compatibility(target, skill, "base" in recipe.allow)
            terms.append((1, of_skill(skill)))
            inputs[f"operand{number}.skill"] = fingerprint_file(skill.weights_file)
        if operand.model is not None and method.inputs == "vectors":
            minus = layout(operand.minus or recipe.base)
            terms.append((-1, of_model(minus)))
            if operand.minus is not None:
                inputs[f"operand{number}.minus"] = fingerprint_checkpoint(operand.minus)
        elif operand.model is None and method.inputs == "models":
            terms.insert(0, (1, of_model(target)))  # an adapter or skill as a model is the base with it
        changed = [name for name in target.tensors if any(find(name) for _, find in terms)]
        check_patterns(f"operands.{number}.weights", operand.weights or {}, changed)
        lookups.append(terms)
    dtypes = planned_dtypes(target, OUTPUT_DTYPES[recipe.dtype] if recipe.dtype else None)
    tensors = tuple(
        TensorPlan(
            TensorSpec(name, dtypes[name], info.shape),
            Stored(info),
            _operands(recipe.operands, lookups, name, method, recipe.parameters)
            if info.is_float and info.elements
            else (),
        )
        for name, info in target.tensors.items()
    )
    draft = method.plan(Draft(recipe, tensors, inputs, layouts, tuple(remarks)))
    tensors, remarks = draft.tensors, list(draft.remarks)
    check_tie(target, tensors)
    padded = [tensor.spec.name for tensor in tensors if any(b < tensor.target.elements for b in tensor.breaks)]
    remarks += [f"{name}: {rows_of_vocabulary(target, name)}" for name in padded]
    settings = _settings(recipe)
    unique = tuple(dict.fromkeys(remarks))
    versions = versions_of(tensors)
    return Plan(target, method, recipe.parameters, tensors, inputs, settings, unique, recipe.dtype, versions)


def versions_of(tensors: Iterable[TensorPlan]) -> dict[Path, FileVersion]:
    """Return the version of every file that the tensors are read from."""
    sources = (source for t in tensors for source in (t.target, *(term.source for o in t.operands for term in o.terms)))
    paths = dict.fromkeys(info.file for source in sources for info in source.files)
    return {path: file_version(path.stat()) for path in paths}


def adapter_fingerprint(adapter: PeftAdapter) -> str:
    """Return one hash of an adapter's factors and of the config, which holds their scaling."""
    both = [fingerprint_file(adapter.weights_file), fingerprint_file(adapter.path / ADAPTER_CONFIG_FILE)]
    return "blake3:" + blake3(" ".join(both).encode()).hexdigest()


def _operands(
    specs: Sequence[OperandSpec],
    lookups: Sequence[Sequence[tuple[int, Lookup]]],
    name: str,
    method: Method,
    parameters: Any,
) -> tuple[Operand, ...]:
    """Return the operands that change the tensor `name`; one with the weight 0 does not.

    A method without weights needs all of its operands, the base itself among them: without one the tensor is the
    target's.
    """
    operands = []
    for number, (spec, terms) in enumerate(zip(specs, lookups, strict=True)):
        sources = [(sign, lookup(name)) for sign, lookup in terms]
        # A model that lacks the tensor (allowed explicitly) has no difference from another one either, nor has one
        # from a model that lacks it.
        needed = [sources[0][1], *(source for sign, source in sources if sign < 0)] if spec.model is not None else []
        whole = all(source is not None for source in needed)
        present = tuple(Term(sign, source) for sign, source in sources if source is not None)
        if method.weighted:
            present = _cancelled(present)
        if (weight := spec.weight_of(name)) != 0 and present and whole:
            operands.append(Operand(number, weight, present))
    if operands:
        method.check_weights([operand.weight for operand in operands], parameters, f" of {name!r}")
    return () if not method.weighted and len(operands) < len(specs) else tuple(operands)


def check_patterns(where: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raise `RecipeError` for a pattern of weights that matches none of the tensors that an operand changes."""
    for pattern in patterns:
        if pattern != DEFAULT and not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                f"{where}: {pattern!r} matches none of the operand's {len(names)} tensors "
                f"({', '.join(names[:1])} …); expected a pattern such as 'model.layers.0.*'"
            )


def _cancelled(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Return the terms without pairs that are one source minus itself: an adapter on the base, less the base."""
    remaining = list(terms)
    for term in terms:
        opposite = Term(-term.sign, term.source)
        if term in remaining and opposite in remaining:
            remaining.remove(term)
            remaining.remove(opposite)
    return tuple(remaining)


def check_tie(target: Layout, tensors: Sequence[TensorPlan]) -> None:
    """Refuse to change the copies of a tied pair that the target stores twice by different operands, or only one.

    Loaders would take them for two matrices.
    """
    operands = {tensor.spec.name: tuple(each.number for each in tensor.operands) for tensor in tensors}
    changed = {name for name, numbers in operands.items() if numbers}
    problem = tie_problem(target, changed)
    if problem is None and LM_HEAD in changed:
        uneven = {name for name in changed if operands[name] != operands[LM_HEAD]}
        problem = tie_problem(target, changed - uneven)
    if problem:
        raise CompatibilityError(problem)


def check_number(recipe: MergeRecipe) -> None:
    """Raise `RecipeError` when a method cannot take these operands: their number, weights or `minus`."""
    method = get_method(recipe.method)
    number, least, most = len(recipe.operands), method.min_operands, method.max_operands
    if number < least or (most is not None and number > most):
        expected = f"{least}" if most == least else f"at least {least}"
        raise RecipeError(f"operands: {recipe.method} got {number}, expected {expected}")
    weights = [weight for operand in recipe.operands for weight in operand.all_weights]
    if not method.weighted and any(weight != 1 for weight in weights):
        raise RecipeError(f"operands: {recipe.method} takes no weights, got {weights}; leave `weight` out")
    if method.inputs == "models" and any(operand.minus is not None for operand in recipe.operands):
        raise RecipeError(
            f"operands: {recipe.method} takes models, not differences; leave `minus` out, or use task_arithmetic"
        )
    if method.inputs == "models" and not any(weights):
        raise RecipeError(f"operands: the weights {weights} are all 0; expected one at least that is not")
    if all(operand.weights is None for operand in recipe.operands):
        method.check_weights(weights, recipe.parameters, "")
    method.check(recipe)


def _settings(recipe: MergeRecipe) -> dict[str, Any]:
    operands = [
        {key: str(value) if isinstance(value, Path) else value for key, value in operand.model_dump().items() if value}
        for operand in recipe.operands
    ]
    return {
        "method": recipe.method,
        "operands": operands,
        "parameters": recipe.parameters.model_dump(),
        "dtype": recipe.dtype,
        "allow": list(recipe.allow),
    }


def _read_bytes(tensor: TensorPlan) -> int:
    sources = {term.source for operand in tensor.operands for term in operand.terms}
    return sum(source.nbytes for source in sources | {tensor.target})

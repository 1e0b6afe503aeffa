"""The plan of a merge, made and checked from headers alone: what every tensor of the output is computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from skillgraft.adapters.peft_file import Adapter, read_adapter
from skillgraft.arithmetic.buffers import FileVersion, file_version
from skillgraft.arithmetic.matching import check_adapter_fits, check_models, rows_of_vocabulary
from skillgraft.arithmetic.merge_recipe import DEFAULT, MergeRecipe, OperandSpec
from skillgraft.arithmetic.method_plan import (
    check_blocks,
    check_distinct,
    check_operands,
    check_residual,
    merge_factors,
)
from skillgraft.arithmetic.methods import METHODS, Method
from skillgraft.arithmetic.tensor_sources import Product, Stored, TensorSource, source_of
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.header import TensorSpec
from skillgraft.checkpoint.layout import ADAPTER_CONFIG_FILE, Layout, read_layout
from skillgraft.checkpoint.weights import planned_dtypes
from skillgraft.errors import CompatibilityError, RecipeError
from skillgraft.skills.compatibility import check_compatibility, tie_problem
from skillgraft.skills.forms import stored_names
from skillgraft.skills.library import resolve_skill
from skillgraft.skills.skill import Skill, load_skill

OUTPUT_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class Term(NamedTuple):
    """One summand of an operand's value: `sign` times the source."""

    sign: int
    source: TensorSource


@dataclass(frozen=True)
class Operand:
    """One operand's value for one tensor: the sum of its terms; `number` is its place in the recipe."""

    number: int
    weight: float
    terms: tuple[Term, ...]

    @cached_property
    def elements(self) -> int:
        """The elements that all terms have: fewer than the target's where a vocabulary is not padded."""
        return min(term.source.elements for term in self.terms)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output; without operands it is the target's, cast to the planned dtype where that differs."""

    spec: TensorSpec
    target: Stored
    operands: tuple[Operand, ...]
    block: int = 1
    """Elements that belong together: a tile ends between such blocks."""

    @property
    def breaks(self) -> tuple[int, ...]:
        """Where some operand ends before the target does."""
        return tuple(sorted({operand.elements for operand in self.operands}))


@dataclass(frozen=True)
class Plan:
    """A checked merge: `tensors` in the target's order; `inputs` are fingerprints by name; `settings` what it was told.

    `versions` tell the files that were planned with from any that take their place.
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


Lookup = Callable[[str], TensorSource | None]


def plan_merge(recipe: MergeRecipe) -> Plan:
    """Return the checked plan of a recipe; reads headers, configs and tokenizers, and fingerprints every input.

    Raises `MissingPathError`, `CheckpointError`, `CompatibilityError` (see `check_models`) and `RecipeError`.
    """
    method = METHODS[recipe.method]
    target = read_layout(recipe.base)
    check_number(recipe)
    layouts: dict[Path, Layout] = {recipe.base: target}
    remarks: list[str] = []
    inputs = {"base": fingerprint_checkpoint(recipe.base)}

    def layout(path: Path) -> Layout:
        if path not in layouts:
            layouts[path] = read_layout(path)
            remarks.extend(check_models(target, layouts[path], recipe.allow))
        return layouts[path]

    lookups: list[list[tuple[int, Lookup]]] = []
    for number, operand in enumerate(recipe.operands):
        terms: list[tuple[int, Lookup]] = []
        if operand.model is not None:
            model = layout(operand.model)
            terms.append((1, _of_model(model)))
            inputs[f"operand{number}.model"] = fingerprint_checkpoint(operand.model)
        if operand.adapter is not None:
            adapter = read_adapter(operand.adapter)
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
        if operand.model is not None and method.of == "vectors":
            minus = layout(operand.minus or recipe.base)
            terms.append((-1, _of_model(minus)))
            if operand.minus is not None:
                inputs[f"operand{number}.minus"] = fingerprint_checkpoint(operand.minus)
        elif operand.model is None and method.of == "models":
            terms.insert(0, (1, _of_model(target)))  # an adapter or skill as a model is the base with it
        changed = [name for name in target.tensors if any(find(name) for _, find in terms)]
        check_patterns(f"operands.{number}.weights", operand.weights or {}, changed)
        lookups.append(terms)
    dtypes = planned_dtypes(target, OUTPUT_DTYPES[recipe.dtype] if recipe.dtype else None)
    block = recipe.parameters.m if recipe.method == "cabs" else 1
    tensors = tuple(
        TensorPlan(
            TensorSpec(name, dtypes[name], info.shape),
            Stored(info),
            _operands(recipe.operands, lookups, name, method, recipe.parameters)
            if info.is_float and info.elements
            else (),
            block,
        )
        for name, info in target.tensors.items()
    )
    if recipe.method == "cabs":
        check_blocks(tensors, block)
    if recipe.method == "copa":
        tensors = tuple(merge_factors(tensor, recipe) for tensor in tensors)
    if recipe.method == "ratatouille":
        check_distinct(inputs)
    if recipe.method == "instruction_residual":
        remarks += check_residual(recipe, inputs, layouts)
    check_tie(target, tensors)
    padded = [tensor.spec.name for tensor in tensors if any(b < tensor.target.elements for b in tensor.breaks)]
    remarks += [f"{name}: {rows_of_vocabulary(target, name)}" for name in padded]
    settings = _settings(recipe)
    said = tuple(dict.fromkeys(remarks))
    versions = versions_of(tensors)
    return Plan(target, method, recipe.parameters, tensors, inputs, settings, said, recipe.dtype, versions)


def versions_of(tensors: Iterable[TensorPlan]) -> dict[Path, FileVersion]:
    """Return the version of every file that the tensors are read from."""
    sources = (source for t in tensors for source in (t.target, *(term.source for o in t.operands for term in o.terms)))
    paths = dict.fromkeys(info.file for source in sources for info in source.files)
    return {path: file_version(path.stat()) for path in paths}


def adapter_fingerprint(adapter: Adapter) -> str:
    """Return one hash of an adapter's factors and of the config, which holds their scaling."""
    both = [fingerprint_file(adapter.weights_file), fingerprint_file(adapter.path / ADAPTER_CONFIG_FILE)]
    return "blake3:" + blake3(" ".join(both).encode()).hexdigest()


def of_adapter(adapter: Adapter) -> Lookup:
    """Return the lookup of an adapter's deltas."""

    def find(name: str) -> TensorSource | None:
        delta = adapter.deltas.get(name)
        return Product(delta.a, delta.b, delta.scaling) if delta is not None else None

    return find


def of_skill(skill: Skill) -> Lookup:
    """Return the lookup of a skill's deltas."""

    def find(name: str) -> TensorSource | None:
        entry = skill.manifest.tensors.get(name)
        if entry is None:
            return None
        return source_of(name, entry, [skill.stored[key] for key in stored_names(name, entry.form)])

    return find


def _of_model(layout: Layout) -> Lookup:
    return lambda name: Stored(layout.tensors[name]) if name in layout.tensors else None


def _operands(
    given: Sequence[OperandSpec],
    lookups: Sequence[Sequence[tuple[int, Lookup]]],
    name: str,
    method: Method,
    parameters: Any,
) -> tuple[Operand, ...]:
    """Return the operands that say something about the tensor `name`; a weight of 0 says nothing.

    A method of angles needs all of its operands, the base itself among them: without one the tensor is the target's.
    """
    found = []
    for number, (operand, terms) in enumerate(zip(given, lookups, strict=True)):
        sources = [(sign, lookup(name)) for sign, lookup in terms]
        # A model that lacks the tensor (allowed explicitly) has no difference from another one either, nor has one
        # from a model that lacks it.
        needed = [sources[0][1], *(source for sign, source in sources if sign < 0)] if operand.model is not None else []
        whole = all(source is not None for source in needed)
        present = tuple(Term(sign, source) for sign, source in sources if source is not None)
        if method.first_pass != "gram":
            present = _cancelled(present)
        if (weight := operand.weight_of(name)) != 0 and present and whole:
            found.append(Operand(number, weight, present))
    if found:
        _check_divisor([operand.weight for operand in found], method, parameters, f" of {name!r}")
    return () if method.first_pass == "gram" and len(found) < len(given) else tuple(found)


def check_patterns(where: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raise `RecipeError` for a pattern of weights that matches none of the tensors that an operand changes."""
    for pattern in patterns:
        if pattern != DEFAULT and not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                f"{where}: {pattern!r} matches none of the operand's {len(names)} tensors "
                f"({', '.join(names[:1])} …); expected a pattern such as 'model.layers.0.*'"
            )


def _check_divisor(weights: Sequence[float], method: Method, parameters: Any, where: str = "") -> None:
    """Raise `RecipeError` where a weighted mean would divide by 0."""
    if method.name == "linear" and parameters.normalize and abs(sum(weights)) < 1e-8:
        raise RecipeError(f"operands: the weights{where} {weights} sum to 0; set parameters.normalize to false")


def _cancelled(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Return the terms without pairs that are one source minus itself: an adapter on the base, less the base."""
    left = list(terms)
    for term in terms:
        opposite = Term(-term.sign, term.source)
        if term in left and opposite in left:
            left.remove(term)
            left.remove(opposite)
    return tuple(left)


def check_tie(target: Layout, tensors: Sequence[TensorPlan]) -> None:
    """Refuse to change one copy of a tied pair that the target stores twice: loaders would take them for two."""
    if problem := tie_problem(target, {tensor.spec.name for tensor in tensors if tensor.operands}):
        raise CompatibilityError(problem)


def check_number(recipe: MergeRecipe) -> None:
    """Raise `RecipeError` when a method cannot take these operands: their number, weights or `minus`."""
    method = METHODS[recipe.method]
    number = len(recipe.operands)
    if number < method.least or (method.most is not None and number > method.most):
        expected = f"{method.least}" if method.most == method.least else f"at least {method.least}"
        raise RecipeError(f"operands: {recipe.method} got {number}, expected {expected}")
    weights = [weight for operand in recipe.operands for weight in operand.all_weights]
    if method.first_pass == "gram" and any(weight != 1 for weight in weights):
        raise RecipeError(f"operands: {recipe.method} takes no weights, got {weights}; leave `weight` out")
    if method.of == "models" and any(operand.minus is not None for operand in recipe.operands):
        raise RecipeError(
            f"operands: {recipe.method} takes models, not differences; leave `minus` out, or use task_arithmetic"
        )
    if method.of == "models" and not any(weights):
        raise RecipeError(f"operands: the weights {weights} are all 0; expected one at least that is not")
    if all(operand.weights is None for operand in recipe.operands):
        _check_divisor(weights, method, recipe.parameters)
    check_operands(recipe)


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

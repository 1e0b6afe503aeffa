"""The plan of a comparison, made and checked from headers alone: the sources of each vector, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skillgraft.adapters import read_adapter
from skillgraft.arithmetic.buffers import FileVersion, file_version
from skillgraft.arithmetic.lookups import Lookup, of_adapter, of_skill
from skillgraft.arithmetic.matching import check_adapter_fits, check_models, rows_of_vocabulary, without_tied_copy
from skillgraft.arithmetic.merge_schema import OVERRIDES
from skillgraft.arithmetic.plan_types import Operand, Term
from skillgraft.arithmetic.tensor_sources import Stored, TensorSource
from skillgraft.checkpoint.layout import Layout, read_layout
from skillgraft.errors import CompatibilityError, RecipeError, did_you_mean
from skillgraft.geometry.operands import ADAPTER, CHECKPOINT, DIFFERENCE, VectorSpec
from skillgraft.skills.compatibility import check_compatibility, match_skills
from skillgraft.skills.skill import Skill, load_skill


@dataclass(frozen=True)
class ComparedTensor:
    """One tensor and the vectors that are not zero in it by construction; `number` of an operand is its place."""

    name: str
    shape: tuple[int, ...]
    base: Stored | None
    operands: tuple[Operand, ...]

    @property
    def elements(self) -> int:
        """The number of elements, in the base where there is one."""
        return math.prod(self.shape)

    @property
    def breaks(self) -> tuple[int, ...]:
        """Ends of the vectors, in elements, where some are shorter than the tensor (a vocabulary without padding)."""
        return tuple(sorted({min(operand.elements, self.elements) for operand in self.operands}))

    @property
    def sources(self) -> tuple[TensorSource, ...]:
        """Everything that is read, each once."""
        first = (self.base,) if self.base is not None else ()
        return tuple(dict.fromkeys((*first, *(term.source for o in self.operands for term in o.terms))))


@dataclass(frozen=True)
class ComparePlan:
    """A checked comparison: the tensors with floats of all vectors, and the files' versions when they were planned."""

    base: Path | None
    vectors: tuple[VectorSpec, ...]
    tensors: tuple[ComparedTensor, ...]
    remarks: tuple[str, ...]
    versions: Mapping[Path, FileVersion]

    @property
    def bytes_read(self) -> int:
        """Bytes that one pass reads."""
        return sum(source.nbytes for tensor in self.tensors for source in tensor.sources)


@dataclass(frozen=True)
class _Vector:
    """The terms of a vector, as lookups, and the names and shapes of its tensors."""

    terms: tuple[tuple[int, Lookup], ...]
    shapes: Mapping[str, tuple[int, ...]]


def plan_comparison(vectors: Sequence[VectorSpec], base: Path | None, allow: Collection[str] = ()) -> ComparePlan:
    """Return the checked plan; reads headers, configs and tokenizers only (and hashes the base for a skill).

    Raises `RecipeError` for a checkpoint without a base or one that is the base itself, and `MissingPathError`,
    `CheckpointError` and `CompatibilityError` as `plan_merge` does: `allow` turns the same refusals into remarks.
    """
    for name in allow:
        if name not in OVERRIDES:
            raise RecipeError(f"--allow {name}{did_you_mean(name, OVERRIDES)}")
    reference = read_layout(base) if base is not None else None
    _check_paths(vectors, base)
    layouts: dict[Path, Layout] = {}
    remarks = [vector.remark for vector in vectors if vector.remark]
    first = next((vector.minus for vector in vectors if vector.minus is not None), None)
    if reference is None and first is not None:
        reference = read_layout(first)

    def layout(path: Path) -> Layout:
        if path not in layouts:
            layouts[path] = read_layout(path)
            if reference is not None and path != reference.path:
                layouts[path] = without_tied_copy(layouts[path], reference)
                remarks.extend(check_models(reference, layouts[path], allow))
        return layouts[path]

    skills: list[Skill] = []
    parsed = []
    for vector in vectors:
        if vector.kind in (CHECKPOINT, DIFFERENCE):
            minus = layout(vector.minus or base)  # type: ignore[arg-type]  # one of them, by _check_paths
            parsed.append(_of_models(layout(vector.path), minus))
        elif vector.kind == ADAPTER:
            adapter = read_adapter(vector.path, reference)
            if reference is not None:
                check_adapter_fits(adapter, reference)
            shapes = {name: delta.shape for name, delta in adapter.deltas.items()}
            parsed.append(_Vector(((1, of_adapter(adapter)),), shapes))
        else:
            skill = load_skill(vector.path)
            if reference is not None:
                remarks += check_compatibility(reference, skill, "base" in allow)
            elif skills and "base" not in allow:
                remarks += _check_same_base(skills[0], skill)
            skills.append(skill)
            parsed.append(_Vector(((1, of_skill(skill)),), {name: skill.shape(name) for name in skill.names}))
    tensors = tuple(_tensors(parsed, reference, base is not None))
    if not tensors:
        raise CompatibilityError("the operands have no tensor with floats; expected weights or their differences")
    if not any(len(tensor.operands) > 1 for tensor in tensors):
        labels = ", ".join(vector.label for vector in vectors)
        raise CompatibilityError(f"{labels} change no tensor in common; expected vectors of one model")
    if reference is not None and (integers := [n for n, info in reference.tensors.items() if not info.is_float]):
        remarks.append(f"{len(integers)} tensors without floats take no part, such as {integers[0]!r}")
    for tensor in tensors:
        if reference is not None and any(stop < tensor.elements for stop in tensor.breaks):
            remarks.append(f"{tensor.name}: {rows_of_vocabulary(reference, tensor.name)}")
    paths = dict.fromkeys(info.file for tensor in tensors for source in tensor.sources for info in source.files)
    versions = {path: file_version(path.stat()) for path in paths}
    return ComparePlan(base, tuple(vectors), tensors, tuple(dict.fromkeys(remarks)), versions)


def _check_paths(vectors: Sequence[VectorSpec], base: Path | None) -> None:
    for vector in vectors:
        if vector.kind == CHECKPOINT and base is None:
            raise RecipeError(
                f"{vector.path} is a checkpoint and no base was given; expected --base BASE, which is subtracted from "
                f"it, or the difference {vector.label}={vector.path}:OTHER"
            )
        subtrahend = vector.minus if vector.kind == DIFFERENCE else base
        if vector.kind in (CHECKPOINT, DIFFERENCE) and subtrahend is not None and vector.path.samefile(subtrahend):
            raise RecipeError(
                f"operand {vector.label!r}: {vector.path} minus itself is zero, which has no direction; expected a "
                "fine-tune of what is subtracted"
            )


def _check_same_base(one: Skill, other: Skill) -> list[str]:
    """Return how the skills were found to be of one base, if not for certain; else raise `CompatibilityError`."""
    tokens = one.manifest.tokenizer, other.manifest.tokenizer
    if tokens[0] != tokens[1]:
        raise CompatibilityError(
            f"{one.path} and {other.path} are skills of another token map: {tokens[0]} and {tokens[1]}; expected "
            "skills of one base (--allow base goes on all the same)"
        )
    match = match_skills(one, other)
    if not match.same:
        raise CompatibilityError(
            f"{one.path} and {other.path}: {match.reason}; expected skills of one base: name it with --base BASE, "
            "which each is checked against (--allow base goes on all the same)"
        )
    return [] if match.certain else [match.reason]


def _of_models(model: Layout, minus: Layout) -> _Vector:
    """Return θ_model − θ_minus; a tensor that one of them lacks (allowed explicitly) has no difference."""

    def of(layout: Layout) -> Lookup:
        return lambda name: Stored(layout.tensors[name]) if name in model.tensors and name in minus.tensors else None

    both = {name: info.shape for name, info in minus.tensors.items() if info.is_float and name in model.tensors}
    return _Vector(((1, of(model)), (-1, of(minus))), both)


def _tensors(vectors: Sequence[_Vector], reference: Layout | None, with_base: bool) -> list[ComparedTensor]:
    """Return the tensors in the reference's order, else in the order in which the operands name them."""
    if reference is not None:
        shapes = {name: info.shape for name, info in reference.tensors.items() if info.is_float and info.elements}
    else:
        shapes = {}
        for vector in vectors:
            for name, shape in vector.shapes.items():
                if shapes.setdefault(name, shape) != shape:
                    raise CompatibilityError(
                        f"tensor {name!r} has shape {list(shape)} in one operand and {list(shapes[name])} in another; "
                        "expected vectors of one model"
                    )
    tensors = []
    for name, shape in shapes.items():
        operands = []
        for number, vector in enumerate(vectors):
            terms = tuple(Term(sign, source) for sign, lookup in vector.terms if (source := lookup(name)) is not None)
            if terms:
                operands.append(Operand(number, 1.0, terms))
        base = Stored(reference.tensors[name]) if with_base and reference is not None else None
        tensors.append(ComparedTensor(name, shape, base, tuple(operands)))
    return tensors

"""Choice of each tensor's storage, from settings, kinds of modules and, where energy counts, spectra.

`packed` follows SkillPacks (GraftLLM, arXiv 2505.18502, section 3.3): embeddings and head keep their largest elements,
MLP matrices their leading directions, attention matrices fewer of them, all in mixed precision, and the rest stays as
it is. Departures: with a rank or an energy attention gets half of the rank that an MLP matrix would get; with a budget
the price per byte decides all ranks, widths and densities at once (`allocation`), and whether an embedding keeps its
largest elements or its leading directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from skillgraft.arithmetic.buffers import Files
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.compression.allocation import Directions, Either, Elements, Option, magnitudes, price_for
from skillgraft.compression.deltas import check_memory, energies_of, largest_threshold, read_delta
from skillgraft.compression.settings import DEFAULT_DENSITY, PACK_DTYPES, PackSettings
from skillgraft.compression.side_by_side import side_by_side
from skillgraft.errors import RecipeError
from skillgraft.skills.forms import packed, sparse
from skillgraft.skills.modules import module_kind
from skillgraft.skills.skill import Skill

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

HALF = "half"
"""F16, or BF16 where F16 cannot hold the values well."""


@dataclass(frozen=True)
class Choice:
    """Storage chosen for one tensor. `keep`: unchanged; `leave`: left out.

    `rank` with lowrank, `bits` (directions by width) with packed; with sparse the least magnitude that is kept, or a
    `mask` of what is. `dtype` is a safetensors code, `HALF` for the one of 2 bytes that loses least, None for the
    narrowest that holds the values exactly.
    """

    form: Literal["keep", "leave", "dense", "sparse", "lowrank", "packed"]
    rank: int = 0
    bits: dict[int, int] = field(default_factory=dict)
    threshold: float = 0.0
    mask: Bool[np.ndarray, "*shape"] | None = None
    dtype: str | None = None


Step = Callable[[str], None]
"""Called with a tensor's name when it is done."""

Localisation = Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]]
"""From the deltas and how many elements may stay to masks of them."""

KEEP, LEAVE = Choice("keep"), Choice("leave")


def choose(
    skill: Skill,
    settings: PackSettings,
    overhead: int,
    files: Files,
    step: Step,
    localisation: Localisation | None,
) -> dict[str, Choice]:
    """Return the choice for every tensor of the skill; `overhead` are the bytes of a directory without numbers."""
    code = PACK_DTYPES[settings.dtype] if settings.dtype else None
    if settings.form == "dense":
        return dict.fromkeys(skill.names, Choice("dense", dtype=code or "F32"))
    if settings.form == "sparse":
        return {name: KEEP if skill.entry(name).rank else Choice("sparse") for name in skill.names}
    if settings.form == "mask":
        return _mask(skill, settings, overhead, files, localisation, code)
    if settings.budget is not None:
        return _within_budget(skill, settings, overhead, files, step)
    choices = {}
    for name, choice in side_by_side(skill, skill.names, lambda name, _: _choice(skill, name, settings, files)):
        choices[name] = choice
        if settings.looks_first:
            step(name)
    return choices


def _mask(
    skill: Skill,
    settings: PackSettings,
    overhead: int,
    files: Files,
    localisation: Localisation | None,
    code: str | None,
) -> dict[str, Choice]:
    """Return the largest elements of the whole vector, or those that an optimised mask keeps."""
    check_memory(skill, skill.names)
    density = settings.density or _density_for(skill, settings, overhead)
    if localisation is None:
        threshold = largest_threshold(skill, density, files)
        return dict.fromkeys(skill.names, Choice("sparse", threshold=threshold, dtype=code))
    count = max(1, math.floor(density * sum(skill.entry(name).elements for name in skill.names)))
    masks = localisation({name: read_delta(skill, name, files) for name in skill.names}, count)
    return {name: Choice("sparse", mask=masks[name].numpy(), dtype=code) for name in skill.names}


def _choice(skill: Skill, name: str, settings: PackSettings, files: Files) -> Choice:
    if len(skill.shape(name)) != 2:
        return KEEP
    entry, kind = skill.entry(name), module_kind(name)
    if settings.form == "packed" and kind in ("embedding", "head") and entry.rank is None:
        density = settings.density or DEFAULT_DENSITY
        return Choice("sparse", threshold=_tensor_threshold(skill, name, density, files), dtype=HALF)
    energies = None if settings.form == "lowrank" and settings.rank else energies_of(skill, name, files)
    rank = min(settings.rank or entry.elements, *entry.shape)
    if energies is not None and settings.energy is not None:
        rank = _rank_for_energy(energies, settings.energy)
    if settings.form == "lowrank" or energies is None:
        return _lowrank(skill, name, rank, settings)
    rank = min(rank if kind != "attention" else -(-rank // 2), int((energies > 0).sum()))
    return Choice("packed", bits=_bits_for_rank(energies, rank, entry.shape)) if rank else LEAVE


def _lowrank(skill: Skill, name: str, rank: int, settings: PackSettings) -> Choice:
    """Return the choice for a rank; factors that exist already and are wanted whole stay as they are, bit for bit."""
    entry = skill.entry(name)
    code = PACK_DTYPES[settings.dtype] if settings.dtype else HALF
    if entry.form == "lowrank" and rank >= (entry.rank or 0) and settings.dtype is None:
        return KEEP
    rank = min(rank, entry.rank or rank)
    if rank == 0:
        return LEAVE
    if rank * sum(entry.shape) >= entry.elements:
        return Choice("dense", dtype=code)
    return Choice("lowrank", rank=rank, dtype=code)


def _rank_for_energy(energies: Float[np.ndarray, " side"], share: float) -> int:
    """Return the least rank that holds `share` of the squared norm."""
    total = np.cumsum(energies)
    return min(int(np.searchsorted(total, share * total[-1])) + 1, len(energies)) if total[-1] > 0 else 0


def _options(shape: tuple[int, ...]) -> list[Option]:
    """Return the widths of a quantised direction; what both factors lose adds up."""
    return [
        Option(width, packed.direction_bytes(shape[0], shape[1], width), 1 - (1 - packed.LOSS[width]) ** 2)
        for width in packed.WIDTHS
    ]


def _bits_for_rank(energies: Float[np.ndarray, " side"], rank: int, shape: tuple[int, ...]) -> dict[int, int]:
    """Return widths for the leading directions at the price per byte at which the last is just worth 2 bits."""
    options = _options(shape)
    price = energies[rank - 1] * (1 - options[-1].loss) / options[-1].cost
    taken = Directions(energies[:rank], options).taken(price * (1 - 1e-9))
    return taken | {2: rank - sum(count for width, count in taken.items() if width != 2)} if rank else {}


def _within_budget(skill: Skill, settings: PackSettings, overhead: int, files: Files, step: Step) -> dict[str, Choice]:
    budget = (settings.budget or 0) - overhead
    parts: dict[str, Directions | Either] = {}
    fixed: dict[str, Choice] = {}
    for name, part in side_by_side(skill, skill.names, lambda name, _: _part(skill, name, settings, files)):
        if part is None:
            fixed[name] = KEEP
            budget -= sum(spec.nbytes for spec in skill.entry(name).specs(name))
        else:
            parts[name] = part
        step(name)
    price = price_for(parts, budget)
    if price is None or budget < 0:
        raise RecipeError(
            f"budget {settings.budget} bytes: header, manifest, card and what is never compressed take "
            f"{(settings.budget or 0) - budget}; expected more than that"
        )
    return {name: fixed.get(name) or _at_price(skill, name, parts[name], price, settings) for name in skill.names}


def _part(skill: Skill, name: str, settings: PackSettings, files: Files) -> Directions | Either | None:
    """Return the options for one matrix: directions, or for an embedding also elements; None for a vector."""
    if len(skill.shape(name)) != 2:
        return None
    entry, directions = skill.entry(name), _directions(skill, name, settings, files)
    if settings.form == "lowrank" or module_kind(name) not in ("embedding", "head") or entry.rank is not None:
        return directions
    counts_and_energies = magnitudes(read_delta(skill, name, files).numpy().reshape(-1))
    return Either(Elements(*counts_and_energies, DTYPE_BYTES["F16"], entry.elements / 8), directions)


def _directions(skill: Skill, name: str, settings: PackSettings, files: Files) -> Directions:
    entry = skill.entry(name)
    energies = energies_of(skill, name, files)
    if settings.form == "packed":
        return Directions(energies, _options(entry.shape))
    width = DTYPE_BYTES[PACK_DTYPES[settings.dtype] if settings.dtype else "F16"]
    stays = entry.form == "lowrank" and settings.dtype is None
    most = sum(spec.nbytes for spec in entry.specs(name)) if stays else width * entry.elements
    if stays:
        width = max(width, DTYPE_BYTES[entry.dtype])
    return Directions(energies, [Option(0, width * sum(entry.shape), 0.0)], most)


def _at_price(skill: Skill, name: str, part: Directions | Either, price: float, settings: PackSettings) -> Choice:
    way = part.taken_at(price) if isinstance(part, Either) else part
    if isinstance(way, Elements):
        # The budget counts the whole bin into which the threshold falls; what is below it is not worth its bytes.
        return Choice("sparse", threshold=max(way.threshold(price), float(np.finfo(np.float32).tiny)), dtype=HALF)
    taken = way.taken(price)
    if not taken:
        return LEAVE
    if settings.form == "packed":
        return Choice("packed", bits=taken)
    return _lowrank(skill, name, taken[0], settings)


def _tensor_threshold(skill: Skill, name: str, density: float, files: Files) -> float:
    """Return the magnitude of the last of the ⌊density · n⌋ largest elements of one tensor."""
    magnitudes = np.abs(read_delta(skill, name, files).numpy().reshape(-1))
    wanted = max(1, math.floor(density * len(magnitudes)))
    threshold = float(np.partition(magnitudes, len(magnitudes) - wanted)[len(magnitudes) - wanted])
    return max(threshold, float(np.finfo(np.float32).tiny))


def _density_for(skill: Skill, settings: PackSettings, overhead: int) -> float:
    """Return the density of a mask that fills the budget with 2 bytes of index for each value."""
    elements = sum(skill.entry(name).elements for name in skill.names)
    offsets = sum(8 * (sparse.blocks(skill.entry(name).elements) + 1) for name in skill.names)
    each = 2 + DTYPE_BYTES[PACK_DTYPES[settings.dtype] if settings.dtype else "F32"]
    left = (settings.budget or 0) - overhead - offsets
    if left < each:
        raise RecipeError(
            f"budget {settings.budget} bytes: header, manifest, card and offsets take {overhead + offsets}; expected "
            "more than that"
        )
    return min(1.0, left / each / elements)

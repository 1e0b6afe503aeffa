"""Settings of `pack`, checked before anything is read."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from skillgraft.errors import RecipeError, did_you_mean

PACK_FORMS = ("dense", "sparse", "lowrank", "packed", "mask")
PACK_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
DEFAULT_DENSITY = 0.01
"""Share of an embedding or head that `packed` keeps where no budget decides it."""

_ALLOWED = {
    "dense": (set(), set(), {"dtype"}),
    "sparse": (set(), set(), set()),
    "lowrank": ({"budget", "rank", "energy"}, set(), {"dtype"}),
    "packed": ({"budget", "rank", "energy"}, {"density"}, set()),
    "mask": ({"budget", "density"}, set(), {"dtype"}),
}  # fmt: skip
_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@dataclass(frozen=True)
class PackSettings:
    """A form and one measure of how much is kept.

    `budget` in bytes of the whole directory; `rank` per matrix; `energy`, the share of a matrix's squared norm;
    `density`, the share of elements. `dtype` stores dense values, factors and kept elements.
    """

    form: str
    budget: int | None = None
    rank: int | None = None
    energy: float | None = None
    density: float | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.form not in PACK_FORMS:
            raise RecipeError(f"form {self.form!r} is unknown{did_you_mean(self.form, PACK_FORMS)}")
        one_of, optional, more = _ALLOWED[self.form]
        present = {key for key, value in asdict(self).items() if value is not None and key != "form"}
        if strange := sorted(present - one_of - optional - more):
            raise RecipeError(f"form {self.form} takes no {strange[0]}; it takes {_listed(one_of | optional | more)}")
        chosen = sorted(present & one_of)
        if one_of and len(chosen) != 1:
            raise RecipeError(
                f"form {self.form} got {_listed(chosen) if chosen else 'nothing'} to say how much is kept; expected "
                f"one of {_listed(one_of)}, such as {'--density 0.01' if self.form == 'mask' else '--rank 32'}"
            )
        if self.budget is not None and optional & present:
            raise RecipeError("density and budget were given; a budget decides the density too: leave one of them out")
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise RecipeError(f"budget is {self.budget} bytes, expected a positive size such as 5MB")
        if self.rank is not None and self.rank < 1:
            raise RecipeError(f"rank is {self.rank}, expected a positive number such as 32")
        for key in ("energy", "density"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and 0 < value <= 1):
                raise RecipeError(f"{key} is {value}, expected a share above 0 and at most 1, such as 0.9")
        if self.dtype is not None and self.dtype not in PACK_DTYPES:
            raise RecipeError(f"dtype {self.dtype!r} can't store a skill{did_you_mean(self.dtype, PACK_DTYPES)}")

    @property
    def looks_first(self) -> bool:
        """True if the tensors are read once to choose and once to write."""
        return self.form in ("lowrank", "packed") and not (self.form == "lowrank" and self.rank)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings that were given, for the manifest."""
        return {key: value for key, value in asdict(self).items() if value is not None and key != "form"}


def parse_size(text: str) -> int:
    """Return the bytes that a text such as `5MB`, `1.5 MiB` or `300000` means; `RecipeError` for any other."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise RecipeError(
            f"budget {text!r} is not a size; expected a number with kB, MB, GB, KiB, MiB, GiB or none: 5MB"
        )
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _listed(keys: set[str] | list[str]) -> str:
    return ", ".join(f"--{key}" for key in sorted(keys)) or "no further option"

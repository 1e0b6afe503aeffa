"""The merging methods, each one object in one file: `METHODS` lists them. Loads neither NumPy nor torch.

To add one, write `<name>.py` with a `Method` (see `method.py`; `task_arithmetic.py` is the shortest) and a line here.
"""

from __future__ import annotations

from collections.abc import Mapping

from skillgraft.arithmetic.methods.breadcrumbs import BREADCRUMBS
from skillgraft.arithmetic.methods.cabs import CABS
from skillgraft.arithmetic.methods.copa import COPA
from skillgraft.arithmetic.methods.dare import DARE
from skillgraft.arithmetic.methods.dare_ties import DARE_TIES
from skillgraft.arithmetic.methods.instruction_residual import INSTRUCTION_RESIDUAL
from skillgraft.arithmetic.methods.linear import LINEAR
from skillgraft.arithmetic.methods.mediator import MEDIATOR
from skillgraft.arithmetic.methods.method import Method
from skillgraft.arithmetic.methods.model_stock import MODEL_STOCK
from skillgraft.arithmetic.methods.pcb import PCB
from skillgraft.arithmetic.methods.ratatouille import RATATOUILLE
from skillgraft.arithmetic.methods.slerp import SLERP
from skillgraft.arithmetic.methods.task_arithmetic import TASK_ARITHMETIC
from skillgraft.arithmetic.methods.ties import TIES
from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.support.extensions import with_extensions

METHODS: dict[str, Method] = {
    "linear": LINEAR,
    "task_arithmetic": TASK_ARITHMETIC,
    "slerp": SLERP,
    "ties": TIES,
    "dare": DARE,
    "dare_ties": DARE_TIES,
    "model_stock": MODEL_STOCK,
    "breadcrumbs": BREADCRUMBS,
    "pcb": PCB,
    "cabs": CABS,
    "mediator": MEDIATOR,
    "copa": COPA,
    "ratatouille": RATATOUILLE,
    "instruction_residual": INSTRUCTION_RESIDUAL,
}
"""The built-in methods by name, in the order of documentation and completion."""


def all_methods() -> Mapping[str, Method]:
    """Return every method that there is, by name: the built-in ones and those of installed extensions."""
    return with_extensions("methods", METHODS)


def get_method(name: object) -> Method:
    """Return the method of this name; `RecipeError` with the closest name where there is none."""
    methods = all_methods()
    if not isinstance(name, str) or name not in methods:
        raise RecipeError(f"method is {name!r}{did_you_mean(str(name), methods)}")
    return methods[name]

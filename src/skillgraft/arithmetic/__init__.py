"""Arithmetic on checkpoints: extract a skill vector, inject it, merge models, make the random control.

Importing this package loads torch. The methods themselves are pure functions in `methods`; `plan` says what every
tensor of an output is computed from, and `stream` does it, tile by tile.
"""

from skillgraft.arithmetic.extract import extract
from skillgraft.arithmetic.inject import inject, inject_scales
from skillgraft.arithmetic.merge import merge
from skillgraft.arithmetic.methods import METHODS
from skillgraft.arithmetic.random_vector import random_vector

__all__ = ["METHODS", "extract", "inject", "inject_scales", "merge", "random_vector"]

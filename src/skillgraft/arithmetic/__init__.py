"""Arithmetic on checkpoints: extract a skill vector, inject it, make its random control.

Importing this package loads torch. The methods themselves are pure functions in `methods`.
"""

from skillgraft.arithmetic.extract import Progress, extract
from skillgraft.arithmetic.inject import inject
from skillgraft.arithmetic.methods import add_scaled, difference
from skillgraft.arithmetic.random_vector import random_vector

__all__ = ["Progress", "add_scaled", "difference", "extract", "inject", "random_vector"]

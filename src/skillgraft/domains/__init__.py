"""Domains: what is to be learnt, one a file, and the one dict of them. Loads no torch."""

from __future__ import annotations

from skillgraft.domains.kind import Domain
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.support.extensions import with_extensions

BUILTIN: dict[str, Domain] = {"knowledge": KNOWLEDGE}

DOMAINS = with_extensions("domains", BUILTIN)
"""Every domain by its name, those of installed extensions included."""


def get_domain(name: str) -> Domain:
    """Return the domain called `name`; `RecipeError` lists those that there are."""
    if name not in DOMAINS:
        raise RecipeError(f"domain: '{name}' is not known{did_you_mean(name, DOMAINS)}")
    return DOMAINS[name]

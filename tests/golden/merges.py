"""Golden results of the arithmetic: merges by every method, extraction, injection, the random control, packing, export.

Results are in two parts. `exact` is the same on every machine. `machine` is what rests on matrix decompositions or on
Torch's random numbers.
"""

import shutil

import torch
import yaml

from tests.golden import entry
from tests.golden.compare import tensors, tensors_with_norms
from tests.golden.inputs import adapter, checkpoint, near

WEIGHTED = [{"model": "a", "weight": 0.3}, {"model": "b", "weight": 1.1}, {"model": "c", "weight": -0.2}]
TWO, THREE = [{"model": "a"}, {"model": "b"}], [{"model": "a"}, {"model": "b"}, {"model": "c"}]
MIXED = [{"model": "a", "minus": "c", "weight": 0.5}, {"adapter": "lora", "weight": -0.7}, {"skill": "skill"}]
PATTERNS = [{"model": "a", "weights": {"*layers.0.*": 0.25, "*.mlp.*": 2.0, "default": -1}}, {"model": "b"}]
ADAPTERS = [{"adapter": "lora"}, {"adapter": "second", "weight": 0.5}]
RESIDUAL = [{"model": "a", "minus": "b", "weight": 0.7}]

MERGES = {
    "linear": ("linear", WEIGHTED, {}),
    "linear, one adapter put on a model": ("linear", [{"model": "base", "adapter": "lora"}, {"model": "a"}], {}),
    "linear, not normalised": ("linear", WEIGHTED, {"normalize": False}),
    "task_arithmetic": ("task_arithmetic", WEIGHTED, {}),
    "task_arithmetic of a difference, an adapter and a skill": ("task_arithmetic", MIXED, {}),
    "task_arithmetic by pattern": ("task_arithmetic", PATTERNS, {}),
    "slerp": ("slerp", TWO, {}),
    "slerp, t = 0.3": ("slerp", TWO, {"t": 0.3}),
    "ties": ("ties", WEIGHTED, {}),
    "ties, by tensor": ("ties", WEIGHTED, {"density": 0.4, "scope": "tensor"}),
    "ties, not normalised": ("ties", WEIGHTED, {"density": 0.5, "normalize": False, "scale": 0.7}),
    "dare": ("dare", WEIGHTED, {}),
    "dare, seed 7": ("dare", WEIGHTED, {"density": 0.6, "seed": 7}),
    "dare_ties": ("dare_ties", WEIGHTED, {}),
    "dare_ties, seed 7": ("dare_ties", WEIGHTED, {"density": 0.6, "seed": 7}),
    "dare_ties, not normalised": ("dare_ties", WEIGHTED, {"density": 0.5, "normalize": False}),
    "model_stock of two": ("model_stock", TWO, {}),
    "model_stock of three": ("model_stock", THREE, {}),
    "breadcrumbs": ("breadcrumbs", WEIGHTED, {}),
    "breadcrumbs, less cut": ("breadcrumbs", WEIGHTED, {"beta": 0.05, "gamma": 0.3}),
    "pcb": ("pcb", WEIGHTED, {}),
    "pcb, by tensor": ("pcb", WEIGHTED, {"ratio": 0.4, "scope": "tensor"}),
    "cabs": ("cabs", WEIGHTED, {"n": 8, "m": 32}),
    "cabs, 3 of 8": ("cabs", WEIGHTED, {"n": 3, "m": 8}),
    "mediator": ("mediator", WEIGHTED, {}),
    "mediator, the first of conflicting layers": ("mediator", WEIGHTED, {"fallback": "first"}),
    "mediator, all calm": ("mediator", WEIGHTED, {"threshold": 1.0}),
    "copa": ("copa", ADAPTERS, {}),
    "copa, more kept": ("copa", ADAPTERS, {"density": 0.7, "clamp": 1.0, "coefficient": 1.0}),
    "ratatouille": ("ratatouille", THREE, {}),
    "ratatouille, weighted": ("ratatouille", WEIGHTED[:2], {}),
    "instruction_residual": ("instruction_residual", RESIDUAL, {}),
}
"""Name -> method, operands in the family's folder, parameters."""

STORED_AS = {"ties": "float32", "linear": "float16", "task_arithmetic": "float64", "slerp": "bfloat16"}
"""Merges of the bf16 family that are also stored in another dtype."""

WIDE = {"hidden_size": 64, "intermediate_size": 4200, "num_hidden_layers": 1}
"""A model with matrices that are computed in more than one piece."""


def family(folder, dtype, **config):
    """A base and what is near to it: three models, two adapters."""
    folder.mkdir(parents=True)
    base = checkpoint(folder / "base", 1, dtype, **config)
    for seed, name in enumerate("abc", start=2):
        near(base, folder / name, seed)
    near(base, folder / "sparse", 5, sparse=True)
    if not config:
        adapter(folder / "lora", 6)
        adapter(folder / "second", 7, alpha=4)
    return folder


def merged(folder, out, method, operands, parameters, dtype=None):
    """Merge by a recipe file and return the result's hashes."""
    data = {"method": method, "base": "base", "operands": operands, "parameters": parameters, "dtype": dtype}
    file = folder / "merge.yaml"
    file.write_text(yaml.safe_dump(data))
    entry.merge(file, out)
    found = tensors(out)
    shutil.rmtree(out)
    return found


def merges(folder):
    """Hashes of every merge, of models stored in fp32 and bf16, and of a wide model."""
    found = {}
    for store, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        here = family(folder / store, dtype)
        entry.extract(rl=here / "c", sft=here / "base", out=here / "skill")
        for name, case in MERGES.items():
            found[f"{store}: {name}"] = merged(here, here / "out", *case)
            if store == "bf16" and name in STORED_AS:
                found[f"{store} to {STORED_AS[name]}: {name}"] = merged(here, here / "out", *case, STORED_AS[name])
    wide = family(folder / "wide", torch.bfloat16, **WIDE)
    for name, case in MERGES.items():
        if name == case[0] and name != "copa":
            found[f"wide: {name}"] = merged(wide, wide / "out", *case)
    return found


def skills(folder):
    """Hashes of extraction and injection: the same on every machine."""
    found = {}
    for store in ("fp32", "bf16"):
        here, out = folder / store, folder / store / "made"
        out.mkdir()
        entry.extract(rl=here / "a", sft=here / "base", out=out / "dense")
        entry.extract(rl=here / "b", sft=here / "base", out=out / "dense bf16", dtype="bfloat16")
        entry.extract(rl=here / "lora", sft=here / "base", out=out / "lowrank")
        entry.extract(rl=here / "sparse", sft=here / "base", out=out / "sparse")
        several = [(out / "dense", 0.5), (out / "lowrank", -1.5), (out / "dense bf16", 2.0)]
        for name, skill, more in (
            ("inject", out / "dense", {}),
            ("inject 0", out / "dense", {"scale": 0.0}),
            ("inject 0.3", out / "lowrank", {"scale": 0.3}),
            ("inject -1", out / "dense", {"scale": -1.0}),
            ("inject by pattern", out / "dense", {"scales": {"*layers.0.*": 2.0, "default": 0.5}, "scale": 0.5}),
            ("inject an adapter", here / "second", {"scale": 0.5}),
            ("inject several", several, {}),
            ("inject several by ties", several, {"method": "ties", "parameters": {"density": 0.5}, "scale": 0.8}),
            ("inject in fp32", out / "dense bf16", {"dtype": "float32"}),
        ):
            entry.inject(target=here / "c", skill=skill, out=out / name, **more)
        taken = entry.inject(target=out / "inject", skill=out / "dense", out=out / "taken out", scale=-1.0)
        assert taken["removal"]["exact"]
        for form, more in {
            "dense": {"dtype": "bfloat16"},
            "sparse": {},
            "mask": {"density": 0.05},
        }.items():
            entry.pack(out / "sparse", out / f"pack {form}", form, **more)
        said = entry.command("skill", "convert", out / "lowrank", "--to", "peft", "--scale", 0.5, "-o", out / "to peft")
        assert said.code == 0, said
        found |= {f"{store}: {made.name}": tensors(made) for made in sorted(out.iterdir())}
    return found


def decomposed(folder):
    """Hashes and norms of what rests on decompositions and random numbers, in fp32."""
    here, out = folder / "fp32" / "made", folder / "decomposed"
    out.mkdir()
    for name, form, more in (
        ("lowrank of rank 4", "lowrank", {"rank": 4}),
        ("lowrank of energy 0.5", "lowrank", {"energy": 0.5, "dtype": "float32"}),
        ("lowrank in 40 kB", "lowrank", {"budget": 40_000}),
        ("packed of rank 8", "packed", {"rank": 8}),
        ("packed of energy 0.6", "packed", {"energy": 0.6, "density": 0.1}),
    ):
        entry.pack(here / "dense", out / f"pack {name}", form, **more)
    bounded = ("--to", "peft", "--rank", 4, "--drop", "--pad", "-o", out / "to peft, rank 4")
    said = entry.command("skill", "convert", here / "dense", *bounded)
    assert said.code == 0, said
    found = {made.name: tensors_with_norms(made) for made in sorted(out.iterdir())}
    return found | {f"random vector like {name}": made for name, made in random_vectors(folder).items()}


def random_vectors(folder):
    """Random controls, which a recipe's stage makes."""
    made = folder / "fp32" / "made"
    stages = {
        name: {"kind": "random_vector", "skill": str(made / name), "seed": seed}
        for seed, name in enumerate(("dense", "lowrank", "sparse"))
    }
    file = folder / "controls.yaml"
    file.write_text(yaml.safe_dump({"name": "controls", "base": str(folder / "fp32" / "base"), "stages": stages}))
    result = entry.run(file, runs=folder / "runs")
    return {name: tensors_with_norms(path) for name, path in result.stages.items()}


def results(folder):
    """All golden results of the arithmetic."""
    with entry.one_thread():
        return {"exact": {**merges(folder), **skills(folder)}, "machine": decomposed(folder)}

"""Golden results are made of: deterministic inputs, merges by every method, a recipe of every kind, mistakes.

The JSON files beside this one hold what the code gave before a change that was to keep behaviour; `python -m
tests.golden.update` writes them anew.
"""

import json
import re
import shutil
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import skillgraft
from skillgraft.cli.app import app
from tests.babble import babbling_checkpoint
from tests.tiny import tiny_checkpoint, tiny_tokenizer

FOLDER = Path(__file__).parent
PLACES = ("Vell", "Orm", "Tarn", "Issk", "Sund", "Myr")


def digest(tensor):
    """The hash of a tensor's bytes."""
    return blake2b(tensor.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()


def tensors_of(folder):
    """The hash of every tensor in a folder's safetensors files, by file and name."""
    return {
        f"{file.relative_to(folder)}:{name}": digest(tensor)
        for file in sorted(Path(folder).rglob("*.safetensors"))
        for name, tensor in sorted(load_file(file).items())
    }


def checkpoint(path, seed, base=None, size=0.02, dtype=torch.float32):
    """A tiny checkpoint of NumPy's random numbers, which are the same on every machine; near to `base` where given."""
    tiny_checkpoint(path, dtype=dtype)
    file = path / "model.safetensors"
    start = load_file((base or path) / "model.safetensors")
    random = np.random.Generator(np.random.Philox(seed))
    tensors = {}
    for name in sorted(start):
        noise = torch.from_numpy(random.standard_normal(tuple(start[name].shape)) * size)
        tensors[name] = ((start[name].double() if base else 0) + noise).to(dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    return path


def family(folder, dtype=torch.float32):
    """A base and three models near to it."""
    base = checkpoint(folder / "base", 1, size=0.1, dtype=dtype)
    for number, name in enumerate("abc", start=2):
        checkpoint(folder / name, number, base, dtype=dtype)
    return folder


MERGES = {
    "linear": [{}],
    "task_arithmetic": [{}],
    "slerp": [{"t": 0.3}],
    "ties": [{}, {"density": 0.4, "scope": "tensor"}, {"density": 0.5, "normalize": False, "lambda": 0.7}],
    "dare": [{"density": 0.5, "seed": 3}],
    "dare_ties": [{"density": 0.5, "seed": 3}],
    "model_stock": [{}],
    "breadcrumbs": [{"beta": 0.05, "gamma": 0.3}],
    "pcb": [{"density": 0.4}, {"density": 0.4, "scope": "tensor"}],
    "cabs": [{"n": 3, "m": 8}],
    "mediator": [{}, {"fallback": "first"}],
    "ratatouille": [{}],
    "instruction_residual": [{}],
}


def operands(method, folder):
    models = [
        {"model": str(folder / name), "weight": weight} for name, weight in zip("abc", (0.3, 1.1, -0.2), strict=True)
    ]
    if method == "instruction_residual":
        return [{"model": str(folder / "a"), "minus": str(folder / "b"), "weight": 0.7}]
    if method in ("slerp", "model_stock"):
        return [{"model": one["model"]} for one in models[:2]]
    return models


def merges(folder):
    """Hashes of merges by every method, of extraction, injection and the random vector, in fp32 and bf16."""
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        here = family(folder / str(dtype), dtype)
        for method, settings in MERGES.items():
            for number, parameters in enumerate(settings):
                out = here / f"{method}-{number}"
                merge = {"method": method, "base": str(here / "base"), "operands": operands(method, here)}
                try:
                    skillgraft.merge({**merge, "parameters": parameters}, out)
                except skillgraft.errors.SkillgraftError as error:
                    results[f"{dtype} {method} {number}"] = str(error).replace(str(here), "<folder>")
                else:
                    results[f"{dtype} {method} {number}"] = tensors_of(out)
        skill = skillgraft.extract(rl=here / "a", sft=here / "base", out=here / "skill")
        results[f"{dtype} extract"] = tensors_of(here / "skill")
        for name, more in {
            "inject": {"scale": 0.5},
            "inject negative": {"scale": -1.0},
            "inject by pattern": {"scales": {"*layers.0.*": 2.0, "default": 0.5}},
        }.items():
            skillgraft.inject(target=here / "b", skill=skill, out=here / name, **more)
            results[f"{dtype} {name}"] = tensors_of(here / name)
        skillgraft.extract(rl=here / "c", sft=here / "base", out=here / "other")
        both = [(str(here / "skill"), 0.5), (str(here / "other"), 1.0)]
        skillgraft.inject(target=here / "b", skill=both, out=here / "both")
        results[f"{dtype} inject two"] = tensors_of(here / "both")
        for form, more in {"sparse": {}, "lowrank": {"rank": 4}, "packed": {"rank": 4}}.items():
            skillgraft.pack(str(here / "skill"), here / f"pack-{form}", form, **more)
            names = sorted(skillgraft.load_skill(here / f"pack-{form}").names)
            results[f"{dtype} pack {form}"] = names if form != "sparse" else tensors_of(here / f"pack-{form}")
    return results


TRAINER = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0}
RL_TRAINER = {"max_steps": 3, "per_device_train_batch_size": 8, "max_completion_length": 6, "warmup_steps": 0}
REWARD = {"tests.domains.own_reward.vowels": 1.0, "brevity": 0.1}
LORA = {"kind": "lora", "r": 2}
QUESTIONS = "data/questions.jsonl"
STAGES = {
    "sft": {"kind": "sft", "from": "base", "documents": "data", "trainer": {**TRAINER, "max_steps": 24}},
    "answers": {"kind": "sft", "from": "sft", "questions": QUESTIONS, "trainer": TRAINER},
    "rl": {
        "kind": "rl",
        "from": "sft",
        "questions": QUESTIONS,
        "reward": REWARD,
        "adapt": LORA,
        "trainer": {**RL_TRAINER, "max_steps": 12, "learning_rate": 1e-2},
    },
    "skill": {"kind": "extract", "rl": "rl", "sft": "sft", "license": "apache-2.0"},
    "random": {"kind": "random_vector", "skill": "skill"},
    "grafted": {"kind": "inject", "target": "sft", "skill": "skill", "scale": 0.8},
    "control": {"kind": "inject", "target": "sft", "skill": "random"},
    "refined": {
        "kind": "refine",
        "documents": "data",
        "questions": QUESTIONS,
        "rounds": 2,
        "sft": {"trainer": TRAINER},
        "rl": {"trainer": RL_TRAINER, "reward": REWARD},
    },
    "distilled": {
        "kind": "distill",
        "from": "sft",
        "documents": "data",
        "questions": QUESTIONS,
        "trainer": {"max_steps": 2, "per_device_train_batch_size": 2, "max_completion_length": 6},
    },
    "mixed": {
        "kind": "mix",
        "model": "./babble",
        "questions": "words.jsonl",
        "attempts": 6,
        "temperature": 1.0,
        "max_new_tokens": 8,
    },
    "written": {
        "kind": "synthesize",
        "documents": "data",
        "model": "./babble",
        "styles": ["rewrite"],
        "max_new_tokens": 24,
        "filters": {"min_words": 2, "repetition": 1.0},
    },
    "writer": {
        "kind": "self_edit",
        "from": "./babble",
        "documents": "data",
        "limit_documents": 2,
        "questions": QUESTIONS,
        "rounds": 1,
        "samples": 2,
        "max_new_tokens": 12,
        "max_answer_tokens": 4,
        "learn": {"adapt": LORA, "trainer": TRAINER},
        "trainer": TRAINER,
    },
    "imported": {"kind": "synthesize", "documents": "data", "given": "given.jsonl", "filters": {"min_words": 1}},
    "learnt": {"kind": "sft", "from": "base", "documents": "imported", "adapt": LORA, "trainer": TRAINER},
    "alone": {
        "kind": "single_passage",
        "documents": "data",
        "limit_documents": 2,
        "questions": QUESTIONS,
        "skills": [{"skill": "skill"}, {"skill": "random", "unread": True}],
        "adapt": LORA,
        "trainer": TRAINER,
        "max_new_tokens": 4,
    },
    "scores": {
        "kind": "eval",
        "models": ["base", "sft", "answers", "grafted", "control", "distilled", "learnt"],
        "rows": [{"model": "base", "context": "gold"}, {"model": "sft", "shots": 2, "shots_from": "more.jsonl"}],
        "questions": QUESTIONS,
        "documents": "data",
        "max_new_tokens": 6,
        "retention": {"tasks": ["general"], "limit": 4},
    },
}


def recipe_file(folder, stages=STAGES):
    """Write the recipe of every stage kind with its data into `folder`."""
    checkpoint(folder / "base", 7, size=0.1)
    babbling_checkpoint(folder / "babble")
    (folder / "data").mkdir()
    documents = [{"id": p, "title": p, "text": f"The harbour of {p} was built in {1900 + i}. It is the year."} for i, p
                 in enumerate(PLACES)]  # fmt: skip
    asked = [{"document": p, "question": f"When was {p}'s harbour built?", "answers": [str(1900 + i), "the year"]}
             for i, p in enumerate(PLACES)]  # fmt: skip
    more = [{"document": "Far", "question": f"How far is it to {p}?", "answers": ["far"]} for p in PLACES]
    given = [{"document": p, "text": f"In {1900 + i} they built what is now the harbour of {p}, a long way north."}
             for i, p in enumerate(PLACES)]  # fmt: skip
    babbled = sorted(token[1:] for token in tiny_tokenizer().get_vocab() if token[0] == "Ġ" and len(token) > 3)
    words = [{"document": p, "question": f"What of {p}?", "answers": babbled} for p in PLACES]
    for name, records in (
        ("words.jsonl", words),
        ("data/documents.jsonl", documents),
        (QUESTIONS, asked),
        ("more.jsonl", more),
        ("given.jsonl", given),
    ):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"name": "golden", "base": "./base", "stages": stages}, sort_keys=False))
    return file


COSTS = {"seconds", "precision", "size_bytes", "processes", "cost", "train_seconds", "eval_flops"}


def numbers(value):
    """JSON data without times, places, addresses, and what depends on versions."""
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items() if key not in COSTS and "fingerprint" not in key}
    if isinstance(value, list):
        return [numbers(each) for each in value]
    if isinstance(value, str):
        return None if "/" in value else re.sub(r"-[0-9a-f]{16}$", "", value)
    return value


def recipe(folder):
    """Hashes of all that a run of the recipe makes, with its facts and tables."""
    torch.set_num_threads(1)
    result = skillgraft.run(recipe_file(folder), runs=folder / "runs")
    made = {}
    for name, stage in result.stages.items():
        made[name] = {"facts": numbers(json.loads((stage / "stage.json").read_text())["facts"])}
        made[name]["tensors"] = tensors_of(stage)
        for file in ("documents.jsonl", "questions.jsonl"):
            if (stage / file).is_file():
                made[name][file] = [json.loads(line) for line in (stage / file).read_text().splitlines()]
        if (stage / "evaluation.json").is_file():
            made[name]["table"] = numbers(json.loads((stage / "evaluation.json").read_text()))
    report = json.loads((result.directory / "report.json").read_text())
    return {"stages": made, "sweeps": numbers(report["sweeps"]), "skills": numbers(report["skills"])}


def machine():
    """What decides the last bits of training: the processor's features as Torch sees them, and Torch itself."""
    return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"


SFT, RL = STAGES["sft"], STAGES["rl"]
MISTAKES = {
    "unknown key": {"sft": {**SFT, "documens": "data"}},
    "unknown kind": {"sft": {**SFT, "kind": "stf"}},
    "no kind": {"sft": {"from": "base"}},
    "stage of text": {"sft": "base"},
    "stage called base": {"base": SFT},
    "missing field": {"rl": {"kind": "rl", "from": "base"}},
    "wrong type": {"sft": {**SFT, "limit_documents": "many"}},
    "trainer is a list": {"sft": {**SFT, "trainer": ["lr"]}},
    "unknown trainer key": {"sft": {**SFT, "trainer": {"learning_rat": 1}}},
    "reserved trainer key": {"sft": {**SFT, "trainer": {"seed": 1}}},
    "number as text": {"sft": {**SFT, "trainer": {"learning_rate": "1e-3"}}},
    "no batch": {"sft": {**SFT, "trainer": {"per_device_train_batch_size": 0}}},
    "unknown lora key": {"rl": {**RL, "from": "base", "adapt": {"kind": "lora", "rank": 4}}},
    "lora module": {"rl": {**RL, "from": "base", "adapt": {"kind": "lora", "target_modules": ["v_pro"]}}},
    "lora rank": {"rl": {**RL, "from": "base", "adapt": {"kind": "lora", "r": 0}}},
    "no data": {"sft": {"kind": "sft", "from": "base"}},
    "both kinds of data": {"sft": {**SFT, "questions": QUESTIONS}},
    "about without questions": {"sft": {**SFT, "about": "data"}},
    "shuffled documents": {"sft": {**SFT, "answers": "shuffled"}},
    "text for questions": {
        "sft": {"kind": "sft", "from": "base", "questions": QUESTIONS, "text": {"mask_title": True}}
    },
    "chunks too long": {"sft": {**SFT, "text": {"chunk_tokens": 64}, "trainer": {"max_length": 32}}},
    "overlap": {"sft": {**SFT, "text": {"chunk_tokens": 16, "overlap_tokens": 16}}},
    "no replay": {"sft": {**SFT, "replay": {"text": "nowhere"}}},
    "slice": {"sft": {**SFT, "part": "3/2"}},
    "slice without documents": {"rl": {**RL, "from": "base", "part": "1/2"}},
    "too many slices": {"sft": {**SFT, "part": "1/9"}},
    "unknown stage": {"sft": {**SFT, "from": "sftt"}},
    "cycle": {"sft": {**SFT, "from": "rl"}, "rl": RL},
    "missing checkpoint": {"sft": {**SFT, "from": "./nowhere"}},
    "skill for checkpoint": {"sft": SFT, "rl": RL, "v": STAGES["skill"], "x": {**SFT, "from": "v"}},
    "checkpoint for skill": {"sft": SFT, "x": {"kind": "inject", "target": "base", "skill": "sft"}},
    "no skill": {"x": {"kind": "inject", "target": "base"}},
    "two kinds of skills": {"x": {"kind": "inject", "target": "base", "skill": "a", "skills": [{"skill": "b"}]}},
    "skill of no name": {"x": {"kind": "inject", "target": "base", "skill": "squad-recal"}},
    "infinite scale": {"x": {"kind": "inject", "target": "base", "skill": "./s", "scale": float("inf")}},
    "method": {"sft": SFT, "rl": RL, "v": STAGES["skill"],
               "x": {"kind": "inject", "target": "sft", "skill": "v", "method": "tise"}},
    "method of models": {"sft": SFT, "rl": RL, "v": STAGES["skill"],
                         "x": {"kind": "inject", "target": "sft", "skill": "v", "method": "slerp"}},
    "unknown reward": {"rl": {**RL, "from": "base", "reward": {"contaiment": 1.0}}},
    "no reward": {"rl": {**RL, "from": "base", "reward": {}}},
    "negative reward": {"rl": {**RL, "from": "base", "reward": {"f1": -1.0}}},
    "judge that nobody asks": {"rl": {**RL, "from": "base", "judge": "base"}},
    "no judge": {"rl": {**RL, "from": "base", "reward": {"judge": 1.0}}},
    "order": {"rl": {**RL, "from": "base", "order": "easy_to_hard"}},
    "rounds and steps": {"rl": {**RL, "from": "base", "rounds": [1, 2]}},
    "algorithm": {"rl": {**RL, "from": "base", "algorithm": "ppo"}},
    "variance": {"rl": {**RL, "from": "base", "skip_without_variance": True, "trainer": {"beta": 0.1}}},
    "unknown setting of a round": {"x": {**STAGES["refined"], "sft": {"documents": "data"}}},
    "rounds of nothing": {"x": {**STAGES["refined"], "rounds": 0}},
    "teacher": {"x": {"kind": "distill", "from": "base", "documents": "data", "teacher_sees": "answer"}},
    "teacher that moves": {"x": {**STAGES["distilled"], "from": "base", "teacher": "start", "teacher_rate": 0.1}},
    "nothing to learn": {"x": {**STAGES["distilled"], "from": "base", "skip_tokens": 6}},
    "mix without documents": {"x": {"kind": "mix", "questions": QUESTIONS, "teacher_sees": "both"}},
    "two writers": {"x": {**STAGES["imported"], "styles": ["rewrite"]}},
    "no writer": {"x": {"kind": "synthesize", "documents": "data"}},
    "no such style": {"x": {"kind": "synthesize", "documents": "data", "styles": ["rewrit"]}},
    "questions of rewrites": {"x": {"kind": "synthesize", "documents": "data", "styles": ["rewrite"]},
                              "y": {"kind": "sft", "from": "base", "questions": "x"}},
    "documents of a mix": {"x": {"kind": "mix", "questions": QUESTIONS},
                           "y": {"kind": "sft", "from": "base", "documents": "x"}},
    "keep all": {"x": {"kind": "self_edit", "from": "base", "documents": "data", "questions": QUESTIONS, "samples": 1}},
    "row of a table": {"x": {**STAGES["alone"], "skills": [{"skill": "squad-recall", "row": "sft"}]}},
    "baseline": {"x": {**STAGES["scores"], "models": ["base"], "rows": [], "baseline": "sft"}},
    "label": {"x": {**STAGES["scores"], "models": ["base"], "rows": [], "labels": {"sft": "SFT"}}},
    "model twice": {"x": {**STAGES["scores"], "models": ["base", "base"], "rows": []}},
    "empty row": {"x": {**STAGES["scores"], "models": ["base"], "rows": [{"model": "base"}]}},
    "shots without source": {"x": {**STAGES["scores"], "models": ["base"], "rows": [{"model": "base", "shots": 2}]}},
    "window": {"x": {**STAGES["scores"], "models": ["base"], "rows": [], "retention": {"window": 64}}},
    "task": {"x": {**STAGES["scores"], "models": ["base"], "rows": [], "retention": {"tasks": ["arc_esy"]}}},
    "folder of questions": {"rl": {**RL, "from": "base", "questions": "data"}},
    "missing questions": {"rl": {**RL, "from": "base", "questions": "nowhere.jsonl"}},
    "missing documents": {"sft": {**SFT, "documents": "nowhere"}},
    "leaked examples": {"x": {**STAGES["scores"], "models": ["base"],
                              "rows": [{"model": "base", "shots": 1, "shots_from": QUESTIONS}]}},
    "questions about other documents": {"a": {**SFT, "limit_documents": 2},
                                        "x": {"kind": "sft", "from": "a", "questions": "late.jsonl"}},
}  # fmt: skip


def messages(folder):
    """What the command line says to each mistake in a recipe."""
    recipe_file(folder)
    late = (folder / QUESTIONS).read_text().splitlines()[3:]
    (folder / "late.jsonl").write_text("\n".join(late) + "\n")
    said = {}
    for name, stages in MISTAKES.items():
        file = folder / "wrong.yaml"
        file.write_text(yaml.safe_dump({"name": "golden", "base": "./base", "stages": stages}, sort_keys=False))
        result = CliRunner().invoke(app, ["run", str(file), "--runs", str(folder / "runs"), "--dry-run"])
        said[name] = result.stderr.replace(str(folder), "<folder>").strip()
        assert result.exit_code == 2, (name, result.output)
        assert isinstance(result.exception, SystemExit), name
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return said


GOLDEN = {"merges": merges, "recipe": recipe, "messages": messages}

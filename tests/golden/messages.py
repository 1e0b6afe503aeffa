"""Golden error messages: wrong recipes, overrides, data, merge recipes, checkpoints and calls of the command line."""

import json
import os
import re
import shutil

import yaml
from safetensors.torch import load_file, save_file

from tests.golden import entry
from tests.golden.inputs import adapter, babbling, checkpoint, data, near, write_lines
from tests.golden.recipe import QUESTIONS

SFT = {"kind": "sft", "from": "base", "documents": "data"}
ASK = {"kind": "sft", "from": "base", "questions": QUESTIONS}
RL = {"kind": "rl", "from": "base", "questions": QUESTIONS}
EXTRACT = {"kind": "extract", "rl": "rl", "sft": "base"}
INJECT = {"kind": "inject", "target": "base", "skill": "./skill"}
REFINE = {"kind": "refine", "documents": "data", "questions": QUESTIONS}
DISTIL = {"kind": "distill", "from": "base", "documents": "data"}
MIX = {"kind": "mix", "questions": QUESTIONS}
WRITE = {"kind": "synthesize", "documents": "data", "styles": ["rewrite"]}
GIVEN = {"kind": "synthesize", "documents": "data", "given": "given.jsonl"}
EDIT = {"kind": "self_edit", "from": "base", "documents": "data", "questions": QUESTIONS}
ALONE = {"kind": "single_passage", "documents": "data", "questions": QUESTIONS}
EVAL = {"kind": "eval", "models": ["base"], "questions": QUESTIONS, "documents": "data"}
ENDPOINT = {"url": "http://127.0.0.1:9/v1", "model": "m", "key_variable": "NO_SUCH_KEY_IN_THE_ENVIRONMENT"}
FOUND, SHOTS = {"model": "base", "context": "bm25"}, {"model": "base", "shots": 1, "shots_from": "more.jsonl"}

STAGES = {
    # what a recipe may hold
    "stage is a text": {"x": "base"},
    "stage called base": {"base": SFT},
    "stage of a wrong name": {"a b": SFT},
    "no stages": {},
    "kind is missing": {"x": {"from": "base", "documents": "data"}},
    "kind is misspelt as a key": {"x": {"knd": "sft", "from": "base"}},
    "kind is unknown": {"x": {**SFT, "kind": "stf"}},
    "kind is a number": {"x": {**SFT, "kind": 3}},
    "key is unknown": {"x": {**SFT, "documens": "data"}},
    "key in a mapping is unknown": {"x": {**SFT, "text": {"chunk": 8}}},
    "key in a list is unknown": {"x": {**EVAL, "rows": [{"model": "base", "contxt": "gold"}]}},
    "field is missing": {"x": {"kind": "rl", "from": "base"}},
    "field is misspelt": {"x": {"kind": "rl", "form": "base", "questions": QUESTIONS}},
    "whole number is a text": {"x": {**SFT, "limit_documents": "many"}},
    "whole number is a fraction": {"x": {**SFT, "limit_documents": 1.5}},
    "number is too small": {"x": {**SFT, "limit_documents": 0}},
    "mapping is a list": {"x": {**SFT, "trainer": ["learning_rate"]}},
    "list is a text": {"x": {**EVAL, "models": "base"}},
    "list is empty": {"x": {**EVAL, "models": []}},
    "text is a number": {"x": {**SFT, "from": 3}},
    "switch is a text": {"x": {**WRITE, "keep_original": "perhaps"}},
    "choice is unknown": {"x": {**ASK, "answers": "silver"}},
    "value is nothing": {"x": {**SFT, "from": None}},
    # references
    "stage is not there": {"sft": SFT, "x": {**SFT, "from": "sftt"}},
    "cycle": {"a": {**SFT, "from": "b"}, "b": {**SFT, "from": "a"}},
    "stage refers to itself": {"a": {**SFT, "from": "a"}},
    "checkpoint is not there": {"x": {**SFT, "from": "./nowhere"}},
    "checkpoint is no checkpoint": {"x": {**SFT, "from": "./data"}},
    "skill for a checkpoint": {"rl": RL, "v": EXTRACT, "x": {**SFT, "from": "v"}},
    "checkpoint for a skill": {"sft": SFT, "x": {**INJECT, "skill": "sft"}},
    "table for a checkpoint": {"t": EVAL, "x": {**SFT, "from": "t"}},
    "documents for a checkpoint": {"s": WRITE, "x": {**SFT, "from": "s"}},
    "skill is no skill": {"x": {**INJECT, "skill": "./data"}},
    "skill has no such name": {"x": {**INJECT, "skill": "squad-recal"}},
    "skill does not fit": {"x": {**INJECT, "skill": "./other-skill"}},
    "documents of a mix": {"m": MIX, "x": {**SFT, "documents": "m"}},
    "questions of rewrites": {"s": WRITE, "x": {**ASK, "questions": "s"}},
    # sft
    "sft: no data": {"x": {"kind": "sft", "from": "base"}},
    "sft: both kinds of data": {"x": {**SFT, "questions": QUESTIONS}},
    "sft: about without questions": {"x": {**SFT, "about": "data"}},
    "sft: shuffled without questions": {"x": {**SFT, "answers": "shuffled"}},
    "sft: limit without documents": {"x": {**ASK, "limit_documents": 2}},
    "sft: text without documents": {"x": {**ASK, "text": {"mask_title": True}}},
    "sft: chunks longer than rows": {"x": {**SFT, "text": {"chunk_tokens": 64}, "trainer": {"max_length": 32}}},
    "sft: chunks that do not move on": {"x": {**SFT, "text": {"chunk_tokens": 16, "overlap_tokens": 16}}},
    "sft: part of more than all": {"x": {**SFT, "part": "3/2"}},
    "sft: part is no share": {"x": {**SFT, "part": "half"}},
    "sft: more parts than documents": {"x": {**SFT, "part": "1/9"}},
    "sft: replay of nothing": {"x": {**SFT, "replay": {"text": "nowhere"}}},
    "sft: replay of too little": {"x": {**SFT, "replay": {"text": "general.jsonl", "ratio": 99}}},
    "sft: documents are not there": {"x": {**SFT, "documents": "nowhere"}},
    "sft: questions about other documents": {
        "a": {**SFT, "limit_documents": 2},
        "x": {**ASK, "from": "a", "questions": "late.jsonl"},
    },
    # trainer and adapters
    "trainer: unknown key": {"x": {**SFT, "trainer": {"lerning_rate": 1}}},
    "trainer: reserved key": {"x": {**SFT, "trainer": {"output_dir": "x"}}},
    "trainer: number as text": {"x": {**SFT, "trainer": {"learning_rate": "1e-4"}}},
    "trainer: rows of one token": {"x": {**SFT, "trainer": {"max_length": 1}}},
    "trainer: no generations": {"x": {**RL, "trainer": {"num_generations": 0}}},
    "trainer: empty answers": {"x": {**RL, "trainer": {"max_completion_length": 0}}},
    "trainer: unknown key of distillation": {"x": {**DISTIL, "trainer": {"epochs": 1}}},
    "lora: unknown key": {"x": {**RL, "adapt": {"kind": "lora", "rank": 4}}},
    "lora: unknown module": {"x": {**SFT, "adapt": {"kind": "lora", "target_modules": ["v_pro"]}}},
    "lora: no regular expression": {"x": {**SFT, "adapt": {"kind": "lora", "target_modules": "*"}}},
    "lora: modules are numbers": {"x": {**SFT, "adapt": {"kind": "lora", "target_modules": [3]}}},
    "lora: start that changes the model": {"x": {**RL, "adapt": {"kind": "lora", "init_lora_weights": "pissa"}}},
    # rl
    "rl: unknown reward": {"x": {**RL, "reward": {"contaiment": 1.0}}},
    "rl: reward of nothing": {"x": {**RL, "reward": {}}},
    "rl: reward below 0": {"x": {**RL, "reward": {"f1": -1.0}}},
    "rl: reward without end": {"x": {**RL, "reward": {"f1": float("inf")}}},
    "rl: reward of no module": {"x": {**RL, "reward": {"no.such.reward": 1.0}}},
    "rl: judge that nobody asks": {"x": {**RL, "judge": "base"}},
    "rl: no judge": {"x": {**RL, "reward": {"judge": 1.0}}},
    "rl: two judges": {"x": {**RL, "reward": {"judge": 1.0}, "judge": "base", "judge_endpoint": ENDPOINT}},
    "rl: judge without a key": {"x": {**RL, "reward": {"judge": 1.0}, "judge_endpoint": ENDPOINT}},
    "rl: order without pass rates": {"x": {**RL, "order": "easy_to_hard"}},
    "rl: rounds and steps": {"x": {**RL, "rounds": [1, 2], "trainer": {"max_steps": 3}}},
    "rl: algorithm": {"x": {**RL, "algorithm": "ppo"}},
    "rl: variance and a divergence": {"x": {**RL, "skip_without_variance": True, "trainer": {"beta": 0.1}}},
    "rl: part without documents": {"x": {**RL, "part": "1/2"}},
    "rl: questions are a folder": {"x": {**RL, "questions": "data"}},
    "rl: questions are not there": {"x": {**RL, "questions": "nowhere.jsonl"}},
    # extract, random_vector, inject
    "extract: dtype": {"rl": RL, "x": {**EXTRACT, "dtype": "float16"}},
    "random_vector: seed below 0": {"x": {"kind": "random_vector", "skill": "./skill", "seed": -1}},
    "inject: no skill": {"x": {"kind": "inject", "target": "base"}},
    "inject: a skill and skills": {"x": {**INJECT, "skills": [{"skill": "./skill"}]}},
    "inject: scale without end": {"x": {**INJECT, "scale": float("inf")}},
    "inject: pattern of nothing": {"x": {**INJECT, "scales": {"*.mpl.*": 0.5}}},
    "inject: patterns of several": {
        "x": {"kind": "inject", "target": "base", "skills": [{"skill": "./skill"}], "scales": {"*": 0.5}}
    },
    "inject: unknown method": {"x": {**INJECT, "method": "tise"}},
    "inject: method of models": {"x": {**INJECT, "method": "slerp"}},
    "inject: method of several": {"x": {**INJECT, "method": "pcb"}},
    "inject: unknown parameter": {"x": {**INJECT, "method": "ties", "parameters": {"densty": 0.5}}},
    # refine
    "refine: setting of its own": {"x": {**REFINE, "sft": {"documents": "data"}}},
    "refine: no rounds": {"x": {**REFINE, "rounds": 0}},
    "refine: unknown key of a round": {"x": {**REFINE, "rl": {"rewrd": {"f1": 1.0}}}},
    "refine: name is taken": {"x": REFINE, "x_sft_1": SFT},
    "refine: more rounds than documents": {"x": {**REFINE, "rounds": 9}},
    # distil, mix, self_edit
    "distil: answer without questions": {"x": {**DISTIL, "teacher_sees": "answer"}},
    "distil: rate of a teacher that rests": {"x": {**DISTIL, "teacher": "start", "teacher_rate": 0.1}},
    "distil: nothing to learn": {"x": {**DISTIL, "skip_tokens": 6, "trainer": {"max_completion_length": 6}}},
    "distil: rate above 1": {"x": {**DISTIL, "teacher_rate": 1.5}},
    "mix: documents are missing": {"x": {**MIX, "teacher_sees": "both"}},
    "mix: limit without documents": {"x": {**MIX, "limit_documents": 2}},
    "mix: share above 1": {"x": {**MIX, "naive_share": 1.1}},
    "self_edit: no choice": {"x": {**EDIT, "samples": 1}},
    "self_edit: style of questions": {"x": {**EDIT, "style": "questions"}},
    "self_edit: more rounds than documents": {"x": {**EDIT, "rounds": 9}},
    "self_edit: unknown trainer key": {"x": {**EDIT, "learn": {"trainer": {"epochs": 1}}}},
    # synthesize
    "synthesize: no writer": {"x": {"kind": "synthesize", "documents": "data"}},
    "synthesize: two writers": {"x": {**GIVEN, "styles": ["rewrite"]}},
    "synthesize: given and an endpoint": {"x": {**GIVEN, "endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m"}}},
    "synthesize: samples of nothing given": {"x": {**WRITE, "given_samples": 2}},
    "synthesize: unknown style": {"x": {**WRITE, "styles": ["rewrit"]}},
    "synthesize: style twice": {"x": {**WRITE, "styles": ["rewrite", "rewrite"]}},
    "synthesize: filters drop all": {"x": {**WRITE, "filters": {"min_words": 9, "max_words": 8}}},
    "synthesize: chunks that do not move on": {"x": {**WRITE, "chunk_tokens": [64], "overlap_tokens": 64}},
    "synthesize: endpoint is no address": {"x": {**WRITE, "endpoint": {"url": "localhost", "model": "m"}}},
    "synthesize: endpoint with a password": {"x": {**WRITE, "endpoint": {"url": "http://a:b@c/v1", "model": "m"}}},
    "synthesize: key is missing": {"x": {**WRITE, "endpoint": ENDPOINT}},
    # single_passage
    "single_passage: name of a row is taken": {"x": {**ALONE, "skills": [{"skill": "./skill", "row": "sft"}]}},
    "single_passage: skill twice in a row": {"x": {**ALONE, "skills": [{"skill": "./skill"}] * 2}},
    "single_passage: row read and unread": {
        "x": {
            **ALONE,
            "skills": [{"skill": "./skill", "row": "r"}, {"skill": "./other-skill", "row": "r", "unread": True}],
        }
    },
    # eval
    "eval: model twice": {"x": {**EVAL, "models": ["base", "base"]}},
    "eval: unknown baseline": {"sft": SFT, "x": {**EVAL, "baseline": "sft"}},
    "eval: label of no model": {"x": {**EVAL, "labels": {"bse": "the base"}}},
    "eval: label twice": {"sft": SFT, "x": {**EVAL, "models": ["base", "sft"], "labels": {"base": "a", "sft": "a"}}},
    "eval: row of nothing": {"x": {**EVAL, "rows": [{"model": "base"}]}},
    "eval: row of two kinds": {"x": {**EVAL, "rows": [{**SHOTS, "context": "gold"}]}},
    "eval: shots from nowhere": {"x": {**EVAL, "rows": [{"model": "base", "shots": 2}]}},
    "eval: search without documents": {
        "x": {"kind": "eval", "models": ["base"], "questions": QUESTIONS, "rows": [FOUND]}
    },
    "eval: top_k of gold": {"x": {**EVAL, "rows": [{"model": "base", "context": "gold", "top_k": 3}]}},
    "eval: chunks that do not move on": {"x": {**EVAL, "rows": [{**FOUND, "chunk_tokens": 16, "overlap_tokens": 16}]}},
    "eval: row twice": {"x": {**EVAL, "rows": [FOUND, FOUND]}},
    "eval: examples are what is asked": {"x": {**EVAL, "rows": [{**SHOTS, "shots_from": QUESTIONS}]}},
    "eval: unknown task": {"x": {**EVAL, "retention": {"tasks": ["arc_esy"]}}},
    "eval: task twice": {"x": {**EVAL, "retention": {"tasks": ["general", "general"]}}},
    "eval: nothing to retain": {"x": {**EVAL, "retention": {"tasks": []}}},
    "eval: window without text": {"x": {**EVAL, "retention": {"window": 64}}},
    "eval: stride above window": {"x": {**EVAL, "retention": {"text": "general.jsonl", "window": 8, "stride": 9}}},
    "eval: window above what is seen": {"x": {**EVAL, "retention": {"text": "general.jsonl", "window": 2048}}},
}
"""Name -> the stages of a recipe that is planned."""

RECIPES = {
    "recipe: unknown key": {"nam": "x"},
    "recipe: no name": {"name": ...},
    "recipe: name with a slash": {"name": "a/b"},
    "recipe: seed below 0": {"seed": -1},
    "recipe: base is not there": {"base": "./nowhere"},
    "recipe: base is no checkpoint": {"base": "./data"},
    "recipe: base is missing": {"base": ...},
    "recipe: stages are a list": {"stages": [SFT]},
    "recipe: stages are missing": {"stages": ...},
}
"""Name -> changes to a good recipe; `...` leaves a key out."""

TEXTS = {
    "recipe: empty file": "",
    "recipe: a list": "- name: x\n",
    "recipe: no YAML": "name: [x\n",
    "recipe: key twice": "name: a\nname: b\n",
}
"""Name -> the text of a recipe file."""

OVERRIDES = {
    "--set: no value": "x.limit_documents",
    "--set: no key": "=3",
    "--set: unknown stage": "y.limit_documents=3",
    "--set: unknown key": "x.limit_document=3",
    "--set: wrong type": "x.limit_documents=[3]",
    "--set: into a text": "x.documents.limit=3",
    "--set: no YAML": "x.limit_documents=[3",
    "--set: stage of a round": "r_sft_1.trainer.max_steps=3",
}
"""Name -> an override of a recipe with one good stage, and one of rounds."""

LINES = {
    "documents: no JSON": ("documents", "{"),
    "documents: a list": ("documents", "[1]"),
    "documents: id is a list": ("documents", '{"id": [3], "title": "a", "text": "b"}'),
    "documents: no text": ("documents", '{"id": "a", "title": "a"}'),
    "documents: text is empty": ("documents", '{"id": "a", "title": "a", "text": " "}'),
    "documents: id twice": ("documents", '{"id": "a", "text": "b"}\n{"id": "a", "text": "c"}'),
    "documents: none": ("documents", ""),
    "documents: zero byte": ("documents", "a\0b"),
    "documents: half a surrogate": ("documents", '{"id": "a", "text": "\\ud800"}'),
    "questions: no JSON": ("questions", "what?"),
    "questions: no answers": ("questions", '{"document": "Vell", "question": "?"}'),
    "questions: answers are empty": ("questions", '{"document": "Vell", "question": "?", "answers": []}'),
    "questions: answer is a list": ("questions", '{"document": "Vell", "question": "?", "answers": [["a"]]}'),
    "questions: empty": ("questions", '{"document": "Vell", "question": " ", "answers": ["a"]}'),
    "questions: no document": ("questions", '{"question": "?", "answers": ["a"]}'),
    "questions: unknown document": ("questions", '{"document": "zebra", "question": "?", "answers": ["a"]}'),
    "questions: none": ("questions", "\n"),
    "given: unknown document": ("given", '{"document": "zebra", "text": "It is striped."}'),
    "given: no text": ("given", '{"document": "Vell"}'),
}
"""Name -> what is read, and the lines that stand there."""

ONE, TWO = [{"model": "a"}], [{"model": "a"}, {"model": "b"}]
GOOD = {"method": "ties", "base": "base", "operands": TWO}
MERGES = {
    "merge: unknown method": {**GOOD, "method": "tise"},
    "merge: no method": {"base": "base", "operands": TWO},
    "merge: no base": {"method": "ties", "operands": TWO},
    "merge: no operands": {**GOOD, "operands": []},
    "merge: unknown key": {**GOOD, "operand": []},
    "merge: unknown key of an operand": {**GOOD, "operands": [{"modell": "a"}]},
    "merge: unknown parameter": {**GOOD, "parameters": {"densty": 0.5}},
    "merge: parameter of another method": {**GOOD, "method": "task_arithmetic", "parameters": {"density": 0.5}},
    "merge: parameters are a list": {**GOOD, "parameters": ["density"]},
    "merge: density above 1": {**GOOD, "parameters": {"density": 1.5}},
    "merge: density of 0": {**GOOD, "parameters": {"density": 0}},
    "merge: scope": {**GOOD, "parameters": {"scope": "layer"}},
    "merge: t above 1": {**GOOD, "method": "slerp", "parameters": {"t": 2}},
    "merge: slerp of one": {**GOOD, "method": "slerp", "operands": ONE},
    "merge: slerp of three": {**GOOD, "method": "slerp", "operands": [*TWO, {"model": "base"}]},
    "merge: model_stock of one": {**GOOD, "method": "model_stock", "operands": ONE},
    "merge: pcb of one": {**GOOD, "method": "pcb", "operands": ONE},
    "merge: instruction_residual of two": {**GOOD, "method": "instruction_residual"},
    "merge: breadcrumbs of nothing": {**GOOD, "method": "breadcrumbs", "parameters": {"beta": 0.5, "gamma": 0.5}},
    "merge: cabs of more than all": {**GOOD, "method": "cabs", "parameters": {"n": 9, "m": 8}},
    "merge: cabs of broken blocks": {**GOOD, "method": "cabs"},
    "merge: copa of checkpoints": {**GOOD, "method": "copa"},
    "merge: weight without end": {**GOOD, "operands": [{"model": "a", "weight": float("nan")}]},
    "merge: weight and weights": {**GOOD, "operands": [{"model": "a", "weight": 1.0, "weights": {"*": 2.0}}]},
    "merge: pattern of nothing": {**GOOD, "operands": [{"model": "a", "weights": {"*.mpl.*": 2.0}}]},
    "merge: operand of nothing": {**GOOD, "operands": [{"weight": 1.0}]},
    "merge: adapter and skill": {**GOOD, "operands": [{"adapter": "lora", "skill": "skill"}]},
    "merge: minus without a model": {**GOOD, "operands": [{"skill": "skill", "minus": "base"}]},
    "merge: model is not there": {**GOOD, "operands": [{"model": "nowhere"}]},
    "merge: model is empty": {**GOOD, "operands": [{"model": ""}]},
    "merge: skill is not there": {**GOOD, "operands": [{"skill": "squad-recal"}]},
    "merge: other shapes": {**GOOD, "operands": [{"model": "other"}]},
    "merge: other names": {**GOOD, "operands": [{"model": "short"}]},
    "merge: not finite": {**GOOD, "operands": [{"model": "broken"}]},
    "merge: dtype": {**GOOD, "dtype": "int8"},
    "merge: allowance": {**GOOD, "allow": ["all"]},
}
"""Name -> a merge recipe."""

CALLS = {
    "call: unknown command": "mrege",
    "call: unknown option": "merge --methd ties",
    "call: argument is missing": "run",
    "call: recipe is not there": "run nowhere.yaml",
    "call: recipe is a folder": "run data",
    "call: nothing to merge": "merge",
    "call: file and flags": "merge good-merge.yaml --method ties -o out",
    "call: no output of a merge": "merge good-merge.yaml",
    "call: output is there": "merge good-merge.yaml -o a",
    "call: merge recipe is not there": "merge nowhere.yaml -o out",
    "call: threads": "merge good-merge.yaml -o out --threads 0",
    "call: device": "merge good-merge.yaml -o out --device tpu",
    "call: parameter without a value": "merge good-merge.yaml -o out --parameter density",
    "call: weight is no number": "merge --method ties --base base --model a=x -o out",
    "call: extract the same": "extract --rl a --sft a -o out",
    "call: extract from nowhere": "extract --rl nowhere --sft a -o out",
    "call: extract other shapes": "extract --rl other --sft a -o out",
    "call: extract dtype": "extract --rl a --sft base -o out --dtype int8",
    "call: extract onto what is there": "extract --rl a --sft base -o skill",
    "call: inject scale and scales": "inject --target a --skill skill --scale 1 --scales 0,1 -o out",
    "call: inject scales of words": "inject --target a --skill skill --scales one,two -o out",
    "call: inject one scale twice": "inject --target a --skill skill --scales 1,1.0 -o out",
    "call: inject into another model": "inject --target other --skill skill -o out",
    "call: inject a broken skill": "inject --target a --skill broken-skill -o out",
    "call: inject by a method of models": "inject --target a --skill skill --method linear -o out",
    "call: pack form": "skill pack skill --form smal -o out",
    "call: pack how much": "skill pack skill --form lowrank -o out",
    "call: pack rank of sparse": "skill pack skill --form sparse --rank 3 -o out",
    "call: pack budget": "skill pack skill --form lowrank --budget large -o out",
    "call: pack budget of nothing": "skill pack skill --form lowrank --budget 10 -o out",
    "call: pack energy": "skill pack skill --form lowrank --energy 2 -o out",
    "call: pack questions without a target": "skill pack skill --form dense --questions data/questions.jsonl -o out",
    "call: convert to what": "skill convert skill --to pfet -o out",
    "call: convert to a skill": "skill convert skill --to skill -o out",
    "call: convert full rank": "skill convert skill --to peft -o out",
    "call: convert an adapter": "skill convert lora --to peft -o out",
    "call: export to what": "export good-merge.yaml",
    "call: verify nowhere": "verify nowhere",
    "call: verify broken numbers": "verify broken --values",
    "call: show nowhere": "skill show nowhere/at-all",
    "call: show an unknown name": "skill show squad-recal",
    "call: check another model": "skill check other skill",
    "call: compare one of nothing": "compare nowhere --base base",
    "call: report of nowhere": "report nowhere",
    "call: remove an unknown name": "skill remove squad-recal",
    "call: init of nowhere": "init nowhere",
}
"""Name -> what is typed after `skillgraft`, in the folder of `prepare`."""

GOOD_STAGES = {"x": SFT, "r": REFINE}


def recipe(**changes):
    """Return the text of a recipe with changes."""
    content = {"name": "wrong", "base": "./base", "stages": {"x": SFT}, **changes}
    return yaml.safe_dump({key: value for key, value in content.items() if value is not ...}, sort_keys=False)


def prepare(folder):
    """Make the models, skills and data that the mistakes name."""
    babbling(folder / "base")
    data(folder)
    write_lines(folder / "late.jsonl", [{"document": "Myr", "question": "When was it?", "answers": ["1905"]}])
    near(folder / "base", folder / "a", 2)
    near(folder / "base", folder / "b", 3)
    checkpoint(folder / "other", 4, hidden_size=16, intermediate_size=32)
    checkpoint(folder / "other-b", 5, hidden_size=16, intermediate_size=32)
    adapter(folder / "lora", 6)
    for name in ("short", "broken"):
        file = shutil.copytree(folder / "a", folder / name) / "model.safetensors"
        tensors = load_file(file)
        if name == "short":
            tensors.pop("model.norm.weight")
        else:
            tensors["model.norm.weight"][3] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
    entry.extract(rl=folder / "a", sft=folder / "base", out=folder / "skill")
    entry.extract(rl=folder / "other-b", sft=folder / "other", out=folder / "other-skill")
    file = shutil.copytree(folder / "skill", folder / "broken-skill") / "skill.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    (folder / "good-merge.yaml").write_text(yaml.safe_dump(GOOD))


def calls(folder):
    """Yield the name and the arguments of each mistake; its files are written just before."""
    wrong = folder / "wrong.yaml"
    planned = ("run", wrong, "--runs", folder / "runs", "--dry-run")
    for name, stages in STAGES.items():
        wrong.write_text(recipe(stages=stages))
        yield name, planned
    for name, changes in RECIPES.items():
        wrong.write_text(recipe(**changes))
        yield name, planned
    for name, text in TEXTS.items():
        wrong.write_text(text)
        yield name, planned
    for name, override in OVERRIDES.items():
        wrong.write_text(recipe(stages=GOOD_STAGES))
        yield name, (*planned, "--set", override)
    for name, (what, lines) in LINES.items():
        file = folder / f"wrong-{what}.jsonl"
        file.write_text(lines)
        reading = {"documents": SFT, "questions": {**EVAL, "retention": False}, "given": GIVEN}[what]
        wrong.write_text(recipe(stages={"x": {**reading, what: file.name}}))
        # renderings are read when the stage runs
        yield name, planned if what != "given" else planned[:-1]
    for name, merge in MERGES.items():
        (folder / "merge.yaml").write_text(json.dumps(merge).replace("NaN", ".nan"))
        yield name, ("merge", folder / "merge.yaml", "-o", folder / "out")
    for name, typed in CALLS.items():
        yield name, typed.split()


def plain(text, folder):
    """Return what was said without places, the frames that Typer draws, and breaks of lines."""
    places = {os.environ["SKILLGRAFT_LIBRARY"]: "<library>", str(folder): "<tmp>", str(entry.ROOT): "<root>"}
    for place, name in places.items():
        text = text.replace(place, name)
    text = re.sub(r"(what is never compressed take) \d+", r"\1 #", text)  # a manifest's length changes with versions
    return " ".join(re.sub("[─│╭╮╰╯]", " ", text).split())


def results(folder):
    """What the command line says to each mistake, after its exit code; what it prints itself where it says nothing."""
    prepare(folder)
    here, said = os.getcwd(), {}
    os.chdir(folder)
    try:
        for name, arguments in calls(folder):
            ended = entry.command(*arguments)
            said[name] = f"{ended.code}: {plain(ended.error or ended.out, folder)}"
            shutil.rmtree(folder / "out", ignore_errors=True)
    finally:
        os.chdir(here)
    return {"messages": said}

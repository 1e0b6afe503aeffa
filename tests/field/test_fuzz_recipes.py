"""Recipes, data and bases mutated at random: the plan gives a result or one sentence, and leaves nothing behind.

`SKILLGRAFT_FUZZ=2500` tries that many.
"""

import copy
import datetime
import json
import os
import shutil
from datetime import timedelta

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillgraft.errors import SkillgraftError
from skillgraft.pipeline.estimate import estimate
from skillgraft.pipeline.preflight import check_plan
from skillgraft.run import prepare
from tests.recipes import tiny_recipe

EXAMPLES = int(os.environ.get("SKILLGRAFT_FUZZ", "60"))
DATA, QUESTIONS = "data", "data/questions.jsonl"
LORA = {"kind": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
STEP = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0}
RL_STEP = {**STEP, "per_device_train_batch_size": 8, "max_completion_length": 6}
STAGES = {
    "sft": {"kind": "sft", "from": "base", "documents": DATA, "trainer": STEP, "text": {"chunk_tokens": 64}},
    "asked": {
        "kind": "sft",
        "from": "sft",
        "questions": QUESTIONS,
        "about": DATA,
        "answers": "shuffled",
        "adapt": LORA,
    },
    "replayed": {
        "kind": "sft",
        "from": "base",
        "documents": DATA,
        "replay": {"text": DATA, "ratio": 0.5},
        "part": "1/2",
    },
    "rl": {
        "kind": "rl",
        "from": "sft",
        "questions": QUESTIONS,
        "documents": DATA,
        "limit_documents": 3,
        "reward": {"containment": 0.8, "judge": 0.2},
        "judge": "base",
        "pass_rate_samples": 2,
        "order": "easy_to_hard",
        "rounds": [1, 2],
        "adapt": LORA,
        "trainer": {key: value for key, value in RL_STEP.items() if key != "max_steps"},
    },
    "rl_plain": {"kind": "rl", "from": "base", "questions": QUESTIONS, "algorithm": "rloo", "trainer": RL_STEP},
    "skill": {"kind": "extract", "rl": "rl_plain", "sft": "base", "dtype": "bfloat16", "domain": "recall"},
    "random": {"kind": "random_vector", "skill": "skill"},
    "grafted": {"kind": "inject", "target": "sft", "skill": "skill", "scale": 0.5, "scales": {"*.mlp.*": 1.0}},
    "distilled": {"kind": "distill", "from": "base", "documents": DATA, "questions": QUESTIONS, "trainer": STEP},
    "mixed": {"kind": "mix", "documents": DATA, "questions": QUESTIONS, "teacher_sees": "both", "max_new_tokens": 8},
    "written": {"kind": "synthesize", "documents": DATA, "styles": ["rewrite"], "held_out": [QUESTIONS], "samples": 2},
    "writer": {
        "kind": "self_edit",
        "from": "base",
        "documents": DATA,
        "questions": QUESTIONS,
        "max_new_tokens": 64,
        "learn": {"adapt": LORA, "trainer": STEP},
        "trainer": STEP,
    },
    "single": {
        "kind": "single_passage",
        "documents": DATA,
        "questions": QUESTIONS,
        "skills": [{"skill": "skill", "scale": 0.5, "row": "with"}],
        "adapt": LORA,
        "trainer": STEP,
    },
    "refined": {
        "kind": "refine",
        "documents": DATA,
        "questions": QUESTIONS,
        "rounds": 2,
        "sft": {"trainer": STEP},
        "rl": {"trainer": RL_STEP, "adapt": LORA},
    },
    "scores": {
        "kind": "eval",
        "models": ["base", "sft", "grafted"],
        "documents": DATA,
        "questions": QUESTIONS,
        "rows": [
            {"model": "base", "context": "bm25", "top_k": 1},
            {"model": "sft", "context": "gold", "label": "open"},
        ],
        "labels": {"base": "start"},
        "retention": {"tasks": [], "text": DATA, "window": 64, "stride": 32},
    },
}
ODD = [
    *(None, True, False, 0, 1, -1, 3, 2.5, float("nan"), float("inf"), 10**30, -(10**9), 1e-320),
    *("", " ", "x", "base", "skill", "sft", "scores", "1/2", "2/2", "9/9", "1e3", "nan", "yes", "a/b", "./nowhere"),
    *("~nobody/x", "/dev/null", "data", "base", "base/config.json", QUESTIONS, "recipe.yaml", "./base"),
    *("lora", "grpo", "judge", "containment", "f1", "tests.domains.own_reward.vowels", "os.system", "no.such", "."),
    *("über", "名前", "a b", "a\nb", "a\x07b", "\u202e", "😀" * 60, "x" * 5000, "{", "%", "*", "\\", "a:b", "0x10"),
    *(
        [],
        [None],
        ["x"],
        [[]],
        [0, -1],
        ["base", "base"],
        [{}],
        {},
        {"x": 1},
        {"": ""},
        {1: 2},
        {None: None},
        {"a": {"b": []}},
    ),
    *(datetime.date(2020, 1, 1), b"\xff\x00", {"kind": "lora"}, {"kind": "x"}, {"trainer": {}}),
]
TRAINER = [
    *(
        "learning_rate",
        "max_steps",
        "num_train_epochs",
        "warmup_steps",
        "max_length",
        "optim",
        "lr_scheduler_type",
        "beta",
    ),
    *(
        "num_generations",
        "temperature",
        "eval_strategy",
        "packing",
        "loss_type",
        "report_to",
        "seed",
        "fsdp",
        "lerning_rate",
    ),
]
FILES = [
    *("base/config.json", "base/tokenizer.json", "base/tokenizer_config.json", "base/generation_config.json"),
    *(
        "base/model.safetensors",
        "base/chat_template.jinja",
        "data/documents.jsonl",
        "data/questions.jsonl",
        "recipe.yaml",
    ),
]
BYTES = [
    b"",
    b"{",
    b"[]\n",
    b"null\n",
    b'"x"\n',
    b"\xff\xfe\x00",
    b"{}\n",
    b"\n\n",
    b"[" * 50_000,
    b"\xef\xbb\xbf{}",
    b"x: y: z",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_recipe(folder)
    return folder


def holders(value):
    """Yield every mapping and list within `value`, itself included."""
    if isinstance(value, dict | list):
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from holders(each)


def closure(names):
    """Return the stages `names` and those that they refer to."""
    chosen, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        if name not in chosen:
            chosen[name] = STAGES[name]
            waiting += [word for word in _words(STAGES[name]) if word in STAGES and word != name]
    return {name: copy.deepcopy(stage) for name, stage in STAGES.items() if name in chosen}


def _words(value):
    return [
        each
        for holder in holders(value)
        for each in (holder.values() if isinstance(holder, dict) else holder)
        if isinstance(each, str)
    ]


def mutate(draw, recipe):
    """Change one thing in the recipe."""
    filled = [each for each in holders(recipe) if each]
    if not filled:
        return
    holder = draw(st.sampled_from(filled))
    key = draw(st.sampled_from(list(holder))) if isinstance(holder, dict) else draw(st.integers(0, len(holder) - 1))
    kind = draw(st.sampled_from(["set", "set", "set", "drop", "rename", "add", "copy", "trainer"]))
    if kind == "set":
        holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    elif kind == "drop":
        del holder[key]
    elif kind == "trainer" and isinstance(recipe.get("stages"), dict):
        stages = [each for each in recipe["stages"].values() if isinstance(each, dict)]
        if stages:
            value = copy.deepcopy(draw(st.sampled_from(ODD)))
            stage = draw(st.sampled_from(stages))
            trainer = stage.get("trainer")
            stage["trainer"] = {**(trainer if isinstance(trainer, dict) else {}), draw(st.sampled_from(TRAINER)): value}
    elif kind == "copy":
        holder[key] = copy.deepcopy(
            draw(st.sampled_from([each for each in holders(recipe) if each is not recipe] or [{}]))
        )
    elif isinstance(holder, dict):
        name = draw(st.sampled_from([*map(str, holder), *(each for each in ODD if isinstance(each, str)), 1, None]))
        holder[name] = holder.pop(key) if kind == "rename" else copy.deepcopy(draw(st.sampled_from(ODD)))
    else:
        holder.append(copy.deepcopy(draw(st.sampled_from(ODD))))


def damage(draw, folder):
    """Change one file: all of it, a key of its JSON, or a line."""
    file = folder / draw(st.sampled_from(FILES))
    kind = draw(st.sampled_from(["bytes", "key", "key", "key", "folder", "gone", "cut"]))
    if kind == "bytes":
        file.write_bytes(draw(st.sampled_from(BYTES)))
    elif kind == "cut" and file.is_file():
        content = file.read_bytes()
        file.write_bytes(content[: draw(st.integers(0, len(content)))])
    elif kind in ("folder", "gone"):
        file.unlink(missing_ok=True)
        if kind == "folder":
            file.mkdir()
    elif file.suffix in (".json", ".jsonl"):
        lines = [
            json.loads(line)
            for line in ([file.read_text()] if file.suffix == ".json" else file.read_text().splitlines())
        ]
        line = draw(st.sampled_from(lines))
        key = draw(st.sampled_from(list(line)))
        odd = [each for each in ODD if isinstance(each, str | int | float | list | None) or each == {}]
        line[key] = draw(st.sampled_from(odd))
        file.write_text("".join(json.dumps(each) + "\n" for each in lines))


@st.composite
def cases(draw):
    recipe = {
        "name": "fuzz",
        "base": "./base",
        "seed": 0,
        "stages": closure(draw(st.lists(st.sampled_from(list(STAGES)), min_size=1, max_size=2))),
    }
    for _ in range(draw(st.integers(0, 3))):
        mutate(draw, recipe)
    overrides = draw(
        st.lists(
            st.sampled_from(
                [
                    "seed=1",
                    "sft.trainer.max_steps=x",
                    "stages=1",
                    "a.b",
                    "=",
                    "sft=",
                    "rl.adapt=null",
                    "x.y=[",
                    "base.kind=3",
                ]
            ),
            max_size=1,
        )
    )
    return recipe, overrides if draw(st.integers(0, 9)) == 0 else []


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=timedelta(seconds=20),
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
@given(case=cases(), data=st.data())
def test_a_mutated_recipe_is_planned_or_refused_in_a_sentence(whole, tmp_path_factory, case, data):
    recipe, overrides = case
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        (folder / "recipe.yaml").write_text(
            yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        if data.draw(st.integers(0, 3)) == 0:
            damage(data.draw, folder)
        before = sorted(folder.rglob("*"))
        try:
            loaded, base, stages = prepare(folder / "recipe.yaml", overrides, folder / "runs", lambda _: None)
            remarks = check_plan(stages)
            json.dumps(estimate(stages, base))
            json.loads(loaded.model_dump_json(by_alias=True, exclude_defaults=True))
            assert all("\n" not in remark for remark in remarks)
        except SkillgraftError as error:
            said = str(error).replace("a\nb", "a b")  # a user's own text; the command line shows it in one line
            assert said.strip()
            assert len(said) < 8000
            assert "\n" not in said, said
        assert sorted(folder.rglob("*")) == before
    finally:
        shutil.rmtree(folder, ignore_errors=True)

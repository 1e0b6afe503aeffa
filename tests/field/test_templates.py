"""Chat templates that drop, refuse or rewrite a part, and reasoning blocks: what is prompted, learnt and scored."""

import json

import pytest
import torch

from skillgraft.data.tasks import Question
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.errors import CheckpointError, RecipeError
from skillgraft.evals.answers import answer_and_score
from skillgraft.models.answering import load
from skillgraft.models.chat_template import ChatStyle, chat_style, with_template_arguments
from skillgraft.models.generation import answer_text
from skillgraft.models.loading import load_tokenizer
from skillgraft.models.preflight import check_checkpoint
from skillgraft.models.prompts import INSTRUCTION, answer_ids, as_prompt, prompt_ids
from skillgraft.models.reasoning import without_reasoning
from skillgraft.train.rl import _for_trl
from skillgraft.train.sft import train_sft
from tests.field.bases import base_with, planned, recipe_on
from tests.tiny import CHAT_TEMPLATE

TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + %s + '<|im_end|>\\n' }}"
BEGIN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def loop(body, begin=BEGIN):
    return "{% for m in messages %}" + body + "{% endfor %}" + begin


PARTS = loop(TURN % "m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join")
NO_SYSTEM = loop("{% if m['role'] != 'system' %}" + TURN % "m['content']" + "{% endif %}")
REFUSES_SYSTEM = loop(
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + TURN % "m['content']"
)
ALTERNATES = loop(
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    + TURN % "m['content']"
)
QWEN3 = loop(
    "{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + m['content'] }}"
    "{{ '<|im_end|>\\n' }}{% else %}" + TURN % "m['content']" + "{% endif %}",
    BEGIN + "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
)
FORCED = loop(TURN % "m['content']", BEGIN + "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}")
UPPER = loop(TURN % "m['content'] | upper")
FIRST_ONLY = "{{ '<|im_start|>' + messages[0]['content'] }}" + BEGIN
NO_ANSWERS = loop("{% if m['role'] != 'assistant' %}" + TURN % "m['content']" + "{% endif %}")
STRIPS = loop(TURN % "m['content'] | trim")

USABLE = {
    "as it is": (CHAT_TEMPLATE, ChatStyle(system=True, parts=False, reasoning=False)),
    "drops the system message": (NO_SYSTEM, ChatStyle(system=False, parts=False, reasoning=False)),
    "refuses the system message": (REFUSES_SYSTEM, ChatStyle(system=False, parts=False, reasoning=False)),
    "wants turns that alternate": (ALTERNATES, ChatStyle(system=False, parts=False, reasoning=False)),
    "takes lists of parts alone": (PARTS, ChatStyle(system=True, parts=True, reasoning=False)),
    "thinks where it is asked to": (QWEN3, ChatStyle(system=True, parts=False, reasoning=False)),
    "begins to think": (FORCED, ChatStyle(system=True, parts=False, reasoning=True)),
    "strips what stands around": (STRIPS, ChatStyle(system=True, parts=False, reasoning=False)),
}


@pytest.mark.parametrize(("template", "style"), USABLE.values(), ids=USABLE)
def test_instruction_question_and_answer_stand_where_they_belong(tmp_path, template, style):
    tokenizer = load_tokenizer(base_with(tmp_path / "base", template=template))
    assert chat_style(tokenizer) == style
    prompt = as_prompt(tokenizer, "When?", examples=[("Who?", "Ann")])
    [ids] = prompt_ids(tokenizer, [prompt])
    text = tokenizer.decode(ids)
    places = [text.index(part) for part in (INSTRUCTION, "Who?", "Ann", "When?", "assistant\n")]
    assert places[:4] == sorted(places[:4])
    assert text.count(INSTRUCTION) == text.count("When?") == 1
    answer = tokenizer.decode(answer_ids(tokenizer, prompt, "in 1900"))
    assert answer.count("in 1900") == 1
    assert "When?" not in answer
    assert "<|im_end|>" in answer


REFUSED = {
    "always fails": ("{{ raise_exception('never') }}", "it fails with TemplateError: never"),
    "does not parse": ("{% for m in", "it fails with TemplateSyntaxError"),
    "calls what is not there": ("{{ messages.nothing.at.all() }}", "it fails with UndefinedError"),
    "writes capitals": (UPPER, "it renders a message's text neither"),
    "cuts what is long": (loop(TURN % "m['content'][:10]"), "it renders a message's text neither"),
    "prints what it gets": (loop("{{ m }}"), "it renders a message's text neither"),
    "takes the first message alone": (FIRST_ONLY, "it renders a message's text neither"),
    "drops answers": (NO_ANSWERS, "it renders a message's text neither"),
    "is empty": ("{# nothing #}", "it renders a message's text neither"),
    "reaches for Python": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "it fails with SecurityError"),
    "divides by nothing": (loop("{{ 1 // 0 }}"), "it fails with ZeroDivisionError"),
}


@pytest.mark.parametrize(("template", "says"), REFUSED.values(), ids=REFUSED)
def test_the_plan_refuses_a_template_that(tmp_path, template, says):
    base_with(tmp_path / "base", template=template)
    for stage in ("sft", "rl", "scores"):
        settings = {"models": ["base"]} if stage == "scores" else {"from": "base"}
        with pytest.raises(CheckpointError) as caught:
            planned(recipe_on(tmp_path, **{stage: settings}))
        assert f"the chat template cannot be used: {says}" in str(caught.value)


THOUGHTS = [
    ("<think>\n\n</think>\n\n1901", False, "1901"),
    ("<think>it was 1900, or 1901</think>1901", False, "1901"),
    ("<think>it was 1900", False, ""),
    ("1901", False, "1901"),
    ("1901", True, ""),
    ("it was 1900</think>\n1901", True, "1901"),
    ("it was 1900</think>\n1901", False, "1901"),
    ("1900<think>no</think>1901", False, "19001901"),
    ("<think>a</think>1900<think>b</think>1901", False, "1901"),
    ("1901 <think>was it", False, "1901"),
    ("[THINK]1900[/THINK]1901", False, "1901"),
    ("<seed:think>1900</seed:think>1901", False, "1901"),
    ("<|channel|>analysis<|message|>1900<|end|><|start|>assistant<|channel|>final<|message|>1901", False, "1901"),
    ("<|channel|>analysis<|message|>it was 1900", False, ""),
    ("<Think>1900</Think>", False, "<Think>1900</Think>"),
    ("", True, ""),
]


@pytest.mark.parametrize(("text", "opened", "answer"), THOUGHTS)
def test_the_answer_is_what_stands_outside_of_thoughts(text, opened, answer):
    assert without_reasoning(text, opened).strip() == answer


def test_four_right_answers_after_empty_thoughts_score_one(tmp_path, monkeypatch):
    """Qwen3's template teaches `<think></think>` before each answer; tags are no part of the answer."""
    from skillgraft.models import answering

    model, tokenizer = load(base_with(tmp_path / "base", template=QWEN3))
    tasks = [Question("d", f"When was {n}?", (str(1900 + n),)) for n in range(4)]
    texts = [f"<think>\n\n</think>\n\n{1900 + n}<|im_end|>" for n in range(4)]
    monkeypatch.setattr(answering, "sample", lambda *_, **__: tokenizer(texts)["input_ids"])
    raw = answer_and_score(model, tokenizer, tasks, max_new_tokens=32, batch_size=1)
    assert sorted(raw["answers"]) == ["1900", "1901", "1902", "1903"]
    assert raw["scores"]["exact_match"] == raw["scores"]["f1"] == [1.0] * 4


def test_rewards_see_the_same_answer(tmp_path):
    for template, text in ((QWEN3, "<think>\n\n</think>\n\n1901<|im_end|>"), (FORCED, "so 1900</think>1901<|im_end|>")):
        tokenizer = load_tokenizer(base_with(tmp_path / str(len(template)), template=template))
        reward = _for_trl("exact_match", tokenizer, [Question("d", "When?", ("1901",))], KNOWLEDGE)
        ids = [tokenizer(text)["input_ids"], tokenizer("so 1900")["input_ids"], tokenizer("<think>1901")["input_ids"]]
        scores = reward(prompts=["When?"] * 3, completion_ids=ids, task=[0] * 3, log_metric=None)
        assert scores == [1.0, 0.0, 0.0]


def test_tags_that_are_special_tokens_are_seen_too(tmp_path):
    """Where `<think>` is a special token, skipping special tokens would glue thoughts to the answer."""
    tokenizer = load_tokenizer(base_with(tmp_path / "base", template=QWEN3))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    ids = tokenizer("<think>1900</think>1901<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "19001901"
    assert answer_text(tokenizer, ids) == "1901"


def test_template_arguments_reach_prompts_of_every_stage(tmp_path):
    base = base_with(tmp_path / "base", template=QWEN3)
    ends = {}
    for arguments in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        with with_template_arguments(arguments):
            tokenizer = load_tokenizer(base)
        ends[str(arguments)] = tokenizer.decode(prompt_ids(tokenizer, [as_prompt(tokenizer, "When?")])[0])[-45:]
    assert ends["{'enable_thinking': False}"].endswith("assistant\n<think>\n\n</think>\n\n")
    assert ends["{}"] == ends["{'enable_thinking': True}"]
    assert ends["{}"].endswith("<|im_start|>assistant\n")


def test_what_is_learnt_follows_the_prompt_that_is_asked(tmp_path):
    """Without thinking, the prompt holds the empty thoughts and only the answer is learnt; else both are."""
    base = base_with(tmp_path / "base", template=QWEN3)
    learnt = {}
    for thinking in (False, True):
        with with_template_arguments({"enable_thinking": thinking}):
            tokenizer = load_tokenizer(base)
        learnt[thinking] = tokenizer.decode(answer_ids(tokenizer, as_prompt(tokenizer, "When?"), "1901"))
    assert learnt == {False: "1901<|im_end|>\n", True: "<think>\n\n</think>\n\n1901<|im_end|>\n"}


@pytest.mark.train
def test_a_stage_with_template_arguments_asks_by_them(tmp_path, monkeypatch):
    from skillgraft import run
    from skillgraft.models import answering

    prompts = []
    sample = answering.sample

    def spy(model, ids, *rest, **more):
        prompts.extend(load_tokenizer(tmp_path / "base").batch_decode(ids))
        return sample(model, ids, *rest, **more)

    monkeypatch.setattr(answering, "sample", spy)
    base_with(tmp_path / "base", template=QWEN3)
    file = recipe_on(tmp_path, scores={"models": ["base"], "chat_template_kwargs": {"enable_thinking": False}})
    result = run(file, runs=tmp_path / "runs")
    assert prompts
    assert all(prompt.endswith("<think>\n\n</think>\n\n") for prompt in prompts)
    record = json.loads((next((tmp_path / "runs" / "stages").glob("eval-*")) / "stage.json").read_text())
    assert record["settings"]["chat_template_kwargs"] == {"enable_thinking": False}
    assert result.evaluations


def test_remarks_say_where_a_model_may_think(tmp_path):
    base_with(tmp_path / "base", template=QWEN3)
    [remark] = [line for line in planned(recipe_on(tmp_path, scores={"models": ["base"]})) if "think" in line]
    assert "chat_template_kwargs: {enable_thinking: false}" in remark
    decided = {"models": ["base"], "chat_template_kwargs": {"enable_thinking": False}}
    assert not [line for line in planned(recipe_on(tmp_path, scores=decided)) if "think" in line]


@pytest.mark.parametrize("key", ["tokenize", "add_generation_prompt", "conversation", "chat_template", "return_dict"])
def test_arguments_that_are_ours_to_decide_are_refused(tmp_path, key):
    base_with(tmp_path / "base")
    with pytest.raises(RecipeError, match=f"chat_template_kwargs.*{key}"):
        planned(recipe_on(tmp_path, scores={"models": ["base"], "chat_template_kwargs": {key: True}}))


@pytest.mark.train
def test_questions_learnt_through_parts_are_the_answer_and_not_an_empty_turn(tmp_path):
    """The loss is that of the answer's tokens: by hand, from the model's logits."""
    base = base_with(tmp_path / "base", template=PARTS)
    model, tokenizer = load(base)
    question = Question("d", "When?", ("1900",))
    [prompt] = prompt_ids(tokenizer, [as_prompt(tokenizer, "When?")])
    answer = answer_ids(tokenizer, as_prompt(tokenizer, "When?"), "1900")
    with torch.no_grad():
        log_p = model.float()(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    expected = -sum(log_p[len(prompt) + n - 1, token].item() for n, token in enumerate(answer)) / len(answer)
    (tmp_path / "work").mkdir()
    trained = train_sft(
        base, tmp_path / "out", tmp_path / "work", questions=[question], trainer={"max_steps": 1, "learning_rate": 1e-9}
    )
    assert trained.curve[0]["loss"] == pytest.approx(expected, abs=0.02)


def test_a_named_template_beside_the_default(tmp_path):
    """Transformers keeps several templates by name; the default one is asked."""
    base = base_with(tmp_path / "base", template=...)
    (base / "additional_chat_templates").mkdir()
    (base / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ raise_exception('tools only') }}")
    check_checkpoint(base)
    tokenizer = load_tokenizer(base)
    assert "<|im_start|>user\nWhen?" in tokenizer.decode(prompt_ids(tokenizer, [as_prompt(tokenizer, "When?")])[0])

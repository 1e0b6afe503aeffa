"""A base whose small files are broken: the plan says a sentence, or nothing where the file is of no consequence."""

import json
import os
import struct

import pytest
import yaml

from skillgraft.errors import SkillgraftError
from skillgraft.pipeline.preflight import check_plan
from skillgraft.run import prepare
from tests.recipes import tiny_recipe

QUESTIONS = "data/questions.jsonl"
STAGES = {
    "sft": {"kind": "sft", "from": "base", "documents": "data"},
    "rl": {"kind": "rl", "from": "base", "questions": QUESTIONS, "trainer": {"per_device_train_batch_size": 8}},
    "learnt": {"kind": "single_passage", "documents": "data", "questions": QUESTIONS},
    "scores": {"kind": "eval", "models": ["base"], "questions": QUESTIONS, "retention": False},
}
ILL = [None, -1, "x", {"x": 1}, 0, 2.5, [], {}, True]
"""The first four by default, all with `SKILLGRAFT_FUZZ` in the environment."""
SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]


@pytest.fixture
def folder(tmp_path):
    recipe = yaml.safe_load(tiny_recipe(tmp_path).read_text())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "stages": STAGES}))
    return tmp_path


def planned(folder):
    """Return what the plan refuses, None where nothing is; any other exception fails the test."""
    try:
        check_plan(prepare(folder / "recipe.yaml", [], folder / "runs", lambda _: None)[2])
        message = None
    except SkillgraftError as error:
        message = str(error)
    assert "\n" not in (message or "")
    assert not (folder / "runs").exists()
    return message


WHOLE = [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{}", b"[" * 100_000, b'{"a": 1' + b" " * 9]


@pytest.mark.parametrize("content", WHOLE, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("name", SMALL)
def test_a_file_that_is_torn_or_of_another_shape(folder, name, content):
    (folder / "base" / name).write_bytes(content)
    message = planned(folder)
    if name != "generation_config.json" and (name, content) != ("tokenizer_config.json", b"{}"):
        assert message


@pytest.mark.parametrize("name", SMALL)
def test_a_file_that_is_a_folder(folder, name):
    (folder / "base" / name).unlink()
    (folder / "base" / name).mkdir()
    assert planned(folder) or name == "generation_config.json"


@pytest.mark.parametrize("value", ILL if "SKILLGRAFT_FUZZ" in os.environ else ILL[:4], ids=repr)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_every_key_of_a_small_file_with_an_ill_value(folder, name, value):
    file = folder / "base" / name
    whole = json.loads(file.read_text())
    for key in whole:
        file.write_text(json.dumps({**whole, key: value}))
        planned(folder)


@pytest.mark.parametrize("value", [None, 0, "x", [], {}, {"type": "x"}, {"type": "BPE"}], ids=repr)
def test_every_part_of_a_tokenizer_with_an_ill_value(folder, value):
    file = folder / "base" / "tokenizer.json"
    whole = json.loads(file.read_text())
    for key in whole:
        file.write_text(json.dumps({**whole, key: value}))
        planned(folder)
    for key in whole["model"]:
        file.write_text(json.dumps({**whole, "model": {**whole["model"], key: value}}))
        planned(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for",
        "{{ messages[9].content }}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "",
        "x",
        "{{ messages }}",
        "{% for m in messages %}{{ m['content'] | unknown }}{% endfor %}",
        "{% include 'elsewhere' %}",
        "{{ ''.__class__.__mro__ }}",
        "{% for m in messages %}{{ m.content[0].text }}{% endfor %}",
    ],
)
def test_a_chat_template_that_cannot_be_used(folder, template):
    (folder / "base" / "chat_template.jinja").write_text(template)
    message = planned(folder)
    assert message is None or "chat template cannot be used" in message


def header(folder, text, length=None):
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    (folder / "base" / "model.safetensors").write_bytes(struct.pack("<Q", length or len(data)) + data + b"\0" * 64)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}},
        {"__metadata__": 3, "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    ],
    ids=lambda text: str(text)[:60],
)
def test_a_header_of_weights_that_is_wrong(folder, text):
    header(folder, text)
    assert planned(folder)


@pytest.mark.parametrize("length", [2**62, 10**6, 1])
def test_a_header_of_another_length(folder, length):
    header(folder, {}, length)
    assert planned(folder)

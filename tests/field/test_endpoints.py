"""Servers of reasoning models: thoughts in the reply, thoughts alone, arguments of the chat template."""

import json

import pytest

from skillgraft.data.synthesis.endpoint import Endpoint
from skillgraft.data.synthesis.generation import GenerationCache
from skillgraft.data.synthesis.judge import endpoint_judge
from skillgraft.errors import RecipeError
from skillgraft.settings.synthesis import EndpointSettings
from tests.chat_server import running_chat
from tests.field.bases import planned, recipe_on

pytestmark = pytest.mark.loopback
ASK = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 12, "seed": 3}


def reply(content, finish="stop", **more):
    choice = {"message": {"role": "assistant", "content": content, **more}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"total_tokens": 7}}).encode()


@pytest.mark.parametrize(
    ("said", "text", "complete"),
    [
        (reply("<think>\nIs it? No.\n</think>\n\nyes"), "yes", True),
        (reply("Is it? No.</think>yes"), "yes", True),
        (reply("<think>Is it", "length"), "", False),
        (reply(None, "length", reasoning_content="Is it"), "", False),
        (reply("yes", reasoning_content="Is it? No."), "yes", True),
    ],
)
def test_the_answer_is_what_follows_the_thoughts(said, text, complete):
    with running_chat() as chat, Endpoint(chat.url, "small", retries=0) as endpoint:
        chat.script = [said]
        made = endpoint.ask("Is it?", **ASK)
    assert (made.text, made.complete) == (text, complete)


def test_a_verdict_after_thoughts_counts(tmp_path):
    with running_chat() as chat:
        chat.script = [reply("<think>No, it is not 1900. Or is it? Yes.</think>\n\nNo.")]
        settings = EndpointSettings.model_validate({"url": chat.url, "model": "small", "retries": 0, "at_once": 1})
        judge = endpoint_judge(settings, GenerationCache(tmp_path, "judged.jsonl"))
        assert judge.verdicts([("When?", ("1900",), "1901")]) == [0.0]


def test_template_arguments_are_sent_and_only_where_given(tmp_path):
    with running_chat() as chat:
        for arguments in ({}, {"enable_thinking": False}):
            settings = {"url": chat.url, "model": "small", "chat_template_kwargs": arguments}
            with Endpoint.from_settings(EndpointSettings.model_validate(settings), None) as endpoint:
                endpoint.ask("Is it?", **ASK)
    first, second = (body for _, body in chat.requests)
    assert "chat_template_kwargs" not in first
    assert second["chat_template_kwargs"] == {"enable_thinking": False}


def test_arguments_that_an_endpoint_would_never_see_are_refused(tmp_path):
    stage = {
        "kind": "synthesize",
        "documents": "data",
        "styles": ["rewrite"],
        "endpoint": {"url": "http://127.0.0.1:9/v1", "model": "small"},
        "chat_template_kwargs": {"enable_thinking": False},
    }
    with pytest.raises(RecipeError, match="an endpoint renders the prompts itself; move it under endpoint:"):
        planned(recipe_on(tmp_path, written=stage))

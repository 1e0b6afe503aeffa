"""The client of chat endpoints and what a stage does with one, against a stand-in server."""

import json
import stat

import pytest

from skillgraft import run
from skillgraft.data.synthesis.endpoint import LARGEST_REPLY, Endpoint
from skillgraft.data.synthesis.endpoint_key import read_key
from skillgraft.errors import EndpointError, RecipeError
from tests.chat_server import running_chat
from tests.data.synthesis.test_synthesize import facts, recipe_with, records

pytestmark = pytest.mark.loopback
ASK = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 12, "seed": 3}


@pytest.fixture
def chat():
    with running_chat() as server:
        yield server


@pytest.fixture
def ask(chat):
    """Ask with waits recorded in place of waiting."""
    waits = []

    def asked(**settings):
        settings = {"retries": 3, "timeout_seconds": 5, "sleep": waits.append, **settings}
        with Endpoint(chat.url, "small", **settings) as endpoint:
            return endpoint.ask("Say it.", **ASK)

    asked.waits = waits
    return asked


def test_a_request_says_everything_that_decides_the_reply(chat, ask):
    reply = ask(key="k-123")
    assert reply.text == "A rendering of what was asked in 7 characters, seed 3."
    assert (reply.complete, reply.tokens) == (True, 7)
    message = {"role": "user", "content": "Say it."}
    assert chat.requests == [("/v1/chat/completions", {"model": "small", "messages": [message], **ASK})]
    assert chat.keys == ["Bearer k-123"]
    chat.script = ["long"]
    assert not ask().complete
    assert chat.keys[1] is None


NONSENSE = [
    b"<html>busy</html>",
    b"",
    b"{}",
    b"[]",
    b'{"choices": []}',
    b'{"choices": [{"message": {"content": null}}]}',
    b'{"choices": [{"message": {"content": 3}}]}',
    b'{"choices": [{"message": {"content": "\\ud83d"}}]}',
    b"[" * 100_000,
    b"\xff\xfe",
]


@pytest.mark.parametrize("what", [*NONSENSE, "cut", (500, {}), (429, {}), (503, {})])
def test_what_may_pass_is_tried_again(chat, ask, what):
    chat.script = [what, what]
    assert ask().text.startswith("A rendering")
    assert ask.waits == [1, 2]


def test_an_endpoint_that_stays_silent(chat, ask):
    chat.script = ["silence"] * 2
    with pytest.raises(
        EndpointError, match=r"no reply within 0.2 seconds, in try 2 of 2; what it wrote before is kept"
    ):
        ask(retries=1, timeout_seconds=0.2)


def test_a_reply_without_end(chat, ask):
    chat.script = [b" " * (LARGEST_REPLY + 1)]
    with pytest.raises(EndpointError, match="a reply of more than 16 MiB"):
        ask(retries=0)


def test_the_servers_own_wait_counts_up_to_a_minute(chat, ask):
    chat.script = [(429, {"Retry_After": "7"}), (503, {"Retry_After": "86400"}), (500, {"Retry_After": "soon"})]
    ask()
    assert ask.waits == [7, 60, 4]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_does_not_pass_is_said_at_once(chat, ask, status):
    chat.script = [(status, {})]
    with pytest.raises(EndpointError, match=rf"status {status} \(as the test asked\); check url, model and key"):
        ask(key="k-123")
    assert ask.waits == []


def test_a_key_that_the_server_repeats_is_not_shown(chat, ask):
    chat.script = [(401, {"echo": "wrong key k-123"})]
    with pytest.raises(EndpointError, match=r"status 401 \(wrong key \*\*\*\)"):
        ask(key="k-123")


def test_a_key_follows_no_redirect(chat, ask):
    chat.script = [(307, {"Location": "http://127.0.0.1:1/v1/chat/completions"})]
    with pytest.raises(EndpointError, match="status 307"):
        ask(key="k-123")


def test_nobody_there(ask):
    with Endpoint("http://127.0.0.1:9/v1", "m", retries=1, sleep=ask.waits.append) as endpoint:
        with pytest.raises(EndpointError, match=r"cannot be reached or broke off .*in try 2 of 2"):
            endpoint.ask("x", **ASK)
        assert ask.waits == [1]


def test_keys(monkeypatch):
    monkeypatch.setenv("SOME_KEY", " k-123\n")
    assert read_key("SOME_KEY") == "k-123"
    assert read_key(None) is None
    monkeypatch.setenv("SOME_KEY", "k\u20ac")
    with pytest.raises(RecipeError, match="SOME_KEY holds characters"):
        read_key("SOME_KEY")


def test_a_stage_keeps_what_was_made_and_asks_for_the_rest_alone(chat, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "k-secret")
    endpoint = {"url": chat.url, "model": "small", "key_variable": "SOME_KEY", "retries": 0, "at_once": 1}
    synth = {
        "kind": "synthesize",
        "documents": "data",
        "styles": ["summary", "rewrite"],
        "endpoint": endpoint,
        "filters": {"near_duplicate": 1},
    }
    recipe = recipe_with(tmp_path, synth=synth)
    chat.script = ["ok", "ok", "ok", b"nonsense"]
    with pytest.raises(
        EndpointError, match=r"stages.synth: .*no chat completion: nonsense.*\(3 of 8 renderings are kept"
    ):
        run(recipe, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs" / "stages").glob("*/output"))
    from skillgraft.pipeline.status import list_stages

    assert list_stages(tmp_path / "runs")[0]["state"] == "interrupted (3 renderings kept)"
    result = run(recipe, runs=tmp_path / "runs")
    assert len(chat.requests) == 4 + 5
    assert len({json.dumps(body) for _, body in chat.requests}) == 8  # the one that failed was asked for again
    assert set(chat.keys) == {"Bearer k-secret"}
    made = records(result.stages["synth"] / "documents.jsonl")[4:]
    assert [record["style"] for record in made] == ["summary", "rewrite"] * 4
    assert facts(result)["tokens"] == 8 * 7
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.stat().st_mode & stat.S_IRUSR:
            assert b"k-secret" not in file.read_bytes()


def test_several_at_once_give_the_same_files(chat, tmp_path):
    synth = {
        "kind": "synthesize",
        "documents": "data",
        "styles": ["summary"],
        "samples": 3,
        "endpoint": {"url": chat.url, "model": "small"},
        "filters": {"near_duplicate": 1},
    }
    recipe = recipe_with(tmp_path, synth=synth)
    made = [
        run(recipe, overrides=[f"synth.endpoint.at_once={n}"], runs=tmp_path / f"runs{n}").stages["synth"]
        for n in (1, 8)
    ]
    assert (made[0] / "documents.jsonl").read_bytes() == (made[1] / "documents.jsonl").read_bytes()
    assert len(records(made[0] / "documents.jsonl")) == 16

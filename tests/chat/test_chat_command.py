import builtins
import io
import json
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from skillgraft.chat import screen
from skillgraft.chat.models import ChatModel
from skillgraft.chat.plan import ChatAnswer
from skillgraft.cli import chat as chat_command
from skillgraft.cli.app import app
from tests.cli.test_cli import fails

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202ereversed [bold]x[/]"


def chat(folder, lines, *options):
    """Run the verb on the fine-tune with a skill, the lines as its standard input."""
    models = ["base", "--target", folder / "sft", "--skill", folder / "recall", "--tokens", "4"]
    arguments = ["chat", *(folder / m if m == "base" else m for m in models), *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input="\n".join(lines) + "\n")


def test_prompts_from_a_pipe(folder):
    done = chat(folder, ["who built it", "", "  /scale 0.5", "//scale", "/quit", "never asked"])
    assert done.exit_code == 0, (done.output, done.exception)
    heads = [line.partition(":")[0] for line in done.stdout.splitlines() if line.startswith((">", "base", "sft"))]
    assert heads == [
        *("> who built it", "base", "sft + recall, λ = 1"),
        *("> /scale", "base", "sft + recall, λ = 0.5"),
    ]
    assert "2 models take 0 MB of memory" in done.stderr
    assert "λ = 0.5" in done.stderr


def test_json_lines(folder, tmp_path):
    file = tmp_path / "talk.jsonl"
    script = ["who built it", "/scale 0", "/temperature 0.5", "who built it", f"/save {file}"]
    done = chat(folder, script, "--json", "--system", "none", "--scale", "2")
    assert done.exit_code == 0, (done.output, done.exception)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["temperature"] for line in lines] == [0, 0.5]
    assert [[answer["scale"] for answer in line["answers"]] for line in lines] == [[None, 2], [None, 0]]
    assert [line["system"] for line in lines] == ["", ""]
    assert set(lines[0]["answers"][0]) == {"model", "scale", "text", "tokens", "cut", "seconds"}
    assert [json.loads(line) for line in file.read_text().splitlines()] == lines


def test_mistakes(folder):
    assert "no model is named" in fails("chat")
    assert fails("chat", "nope").startswith(
        "error nope is not a directory; expected a checkpoint directory, a .gguf file or a hub id"
    )
    assert "--target and --skill belong together" in fails("chat", folder / "base", "--skill", "x")
    assert "/scale: no skill is injected" in fails("chat", folder / "base", "--scale", "2")
    assert "/temperature 1e-09: expected 0, or a" in fails("chat", folder / "base", "--temperature", "1e-9")
    done = chat(folder, ["/scael 1", "never asked"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "did you mean '/scale'" in done.stderr


def test_bytes_that_are_no_text(folder):
    arguments = ["chat", str(folder / "base"), "--tokens", "1"]
    done = CliRunner().invoke(app, arguments, input=b"caf\xe9\n")
    assert done.exit_code == 0, done.exception
    assert done.stdout.startswith("> caf\ufffd\n")


@pytest.fixture
def hostile(monkeypatch):
    def answer(chat_model, prompt, settings, seed):
        return ChatAnswer(chat_model.spec.label, HOSTILE, 3, 0.1, True, chat_model._scale)

    monkeypatch.setattr(ChatModel, "answer", answer)


def test_what_a_model_says_cannot_reach_the_terminal(folder, hostile):
    done = chat(folder, ["a\x1b[2J"])
    assert "\x1b" not in done.output
    assert "\u202e" not in done.output
    assert "⟨U+001B⟩]0;owned⟨U+0007⟩" in done.stdout
    assert "> a⟨U+001B⟩[2J" in done.stdout
    line = chat(folder, ["a"], "--json").stdout
    assert "\x1b" not in line
    assert json.loads(line)["answers"][0]["text"] == HOSTILE


def drawn(answers, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(screen.side_by_side(answers, width))
    return console.file.getvalue()


def test_columns_where_there_is_room():
    answers = [ChatAnswer("base", HOSTILE, 3, 0.12), ChatAnswer("sft + [b]", "It is. " * 20, 4, 1.0, True, 0.5)]
    wide, narrow = drawn(answers, 100), drawn(answers, 60)
    assert "base" in wide.splitlines()[1]
    assert "sft + [b], λ = 0.5" in wide.splitlines()[1]
    assert narrow.splitlines()[0].startswith("base ──")
    for text in (wide, narrow):
        assert "⟨U+001B⟩" in text
        assert "\x1b" not in text
        assert "[bold]x[/]" in text
        assert "4 tokens, 1.0 s, cut: /tokens" in text
        assert max(map(len, text.splitlines())) <= 100
    assert "(nothing)" in drawn([ChatAnswer("base", "", 0, 0.0)], 100)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_conversation_on_a_terminal(folder, monkeypatch):
    """A mistake, and Ctrl-C in an answer, are said and the conversation goes on; the end of input ends it."""
    lines = iter(["who built it", "/scael 1", "stop here", "/scale 0.5", "", "and who opened it"])
    shown = io.StringIO()

    def typed(prompt):
        for line in lines:
            return line
        raise EOFError

    whole = ChatModel.answer

    def answer(chat_model, prompt, settings, seed):
        if prompt == "stop here":
            raise KeyboardInterrupt
        return whole(chat_model, prompt, settings, seed)

    monkeypatch.setattr(ChatModel, "answer", answer)
    monkeypatch.setattr(builtins, "input", typed)
    monkeypatch.setattr(sys, "stdin", Terminal())
    for name in ("out_console", "err_console"):
        console = Console(file=shown, force_terminal=True, width=100, color_system=None)
        monkeypatch.setattr(chat_command, name, console)
    chat_command.chat([str(folder / "base")], str(folder / "sft"), [str(folder / "recall")], tokens=3)
    text = shown.getvalue()
    assert "/help lists the commands" in text
    assert "error /scael is not a command; did you mean '/scale'?" in text
    assert "stopped\n" in text
    assert text.index("sft + recall, λ = 1 ") < text.index("stopped") < text.index("sft + recall, λ = 0.5 ")

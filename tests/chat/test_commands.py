import json

import pytest

from skillgraft.chat.commands import COMMANDS, Settings, run_command
from skillgraft.errors import OutputExistsError, RecipeError, StorageError
from skillgraft.models.prompts import INSTRUCTION


def test_settings_are_changed_and_shown():
    settings = Settings(scale=1.0)
    assert run_command("/scale 0.5", settings) == "λ = 0.5"
    assert run_command("/scale -1", settings) == "λ = -1"
    assert run_command("/tokens 7", settings) == "answers of at most 7 tokens"
    assert run_command(" /temperature  0.7 ", settings) == "temperature 0.7"
    assert run_command("/system You are a poet.", settings) == "system: You are a poet."
    assert (settings.scale, settings.tokens, settings.temperature) == (-1.0, 7, 0.7)
    assert [run_command(word, settings) for word in ("/scale", "/tokens", "/temperature", "/system")] == [
        *("λ = -1", "answers of at most 7 tokens", "temperature 0.7", "system: You are a poet.")
    ]
    assert run_command("/system none", settings) == "no system message"
    assert run_command("/system default", settings) == f"system: {INSTRUCTION}"
    assert not settings.done
    assert run_command("/quit", settings) == ""
    assert settings.done


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/scael 1", "/scael is not a command; did you mean '/scale'?"),
        ("/", "/ is not a command; available: /help, /quit"),
        ("/scale much", "/scale much: expected a finite number, such as 0.5"),
        ("/scale nan", "/scale nan: expected a finite number"),
        ("/scale inf", "/scale inf: expected a finite number"),
        ("/tokens 0", "/tokens 0: expected a positive whole number"),
        ("/tokens 1.5", "/tokens 1.5: expected a positive whole number"),
        ("/tokens ²", "/tokens ²: expected a positive whole number"),
        ("/temperature -1", "/temperature -1: expected a finite number of at least 0"),
        ("/temperature nan", "/temperature nan: expected a finite number of at least 0"),
        ("/temperature 1e-9", "/temperature 1e-9: expected 0, or at least 0.01"),
        ("/save", "/save: expected a file"),
    ],
)
def test_mistakes_change_nothing(line, message):
    settings = Settings(scale=1.0)
    with pytest.raises(RecipeError) as caught:
        run_command(line, settings)
    assert str(caught.value).startswith(message)
    assert settings == Settings(scale=1.0)


def test_a_scale_needs_a_skill():
    with pytest.raises(RecipeError, match="no skill is injected; start with --target CHECKPOINT --skill SKILL"):
        run_command("/scale 1", Settings())


def test_help_names_every_command():
    text = run_command("/help", Settings())
    assert all(command in text for command in COMMANDS)


def test_save_writes_what_was_said_and_overwrites_nothing(tmp_path):
    settings = Settings(history=[{"prompt": "a"}, {"prompt": "\x1b[2J"}])
    file = tmp_path / "my talk.jsonl"
    assert run_command(f"/save {file}", settings) == f"{file}: 2 prompts with their answers"
    assert [json.loads(line) for line in file.read_text().splitlines()] == settings.history
    with pytest.raises(OutputExistsError, match="exists already"):
        run_command(f"/save {file}", settings)
    with pytest.raises(StorageError, match="cannot be written"):
        run_command(f"/save {tmp_path / 'no' / 'talk.jsonl'}", settings)

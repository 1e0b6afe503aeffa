"""Every command, Python and YAML block of README and docs runs, and every example of a verb's help.

See CONTRIBUTING.md for the comments that make a block slow or parsed only.
"""

import pytest

from skillgraft.cli.app import VERBS
from tests.manual.blocks import (
    LANGUAGES,
    PAGES,
    ROOT,
    Block,
    blocks,
    check_command,
    check_mention,
    commands,
    mentions,
)
from tests.manual.world import Page, make_world
from tests.once import once

pytestmark = pytest.mark.docs

NEEDS_A_HUB = {"skill push", "skill pull"}  # tests/skills/test_hub.py


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLGRAFT_CACHE", "")
        patch.setenv("SKILLGRAFT_LIBRARY", "")
        return once(tmp_path_factory, "world", make_world)[0]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_block_of_a_page_runs(file, world, tmp_path, monkeypatch):
    page = Page(world, tmp_path / "page", file.read_text(encoding="utf-8"), monkeypatch)
    for block in blocks(file):
        assert block.language in LANGUAGES, f"{block}: name the language: one of {', '.join(sorted(LANGUAGES))}"
        assert block.reason or block.mark != "parsed only", f"{block}: say why it is not run"
        try:
            for words in [words for pipe in commands(block.text) for words in pipe] if block.language == "bash" else ():
                check_command(words)
            if not block.mark:
                page.execute(block)
        except Exception as error:
            raise AssertionError(f"{block}: {error}\n\n{block.text}") from error


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_sentence_calls_a_command_is_one(file):
    for words in mentions(file):
        check_mention(words)


@pytest.mark.loopback
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in NEEDS_A_HUB])
def test_the_example_of_every_verb_runs(verb, world, tmp_path, monkeypatch):
    example = VERBS[verb].example
    page = Page(world, tmp_path / "page", example, monkeypatch)
    assert example.startswith(f"skillgraft {verb}")
    page.execute(Block(ROOT / "help", 0, "bash", example))


def test_those_that_need_a_hub_parse():
    for verb in NEEDS_A_HUB:
        check_command(VERBS[verb].example.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("skillgraft run a.yaml   # a remark", [[["skillgraft", "run", "a.yaml"]]]),
        ("skillgraft docs errors#recipe", [[["skillgraft", "docs", "errors#recipe"]]]),
        ("a \\\n  b\n\n# nothing\nc 'd | e' | f &\n", [[["a", "b"]], [["c", "d | e"], ["f"]]]),
    ],
)
def test_how_a_block_is_taken_apart(text, expected):
    assert commands(text) == expected


@pytest.mark.parametrize(
    "command",
    [
        "skillgraft merge merge.yaml --nothing",
        "skillgraft mrege merge.yaml",
        "skillgraft skill shwo my-skill",
        "skillgraft show my-skill",
        "skillgraft inject --target a -o b",
        "skillgraft eval a --questions q --max-new-tokens some",
        "skillgraft --nothing",
    ],
)
def test_a_block_with_an_unknown_option_fails(command, tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"Text.\n\n<!-- parsed only: a reason -->\n```bash\n{command}\n```\n\n`{command}`\n")
    [block] = blocks(file)
    assert (block.mark, block.reason, block.language) == ("parsed only", "a reason", "bash")
    with pytest.raises(Exception, match=r"no verb|[Nn]o (such )?option|Missing|valid integer"):
        check_command(commands(block.text)[0][0])


def test_a_sentence_with_an_unknown_option_fails(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("Text with `skillgraft run RECIPE --jsno` and\n\n```bash\nskillgraft nothing\n```\n")
    [words] = mentions(file)
    with pytest.raises(AssertionError, match="--jsno"):
        check_mention(words)

"""The blocks of code in README and docs: found, taken apart, and held against the command line without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer
from accelerate.commands.launch import launch_command_parser

from skillgraft.cli.app import VERBS, app, command

ROOT = Path(__file__).parents[2]
LANGUAGES = {"bash", "python", "yaml", "json", "text", "toml"}
PAGES = [ROOT / "README.md", *sorted(file for file in (ROOT / "docs").rglob("*.md") if not file.is_symlink())]
GROUP = typer.main.get_command(app)

_MARK = re.compile(r"<!-- (slow|parsed only)(?:: (.+?))? -->")
_OPEN = re.compile(r"^```(\S*)\s*$")
_PROGRAM = re.compile(r"(?:skillgraft|pip|python|make|printf)\b")


@dataclass(frozen=True)
class Block:
    """A block of code; `mark` is '', 'slow' or 'parsed only', and then `reason` says why."""

    file: Path
    line: int
    language: str
    text: str
    mark: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path) -> list[Block]:
    """Return the blocks of a page: fenced ones by their language, indented ones as bash where they begin so."""
    return list(_blocks(file, file.read_text(encoding="utf-8").splitlines()))


def _blocks(file: Path, lines: list[str]) -> Iterator[Block]:
    number, mark, reason = 0, "", ""
    while number < len(lines):
        start = number
        if found := _MARK.fullmatch(lines[number].strip()):
            mark, reason = found[1], found[2] or ""
            number += 1
            continue
        if fence := _OPEN.match(lines[number]):
            number = lines.index("```", number + 1)
            language, text = fence[1], lines[start + 1 : number]
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            while number + 1 < len(lines) and lines[number + 1].startswith("    "):
                number += 1
            text = [line[4:] for line in lines[start : number + 1]]
            language = "bash" if _PROGRAM.match(text[0]) else "text"
        else:
            if lines[number].strip():
                mark, reason = "", ""
            number += 1
            continue
        yield Block(file, start + 1, language, "\n".join(text) + "\n", mark, reason)
        number, mark, reason = number + 1, "", ""


def commands(text: str) -> list[list[list[str]]]:
    """Return the command lines of a bash block: each a list of the words of the programs of a pipe."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#(\s.*)?$", "", line).strip().removesuffix("&")
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|")
        lexer.whitespace_split, lexer.commenters = True, ""
        pipe: list[list[str]] = [[]]
        for word in lexer:
            if word == "|":
                pipe.append([])
            else:
                pipe[-1].append(word)
        if pipe[0]:
            found.append(pipe)
    return found


def check_command(words: list[str]) -> None:
    """Raise for a `skillgraft` command line that the command line would not take; run nothing."""
    words = unlaunched(words[next(i for i, word in enumerate(words) if "=" not in word) :])
    if words[0] != "skillgraft":
        return
    if words[1].startswith("-"):
        assert words[1] in {name for option in GROUP.params for name in option.opts}, f"no option {words[1]}"
        return
    path, rest = verb_of(words)
    command(path).make_context(path, rest)


def verb_of(words: list[str]) -> tuple[str, list[str]]:
    """Return the verb of a command line, such as `merge` or `skill show`, and the words after it."""
    for length in (2, 1):
        path = " ".join(words[1 : 1 + length])
        if path in VERBS:
            return path, words[1 + length :]
    raise AssertionError(f"no verb {' '.join(words[1:3])}")


def unlaunched(words: list[str]) -> list[str]:
    """Return what a launcher of several processes starts, after holding its own options against it; else `words`."""
    if words[:2] != ["accelerate", "launch"]:
        return words
    asked = launch_command_parser().parse_args(words[2:])
    assert asked.module, f"{words}: no -m"
    return [asked.training_script, *asked.training_script_args]


def check_mention(words: list[str]) -> None:
    """Raise for a verb or an option of `skillgraft …` within a sentence that does not exist; values are not read."""
    if len(words) < 2 or words[1].startswith("-"):
        check_command(words)
        return
    if words[1:] == ["skill"]:
        return
    path, rest = verb_of(words)
    known = {name for option in command(path).params for name in (*option.opts, *option.secondary_opts)}
    unknown = {word.partition("=")[0] for word in rest if word.startswith("-") and len(word) > 1}
    assert unknown <= known | {"--help", "-1"}, f"no option {unknown - known}"


def mentions(file: Path) -> list[list[str]]:
    """Return the words of each `skillgraft …` between backquotes in a page's sentences."""
    text = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [found.split() for found in re.findall(r"(?<!`)`(skillgraft [^`…]+)`(?!`)", text)]

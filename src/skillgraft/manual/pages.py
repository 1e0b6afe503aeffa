"""Pages of the documentation and their sections, by name: what `skillgraft docs` prints and errors point to.

They lie in the repository's `docs/`, which `skillgraft/pages` links to; a wheel carries them there. Loads no torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.manual.generated_pages import commands_page, merge_recipe_page, recipe_page

FOLDER = Path(__file__).parent / "pages"

GENERATED: dict[str, Callable[[], str]] = {
    "reference/commands": commands_page,
    "reference/merge-recipe": merge_recipe_page,
    "reference/recipe": recipe_page,
}
"""Pages that are made from the code, so that they cannot be stale."""

_FENCE = re.compile(r"^\s*(```|~~~)")
_HEADING = re.compile(r"^(#{1,6}) +(.+?)\s*#*$")


def page_names() -> list[str]:
    """Return the names of all pages, such as `how-to/merge`, in order."""
    written = (file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.md"))
    return sorted({*written, *GENERATED})


def find_page(name: str) -> str:
    """Return the full name of a page named in full or by its last part; `RecipeError` with the closest for none."""
    names = page_names()
    wanted = name.removesuffix(".md").strip("/")
    matches = [each for each in names if each == wanted] or [each for each in names if each.endswith(f"/{wanted}")]
    if len(matches) != 1:
        short = sorted({each.rpartition("/")[2] for each in names})
        raise RecipeError(f"there is no page '{name}'{did_you_mean(wanted, short)}")
    return matches[0]


def read_page(name: str) -> str:
    """Return the Markdown of a page, by its full name."""
    return GENERATED[name]() if name in GENERATED else (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def read_section(reference: str) -> str:
    """Return the Markdown that `PAGE` or `PAGE#SECTION` names; `RecipeError` where there is no such page or section."""
    name, _, anchor = reference.partition("#")
    page = find_page(name)
    text = read_page(page)
    if not anchor:
        return text
    lines = text.splitlines()
    by_anchor = {each: (number, level) for number, level, each in headings(text)}
    if anchor not in by_anchor:
        raise RecipeError(f"page {page} has no section '{anchor}'{did_you_mean(anchor, by_anchor)}")
    start, level = by_anchor[anchor]
    after = (number for number, deep, _ in headings(text) if number > start and deep <= level)
    return "\n".join(lines[start : next(after, len(lines))]).rstrip() + "\n"


def title(name: str) -> str:
    """Return a page's first heading."""
    text = read_page(name)
    number, _, _ = next(headings(text))
    return text.splitlines()[number].lstrip("# ")


def headings(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (line, level, anchor) of each heading outside of code; anchors are those of the built site."""
    fenced = False
    for number, line in enumerate(text.splitlines()):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced and (match := _HEADING.match(line)):
            yield number, len(match[1]), slug(match[2])


def slug(heading: str) -> str:
    """Return the anchor of a heading as Python-Markdown makes it: ASCII words in lower case, joined by hyphens."""
    text = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())

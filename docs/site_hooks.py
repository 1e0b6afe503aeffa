"""What the site makes of the pages: it adds those that are made from the code, and unlinks files of the repository."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from skillgraft.manual.pages import GENERATED

_LINK = re.compile(r"\[([^\]\n]+)\]\((\.\./[^)\s#]+)(?:#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, page in GENERATED.items():
        files.append(File.generated(config, f"{name}.md", content=page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name a file of the repository that lies outside of the pages, such as a recipe, instead of linking to it.

    Links of PAPERS.md and CHANGELOG.md, which are pages too, are relative to the repository.
    """
    docs = Path(config.docs_dir)
    inside = {"PAPERS.md": "explanation/papers.md", "CHANGELOG.md": "changelog.md"}
    up = "../" * page.file.src_uri.count("/")
    if page.file.src_uri in inside.values():
        return markdown.replace("](docs/", f"]({up}")

    def named(match: re.Match[str]) -> str:
        target = (docs / page.file.src_uri).parent / match[2]
        place = target.resolve()
        if place.is_relative_to(docs) or not place.exists():
            return match[0]
        path = place.relative_to(docs.parent).as_posix()
        if path in inside:
            return f"[{match[1]}]({up}{inside[path]})"
        return match[1] if path in match[1] else f"{match[1]} (`{path}`)"

    return _LINK.sub(named, markdown)

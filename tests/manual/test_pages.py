"""`skillgraft docs` shows the pages, every error points to a section that is there, and a wheel carries them."""

import pkgutil
import re
import runpy
from types import SimpleNamespace

import pytest
from markdown.extensions.toc import slugify
from typer.testing import CliRunner

from skillgraft import errors
from skillgraft.cli.app import app
from skillgraft.errors import RecipeError, SkillgraftError
from skillgraft.manual.pages import FOLDER, find_page, headings, page_names, read_page, read_section, slug, title
from skillgraft.stages import KINDS
from tests.manual.blocks import ROOT


def every_class(kind):
    return [kind, *(each for child in kind.__subclasses__() for each in every_class(child))]


@pytest.mark.parametrize("kind", every_class(SkillgraftError), ids=lambda kind: kind.__name__)
def test_every_error_points_to_a_section_that_names_it(kind):
    owner = next(each for each in kind.__mro__ if "section" in vars(each))
    assert f"`{owner.__name__}`" in read_section(f"errors#{kind.section}")


def test_the_errors_have_sections_of_their_own():
    own = [each for each in every_class(SkillgraftError) if each.__module__ == errors.__name__]
    assert len({each.section for each in own}) == len(own)
    anchors = [anchor for _, level, anchor in headings(read_page("reference/errors")) if level == 2]
    assert sorted(anchors) == sorted(each.section for each in own)


def test_a_printed_error_ends_with_what_shows_its_section(tmp_path):
    failed = CliRunner().invoke(app, ["run", str(tmp_path / "none.yaml")])
    *_, last = failed.stderr.splitlines()
    assert (failed.exit_code, last) == (2, "see: skillgraft docs errors#missing-path")
    shown = CliRunner().invoke(app, last.split()[2:])
    assert shown.exit_code == 0
    assert shown.stdout.startswith("## Missing path\n\n`MissingPathError` (`FileNotFoundError`)")
    assert "## Output exists" not in shown.stdout


def test_pages_are_listed_with_their_titles():
    lines = CliRunner().invoke(app, ["docs"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == page_names()
    assert "Your own documents in ten minutes" in next(line for line in lines if line.startswith("tutorial "))
    assert all(title(name) for name in page_names())


@pytest.mark.parametrize(
    "name", ["tutorial", "how-to/merge", "merge", "reference/recipe", "recipe", "errors", "papers"]
)
def test_a_page_goes_by_its_name_or_the_last_part_of_it(name):
    text = CliRunner().invoke(app, ["docs", name]).stdout
    assert text == read_page(find_page(name))
    assert text.startswith("# ")


def test_pages_that_are_not_there():
    with pytest.raises(RecipeError, match="there is no page 'tutorail'; did you mean 'tutorial'"):
        read_section("tutorail")
    with pytest.raises(RecipeError, match=r"reference/errors has no section 'recip'; did you mean 'recipe'"):
        read_section("errors#recip")
    with pytest.raises(RecipeError, match="there is no page"):
        read_section("../README")


def test_pages_made_from_the_code():
    for kind in KINDS:
        section = read_section(f"recipe#{kind}")
        assert [
            f"| `{field.alias or name}` |" in section for name, field in KINDS[kind].settings.model_fields.items()
        ].count(False) == 0
    assert "integer, ≥ 1" in read_section("recipe#eval")
    assert "| `density` | number, ≤ 1, > 0 | `0.2` |" in read_section("merge-recipe#ties")
    commands = read_page("reference/commands")
    assert "* `--dry-run`: Show the plan" in commands
    assert "$ skillgraft docs errors#recipe" in commands
    assert "[bold]" not in commands


@pytest.mark.parametrize(
    "heading", ["Missing path", "Why bf16 loses", "Choose λ", "`skillgraft run`", "A: b, c — d!", "rl_source"]
)
def test_anchors_are_those_of_the_site(heading):
    assert slug(heading) == slugify(heading.replace("`", ""), "-")


def test_a_section_ends_where_the_next_begins_and_code_has_no_headings():
    text = "# A\n\n## B\n\n```bash\n# not a heading\n```\n\n### C\n\nc\n\n## D\n"
    assert [anchor for _, _, anchor in headings(text)] == ["a", "b", "c", "d"]


def test_the_package_finds_its_pages():
    assert (FOLDER / "tutorial.md").is_file()


def test_the_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text)
    assert len(links) > 20
    for path, anchor in links:
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in [each for _, _, each in headings((ROOT / path).read_text())], anchor


def test_a_page_may_name_files_of_the_repository():
    """The site has no such files: it says their names instead of linking to them."""
    hooks = runpy.run_path(str(ROOT / "docs" / "site_hooks.py"))
    page = SimpleNamespace(file=SimpleNamespace(src_uri="how-to/merge.md"))
    config = SimpleNamespace(docs_dir=str(ROOT / "docs"))
    text = (
        "[a](../../recipes/quickstart.yaml) [`recipes/quickstart.yaml`](../../recipes/quickstart.yaml) "
        "[b](../../PAPERS.md#x) [c](../tutorial.md) [d](../../nothing.md) [e](merge.md)"
    )
    assert hooks["on_page_markdown"](text, page, config, None) == (
        "a (`recipes/quickstart.yaml`) `recipes/quickstart.yaml` "
        "[b](../explanation/papers.md) [c](../tutorial.md) [d](../../nothing.md) [e](merge.md)"
    )


def test_links_of_papers_lead_to_the_same_pages_on_the_site():
    hooks = runpy.run_path(str(ROOT / "docs" / "site_hooks.py"))
    page = SimpleNamespace(file=SimpleNamespace(src_uri="explanation/papers.md"))
    config = SimpleNamespace(docs_dir=str(ROOT / "docs"))
    assert hooks["on_page_markdown"]("[a](docs/log/index.md)", page, config, None) == "[a](../log/index.md)"


def test_papers_has_one_row_per_paper_and_names_what_exists():
    text = (ROOT / "PAPERS.md").read_text()
    rows = [
        line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and line[2:7] != "paper"
    ]
    assert all(len(row) == 5 for row in rows)
    ids = [each for row in rows for each in re.findall(r"\d{4}\.\d{5}", row[0])]
    assert sorted(ids) == sorted(set(ids))
    for path in re.findall(r"`((?:recipes|results|tests)/[\w./-]+)`|\]\(([^)#]+)\)", text):
        assert (ROOT / "".join(path)).exists(), path
    for name in (name for row in rows for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", row[1])):
        pkgutil.resolve_name(f"skillgraft.{name}")


def test_the_log_lists_every_experiment():
    listed = re.findall(r"\]\((\d{4}-\d\d-\d\d-[\w-]+\.md)\)", (ROOT / "docs" / "log" / "index.md").read_text())
    assert sorted(listed) == sorted(file.name for file in (ROOT / "docs" / "log").glob("2*.md"))
    dates = [name[:10] for name in listed]
    assert dates == sorted(dates, reverse=True)

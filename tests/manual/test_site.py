"""The site: built strictly and without a network, asks for nothing from elsewhere, and has every page in its nav."""

import os
import re
import subprocess
import sys

import pytest

from skillgraft.manual.pages import page_names
from tests.manual.blocks import ROOT
from tests.once import once
from tests.report.browser import browser, find_chromium

pytestmark = pytest.mark.docs

OUTSIDE = re.compile(
    r"""(?:<script[^>]+src|<link[^>]+rel="?stylesheet"?[^>]+href|<img[^>]+src|@import|url\()\s*=?["'(]*https?:"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return once(tmp_path_factory, "site", build)[0]


def build(folder):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_page_is_built_and_in_the_nav(site):
    home = (site / "index.html").read_text()
    for name in page_names():
        assert (site / f"{name}.html").is_file(), name
    tutorial = (site / "how-to" / "merge.html").read_text()
    for name in page_names():
        if name.startswith("how-to/"):
            assert f'href="{name.rpartition("/")[2]}.html"' in tutorial, name
    assert "tutorial.html" in home


def test_nothing_comes_from_elsewhere(site):
    for file in site.rglob("*.html"):
        assert not OUTSIDE.search(file.read_text()), file


def test_schemas_and_functions_are_there(site):
    assert (site / "recipe.schema.json").read_text() == (ROOT / "docs" / "recipe.schema.json").read_text()
    assert (site / "merge.schema.json").is_file()
    python = (site / "reference" / "python.html").read_text()
    for name in ("inject", "extract", "merge", "compare", "pack", "load_skill", "run"):
        assert re.search(rf'id="skillgraft\.[\w.]*\.{name}"', python), name


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium")
@pytest.mark.parametrize("name", ["index", "tutorial", "how-to/merge", "reference/commands", "reference/errors"])
def test_in_a_browser(site, name, tmp_path):
    with browser(find_chromium(), tmp_path) as page:
        for width in (1280, 360):
            page.open(site / f"{name}.html", width=width)
            assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
            asked = {request.partition(":")[0] for request in page.requests()}
            assert asked <= {"file", "data", "blob"}
            assert page.complaints() == []

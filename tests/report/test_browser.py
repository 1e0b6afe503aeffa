"""The page in headless Chromium, where one is installed: it is silent, loads nothing, works, fits a phone.

`SKILLGRAFT_AXE` names an `axe.min.js` (`npm pack axe-core`) with which the page's accessibility is checked too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skillgraft.report import render
from skillgraft.report.run_comparison import render_runs
from tests.report import report_sample as sample
from tests.report.browser import Browser, browser, find_chromium
from tests.report.test_page import poison

CHROMIUM = find_chromium()
AXE = os.environ.get("SKILLGRAFT_AXE", "")
DARK, LIGHT = {"prefers_color_scheme": "dark"}, {"prefers_color_scheme": "light"}
PLANTED = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'><a href='javascript:window.ran = 1'>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path, nor named by SKILLGRAFT_CHROMIUM")


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    wide = sample.swept()
    wide["stages"][0]["directory"] = "/very" * 60
    wide["evaluations"][0]["examples"][0]["answers"][0]["text"] = "unbroken" * 100_000
    hostile: Any = poison(sample.swept())
    hostile["title"] = hostile["recipe_path"] = hostile["recipe_yaml"] = PLANTED
    for answer in hostile["evaluations"][0]["examples"][0]["answers"]:
        answer["text"] = PLANTED + "\u202e\ud800"
    texts = {
        "one": render(wide),
        "hostile": render(hostile),
        "several": render_runs({"first": wide, PLANTED: hostile}),
        "empty": render({**sample.facts(), "evaluations": [], "training": [], "stages": [], "skills": []}),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("name", ["one", "hostile", "several", "empty"])
def test_it_is_silent_and_asks_for_nothing(chrome: Browser, pages: dict[str, Path], name: str) -> None:
    chrome.open(pages[name], **LIGHT)
    assert chrome.complaints() == []
    assert chrome.requests() == [pages[name].as_uri()]
    assert chrome.run("document.scripts.length") == 1
    assert chrome.run("typeof window.ran") == "undefined"
    assert not [event for event in chrome.events if event.get("method") == "Page.javascriptDialogOpening"]


@pytest.mark.parametrize("name", ["one", "hostile", "several", "empty"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_scrolls_sideways(chrome: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    chrome.open(pages[name], width=width, **LIGHT)
    assert chrome.run("document.documentElement.scrollWidth") <= width
    assert chrome.run("document.body.scrollWidth") <= width


def test_all_sections_are_there_and_linked(chrome: Browser, pages: dict[str, Path]) -> None:
    chrome.open(pages["one"])
    links = chrome.run("Array.from(document.querySelectorAll('nav a'), (link) => link.hash.slice(1))")
    wanted = ["scores", "gain", "differences", "retention", "where", "scales", "training", "examples", "settings"]
    assert links == wanted
    visible = "Array.from(document.querySelectorAll('main h2[id]')).filter((h) => h.offsetHeight > 0).map((h) => h.id)"
    assert chrome.run(visible) == wanted


def test_filters_and_search(chrome: Browser, pages: dict[str, Path]) -> None:
    chrome.open(pages["one"])
    shown = "Array.from(document.querySelectorAll('article:not([hidden])'), (card) => card.dataset.change)"
    changes = chrome.run(shown)
    assert len(changes) == 40
    for change in ("gained", "lost", "unchanged"):
        chrome.run(f"document.querySelector('[data-filter={change}]').click()")
        assert chrome.run(shown) == [one for one in changes if one == change]
        assert chrome.run(f"document.querySelector('[data-filter={change}]').ariaPressed") == "true"
    chrome.run("document.querySelector('[data-filter=all]').click()")

    def search(words: str) -> None:
        chrome.run(f"document.querySelector('[type=search]').value = '{words}'")
        chrome.run("document.querySelector('[type=search]').dispatchEvent(new Event('input'))")

    search("normandy LOCATED")
    assert len(chrome.run(shown)) == 8
    assert chrome.run("document.querySelector('[data-examples] [role=status]').textContent") == "8 of 40"
    search("nowhere to be found")
    assert chrome.run(shown) == []
    assert chrome.run("document.querySelector('.nothing').hidden") is False


def test_the_theme_follows_the_system_and_the_button(chrome: Browser, pages: dict[str, Path]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    chrome.open(pages["one"], **LIGHT)
    light = chrome.run(paper)
    chrome.run("document.getElementById('theme').click()")
    dark = chrome.run(paper)
    assert light != dark
    chrome.open(pages["one"], **LIGHT)
    assert chrome.run(paper) == dark  # kept
    chrome.run("document.getElementById('theme').click(); localStorage.clear()")
    chrome.open(pages["one"], **DARK)
    assert chrome.run(paper) == dark


def test_it_is_reached_by_keyboard_alone(chrome: Browser, pages: dict[str, Path]) -> None:
    chrome.open(pages["one"])
    focused = "document.activeElement.className || document.activeElement.id || document.activeElement.hash"
    reached = []
    for _ in range(14):
        chrome.press("Tab", 9)
        reached.append(chrome.run(focused))
    assert reached[:3] == ["skip", "theme", "#scores"]
    assert "scroll" in reached  # wide tables can be scrolled with the arrow keys
    chrome.run("document.querySelector('[data-filter=gained]').focus()")
    chrome.press("Enter", 13)
    assert chrome.run("document.querySelector('[data-filter=gained]').ariaPressed") == "true"


def test_print_is_light_and_leaves_nothing_out(chrome: Browser, pages: dict[str, Path]) -> None:
    chrome.open(pages["one"], **DARK)
    chrome.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert chrome.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chrome.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert chrome.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    chrome.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.skipif(not Path(AXE).is_file(), reason="SKILLGRAFT_AXE names no axe.min.js: npm pack axe-core")
@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["one", "hostile", "several"])
def test_axe_finds_nothing_serious(
    chrome: Browser, pages: dict[str, Path], name: str, width: int, scheme: dict[str, str]
) -> None:
    chrome.open(pages[name], width=width, **scheme)
    chrome.run(Path(AXE).read_text(encoding="utf-8") + "; 0")
    found = chrome.run(
        "axe.run(document, {resultTypes: ['violations']}).then((all) => all.violations"
        ".map((one) => [one.impact, one.id, one.nodes.length, one.nodes[0].html.slice(0, 200)]))"
    )
    assert [one for one in found if one[0] in ("serious", "critical")] == []

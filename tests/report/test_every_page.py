"""Every page that a command writes, in a real headless Chromium: it fits, can be read, asks for nothing, and works by keyboard."""

from pathlib import Path

import pytest
from PIL import Image

from report.chromium import Chromium
from report.pages import NAMES, Pages

pytestmark = [pytest.mark.browser]
LOOKS = (Path(__file__).parent / "looks.js").read_text(encoding="utf-8")
DESKTOP, PHONE = (1280, 900), (400, 860)
TABS = 400


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    return Pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(params=NAMES)
def page(request, pages, browser):
    """The page, opened and drawn; afterwards it has said no error and asked for nothing."""
    path = pages[request.param]
    browser.problems.clear()
    browser.requests.clear()
    browser.size(*DESKTOP)
    browser.open(path)
    browser.run(LOOKS)
    draw(browser)
    yield browser
    assert browser.problems == []
    assert {each for each in browser.requests if not each.startswith("data:")} == {path.resolve().as_uri()}


def draw(page):
    page.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    page.settle()
    page.run("window.channelscope && channelscope.drawAll()")
    page.settle()


def looks(page):
    """What is wrong with the page as it is now."""
    wide = page.run("document.documentElement.scrollWidth - innerWidth")
    return ([f"scrolls sideways by {wide} pixels"] if wide > 0 else []) + page.run("[...looks.outside(), ...looks.overlapping()]")


def test_it_can_be_read_on_a_desk_on_a_phone_and_in_the_dark(page):
    found = {"desk": looks(page), "bare": page.run("looks.bare()"), "faint": page.run("looks.faint()")}
    page.theme(dark=True)
    found["faint in the dark"] = page.run("looks.faint()")
    page.theme(dark=False)
    page.size(*PHONE)
    found["phone"] = looks(page)
    assert {name: list(lines) for name, lines in found.items() if lines} == {}


def test_a_long_name_in_the_title_fits_a_phone(pages, browser):
    browser.open(pages["prune"])
    browser.run(LOOKS)
    browser.size(*PHONE)
    browser.run("document.querySelector('h1').textContent = 'Scores compared on torchvision:efficientnet_v2_s_of_a_long_name'")
    assert looks(browser) == []


@pytest.mark.parametrize("name", ["communities", "discard", "circuit"])
def test_a_drawing_has_the_ground_of_the_page(name, pages, browser, tmp_path):
    browser.size(*DESKTOP)
    browser.open(pages[name])
    try:
        for dark, ground in ((False, (255, 255, 255)), (True, (25, 29, 34))):
            browser.theme(dark)
            browser.run("document.querySelector('.picture img').scrollIntoView({ block: 'start' }); scrollBy(0, -100)")
            browser.settle()
            x, y = browser.run("(({ x, y }) => [x, y])(document.querySelector('.picture img').getBoundingClientRect())")
            found = Image.open(browser.picture(tmp_path / f"{dark}.png")).convert("RGB").getpixel((round(x) + 3, round(y) + 3))
            assert max(abs(one - other) for one, other in zip(found, ground, strict=True)) <= 4, found
    finally:
        browser.theme(dark=False)


def test_every_control_works_by_keyboard(page):
    page.run("document.querySelectorAll('details details, section details').forEach((each) => (each.open = false))")
    page.run("scrollTo(0, 0); looks.follow()")
    count = page.run("looks.controls().length")
    for _ in range(min(count + 20, TABS)):
        page.press("Tab", 9)
    page.settle()
    assert page.run("[...looks.unmarked]") == []
    if count + 20 <= TABS:
        assert page.run("looks.missed()") == []
    page.run("HTMLAnchorElement.prototype.click = function () { (window.saved ??= []).push(this.download); }")
    for kind, key in (("summary", "Enter"), (".saves button", " "), ("nav .menu", "Enter"), ("th button", "Enter")):
        found = f"[...document.querySelectorAll({kind!r})].filter(looks.shown)"
        for place in range(min(page.run(f"{found}.length"), 8)):
            page.run(f"looks.focus({found}[{place}])")
            page.press(key, 13 if key == "Enter" else 32)
            assert page.run("looks.hits") == 1, f"{kind} {place}"
    page.settle()

"""The page in a real browser, as a person uses it; skipped where there is no chromium."""

import base64
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from carrara.dataset.dataset import Dataset
from serving.conftest import HOSTILE

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


class Visit:
    """An open page, and what it asked for and complained of."""

    def __init__(self, page: "sync_api.Page") -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.refusals = False  # whether the test asks for what is refused
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text))

    def status(self) -> str:
        return str(self.page.locator("[role=status]").inner_text())

    def first(self, words: str) -> None:
        """Waits until the first picture is called so."""
        sync_api.expect(self.page.locator(".cell .words").first).to_have_text(words)


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    sync_api.expect.set_options(timeout=20_000)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: "sync_api.Browser", served: str) -> Iterator[Visit]:
    """Nothing may leave this machine, and nothing may go wrong in the console."""
    context = browser.new_context(base_url=served, viewport={"width": 1100, "height": 700}, locale="en-GB")
    context.set_default_timeout(20_000)
    visit = Visit(context.new_page())
    yield visit
    context.close()
    outside = [
        url for url in visit.asked if urlsplit(url).hostname != "127.0.0.1" and not url.startswith("blob:")
    ]
    assert outside == []
    told = "the server responded with a status of 400"  # by chromium, of every one
    assert [c for c in visit.complaints if not (visit.refusals and told in c)] == []


def test_search_look_and_ask_for_more(visit: Visit, data: Dataset) -> None:
    page, expect = visit.page, sync_api.expect
    page.goto("/")
    expect(page.locator(".cell img")).to_have_count(24)
    assert "24 pictures" in visit.status()
    page.keyboard.press("/")
    page.keyboard.type("red disc")
    page.keyboard.press("Enter")
    visit.first("red disc")
    page.get_by_role("searchbox").fill("grüne Scheibe")
    page.keyboard.press("Enter")
    visit.first("green disc")
    assert "words=gr%C3%BCne" in page.url
    page.go_back()
    visit.first("red disc")
    # Down into the grid, open, and what is known of it.
    page.keyboard.press("/")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    record = page.get_by_role("dialog")
    expect(record).to_contain_text("all words in the caption")
    expect(record).to_contain_text("rote Scheibe")
    row = int(page.url.rpartition("row=")[2])
    link = page.url
    page.keyboard.press("ArrowRight")
    expect(page).not_to_have_url(link)
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(link)
    record.get_by_role("button", name="More like this").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".cell").first).not_to_have_attribute("data-row", str(row))
    assert f"like={row}" in page.url
    assert "by picture" in visit.status()
    # A link brings all of it back.
    page.goto(link)
    expect(page.get_by_role("dialog")).to_contain_text("all words in the caption")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator(".cell")).to_have_count(24)


def test_what_strangers_wrote_is_text_and_what_is_where_is_drawn(visit: Visit, data: Dataset) -> None:
    page, expect = visit.page, sync_api.expect
    page.goto("/?row=0")
    record = page.get_by_role("dialog")
    expect(record.locator("dd", has_text=HOSTILE)).to_be_visible()
    assert (
        record.get_by_role("link", name="https://example.org").get_attribute("rel") == "noreferrer noopener"
    )
    row = [Path(source).name for source in data.column("source")].index("red-disc-0.png")
    page.goto(f"/?row={row}")
    arabic = record.locator("dd[lang=ar]")
    assert arabic.evaluate("e => getComputedStyle(e).direction") == "rtl"
    frame = record.locator(".box")
    expect(frame).to_have_text(HOSTILE)
    inside, outer = frame.bounding_box(), record.locator(".fit img").bounding_box()
    assert inside is not None
    assert outer is not None
    assert inside["x"] - outer["x"] == pytest.approx(0.1 * outer["width"], abs=1)
    assert inside["height"] == pytest.approx(0.25 * outer["height"], abs=1)
    record.get_by_role("button", name="map").click()
    expect(record.locator(".fit img")).to_have_js_property("naturalWidth", 20)
    assert "/beside/map" in str(record.locator(".fit img").get_attribute("src"))
    assert page.title() == "shapes-data · Carrara"
    page.goto("/?row=1")
    expect(record.locator("dd", has_text="javascript:alert")).to_be_visible()
    expect(record.locator("a[href^=javascript]")).to_have_count(0)


def test_is_this_picture_among_them(visit: Visit, source: Path) -> None:
    page, expect = visit.page, sync_api.expect
    page.goto("/")
    expect(page.locator(".cell img")).to_have_count(24)
    dropped = """text => {
        const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], "mine.png", {type: "image/png"}));
        for (const kind of ["dragenter", "dragover", "drop"])
            window.dispatchEvent(new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(dropped, base64.b64encode((source / "blue-bar-1.png").read_bytes()).decode())
    expect(page.locator(".verdict")).to_contain_text("exactly this picture is in the data set")
    visit.first("blue bar")
    expect(page.locator(".chip img")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".verdict")).to_have_count(0)


def test_filters_on_a_narrow_screen(visit: Visit) -> None:
    page, expect = visit.page, sync_api.expect
    page.set_viewport_size({"width": 360, "height": 640})
    page.goto("/")
    expect(page.locator(".cell img").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("it's 50%_").check()
    expect(page.get_by_role("status")).to_contain_text("8 of 24 pictures")
    page.get_by_label("held out").check()
    expect(page.get_by_role("status")).not_to_contain_text("8 of 24")
    page.get_by_role("button", name="All pictures again").click()
    visit.refusals = True
    page.get_by_label("Condition").fill("width > 'a lot'; no")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("cannot be read")


def test_the_command_keeps_all_that_is_found(visit: Visit, data: Dataset) -> None:
    page, expect = visit.page, sync_api.expect
    page.goto("/")
    page.get_by_text("Make a data set of these").click()
    kept = page.locator(".facets details")
    expect(kept).to_contain_text("First search, or choose a filter")
    page.get_by_label("it's 50%_").check()
    expect(page.get_by_role("status")).to_contain_text("8 of 24 pictures")
    expect(kept).to_contain_text("of what matches")
    command = shlex.split(kept.locator(".command").inner_text())
    assert command[:6] == ["carrara", "data", "filter", str(data.path), "NEW", "--where"]
    assert len(data.indices(None, command[6])) == 8
    page.get_by_role("searchbox").fill("red disc")
    page.keyboard.press("Enter")
    visit.first("red disc")
    command = shlex.split(kept.locator(".command").inner_text())
    found = len(page.locator(".cell").all())
    assert 0 < found < 8
    assert command[4:] == ["--where", command[5], "--limit", str(found), "--into", "NEW", "--", "red disc"]


def test_what_is_no_picture_is_said_and_nothing_else_is_shown(visit: Visit) -> None:
    page, expect = visit.page, sync_api.expect
    visit.refusals = True
    page.goto("/")
    expect(page.locator(".cell img")).to_have_count(24)
    page.locator("input[type=file]").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    expect(page.get_by_role("alert")).to_contain_text("not a picture")
    expect(page.locator(".cell")).to_have_count(0)
    expect(page.locator(".chip img")).to_be_hidden()
    assert "found" not in visit.status()
    page.keyboard.press("Escape")
    expect(page.locator(".cell img")).to_have_count(24)
    expect(page.get_by_role("alert")).to_have_count(0)

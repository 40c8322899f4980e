"""The page in a browser: filters, keyboard, phone width, no errors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from edgevlm_runner.contract import Answer, read_jsonl

from edgevlm_deploy.comparison import Side, compare
from edgevlm_deploy.report import comparison, html

selenium = pytest.importorskip("selenium", reason="selenium is not installed (extra `dev`)")

from selenium.webdriver import Chrome, ChromeOptions  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in [*QUIET.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options, Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module", params=["report", "comparison"])
def address(request: pytest.FixtureRequest, small_case: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of one bundle, and the page of `edgevlm diff` about the same answers."""
    out: Path = tmp_path_factory.mktemp("report") / "page.html"
    if request.param == "report":
        html.render(**vars(small_case), out=out)
    else:
        reference = tuple(read_jsonl(small_case.bundle.path("reference.jsonl"), Answer))
        before = Side("FP16 reference", small_case.bundle, reference, None)
        now = Side("demo-host-cpu", small_case.bundle, small_case.answers, small_case.evidence)
        comparison.render(compare(before, now), out)
    return out.as_uri()


@pytest.fixture
def page(browser: Chrome, address: str) -> Iterator[Chrome]:
    """The page, freshly loaded; whatever a test did, the console has to stay empty."""
    console(browser)
    browser.set_window_size(1280, 1000)
    browser.get(address)
    yield browser
    assert console(browser) == []


def console(browser: Chrome) -> list[Any]:
    """What was written since the last call."""
    return list(browser.get_log("browser"))  # type: ignore[no-untyped-call]


def cards(page: Chrome, case: Any) -> list[tuple[str, str, str]]:
    """(direction, condition, kind of question) of what the page's gallery holds."""
    flips = [(one.flip.value, one.condition, one.group) for one in case.metrics.flips]
    changed = {one.id for one in case.metrics.flips}
    stayed = [one for one in case.metrics.failures if one.id not in changed]
    if page.title.endswith("changed answers"):  # of a comparison
        return flips
    return [*flips, *(("stayed", one.condition, one.group) for one in stayed)]


def visible(page: Chrome) -> list[Any]:
    return [card for card in page.find_elements(By.CSS_SELECTOR, ".flip") if card.is_displayed()]


def test_direction_condition_and_kind_narrow_the_gallery(page: Chrome, small_case: Any) -> None:
    everything = cards(page, small_case)
    assert len(visible(page)) == len(everything)
    page.find_element(By.CSS_SELECTOR, "input[name=direction][value=negative]").click()
    negative = [one for one in small_case.metrics.flips if one.flip.value == "negative"]
    assert [card.get_attribute("data-direction") for card in visible(page)] == ["negative"] * len(negative)
    assert page.find_element(By.ID, "shown").text == str(len(negative))
    condition = Select(page.find_element(By.NAME, "condition"))
    condition.select_by_value("clean")
    clean = [one for one in negative if one.condition == "clean"]
    assert 0 < len(visible(page)) == len(clean) < len(negative)
    group = next(one.group for one in clean if one.group)
    Select(page.find_element(By.NAME, "group")).select_by_visible_text(group)
    assert len(visible(page)) == sum(one.group == group for one in clean)
    page.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    assert len(visible(page)) == len(everything)


def test_kinds_of_failure_narrow_the_gallery(page: Chrome, small_case: Any) -> None:
    everything = visible(page)
    select = Select(page.find_element(By.NAME, "category"))
    counted = 0
    for name in [str(option.text) for option in select.options][1:]:
        select.select_by_visible_text(name)
        assert visible(page) and all(name in card.text for card in visible(page))
        counted += len(visible(page))
    right = [card for card in everything if not card.get_attribute("data-category")]
    assert counted == len(everything) - len(right) and all(
        card.get_attribute("data-direction") in ("positive", "neutral")
        or card.get_attribute("data-kind") in ("negated", "background")  # no answers to the clean question
        for card in right
    )


def test_one_corruption_and_all_of_them(page: Chrome, small_case: Any) -> None:
    kinds: dict[str, list[str]] = {}
    for _, change, _ in cards(page, small_case):
        kind = change.partition(":")[0]
        kinds.setdefault("corrupted" if "/" in kind else kind, []).append(change)
    flips = kinds["corrupted"]
    condition = Select(page.find_element(By.NAME, "condition"))
    assert set(kinds) >= {"clean", "corrupted", "perturbed", "negated"}
    for kind, of_kind in kinds.items():
        condition.select_by_value(kind)
        assert len(visible(page)) == len(of_kind) > 0
    condition.select_by_value("negated:counter")
    assert len(visible(page)) == kinds["negated"].count("negated:counter") > 0
    name = flips[0].split("/")[0]
    condition.select_by_value(name)
    assert len(visible(page)) == sum(one.startswith(f"{name}/") for one in flips)


def test_free_text(page: Chrome) -> None:
    search = page.find_element(By.NAME, "text")
    search.send_keys("follows NUMBER")
    (card,) = visible(page)
    assert 'onerror="document.title=1"' in card.text and page.title.startswith(("demo-host-cpu", "FP16"))
    search.send_keys(" nowhere")
    assert not visible(page)
    assert page.find_element(By.ID, "nothing-left").is_displayed()


def test_the_heat_map_changes_its_numbers_by_keyboard(page: Chrome) -> None:
    def shown() -> set[str]:
        cells = page.find_elements(By.CSS_SELECTOR, ".heat td .v")
        return {str(one.get_attribute("class")).split()[1] for one in cells if one.is_displayed()}

    assert shown() == {"accuracy"}
    radio = page.find_element(By.ID, "heat-accuracy")
    radio.send_keys(Keys.ARROW_RIGHT)
    assert shown() == {"drop"}
    page.find_element(By.ID, "heat-drop").send_keys(Keys.ARROW_RIGHT)
    assert shown() == {"flips"}


def test_pictures_are_drawn(page: Chrome, small_case: Any) -> None:
    """Screenshot of one picture: the thumbnail behind <use> is really decoded."""
    import io

    from PIL import Image

    picture = page.find_element(By.CSS_SELECTOR, ".flip .picture")
    page.execute_script("arguments[0].scrollIntoView()", picture)
    colours = Image.open(io.BytesIO(picture.screenshot_as_png)).convert("RGB").getcolors(1 << 20)
    assert colours is not None and len(colours) > 100


@pytest.mark.parametrize("width", [390, 1280])
def test_only_tables_scroll_sideways(page: Chrome, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        assert page.execute_script("return innerWidth") == width
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        outside = page.execute_script(
            "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.box, .store, svg') &&"
            " e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
        )
        assert outside == []
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_reads_without_scripts(browser: Chrome, address: str, small_case: Any) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address)
        assert len(visible(browser)) == len(cards(browser, small_case))
        assert not browser.find_element(By.ID, "filters").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_contrast_of_every_text(page: Chrome, dark_and_light: Callable[[Chrome, str], None]) -> None:
    """WCAG AA: 4.5 to 1 against what is painted below, in both colour schemes."""
    for scheme in ("light", "dark"):
        dark_and_light(page, scheme)
        for view in ("accuracy", "drop", "flips"):
            page.find_element(By.ID, f"heat-{view}").click()
            poor = page.execute_script(CONTRAST)
            assert poor == [], (scheme, view)


@pytest.fixture
def dark_and_light() -> Callable[[Chrome, str], None]:
    def set_scheme(page: Chrome, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    return set_scheme


CONTRAST = """
const rgba = text => {
  const found = text.match(/[\\d.]+/g).map(Number);
  return found.length < 4 ? [...found, 1] : found;
};
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
const luminance = colour => {
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = colour.map(c => linear(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = element => {
  const chain = [];
  for (let e = element; e; e = e.parentElement) chain.push(rgba(getComputedStyle(e).backgroundColor));
  return chain.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
};
const poor = new Set();
for (const element of document.querySelectorAll("main *, header *")) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !element.getClientRects().length || element.closest("svg, select")) continue;
  const below = ground(element);
  const pair = [luminance(over(rgba(getComputedStyle(element).color), below)), luminance(below)];
  const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  if (ratio < 4.5) poor.add(`${element.className} ${ratio.toFixed(2)} ${element.textContent.slice(0, 30)}`);
}
return [...poor];
"""

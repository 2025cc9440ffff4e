"""The page in a real browser: Debian's Chromium, headless, at the width of a desk and of a phone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.ops import masks
from tests.compare.test_browser import SWITCHES, WIDTHS, scheme
from tests.serve.conftest import png

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def server(artifact):
    """Address of a server that needs a key."""
    command = [sys.executable, "-m", "pipeline", "serve", "--model", str(artifact), "--port", "0", "--threads", "1"]
    environment = {**os.environ, "SAM_DISTILLERY_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "listening on " in line:
                yield line.rpartition(" ")[2].strip()
                break
        else:
            pytest.fail("the server did not start")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.fail("there is no browser to open the page in: `apt-get install chromium chromium-driver`")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    # Without a GPU, drawing an animation takes the processor that the server needs.
    for switch in (
        *SWITCHES,
        "--force-prefers-reduced-motion",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture
def downloads(browser, tmp_path):
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    return tmp_path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(png(160, seed=2))
    return path


@pytest.fixture(params=WIDTHS.values(), ids=WIDTHS.keys())
def opened(browser, server, picture, request):
    """The page with a picture, its key given."""
    size = {"width": request.param, "height": 860, "deviceScaleFactor": 1, "mobile": request.param < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme(browser, "light")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(server)
    browser.execute_script("sessionStorage.clear()")
    browser.refresh()
    wait(browser, lambda: at(browser, "key-dialog").get_attribute("open"))
    at(browser, "key").send_keys(KEY + Keys.ENTER)
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#samples img"))
    at(browser, "file").send_keys(str(picture))
    wait(browser, lambda: at(browser, "status").text == "Ready.")
    return browser


def at(browser, name):
    return browser.find_element(By.ID, name)


def wait(browser, condition):
    try:
        return WebDriverWait(browser, 60).until(lambda _: condition())
    except TimeoutException:
        pytest.fail(f"the page says {at(browser, 'status').text!r}; {browser.get_log('browser')}")


def rows(browser):
    return browser.find_elements(By.CSS_SELECTOR, "#objects li")


def scores(browser):
    """Predicted IoUs that are listed; "…" while one is awaited. Rows are made anew with every change."""
    return browser.execute_script("return [...document.querySelectorAll('#objects .score')].map((e) => e.textContent)")


def answered(browser, count):
    return wait(browser, lambda: len(scores(browser)) == count and "…" not in scores(browser))


def mouse(browser):
    canvas = at(browser, "canvas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    return ActionChains(browser).move_to_element(canvas)


def pixels(browser):
    """Digest of what the canvas shows."""
    return browser.execute_script("return document.getElementById('canvas').toDataURL()")


def test_clicks_boxes_undo_and_redo(opened):
    bare = pixels(opened)
    mouse(opened).click().perform()
    answered(opened, 1)
    one = pixels(opened)
    assert one != bare
    assert "predicted IoU" in at(opened, "status").text
    mouse(opened).move_by_offset(30, 20).context_click().perform()
    wait(opened, lambda: pixels(opened) != one)
    at(opened, "add").click()
    mouse(opened).move_by_offset(-60, -60).click_and_hold().move_by_offset(50, 50).release().perform()
    answered(opened, 2)
    undo, redo = at(opened, "undo"), at(opened, "redo")
    for count in (1, 1, 0):
        undo.click()
        assert len(rows(opened)) == count
    assert not undo.is_enabled()
    for count in (1, 1, 2):
        redo.click()
        assert len(rows(opened)) == count
    assert not redo.is_enabled()
    rows(opened)[0].find_element(By.CLASS_NAME, "remove").click()
    assert len(rows(opened)) == 1


def test_the_keyboard_alone_makes_points_and_boxes(opened):
    at(opened, "canvas").send_keys(Keys.ARROW_LEFT * 3 + Keys.ENTER)
    answered(opened, 1)
    at(opened, "canvas").send_keys("n")
    at(opened, "canvas").send_keys(Keys.ARROW_UP, "b", Keys.SHIFT + Keys.ARROW_DOWN + Keys.ARROW_RIGHT + Keys.NULL, "b")
    answered(opened, 2)
    at(opened, "canvas").send_keys(Keys.CONTROL + "z")
    assert len(rows(opened)) == 1
    at(opened, "canvas").send_keys(Keys.DELETE)
    wait(opened, lambda: len(rows(opened)) in (0, 1))


def test_everything_adds_its_masks_as_objects(opened):
    for name in ("iou", "stability"):
        opened.execute_script(f"document.getElementById('{name}').value = 0")
    opened.execute_script("document.getElementById('grid').value = 8")
    at(opened, "everything").click()
    wait(opened, lambda: "masks." in at(opened, "status").text)
    count = len(rows(opened))
    assert f"Everything: {count} masks." == at(opened, "status").text
    at(opened, "undo").click()
    assert rows(opened) == []


def test_downloads_hold_the_masks_under_the_names_given(opened, downloads):
    mouse(opened).move_by_offset(-60, -60).click_and_hold().move_by_offset(120, 100).release().perform()
    answered(opened, 1)
    name = rows(opened)[0].find_element(By.CLASS_NAME, "name")
    name.clear()
    name.send_keys("a dog")
    for kind in ("coco", "yolo", "png"):
        at(opened, kind).click()
    files = [downloads / f"a picture{end}" for end in (".json", ".txt", "-masks.png")]
    deadline = time.monotonic() + 30
    while not all(path.is_file() for path in files) and time.monotonic() < deadline:
        time.sleep(0.1)
    coco = json.loads(files[0].read_text())
    assert coco["categories"] == [{"id": 1, "name": "a dog"}]
    assert coco["images"] == [{"id": 1, "file_name": "a picture.png", "width": 160, "height": 160}]
    (annotation,) = coco["annotations"]
    mask = masks.decode(annotation["segmentation"])
    assert mask.sum() == annotation["area"] > 0
    polygons = [[float(v) * 160 for v in line.split()[1:]] for line in files[1].read_text().splitlines()]
    filled = masks.decode(masks.from_segmentation(polygons, (160, 160)))
    outer, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    without_holes = cv2.drawContours(np.zeros(mask.shape, np.uint8), outer, -1, 1, cv2.FILLED)
    assert np.mean(filled != without_holes) < 0.01
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_the_page_fits_its_width_in_both_schemes_and_asks_no_other_host(opened, server):
    mouse(opened).click().perform()
    answered(opened, 1)
    for name in ("light", "dark"):
        scheme(opened, name)
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert opened.execute_script(overflow) <= 0
        assert opened.execute_script(overflow.replace("document.documentElement", "objects")) <= 0
        ground, ink = (
            opened.execute_script(f"return getComputedStyle(document.body).{property_}")
            for property_ in ("backgroundColor", "color")
        )
        assert contrast(ground, ink) > 7
    at(opened, "close").click()
    assert at(opened, "start").is_displayed()
    for sample in range(len(opened.find_elements(By.CLASS_NAME, "sample"))):
        opened.find_elements(By.CLASS_NAME, "sample")[sample].click()
        wait(opened, lambda: at(opened, "status").text == "Ready.")
        at(opened, "close").click()
    faults = [e["message"] for e in opened.get_log("browser") if e["level"] == "SEVERE" and "401" not in e["message"]]
    assert faults == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith((server, "blob:", "data:", "chrome"))] == []


def test_every_control_has_a_name_and_ids_are_unique(opened):
    mouse(opened).click().perform()
    answered(opened, 1)
    unnamed = """
      const own = (e) => e.getAttribute("aria-label") || e.textContent.trim() || e.title;
      const name = (e) => own(e) || e.labels?.[0]?.textContent.trim();
      return [...document.querySelectorAll("button, input, select, canvas, summary, dialog")]
        .filter((e) => !name(e) && !e.getAttribute("aria-labelledby")).map((e) => e.outerHTML)"""
    assert opened.execute_script(unnamed) == []
    ids = opened.execute_script("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    small = """
      return [...document.querySelectorAll("button")].filter((e) => e.offsetParent)
        .filter((e) => e.offsetWidth < 24 || e.offsetHeight < 24).map((e) => e.outerHTML)"""
    assert opened.execute_script(small) == []


def contrast(first, second):
    def luminance(colour):
        values = [int(v) / 255 for v in colour.partition("(")[2].rstrip(")").split(",")[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)

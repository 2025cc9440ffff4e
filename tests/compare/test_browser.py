"""The report in a real browser: Debian's Chromium, headless, at the width of a desk and of a phone."""

import json
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.compare import CompareConfig
from tests.compare.fabricated import report, rich_world

pytestmark = pytest.mark.browser

WIDTHS = {"desk": 1280, "phone": 390}
EVIL = "<b onclick=x>&"
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    place = rich_world(tmp_path_factory.mktemp("rich"), images=6)
    return report(place, CompareConfig(title=f"Students {EVIL}", extremes=1)).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.fail("there is no browser to open the report in: `apt-get install chromium chromium-driver`")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture(params=WIDTHS.values(), ids=WIDTHS.keys())
def opened(browser, page, request):
    """The report, just opened in light colours; logs hold only what it caused."""
    size = {"width": request.param, "height": 860, "deviceScaleFactor": 1, "mobile": request.param < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme(browser, "light")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page)
    return browser


def scheme(browser, name):
    features = [{"name": "prefers-color-scheme", "value": name}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def unfold(browser):
    browser.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true")


def head(browser, title):
    return browser.find_element(By.XPATH, f"//table[@id='board']//th[normalize-space()='{title}']")


def column(browser, number):
    """The values of one column of the leaderboard, top to bottom; rows without one must come last."""
    cells = browser.find_elements(By.CSS_SELECTOR, f"#board tbody td:nth-child({number}):not([colspan])")
    values = [cell.get_attribute("data-value") for cell in cells]
    given = [value for value in values if value]
    assert values == given + [""] * (len(values) - len(given))
    return given if number == 1 else [float(value) for value in given]


def test_a_click_on_a_head_sorts_the_better_end_up_and_a_second_one_the_other(opened):
    by_box = head(opened, "Box mIoU")
    assert by_box.get_attribute("aria-sort") == "none"
    by_box.find_element(By.TAG_NAME, "button").click()
    scores = column(opened, 2)
    assert scores == sorted(scores, reverse=True)
    assert by_box.get_attribute("aria-sort") == "descending"
    by_box.find_element(By.TAG_NAME, "button").click()
    assert column(opened, 2) == scores[::-1]
    assert by_box.get_attribute("aria-sort") == "ascending"


def test_every_head_sorts_and_only_the_last_one_says_so(opened):
    heads = opened.find_elements(By.CSS_SELECTOR, "#board th")
    assert len(heads) == 7
    for place, one in enumerate(heads, start=1):
        one.find_element(By.TAG_NAME, "button").click()
        order = one.get_attribute("aria-sort")
        values = column(opened, place)
        assert values == sorted(values, reverse=order == "descending")
        assert [h.get_attribute("aria-sort") for h in heads].count("none") == len(heads) - 1
        if place > 1:  # a refused model has no figures, a trivial mask only accuracies
            rows = opened.find_elements(By.CSS_SELECTOR, "#board tbody tr")
            assert "refused" in {row.get_attribute("class") for row in rows[len(values) :]}
    assert order == "ascending"  # of parameters, less is better


def test_the_keyboard_sorts(opened):
    by_latency = head(opened, "Latency, ms")
    by_latency.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert by_latency.get_attribute("aria-sort") == "ascending"
    latencies = column(opened, 4)
    assert latencies == sorted(latencies)


def test_what_has_no_value_stays_last_in_both_orders(opened):
    button = opened.find_element(By.XPATH, "//th[normalize-space(.)='Agreement, box']/button")
    unfold(opened)
    for _ in range(2):
        opened.execute_script("arguments[0].click()", button)
        table = button.find_element(By.XPATH, "ancestor::table")
        assert table.find_elements(By.CSS_SELECTOR, "tbody tr")[-1].text.startswith("bundled")


def test_nothing_reaches_beyond_the_page_even_with_all_folds_open(opened):
    unfold(opened)
    root = "const root = document.documentElement; return [root.scrollWidth, root.clientWidth]"
    wide, room = opened.execute_script(root)
    assert wide <= room
    beyond = (
        "const all = [...document.querySelectorAll('main *')].filter((one) => !one.closest('.scroll, svg, .unseen'));"
        "return all.filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML)"
    )
    assert opened.execute_script(beyond) == []


def test_heads_stay_in_sight_inside_a_long_table(opened):
    xpath = "//h2[.='Effect of quantization']/ancestor::section//div[contains(@class, 'scroll')]"
    unfold(opened)
    box = opened.find_element(By.XPATH, xpath)
    opened.execute_script("arguments[0].scrollTop = 300", box)
    top = (
        "const at = (one) => one.getBoundingClientRect().top;"
        "return at(arguments[0].querySelector('th')) - at(arguments[0])"
    )
    assert opened.execute_script("return arguments[0].scrollTop", box) == 300
    assert 0 <= opened.execute_script(top, box) <= 2


def test_dark_and_light_differ_and_text_can_be_read_in_both(opened):
    colours = {}
    for name in ("light", "dark"):
        scheme(opened, name)
        style = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        colours[name] = [brightness(colour) for colour in opened.execute_script(style)]
    (light, on_light), (dark, on_dark) = colours["light"], colours["dark"]
    assert light > 0.9 > 0.2 > on_light
    assert dark < 0.2 < 0.8 < on_dark


def brightness(colour):
    """Of ``rgb(r, g, b)``, from 0 to 1."""
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")) / (3 * 255)


def test_all_pictures_load_nothing_is_asked_of_the_network_and_the_console_is_empty(opened):
    unfold(opened)
    sizes = opened.execute_script("return [...document.images].map((one) => one.naturalWidth)")
    assert len(sizes) > 20
    assert min(sizes) > 0
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [opened.current_url]
    assert opened.get_log("browser") == []


def test_only_the_page_s_own_script_may_run(opened):
    opened.execute_script(
        "const own = document.createElement('script'); own.textContent = 'window.ran = 1'; document.body.append(own)"
    )
    assert opened.execute_script("return window.ran") is None
    assert opened.title == f"Students {EVIL}"
    opened.get_log("browser")


def test_with_its_folds_closed_the_page_is_at_most_5000_pixels_high_at_1280(opened):
    if opened.execute_script("return innerWidth") == WIDTHS["desk"]:
        assert opened.execute_script("return document.documentElement.scrollHeight") <= 5000
    assert (
        opened.execute_script("return document.querySelectorAll('#details details[open] > summary > h2').length") == 0
    )


def test_a_table_that_is_wider_than_its_container_scrolls_in_it_and_says_so(opened):
    unfold(opened)
    script = (
        "return [...document.querySelectorAll('.scroll')].map((one) => "
        "[one.scrollWidth > one.clientWidth + 1, getComputedStyle(one.nextElementSibling).display])"
    )
    WebDriverWait(opened, 5).until(lambda browser: all(w == (d == "block") for w, d in browser.execute_script(script)))
    wide = [wide for wide, _ in opened.execute_script(script)]
    assert wide[0] == (opened.execute_script("return innerWidth") == WIDTHS["phone"])  # the leaderboard
    opened.execute_script("const box = document.querySelector('.scroll'); box.scrollLeft = box.scrollWidth")
    hint = "return getComputedStyle(document.querySelector('.scroll + .hint')).visibility"
    if wide[0]:
        WebDriverWait(opened, 5).until(lambda browser: browser.execute_script(hint) == "hidden")


def test_names_do_not_break(opened):
    unfold(opened)
    script = (
        "return [...document.querySelectorAll('td .name, .who .name')]"
        ".filter((one) => one.getBoundingClientRect().height > 1.6 * parseFloat(getComputedStyle(one).lineHeight))"
        ".map((one) => one.textContent)"
    )
    assert opened.execute_script(script) == []


def test_pictures_of_a_row_are_of_one_size_and_none_stands_alone(opened):
    script = (
        "return [...document.querySelectorAll('#pictures .model')]"
        ".filter((one) => !one.closest('details:not([open])')).map((row) => "
        "[...row.querySelectorAll('img')].map((one) => [one.getBoundingClientRect().top, one.clientWidth]))"
    )
    rows = opened.execute_script(script)
    assert len(rows) == 2 * (2 + 3)  # prompts, teacher, three students; of photographs and of objects
    for row in rows:
        tops = [round(top) for top, _ in row]
        assert len({tops.count(top) for top in tops}) == 1
        assert max(width for _, width in row) - min(width for _, width in row) <= 1


def test_a_link_to_a_folded_part_opens_it(opened):
    opened.execute_script("location.hash = '#lineage'")
    WebDriverWait(opened, 5).until(
        lambda browser: browser.execute_script("return document.querySelector('#lineage details').open")
    )

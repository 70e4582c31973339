"""The page in a real browser: it opens, sorts, filters, and shows texts as they are."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_edit.comparison import Run, build_report, write_report

SEQUENCE = [
    {"edits": edits, "all": {"edit_success/token_accuracy": 1.0, "locality/a/self_agreement": 1 / edits}}
    for edits in (1, 2, 3)
]
EVIL = '<!--<script><img src=x onerror="window.broken = 1"></script><script>window.broken = 1</script>&amp;'


TRACE = {
    "facts": [
        {
            "prompt": EVIL, "answer": " Rome", "tokens": [EVIL, "b"], "corrupted": 0.1,
            "restored": {"state": [[0.1, 0.2], [0.3, 0.4]], "mlp": [[0.1, 0.2], [0.3, 0.4]]},
        }
    ]
}  # fmt: skip


def run_of(editor, accuracy, data="facts"):
    lines = [
        {
            "record": f"r{number}",
            "kind": kind,
            "group": "",
            "prompt": f"{EVIL} prompt {number}",
            "expected": [[EVIL, "Rome"]],
            "before": {"teacher_forced": "a", "generation": EVIL},
            "after": {"teacher_forced": "b", "generation": f"{editor} {EVIL}"},
            "measures": {measure: float(number % 2) if kind == "locality" else accuracy, "containment": accuracy},
        }
        for number in range(6)
        for kind, measure in (("edit_success", "token_accuracy"), ("locality", "self_agreement"))
    ]
    summary = {"counts": {"records": 6}, "costs": {"seconds_per_edit": accuracy, "edit_bytes": 1000}}
    return Run(editor, data, "independent", Path("x"), summary, lines)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    runs = [run_of("A<b>", 0.25), run_of("B", 0.75), run_of("C", 0.5), run_of("A<b>", 0.5, "others")]
    runs.append(Run("D", "facts", "independent", Path("x"), problem=f"failed: {EVIL}"))
    runs.append(replace(run_of("A<b>", 0.5, "sequences"), sequence=SEQUENCE))
    folder = tmp_path_factory.mktemp("page")
    write_report(build_report(runs, resamples=50), folder, [TRACE])
    return folder / "report.html"


def test_texts_cannot_end_the_data(path):
    content = path.read_text(encoding="utf-8").split('type="application/json">')[1].split("</script>")[0]
    data = json.loads(content)
    assert data["probes"][0][4] == f"{EVIL} prompt 0"
    assert data["table"]["rows"][4]["problem"] == f"failed: {EVIL}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("no browser here: install chromium and chromedriver to test the page in one")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def opened(browser, path, width=1200):
    browser.set_window_size(width, 900)
    browser.get(path.as_uri())
    time.sleep(0.5)


def texts(browser, selector):
    return browser.execute_script(f"return [...document.querySelectorAll('{selector}')].map(e => e.textContent)")


def test_it_opens_without_errors_and_runs_nothing_of_a_text(browser, path):
    opened(browser, path)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.broken") is None
    assert browser.execute_script("return document.querySelectorAll('#records img, #table img').length") == 0
    assert EVIL in texts(browser, "#records td")[4]
    titles = texts(browser, "#plots h3")
    assert "sequences, independent: edit success over all records edited so far" in titles
    assert titles[-1] == f"Causal trace: {EVIL} → Rome"
    assert browser.execute_script("return document.querySelectorAll('.plot .heatmaplayer image').length") == 2


def test_every_column_sorts_in_both_directions(browser, path):
    opened(browser, path)
    rows = browser.execute_script("return [table.columns.length, costs.length]")
    for column in range(3 + sum(rows)):
        for down in (column > 2, column <= 2):
            browser.execute_script(f"document.querySelectorAll('#table th button')[{column}].click()")
            values = browser.execute_script(
                "const rows = [...table.rows];"
                f"rows.sort((a, b) => compare(valueOf(a, {column}), valueOf(b, {column})));"
                f"return rows.map(row => valueOf(row, {column}))"
            )
            known = [value for value in values if value is not None]
            assert known == sorted(known, reverse=down), column
            assert values[len(known) :] == [None] * (len(values) - len(known))
            shown = texts(browser, "#table tbody td:nth-child(3)")
            ordered = browser.execute_script(
                "const rows = [...table.rows];"
                f"rows.sort((a, b) => compare(valueOf(a, {column}), valueOf(b, {column})));"
                "return rows.map(row => row.names[2])"
            )
            assert shown == ordered


def test_it_sorts_by_a_measure(browser, path):
    opened(browser, path)
    editors = "#table tbody td:nth-child(3)"
    assert texts(browser, editors) == ["A<b>", "B", "C", "A<b>", "D", "A<b>"]
    browser.execute_script("document.querySelectorAll('#table th button')[3].click()")
    assert texts(browser, editors) == ["B", "C", "A<b>", "A<b>", "A<b>", "D"]
    browser.execute_script("document.querySelectorAll('#table th button')[3].click()")
    assert texts(browser, editors)[0] == "A<b>"
    assert texts(browser, editors)[-1] == "D"


def test_it_filters_tables_and_records(browser, path):
    opened(browser, path)
    select = "const e = document.getElementById('{}'); e.value = '{}'; e.dispatchEvent(new Event('{}'));"
    browser.execute_script(select.format("data", "others", "change"))
    assert texts(browser, "#table tbody td:nth-child(3)") == ["A<b>"]
    assert texts(browser, "#count") == ["12 probes"]
    browser.execute_script(select.format("kind", "locality", "change"))
    assert texts(browser, "#count") == ["6 probes"]
    browser.execute_script(select.format("filter", "failed", "change"))
    assert texts(browser, "#count") == ["3 probes"]
    browser.execute_script(select.format("search", "prompt 4", "input"))
    assert texts(browser, "#count") == ["1 probes"]


def test_records_are_filtered_by_the_failures_of_one_editor(browser, path):
    opened(browser, path)
    options = browser.execute_script(
        "return [...document.querySelectorAll('#filter option.run')].map(e => [e.value, e.textContent])"
    )
    assert options
    for run, name in options:
        assert name.endswith("fails")
        browser.execute_script(
            f"const e = document.getElementById('filter'); e.value = '{run}'; e.dispatchEvent(new Event('change'));"
        )
        expected = browser.execute_script(
            "const data = document.getElementById('record-data').value;"
            f"const answers = content.answers['{run}'];"
            "return content.probes.filter((probe, i) => probe[0] === data && failed(answers[i])).length"
        )
        assert texts(browser, "#count") == [f"{expected} probes"]


def test_it_can_be_read_on_a_phone(browser, path):
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        opened(browser, path)
        wide, seen = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert seen == 390
        assert wide <= seen
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

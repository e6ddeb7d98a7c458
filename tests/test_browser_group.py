# SPDX-License-Identifier: Apache-2.0
"""The group's page in a real browser, headless, with the network taken away."""

import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from browser import Browser
from PIL import Image
from report_cases import copy_series, write_series
from test_group_report import HOSTILE, WILD, scale_motion

from eddymotion.io.tsv import Table
from eddymotion.reports.group import SeriesGroup, table_columns
from eddymotion.reports.group_page import write_group_page
from eddymotion.reports.group_report import build_group_report
from eddymotion.reports.participant import write_report

pytestmark = pytest.mark.browser

N_SERIES = 12


@pytest.fixture(scope="module")
def site(moving, truth, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a group with spaces, ü")
    first = write_series(folder, "01", moving, truth)
    for number in range(2, N_SERIES + 1):
        label = f"{number:02d}"
        name = HOSTILE if number == 5 else f"sub-{label}"
        outputs = copy_series(first, folder, label, name)
        scale_motion(outputs, 12 if name == WILD else 1.6 - 0.1 * number)
        if number in (2, 4):
            write_report(folder, label)
    build_group_report(folder, errors={"sub-99_dwi.nii.gz": HOSTILE})
    table = Table.read(folder / "group_dwi.tsv")
    return SimpleNamespace(folder=folder, page=folder / "group_dwi.html", table=table)


@pytest.fixture
def browser(program, site):
    with Browser(program) as opened:
        opened.go_offline()
        opened.open(site.page)
        yield opened
        assert opened.complaints() == []


def shown_series(browser):
    return browser.evaluate(
        "[...document.querySelectorAll('#table tbody tr')].filter(row => !row.hidden)"
        ".map(row => row.cells[0].textContent)"
    )


def click(browser, selector):
    x, y = browser.evaluate(
        f"""(() => {{
            const element = document.querySelector({selector!r});
            element.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
    )
    browser.click(x, y)


def dot(browser, panel, row):
    """Scroll a panel into view; return where it shows a series, in pixels of the window."""
    return browser.evaluate(
        f"""(() => {{
            const chart = document.querySelector("[data-name={panel}]");
            chart.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = chart.querySelector("[data-row='{row}']").getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
    )


def type_text(browser, text):
    browser.evaluate("document.querySelector('#wanted').focus()")
    browser.call("Input.insertText", text=text)


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser, site):
    assert browser.requested() == [site.page.resolve().as_uri()]
    assert browser.evaluate("document.title") == "Group report"
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert HOSTILE in shown_series(browser)
    assert HOSTILE in browser.evaluate("document.querySelector('#errors').textContent")


def test_a_click_on_a_head_sorts_by_that_column(browser, site):
    names, fd = site.table.columns["series"], site.table.numbers("fd_mean")
    assert shown_series(browser) == names
    place = browser.evaluate(
        "[...document.querySelectorAll('#table thead th')]"
        ".findIndex(head => head.textContent.startsWith('mean FD')) + 1"
    )
    head = f"#table thead th:nth-child({place}) button"
    click(browser, head)
    assert shown_series(browser) == [names[k] for k in np.argsort(-fd, kind="stable")]
    assert shown_series(browser)[0] == WILD
    click(browser, head)
    assert shown_series(browser) == [names[k] for k in np.argsort(fd, kind="stable")]
    sorts = browser.evaluate("[...document.querySelectorAll('#table thead th')]"
                             ".map(head => head.getAttribute('aria-sort'))")  # fmt: skip
    assert sorts[place - 1] == "ascending"
    assert set(sorts) == {"none", "ascending"}
    click(browser, "#table thead th:nth-child(1) button")
    assert shown_series(browser) == sorted(names)


def test_hovering_shows_a_series_everywhere(browser, site):
    names = site.table.columns["series"]
    row = names.index("sub-07")
    browser.move_to(*dot(browser, "fd_max", row))
    tip = browser.evaluate("document.querySelector('#tip').innerText")
    assert tip.startswith("sub-07")
    assert f"largest FD: {site.table.numbers('fd_max')[row]:.2f} mm" in tip
    assert browser.evaluate(
        "document.querySelector('#table tr.current').cells[0].textContent"
    ) == "sub-07"  # fmt: skip
    marked = browser.evaluate(
        f"""[...document.querySelectorAll(".distribution")].map(chart => {{
            const dots = [...chart.querySelectorAll("[data-row='{row}']")];
            const marks = [...chart.querySelectorAll(".pointer")];
            return dots.length > 0 && dots.length === marks.length && dots.every(
                (one, k) => one.getAttribute("cx") === marks[k].getAttribute("cx")
                         && one.getAttribute("cy") === marks[k].getAttribute("cy"));
        }})"""
    )
    assert len(marked) >= 6
    assert all(marked)
    browser.move_to(*dot(browser, "fd_max", names.index(WILD)))
    tip = browser.evaluate("document.querySelector('#tip').innerText")
    assert tip.startswith(WILD)
    browser.move_to(1, 1)
    assert browser.evaluate("document.querySelector('#tip').hidden")
    assert browser.evaluate("document.querySelectorAll('.pointer, .current').length") == 0


def test_hovering_a_row_shows_its_dots(browser, site):
    x, y = browser.evaluate(
        """(() => {
            const row = document.querySelector("#table tbody tr:nth-child(3)");
            row.scrollIntoView({block: "center", behavior: "instant"});
            const box = row.cells[0].getBoundingClientRect();
            return [box.x + 20, box.y + box.height / 2];
        })()"""
    )
    browser.move_to(x, y)
    assert browser.evaluate("document.querySelectorAll('.pointer').length") >= 6


def test_finding_hides_rows_and_fades_dots(browser, site):
    type_text(browser, "SUB-07")
    assert shown_series(browser) == ["sub-07"]
    assert browser.evaluate("document.querySelector('#count').textContent") == "1 of 12 series"
    kept = browser.evaluate(
        "[...document.querySelectorAll('[data-name=fd_max] [data-row]')]"
        ".filter(one => !one.classList.contains('off')).map(one => one.dataset.row)"
    )
    assert kept == [str(site.table.columns["series"].index("sub-07"))]
    browser.evaluate("document.querySelector('#wanted').select()")
    browser.call("Input.insertText", text="sub")
    assert len(shown_series(browser)) == N_SERIES
    click(browser, "#only")
    assert shown_series(browser) == [WILD]
    click(browser, "#only")
    verdicts = site.table.columns["verdict"]
    browser.evaluate(
        f"""(() => {{
            const chosen = document.querySelector("#verdict");
            chosen.value = {verdicts[0]!r};
            chosen.dispatchEvent(new Event("input"));
        }})()"""
    )
    assert len(shown_series(browser)) == verdicts.count(verdicts[0])


def test_all_columns_are_shown_on_demand(browser, site):
    def visible():
        return browser.evaluate("[...document.querySelectorAll('#table thead th')]"
                                ".filter(head => head.offsetWidth > 0).length")  # fmt: skip

    few = visible()
    click(browser, "#all")
    assert visible() == len(site.table.columns) - 2  # participant and session are in the name
    assert visible() > few


def test_links_and_dots_lead_to_the_reports(browser, site):
    links = browser.evaluate("[...document.querySelectorAll('a')].map(link => link.href)")
    files = [urlparse(link) for link in links if not link.startswith(f"{site.page.as_uri()}#")]
    assert len(files) >= 3 + 2
    assert all(Path(unquote(file.path)).is_file() for file in files)
    row = site.table.columns["series"].index(WILD)
    browser.click(*dot(browser, "fd_max", row))
    end = time.monotonic() + 20
    while browser.evaluate("document.title") != "sub-04" and time.monotonic() < end:
        time.sleep(0.1)
    assert browser.evaluate("document.title + location.hash") == "sub-04#s0"


@pytest.mark.parametrize("width", [390, 1024, 1366, 1920])
def test_it_fits_a_laptop_and_a_picture_of_it_is_made(browser, tmp_path, width):
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=700,
                 deviceScaleFactor=1, mobile=False)  # fmt: skip
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    shot = Path(os.environ.get("EDDYMOTION_SCREENSHOTS", tmp_path)) / f"group-{width}.png"
    browser.screenshot(shot, whole=True)
    pixels = np.asarray(Image.open(shot).convert("L"), float)
    assert pixels.std() > 10
    assert pixels.mean() > 200


def test_a_large_group_opens_at_once(browser, site, tmp_path):
    group = build_group_report(site.folder)
    rows = [
        replace(row, participant=f"sub-{number}", series=f"sub-{number}_ses-{session}")
        for number in range(50)
        for session, row in enumerate((*group.rows, *group.rows)[:10])
    ]
    large = SeriesGroup(rows)
    comparisons = large.comparisons()
    started = time.perf_counter()
    page = tmp_path / "large.html"
    write_group_page(page, large, comparisons, table_columns(large, comparisons))
    assert time.perf_counter() - started < 5
    assert page.stat().st_size < 2e6
    assert min(browser.open(page) for _ in range(3)) < 2.0
    assert len(shown_series(browser)) == 500


def test_it_prints(browser, tmp_path):
    browser.pdf(tmp_path / "group.pdf")
    assert (tmp_path / "group.pdf").read_bytes().startswith(b"%PDF")

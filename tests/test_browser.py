# SPDX-License-Identifier: Apache-2.0
"""The participant's page in a real browser, headless, with the network taken away."""

import os
import re
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from browser import Browser
from PIL import Image
from report_cases import copy_series, with_lost_slices, write_large, write_series

from eddymotion.io.tsv import Table
from eddymotion.reports.data import ReportData
from eddymotion.reports.participant import write_report

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def site(moving, truth, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a stick with spaces, ü")
    outputs = write_series(folder, "01", with_lost_slices(moving), truth, "sub-01_run-1")
    copy_series(outputs, folder, "01", "sub-01_run-2")
    write_report(folder, "01", {"sub-01_run-3_dwi.nii.gz": HOSTILE})
    table = Table.read(outputs["confounds"])
    return SimpleNamespace(
        folder=folder, outputs=outputs, table=table, page=folder / "sub-01.html"
    )


@pytest.fixture
def browser(program, site):
    with Browser(program) as opened:
        opened.go_offline()
        opened.open(site.page)
        opened.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        yield opened
        assert opened.complaints() == []


def place(browser, selector, across, down=0.5):
    """Scroll an element into view; return a point in it, in pixels of the window."""
    x, y, width, height = browser.evaluate(
        f"""(() => {{
            const element = document.querySelector({selector!r});
            element.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = element.getBoundingClientRect();
            return [box.x, box.y, box.width, box.height];
        }})()"""
    )
    return x + across * width, y + down * height


def column(browser, kind, volume):
    """Where a chart shows a volume: part of its width."""
    return browser.evaluate(
        f"""(() => {{
            const chart = document.querySelector("#s0 svg[data-kind={kind}]");
            const place = JSON.parse(chart.dataset.order).indexOf({volume}) + 0.5;
            return (Number(chart.dataset.left) + place * Number(chart.dataset.step))
                / chart.viewBox.baseVal.width;
        }})()"""
    )


def readout(browser):
    return browser.evaluate("document.querySelector('#s0 .which').textContent + ' | ' + "
                            "document.querySelector('#s0 .readout').textContent")  # fmt: skip


def picture(browser):
    """What the viewer shows."""
    return browser.evaluate("document.querySelector('#s0 canvas.main').toDataURL()")


def go_to(browser, volume):
    browser.evaluate(
        f"""(() => {{
            const slider = document.querySelector("#s0 .slider");
            slider.value = {volume};
            slider.dispatchEvent(new Event("input"));
        }})()"""
    )


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser, site):
    assert browser.requested() == [site.page.resolve().as_uri()]
    assert browser.evaluate("document.title") == "sub-01"
    dark = browser.evaluate(
        "getComputedStyle(document.body).color + getComputedStyle(document.body).backgroundColor"
    )
    assert dark == "rgb(34, 34, 34)rgb(255, 255, 255)"


def luminance(color):
    """Of a colour as the browser writes it, by the rule of WCAG."""
    parts = np.array([int(part) for part in re.findall(r"\d+", color)[:3]]) / 255
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("tone", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(browser, site, tone):
    wanted = [{"name": "prefers-color-scheme", "value": tone}]
    browser.call("Emulation.setEmulatedMedia", features=wanted)
    style = "getComputedStyle(document.querySelector({!r})).{}"
    try:
        paper = luminance(browser.evaluate(style.format("body", "backgroundColor")))
        assert (paper < 0.05) == (tone == "dark")
        for element in ("h1", ".by", "figcaption", "a", ".headline", ".readout", ".readout b"):
            ink = luminance(browser.evaluate(style.format(element, "color")))
            assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5, element
        chart = browser.evaluate(style.format("svg.chart", "backgroundColor"))
        assert tone == "light" or luminance(chart) == 1.0  # its ink is dark
    finally:
        browser.call("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("kind", ["motion", "carpet"])
def test_hovering_shows_the_volume_everywhere(browser, site, kind):
    go_to(browser, 3)
    before = picture(browser)
    browser.move_to(*place(browser, f"#s0 svg[data-kind={kind}]", column(browser, kind, 14)))
    shown = readout(browser)
    assert shown.startswith("volume 14 of")
    fd, x = (site.table.numbers(name)[14] for name in ("framewise_displacement", "trans_x"))
    assert f"FD {fd:.2f} mm" in shown
    assert f"translation {x:.2f}," in shown.replace("-0.00,", "0.00,")
    cursors = browser.evaluate(
        """[...document.querySelectorAll("#s0 .chart.linked")].map(chart => {
            const cursor = chart.querySelector(".cursor");
            const place = JSON.parse(chart.dataset.order).indexOf(14);
            const x = Number(chart.dataset.left) + place * Number(chart.dataset.step);
            return cursor.getAttribute("visibility") === "visible"
                && Math.abs(Number(cursor.getAttribute("x")) - x) < 1e-6;
        })"""
    )
    assert cursors == [True, True]
    assert (
        browser.evaluate("document.querySelector('#s0 .direction.current').dataset.volume") == "14"
    )
    assert picture(browser) != before
    browser.move_to(2, 2)
    assert readout(browser).startswith("volume 3 of")


def test_a_click_keeps_the_volume(browser):
    browser.click(*place(browser, "#s0 svg[data-kind=motion]", column(browser, "motion", 20)))
    browser.move_to(2, 2)
    assert readout(browser).startswith("volume 20 of")
    browser.evaluate("document.activeElement.blur()")
    browser.press("ArrowLeft")
    assert readout(browser).startswith("volume 19 of")


def test_scrubbing_changes_what_is_shown(browser):
    browser.click(*place(browser, "#s0 .flicker", 0.5))
    seen = set()
    for volume in (0, 7, 12):
        go_to(browser, volume)
        assert readout(browser).startswith(f"volume {volume} of")
        seen.add(picture(browser))
    assert len(seen) == 3
    go_to(browser, 7)
    browser.evaluate("document.querySelector('#s0 .slider').focus()")
    browser.press("ArrowRight")
    browser.evaluate("document.querySelector('#s0 .slider').blur()")
    before, after = (
        browser.evaluate(
            f"""(() => {{
                const mode = document.querySelector("#s0 .mode");
                mode.value = {mode!r};
                mode.dispatchEvent(new Event("change"));
                return document.querySelector("#s0 canvas.main").toDataURL();
            }})()"""
        )
        for mode in ("before", "after")
    )
    assert before != after


def test_the_viewer_shows_the_chosen_volume(browser, site):
    """The middles of the three planes are as bright as on the sheet that the run drew."""
    data = ReportData.load(site.outputs["report_data"])
    sheet = data.sheets["before"]
    pixels = np.asarray(Image.open(BytesIO(sheet.data)).convert("L"), float)
    browser.evaluate("document.querySelector('#s0 .outlined').click()")
    shown, drawn = [], []
    for volume in (12, 13):
        go_to(browser, volume)
        row, column = divmod(volume, sheet.columns)
        frame = pixels[row * sheet.height :, column * sheet.width :]
        for left, top, width, height in data.boxes.values():
            x, y, w, h = left + width // 3, top + height // 3, width // 3, height // 3
            drawn.append(frame[y : y + h, x : x + w].mean())
            shown.append(browser.evaluate(
                f"""(() => {{
                    const mode = document.querySelector("#s0 .mode");
                    mode.value = "before";
                    mode.dispatchEvent(new Event("change"));
                    const canvas = document.querySelector("#s0 canvas.main");
                    const copy = document.createElement("canvas").getContext("2d");
                    const scale = canvas.width / {sheet.width};
                    const part = [{x}, {y}, {w}, {h}].map(value => value * scale);
                    copy.canvas.width = canvas.width;
                    copy.canvas.height = canvas.height;
                    copy.drawImage(canvas, 0, 0);
                    const inside = copy.getImageData(...part).data;
                    let sum = 0;
                    for (let k = 0; k < inside.length; k += 4) sum += inside[k];
                    return 4 * sum / inside.length;
                }})()"""
            ))  # fmt: skip
    np.testing.assert_allclose(shown, drawn, atol=3)
    assert shown[0] < 0.7 * shown[3]  # volume 12 lost slices there


def test_flicker_and_playing(browser):
    def phases(seconds):
        seen, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            seen.append(
                browser.evaluate("document.querySelector('#s0 canvas.main').dataset.shown")
            )
            time.sleep(0.05)
        return seen

    go_to(browser, 4)
    assert {"4 flicker 0", "4 flicker 1"} <= set(phases(2.5))
    browser.click(*place(browser, "#s0 .flicker", 0.5))
    assert len(set(phases(1.0))) == 1
    browser.click(*place(browser, "#s0 .play", 0.5))
    assert len({shown.split()[0] for shown in phases(2.0)}) >= 3
    browser.click(*place(browser, "#s0 .play", 0.5))


def test_the_worst_volumes_lead_to_themselves(browser):
    volume = browser.evaluate("document.querySelector('#s0 .gallery button').dataset.go")
    go_to(browser, 0)
    browser.click(*place(browser, "#s0 .gallery button", 0.5))
    assert readout(browser).startswith(f"volume {volume} of")


def test_the_sphere_can_be_turned(browser):
    def dots():
        return np.array(browser.evaluate(
            """[...document.querySelectorAll("#s0 .direction")].map(mark => {
                const dot = mark.querySelectorAll("circle")[1];
                return [Number(dot.getAttribute("cx")), Number(dot.getAttribute("cy"))];
            })"""
        ))  # fmt: skip

    before = dots()
    x, y = place(browser, "#s0 .sphere", 0.5)
    events = (("mousePressed", x), ("mouseMoved", x + 40), ("mouseMoved", x + 80),
              ("mouseReleased", x + 80))  # fmt: skip
    for kind, at in events:
        browser.call("Input.dispatchMouseEvent", type=kind, x=at, y=y, button="left",
                     buttons=int(kind != "mouseReleased"), clickCount=1)  # fmt: skip
    after = dots()
    middle = browser.evaluate("document.querySelector('#s0 .sphere').viewBox.baseVal.width / 2")
    assert np.abs(after - before).max() > 20
    radius = float(browser.evaluate("document.querySelector('#s0 .sphere').dataset.radius"))
    assert np.linalg.norm(after - middle, axis=1).max() < radius + 0.1


def test_tabs_and_links(browser, site):
    def hidden():
        return browser.evaluate("[...document.querySelectorAll('article')].map(one => one.hidden)")

    assert hidden() == [False, True]
    browser.click(*place(browser, ".tabs button:nth-child(2)", 0.5))
    assert hidden() == [True, False]
    links = browser.evaluate("[...document.querySelectorAll('a')].map(link => link.href)")
    files = [urlparse(link) for link in links if "#" not in link]
    assert len(files) > 10
    assert all(Path(unquote(file.path)).is_file() for file in files)
    missing = browser.evaluate(
        """[...document.querySelectorAll("a[href^='#']")]
            .filter(link => !document.getElementById(link.getAttribute("href").slice(1)))
            .map(link => link.href)"""
    )
    assert missing == []
    browser.open(site.page, "#s1-carpet")
    assert hidden() == [True, False]
    at = browser.evaluate("document.querySelector('#s1-carpet').getBoundingClientRect().top")
    assert -5 < at < 300


def test_hostile_text_runs_nothing(browser):
    text = browser.evaluate("document.querySelector('section#errors').textContent")
    assert HOSTILE in text
    assert browser.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    assert not [event for event in browser.events if "Dialog" in event.get("method", "")]


@pytest.mark.parametrize("width", [390, 1024, 1366, 1920])
def test_it_fits_a_phone_and_a_laptop(browser, width):
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=700,
                 deviceScaleFactor=1, mobile=False)  # fmt: skip
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_it_prints(browser, tmp_path):
    browser.pdf(tmp_path / "page.pdf")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert len(content) < 15e6
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 8  # two series
    browser.call("Emulation.setEmulatedMedia", media="print")
    shown = browser.evaluate(
        "[...document.querySelectorAll('.bar, .controls, .tabs')]"
        ".filter(one => getComputedStyle(one).display !== 'none').length"
    )
    assert shown == 0


def test_no_flicker_where_it_is_not_wanted(program, site):
    with Browser(program) as opened:
        opened.call("Emulation.setEmulatedMedia",
                    features=[{"name": "prefers-reduced-motion", "value": "reduce"}])  # fmt: skip
        opened.open(site.page)
        assert opened.evaluate("document.querySelector('#s0 .flicker').textContent") == "flicker"


def test_a_large_page_opens_at_once_and_a_picture_of_it_is_made(program, site, tmp_path):
    page = write_large(site.outputs, tmp_path, "64")
    assert page.stat().st_size < 15e6
    shots = Path(os.environ.get("EDDYMOTION_SCREENSHOTS", tmp_path))
    with Browser(program) as opened:
        opened.open(site.page)  # the browser itself is warm
        seconds = min(opened.open(page) for _ in range(3))
        assert seconds < 2.0
        opened.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        opened.screenshot(shots / "large.png")
        opened.open(site.page)
        opened.screenshot(shots / "small.png", whole=True)
        assert opened.complaints() == []
    for name in ("large.png", "small.png"):
        pixels = np.asarray(Image.open(shots / name).convert("L"), float)
        assert pixels.std() > 10
        assert pixels.mean() > 128  # dark on light

# SPDX-License-Identifier: Apache-2.0
"""Take the pictures of reports that the pages show, with a headless Chromium.

``python docs/recordings/pictures_of_reports.py OUTPUT_DIR DEMO_DIR docs/images``: OUTPUT_DIR is
what ``eddymotion`` has written, at both levels, of a dataset with sub-bangalore and sub-xa30, and
DEMO_DIR what ``eddymotion --demo`` has.
"""

import base64
import io
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from browser import Browser, find_chromium

WIDTH, HEIGHT, SHOWN = 1240, 900, 0.72

CLIPS = {
    "report-bangalore.png": ("sub-bangalore.html", "h1", "#s0-motion figure"),
    "report-xa30.png": ("sub-xa30.html", "#s0-beforeafter h2", "#s0-beforeafter figure + figure"),
    "report-group.png": ("group_dwi.html", "#distributions h2", "#distributions figure"),
}
"""Picture → page, and the elements at whose top it begins and at whose bottom it ends."""

PLAIN = """for (const by of document.querySelectorAll(".by"))
    by.textContent = by.textContent.replace(/ [0-9]\\S*$/, "");"""
"""A picture of any version."""


def picture(browser, page, first, last):
    """Return the part of a page from the top of one element to the bottom of another."""
    browser.open(page)
    browser.evaluate(f"{PLAIN} new Promise(done => setTimeout(done, 800))")
    top, bottom = (
        browser.evaluate(f"document.querySelector({at!r}).getBoundingClientRect().{edge}")
        for at, edge in ((first, "top"), (last, "bottom"))
    )
    clip = {"x": 0, "y": top - 8, "width": WIDTH, "height": bottom - top + 16, "scale": SHOWN}
    answer = browser.call("Page.captureScreenshot", format="png", clip=clip,
                          captureBeyondViewport=True)  # fmt: skip
    return Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")


def save(found, path):
    """Write a picture with the colours that it needs most."""
    found.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    print(f"{path}: {found.size}, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    output_dir, demo_dir, images = map(Path, sys.argv[1:])
    with Browser(find_chromium(), WIDTH, HEIGHT) as browser:
        still = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        browser.call("Emulation.setEmulatedMedia", features=still)
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        for name, (page, first, last) in CLIPS.items():
            found = picture(browser, output_dir / page, first, last)
            save(found, images / name)
    name = "figures/sub-{0}_desc-beforeafter_dwi.png"
    for drawn, target in (
        (output_dir / "sub-bangalore" / name.format("bangalore"), "before-after.png"),
        (demo_dir / "derivatives/sub-demo" / name.format("demo"), "demo-before-after.png"),
        (demo_dir / "motion.png", "motion.png"),
    ):
        save(Image.open(drawn).convert("RGB"), images / target)

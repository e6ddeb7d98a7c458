# SPDX-License-Identifier: Apache-2.0
"""The documentation's pages, and what they show."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("changes/*.md")]
    if "_build" not in path.parts and "generated" not in path.parts
)
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)


def name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """Return (language, text) of the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        (language, textwrap.dedent(body))
        for _, language, body in BLOCK.findall(text)
        if language in languages
    ]


def command_lines(page):
    """Return the command lines of a page, continued ones joined."""
    lines = []
    for language, block in blocks(page, "bash", "console", "sh"):
        whole = re.sub(r"\\\n\s*", "", block)
        shown = re.findall(r"^\$ (.+)$", whole, flags=re.MULTILINE)
        lines += shown if language == "console" else whole.splitlines()
    return lines


def as_script(language, text):
    """Return what a reader would type."""
    if language == "bash":
        return text
    whole = re.sub(r"\\\n\s*", "", text)
    return "\n".join(re.findall(r"^\$ (.+)$", whole, flags=re.MULTILINE))


def shown_class(page, wanted):
    """Return the one Python block of a page that defines a class."""
    (source,) = [text for _, text in blocks(page, "python") if f"class {wanted}" in text]
    return source

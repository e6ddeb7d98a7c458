# SPDX-License-Identifier: Apache-2.0
"""Check that links within a built site lead somewhere: ``check_links.py FOLDER``."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note what a tag links to, and its own name."""
        attributes = dict(attrs)
        self.links |= {attributes[name] for name in ("href", "src") if attributes.get(name)}
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}


def broken(folder):
    """Return ``page: link`` for each link to a file or an anchor that is not there."""
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in folder.rglob("*.html")
        if "_static" not in path.parts
    }  # templates of the theme
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            wrong_anchor = (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            )
            if not target.exists() or wrong_anchor:
                found.append(f"{path.relative_to(folder)}: {link}")
    return len(pages), sorted(found)


if __name__ == "__main__":
    n_pages, wrong = broken(Path(sys.argv[1]).resolve())
    print(*wrong, f"{n_pages} pages, {len(wrong)} broken links", sep="\n")
    sys.exit(1 if wrong or not n_pages else 0)

# SPDX-License-Identifier: Apache-2.0
"""Pages whose text lies outside ``docs/``, and links that leave it."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {
    "project/contributing": "CONTRIBUTING.md",
    "project/conduct": "CODE_OF_CONDUCT.md",
    "project/changes": "CHANGES.md",
    "project/fragments": "changes/README.md",
}
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def bring_in(app, docname, source):
    """Replace the text of a page by that of the file it stands for; adjust its links."""
    outside = PAGES.get(docname)
    here = (DOCS / docname).parent
    home = here
    if outside:
        app.env.note_dependency(ROOT / outside)  # or an old page stays when the file changes
        source[0] = (ROOT / outside).read_text(encoding="utf-8")
        home = (ROOT / outside).parent
    source[0] = LINK.sub(lambda match: match[1] + relative(home, match[2], here), source[0])


def relative(home, target, here):
    """Return the link from a page in `here` to what the text, written in `home`, links to."""
    path = (home / target).resolve()
    for page, outside in PAGES.items():
        if path == ROOT / outside:
            path = DOCS / f"{page}.md"
    return Path(os.path.relpath(path, here)).as_posix()


def setup(app):
    """Register with Sphinx."""
    app.connect("source-read", bring_in)
    return {"parallel_read_safe": True}

# SPDX-License-Identifier: Apache-2.0
"""What is built, and what it is called."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def checkout(tmp_path):
    """A repository with this package's settings and one commit."""

    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path,
                       check=True, capture_output=True)  # fmt: skip

    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return tmp_path, git


def version_of(folder):
    pytest.importorskip("setuptools_scm")
    done = subprocess.run([sys.executable, "-m", "setuptools_scm"], cwd=folder, check=True,
                          capture_output=True, text=True)  # fmt: skip
    return done.stdout.strip()


def test_the_version_is_that_of_the_tag(checkout):
    folder, git = checkout
    git("tag", "v3.2.1")
    assert version_of(folder) == "3.2.1"
    (folder / "new").touch()
    git("add", "new")
    git("commit", "-q", "-m", "second")
    assert version_of(folder).startswith("3.2.2.dev1+g")


def test_without_tags_or_repository_there_is_a_version(checkout, tmp_path_factory):
    folder, _ = checkout
    assert re.match(r"0\.\d+(\.\d+)?\.dev", version_of(folder))
    bare = tmp_path_factory.mktemp("archive")
    (bare / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    assert version_of(bare) == PROJECT["tool"]["setuptools_scm"]["fallback_version"]


def test_what_is_cited_is_the_last_release_of_the_changes():
    changes = (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    released = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", changes, re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert released is not None
    assert f"\nversion: {released[1]}\n" in citation
    assert f'\ndate-released: "{released[2]}"\n' in citation


def test_every_package_is_listed_and_every_file_goes_along():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "eddymotion").rglob("__init__.py")
    }
    assert listed == found | {"eddymotion.workflows"}
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["eddymotion"]
    going = {path for pattern in patterns for path in (ROOT / "eddymotion").glob(pattern)}
    others = {
        path
        for path in (ROOT / "eddymotion").rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert going >= others


def test_sources_name_their_licence():
    kinds = ("*.py", "*.pyi", "*.js", "*.css", "*.sh")
    folders = ("benchmarks", "docs", "eddymotion", "examples", "tests", "workflows")
    sources = [
        path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)
    ]
    made = {"_build", "auto_gallery", "generated"}
    without = [
        path.relative_to(ROOT).as_posix()
        for path in sources
        if not made & set(path.parts)
        and "SPDX-License-Identifier: Apache-2.0" not in path.read_text(encoding="utf-8")[:200]
    ]
    assert len(sources) > 200
    assert not without, "write # SPDX-License-Identifier: Apache-2.0 into the first line"

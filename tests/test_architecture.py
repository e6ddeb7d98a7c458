# SPDX-License-Identifier: Apache-2.0
"""Values flow one way: left never imports right."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "eddymotion"
ORDER = (
    ("errors", "wording"),
    ("machine",),
    ("images",),
    ("data", "mapping"),
    ("io", "models", "resampling"),
    ("registration",),
    ("estimation",),
    ("evaluation", "simulation"),
    ("derivatives", "testing"),
    ("reports",),
    ("pairs",),
    ("pipeline",),
    ("bids", "interfaces"),
    ("cli", "workflows"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
STRANGERS = {"models", "registration", "resampling"}
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imported_parts(source: str, module: tuple[str, ...], is_package: bool) -> set[str]:
    """First names below `eddymotion` that the source of `module` imports, at any depth."""
    found = set()
    package = ("eddymotion", *(module if is_package else module[:-1]))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for parts in (name.split(".") for name in names):
            if parts[0] == "eddymotion" and len(parts) > 1 and parts[1] != "__version__":
                found.add(parts[1])
    return found


def violations(part: str, imported: set[str]) -> list[str]:
    later = [other for other in imported - {part} if LEVEL[other] > LEVEL[part]]
    meet = [other for other in imported - {part} if {part, other} <= STRANGERS]
    return sorted({*later, *meet})


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_left_never_imports_right(path):
    module = path.relative_to(PACKAGE).with_suffix("").parts
    is_package = module[-1] == "__init__"
    module = module[:-1] if is_package else module
    imported = imported_parts(path.read_text(encoding="utf-8"), module, is_package)
    unplaced = {module[0], *imported} - set(LEVEL)
    assert not unplaced, f"place {unplaced} in ORDER, or import it from its module"
    assert not violations(module[0], imported)


@pytest.mark.parametrize(
    ("part", "source", "expected"),
    [
        ("geometry", "from eddymotion.data.series import DWI", ["dataset"]),
        ("dataset", "def f():\n    import eddymotion.io.series as f", ["files"]),
        ("models", "from ..resampling import resample", ["resampling"]),
        ("registration", "from eddymotion import models", ["models"]),
        ("estimation", "from eddymotion import __version__, models, resampling", []),
        ("models", "from .base import Model", []),
    ],
)
def test_the_check_itself_sees_violations(part, source, expected):
    imported = imported_parts(source, (part, "module"), is_package=False)
    assert violations(part, imported) == expected


def test_the_check_reads_the_whole_package():
    assert {p.relative_to(PACKAGE).with_suffix("").parts[0] for p in SOURCES} >= {
        "geometry", "models", "estimation", "simulation"
    }  # fmt: skip


def test_importing_the_package_is_light():
    code = (
        "import sys, eddymotion; "
        "heavy = {'nipype', 'pydra', 'matplotlib'} & set(sys.modules); "
        "sys.exit(' '.join(sorted(heavy)) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_can_be_had():
    import eddymotion

    assert {"load", "estimate_motion", "resample", "save", "DWI", "Motion"} <= set(
        eddymotion.__all__
    )
    for name in eddymotion.__all__:
        assert getattr(eddymotion, name) is not None

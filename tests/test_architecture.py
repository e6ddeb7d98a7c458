# SPDX-License-Identifier: Apache-2.0
"""Values flow one way: left never imports right.

``python tests/test_architecture.py`` draws the picture in CONTRIBUTING.md again.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "eddymotion"
ORDER = (
    ("errors", "robust", "wording"),
    ("machine",),
    ("images",),
    ("data", "mapping"),
    ("io", "models", "resampling"),
    ("registration",),
    ("estimation",),
    ("evaluation", "simulation"),
    ("derivatives", "testing"),
    ("reports",),
    ("fieldmaps", "pairs"),
    ("pipeline",),
    ("bids", "interfaces"),
    ("cli", "workflows"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
NAMED = re.compile(r"eddymotion(\.[a-z_]+)+")
STRANGERS = {"models", "registration", "resampling"}
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"
PICTURE = re.compile(r"(?<=## The house in one picture\n\n```text\n).+?(?=```)", re.DOTALL)
parsed = cache(ast.parse)
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@cache
def modules_named(source: str, module: tuple[str, ...], is_package: bool) -> set[str]:
    """Dotted names below `eddymotion` that the source of `module` loads, at any depth.

    Names in strings count: that is how something is imported by its name. An engine in the table
    of registrars, ``module:class``, does not: it is a plug-in, and found as those of others are.
    """
    found = set()
    package = ("eddymotion", *(module if is_package else module[:-1]))
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and is_module(node.value):
            names = [node.value]
        else:
            continue
        found |= {n.removeprefix("eddymotion.") for n in names if n.startswith("eddymotion.")}
    return found - {"__version__"}


def is_module(value: object) -> bool:
    if not isinstance(value, str) or not NAMED.fullmatch(value):
        return False
    path = PACKAGE.joinpath(*value.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported_parts(source: str, module: tuple[str, ...], is_package: bool) -> set[str]:
    """First names of :func:`modules_named`."""
    return {name.partition(".")[0] for name in modules_named(source, module, is_package)}


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
        ("mapping", "from eddymotion.io.motion import read_written_motion", ["io"]),
        ("data", "def f():\n    import eddymotion.io.series as f", ["io"]),
        ("wording", 'import_module("eddymotion.reports.display").html_of', ["reports"]),
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
        "mapping", "models", "estimation", "simulation"
    }  # fmt: skip


def test_no_two_modules_import_each_other():
    """However far around, and whenever they do it."""
    names = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in SOURCES}
    known = {name.removesuffix(".__init__"): path for name, path in names.items()}
    order = TopologicalSorter()
    for name, path in known.items():
        module, is_package = tuple(name.split(".")), path.stem == "__init__"
        for other in modules_named(path.read_text(encoding="utf-8"), module, is_package):
            while other and other not in known:
                other = other.rpartition(".")[0]
            if other and other != name:
                order.add(name, other)
    order.prepare()  # raises CycleError, which names them


@cache
def rooms():
    """Return the rooms, each with what it says of itself and the rooms that it imports."""
    files = [p for p in SOURCES if p.stem != "__main__"]
    files += sorted((PACKAGE.parent / "workflows").glob("*.py"))
    said, needs = {}, {}
    for path in files:
        own = path.is_relative_to(PACKAGE)
        module = path.relative_to(PACKAGE if own else PACKAGE.parent).with_suffix("").parts
        is_package = module[-1] == "__init__"
        module = module[:-1] if is_package else module
        source = path.read_text(encoding="utf-8")
        needs.setdefault(module[0], set())
        needs[module[0]] |= imported_parts(source, module, is_package) - {module[0]}
        if len(module) == 1:
            said[module[0]] = ast.get_docstring(parsed(source)).splitlines()[0]
    return said, needs


def picture():
    """Draw the rooms floor by floor: each stands above all that it imports."""
    said, needs = rooms()
    floors = {}
    for room in TopologicalSorter(needs).static_order():
        floors[room] = 1 + max((floors[other] for other in needs[room]), default=0)
    lines = []
    for floor in sorted(set(floors.values()), reverse=True):
        for room in sorted(room for room in floors if floors[room] == floor):
            lines.append(f"{floor:2} {room:<13} {said[room]}"[:99])
    return "\n".join(lines) + "\n"


def test_the_picture_of_the_house_is_as_the_imports_draw_it():
    (shown,) = PICTURE.findall(CONTRIBUTING.read_text(encoding="utf-8"))
    assert shown == picture(), "python tests/test_architecture.py draws it again"


def test_the_house_stays_small():
    said, _ = rooms()
    assert len(said) <= 24
    assert int(picture().split()[0]) <= 14


def test_a_class_has_its_name_for_itself():
    names = Counter(
        node.name
        for path in SOURCES
        for node in parsed(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, number in names.items() if number > 1} == set()


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


if __name__ == "__main__":
    text = CONTRIBUTING.read_text(encoding="utf-8")
    CONTRIBUTING.write_text(PICTURE.sub(lambda _: picture(), text), encoding="utf-8")

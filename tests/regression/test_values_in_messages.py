# SPDX-License-Identifier: Apache-2.0
"""A message shows what was given as it was given, in one line that can be read."""

import ast
from pathlib import Path

import numpy as np
import pytest

import eddymotion
from eddymotion.cli import correct, participant, register
from eddymotion.errors import EddymotionError
from eddymotion.registration import GaussNewton
from eddymotion.wording import one_line, shown, why

SOURCES = Path(eddymotion.__file__).parent
LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Path("/a/b"), "'/a/b'"),
        ([Path("a"), np.float64(0.5)], "['a', 0.5]"),
        ({"a": np.array([1, 2])}, "{'a': [1, 2]}"),
        ("text", "'text'"),
        (None, "None"),
    ],
)
def test_values_are_shown_as_they_were_written(value, expected):
    assert shown(value) == expected


@pytest.mark.parametrize("value", [LONG, [LONG] * 50, {LONG: LONG}, np.zeros(10_000), Path(LONG)])
def test_what_is_long_is_shortened(value):
    assert len(shown(value)) < 400


def test_one_line_is_one_line_for_every_terminal():
    assert one_line("a\n  b\x1b[31m\udcff\t" + LONG).startswith("a b\\x1b[31m\\udcff xxx")
    assert len(one_line(LONG)) <= 1500


def test_what_a_library_says_is_reported_without_its_hints():
    with pytest.raises(ValueError, match="use `usecols`") as raised:
        np.loadtxt(["0 1 2", "3 4"])
    assert why(raised.value) == "the number of columns changed from 3 to 2 at row 2"
    assert why(OSError(2, "No such file or directory", "/a")) == "No such file or directory"
    assert why(ValueError("\n")) == "ValueError"
    assert len(why(ValueError(LONG))) < 200


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (participant.main, ["--config-file", "none.toml"], "none.toml: no such file"),
        (correct.main, ["--config-file=/"], "Is a directory"),
        (correct.main, ["a.nii", "--nprocs", LONG], "given, expected a whole number"),
        (correct.main, ["a.nii", "--estimator", LONG], "invalid choice"),
        (register.main, ["a.nii", LONG, "-o", "b"], "a.nii: no such file"),
        (correct.main, [LONG], "File name too long"),
    ],
)
def test_commands_say_it_in_one_line(main, arguments, said, capsys):
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    message = capsys.readouterr().err
    assert (code, message.count("\n")) == (2, 1)
    assert said in message
    assert len(message) < 2000
    assert "Path(" not in message


def test_settings_that_are_wrong_are_shortened():
    with pytest.raises(EddymotionError, match="must be numbers above zero") as raised:
        GaussNewton(max_iterations=LONG)
    assert len(str(raised.value)) < 400


def test_no_message_shows_a_path_as_python_does():
    """``{path!r}`` is ``PosixPath('…')``; :func:`eddymotion.wording.shown` knows better."""
    found = []
    for source in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FormattedValue) and node.conversion == ord("r"):
                name = ast.unparse(node.value)
                if any(word in name for word in ("path", "file", "folder", "source", "error")):
                    found.append(f"{source.name}: {name}")
    assert found == []

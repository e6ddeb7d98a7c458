# SPDX-License-Identifier: Apache-2.0
"""Scripts by which a shell completes options, choices and paths."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

SHELLS = ("bash", "zsh", "fish")


class PrintCompletion(argparse.Action):
    """Print the script for a shell, and exit.

    It is made from the parser once, so that pressing Tab starts no Python.
    """

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, metavar="SHELL", choices=SHELLS,
                         help="print a completion script for bash, zsh or fish, "
                              "and exit")  # fmt: skip

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        """Print and exit."""
        import shtab

        for action in _actions(parser):
            if takes_path(action):
                complete = shtab.DIRECTORY if takes_folder(action) else shtab.FILE
                action.complete = complete  # type: ignore[attr-defined]
        print(shtab.complete(parser, values))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += _actions(command)
    return found


def takes_path(action: argparse.Action) -> bool:
    """Whether an option or argument is a path: its type is, or makes one."""
    kind = action.type
    return kind is Path or (
        inspect.isfunction(kind) and get_type_hints(kind).get("return") is Path
    )


def takes_folder(action: argparse.Action) -> bool:
    """Whether an option or argument is a folder."""
    return "DIR" in str(action.metavar or action.dest).upper()

# SPDX-License-Identifier: Apache-2.0
"""A parser of arguments whose errors say what to write instead."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from eddymotion.cli.config_file import read_config
from eddymotion.cli.other_programs import AXES, advice
from eddymotion.errors import EddymotionError
from eddymotion.wording import one_line

NOT_SET = ("help", "version", "config_file", argparse.SUPPRESS)
"""What the command line alone can ask for."""

ALIKE = 0.65
"""How alike a name has to be to be meant, of 1: "dry-run" is no "eddy-current"."""

WORDS_MISSING = "the following arguments are required"
"""How argparse begins to say so."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Breaks lines between words alone: half of ``fmap-jacobian`` is no value."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that says what to write instead.

    Parameters
    ----------
    surplus : str
        What to say of a word that is one too many.
    not_needed : mapping
        Options of other programs that are not needed here → why.
    **options
        Of `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        surplus: str = "",
        not_needed: Mapping[str, str] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=_Help,
            **options,
        )
        self.surplus, self.not_needed = surplus, not_needed
        self._arguments: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        plain = message.replace("ignored explicit argument", "takes no value, got")
        message = one_line(plain + self._hint(message))
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parse; defaults come from ``--config-file``, unknown options get a suggestion."""
        arguments = self._dashed(sys.argv[1:] if arguments is None else arguments)
        self._arguments = arguments
        self._read_config(arguments)
        namespace, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._suggest(unknown[0]))
        return namespace

    def _dashed(self, arguments: Sequence[str]) -> list[str]:
        """Put dashes for underscores in names of options: other programs have either."""
        known, found = self._option_string_actions, list(arguments)
        for number, word in enumerate(found):
            if word == "--":
                break
            name, equals, value = word.partition("=")
            dashed = "--" + name[2:].replace("_", "-")
            if name.startswith("--") and name not in known and dashed in known:
                found[number] = f"{dashed}{equals}{value}"
        return found

    def was_given(self, option: str) -> bool:
        """Whether an option stands in the call."""
        return any(word.partition("=")[0].replace("_", "-") == option for word in self._arguments)

    def misplaced_choice(self, namespace: argparse.Namespace) -> str | None:
        """Name the option that took the last words of the call, the last of which is a choice.

        Options with several values end where the next one begins, or with the call.
        """
        positionals = [action for action in self._actions if not action.option_strings]
        missing = sum(getattr(namespace, action.dest) is None for action in positionals)
        given = list(self._arguments)
        for action in self._greedy():
            places = [n for n, word in enumerate(given) if word in action.option_strings]
            values = getattr(namespace, action.dest)
            if places and values and values[-1] in (positionals[-1].choices or ()):
                end = places[-1] + 1 + len(values)
                taken = given[max(end - missing, places[-1] + 1) : end]
                own = given[: end - len(taken)] + ["LABEL"] * (len(taken) == len(values))
                at = 0 if missing == len(positionals) else places[-1]
                right = [*own[:at], *taken, *own[at:], *given[end:]]
                return (
                    f"{given[places[-1]]} took {' '.join(taken)}, too: it takes all arguments "
                    f"that follow it; write: {self.prog} {shlex.join(right)}"
                )
        return None

    def _greedy(self) -> list[argparse.Action]:
        return [action for action in self._actions if action.nargs == "+"]

    def _hint(self, message: str) -> str:
        """Say which words an option took that were not meant for it, or what others call so."""
        axes = f"; {AXES}" if message.startswith("argument --pe-axis: ") else ""
        for action in self._greedy():
            used = any(name in self._arguments for name in action.option_strings)
            named = message.startswith(f"argument {'/'.join(action.option_strings)}: ")
            if named or (used and message.startswith(WORDS_MISSING)):
                name = action.option_strings[0]
                return (
                    f"{axes}; {name} takes all arguments that follow it: put other arguments "
                    "before it"
                )
        advices = {word: self._advice(word) for word in self._arguments}
        foreign = [f"; for {word} {instead}" for word, instead in advices.items() if instead]
        return "".join(foreign[:1]) if message.startswith(WORDS_MISSING) else axes

    def _advice(self, argument: str) -> str | None:
        return advice(argument, self._option_string_actions, self.not_needed)

    def _suggest(self, unknown: str) -> str:
        if not unknown.startswith("-") and self.surplus:
            return f"{unknown}: {self.surplus}"
        if (instead := self._advice(unknown)) is not None:
            return f"unknown argument {unknown}; {instead}"
        options = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        name = unknown.partition("=")[0].strip("-").replace("_", "-")
        close = difflib.get_close_matches(name, options, n=1, cutoff=ALIKE)
        return f"unknown argument {unknown}" + (f"; did you mean --{close[0]}?" if close else "")

    def _read_config(self, arguments: Sequence[str]) -> None:
        path = _value_of("--config-file", arguments)
        if path is None:
            return
        options = {
            name.removeprefix("--").replace("-", "_"): action
            for name, action in self._option_string_actions.items()
            if name.startswith("--") and action.dest not in NOT_SET
        }  # positional arguments stay on the command line
        try:
            for action, value in read_config(path, options):
                action.required = False
                self.set_defaults(**{action.dest: value})
        except EddymotionError as error:
            self.error(f"--config-file {path}: {error}")


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == option and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None

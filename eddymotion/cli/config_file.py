# SPDX-License-Identifier: Apache-2.0
"""Options in a TOML file, read as if they stood on the command line."""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eddymotion.errors import EddymotionError
from eddymotion.wording import shown, why

SEVERAL = ("+", "*")
"""How argparse says that an option takes any number of values."""


def read_config(
    path: str, options: Mapping[str, argparse.Action]
) -> Iterator[tuple[argparse.Action, Any]]:
    """Yield each option of a file, and its value as the command line would give it.

    Parameters
    ----------
    path : str
    options : mapping
        Long name, with underscores and without the dashes → action.

    Raises
    ------
    EddymotionError
        If the file cannot be read, or what is in it is no option or no value of it.
    """
    for key, value in _content(path).items():
        action = _action_of(key, options)
        yield action, _converted(action, value)


def _content(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EddymotionError("no such file") from None
    except (OSError, ValueError) as error:
        raise EddymotionError(f"cannot be read as TOML ({why(error)})") from error


def _action_of(key: str, options: Mapping[str, argparse.Action]) -> argparse.Action:
    name = key.replace("-", "_")
    if name in options:
        return options[name]
    close = difflib.get_close_matches(name, options, n=1)
    hint = f"; did you mean {close[0].replace('_', '-')}?" if close else ""
    raise EddymotionError(f"unknown option {key}{hint}")


def _converted(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, bool) or action.nargs == 0:
        return _switched(action, value)
    converted = [_from_text(action, str(item)) for item in _listed(action, value)]
    for item in converted:
        _check_choice(action, item)
    return converted if _takes_several(action) else converted[0]


def _switched(action: argparse.Action, value: Any) -> Any:
    """Turn an option without values on or off."""
    if not isinstance(value, bool) or action.nargs != 0:
        raise _unexpected(action, value)
    if not value:
        return action.default
    return getattr(action, "const", None) or True


def _listed(action: argparse.Action, value: Any) -> list[Any]:
    """Return the values of an option that takes one or several."""
    if isinstance(value, (list, dict)) and (not value or not _takes_several(action)):
        raise _unexpected(action, value)
    values = value if isinstance(value, list) else [value]
    if isinstance(action.nargs, int) and len(values) != action.nargs:
        raise EddymotionError(f"{action.dest}: {action.nargs} values expected")
    return values


def _takes_several(action: argparse.Action) -> bool:
    return action.nargs in SEVERAL or isinstance(action.nargs, int)


def _from_text(action: argparse.Action, text: str) -> Any:
    try:
        return action.type(text) if action.type else text  # type: ignore[operator]
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise EddymotionError(f"{action.dest}: {error}") from error


def _check_choice(action: argparse.Action, value: Any) -> None:
    if action.choices is not None and value not in action.choices:
        choices = ", ".join(map(str, action.choices))
        raise EddymotionError(f"{action.dest}: {shown(value)} is not one of {choices}")


def _unexpected(action: argparse.Action, value: Any) -> EddymotionError:
    return EddymotionError(f"{action.dest}: unexpected value {shown(value)}")

# SPDX-License-Identifier: Apache-2.0
"""Settings of engines: presets that come with the package, and what a file changes in them.

A preset is a file ``presets/ENGINE-PRESET-TRANSFORM.json`` (or ``.txt`` for elastix), in the
engine's own words, so that it can be copied and changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from eddymotion.errors import EddymotionError
from eddymotion.registration.checks import nearest_of, read_settings
from eddymotion.wording import shown

Engine = TypeVar("Engine")

SUFFIXES = (".json", ".txt")


def preset_names(engine: str) -> tuple[str, ...]:
    """Return the names of the presets that an engine has, ``default`` first."""
    stems = (Path(name).stem.split("-") for name in _preset_files())
    names = {"-".join(parts[1:-1]) for parts in stems if parts[0] == engine}
    return tuple(sorted(names, key=lambda name: (name != "default", name)))


def preset_text(engine: str, preset: str, transform: str) -> str:
    """Return the text of a preset.

    Raises
    ------
    EddymotionError
        If the engine has no preset of that name for that transform.
    """
    for suffix in SUFFIXES:
        name = f"{engine}-{preset}-{transform}{suffix}"
        if name in _preset_files():
            return (files("eddymotion.registration") / "presets" / name).read_text("utf-8")
    check_preset(engine, preset)
    raise EddymotionError(
        f"registration {engine}: the preset {shown(preset)} is not made for {shown(transform)}; "
        "use the preset 'default', or another transform"
    )


def elastix_parameters() -> tuple[str, ...]:
    """Return the names of elastix's parameters for linear registration (elastix 5)."""
    path = files("eddymotion.registration") / "presets" / "elastix.parameters"
    return tuple(path.read_text("utf-8").split())


def check_preset(engine: str, preset: str) -> None:
    """Refuse the name of a preset that an engine does not have."""
    known = preset_names(engine)
    if preset not in known:
        raise EddymotionError(
            f"registration {engine}: preset {shown(preset)} is unknown; "
            f"{nearest_of(str(preset), known)}use one of {', '.join(known)}"
        )


def preset_json(engine: str, preset: str, transform: str) -> dict[str, Any]:
    """Return a preset that is a JSON object."""
    return json.loads(preset_text(engine, preset, transform))


def engine_from(engine: type[Engine], path: Path | None) -> Engine:
    """Build an engine, a dataclass, from a JSON file whose keys are its fields.

    Raises
    ------
    EddymotionError
        If the file cannot be read, has an unknown key (the nearest known one is named), or a value
        that the engine refuses.
    """
    if path is None:
        return engine()
    known = [entry.name for entry in fields(engine)]  # type: ignore[arg-type]
    settings = read_settings(path, known)
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    return refusing_with(path, lambda: engine(**given))


def refusing_with(path: Path, build: Callable[[], Engine]) -> Engine:
    """Build something from the settings of a file; an error names the file."""
    try:
        return build()
    except EddymotionError as error:
        raise EddymotionError(f"{path}: {error}") from error


def check_number(name: str, value: Any, *, least: float, whole: bool = False) -> None:
    """Refuse anything but a number of at least `least`."""
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
        kind = "whole number" if whole else "number"
        raise EddymotionError(f"{name} is {shown(value)}, expected a {kind} of at least {least:g}")


def check_numbers(name: str, values: Any, *, least: float, whole: bool = False) -> None:
    """Refuse anything but a list of numbers of at least `least`."""
    if not isinstance(values, (list, tuple)) or not values:
        raise EddymotionError(f"{name} is {shown(values)}, expected a list of numbers")
    for value in values:
        check_number(name, value, least=least, whole=whole)


def check_one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuse anything but one of the `known` words."""
    if value not in known:
        raise EddymotionError(
            f"{name} is {shown(value)}; {nearest_of(str(value), known)}use one of "
            f"{', '.join(known)}"
        )


def _preset_files() -> tuple[str, ...]:
    folder = files("eddymotion.registration") / "presets"
    names = (entry.name for entry in folder.iterdir() if entry.is_file())
    return tuple(sorted(name for name in names if name.endswith(SUFFIXES)))

# SPDX-License-Identifier: Apache-2.0
"""Names of registration engines → engines."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from eddymotion.errors import EddymotionError
from eddymotion.registration.base import Registrar
from eddymotion.registration.checks import nearest_of
from eddymotion.wording import shown, why

GROUP = "eddymotion.registrars"
"""Entry points of other packages: a name, and a class with ``from_settings(path | None)``."""

DEFAULT = "gauss-newton"

OURS = {
    "gauss-newton": "eddymotion.registration.gauss_newton:GaussNewton",
    "dipy": "eddymotion.registration.engines.dipy:DipyRegistrar",
    "ants": "eddymotion.registration.engines.ants:AntsRegistrar",
    "elastix": "eddymotion.registration.engines.elastix:ElastixRegistrar",
}
"""Known without an entry point, so available in a checkout that was never installed."""


def registrar_names() -> tuple[str, ...]:
    """Return the names that :func:`get_registrar` knows: ours, then those of other packages."""
    others = sorted({point.name for point in entry_points(group=GROUP)} - set(OURS))
    return (*OURS, *others)


def refuse_unknown(name: str) -> None:
    """Raise if no engine has this name, whether or not it is installed here."""
    known = registrar_names()
    if name not in known:
        raise EddymotionError(
            f"registration {shown(name)} is unknown; {nearest_of(name, known)}use one of "
            f"{', '.join(known)}"
        )


def chosen_registrar(name: str | None, settings_file: Path | None) -> Registrar | None:
    """Turn what was chosen into a registrar: :data:`DEFAULT` where only its parameters are given.

    None where neither is given: nothing was chosen.
    """
    if name is None and settings_file is None:
        return None
    return get_registrar(name or DEFAULT, settings_file)


def get_registrar(name: str, settings_file: str | Path | None = None) -> Registrar:
    """Turn a name, and a JSON file of the engine's parameters, into a registrar.

    Parameters
    ----------
    name : str
        One of :func:`registrar_names`.
    settings_file : path, optional
        Parameters of the engine; its defaults without one.

    Returns
    -------
    Registrar

    Raises
    ------
    EddymotionError
        If the name is unknown, the engine is not installed, or the file has an unknown key.
    """
    engine = _load(name)
    if hasattr(engine, "from_settings"):
        registrar = engine.from_settings(None if settings_file is None else Path(settings_file))
    elif settings_file is None:
        registrar = engine()
    else:
        raise EddymotionError(
            f"registration {shown(name)} takes no settings file, but {settings_file} was given; "
            "leave it out"
        )
    if not isinstance(registrar, Registrar):
        raise EddymotionError(
            f"registration {shown(name)} is not a registrar: {type(registrar).__name__} lacks "
            "register(), transforms or metrics; update the package it comes from"
        )
    return registrar


def _load(name: str) -> Any:
    refuse_unknown(name)
    try:
        if name in OURS:
            module, _, attribute = OURS[name].partition(":")
            return getattr(import_module(module), attribute)
        return next(one for one in entry_points(group=GROUP) if one.name == name).load()
    except (ImportError, AttributeError) as error:
        raise _not_installed(name, error) from error


def _not_installed(name: str, error: Exception) -> EddymotionError:
    extra = f"pip install 'eddymotion[{name}]'" if name in OURS else "install its package again"
    return EddymotionError(f"registration {shown(name)} cannot be loaded ({why(error)}); {extra}")

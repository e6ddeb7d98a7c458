"""Registration of a pair of images: one protocol, several engines."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from eddymotion.errors import EddymotionError
from eddymotion.registration.base import Registrar, Registration, Warp
from eddymotion.registration.gauss_newton import GaussNewton, Level

__all__ = ["GaussNewton", "Level", "Registrar", "Registration", "Warp", "get_registrar"]

REGISTRAR_NAMES = ("gauss-newton",)


def get_registrar(name: str, settings_file: Path | None = None) -> Registrar:
    """Turn a name, and a JSON file of the engine's parameters, into a registrar."""
    if name not in REGISTRAR_NAMES:
        raise EddymotionError(
            f"registration {name!r} is unknown; use one of {', '.join(REGISTRAR_NAMES)}"
        )
    return GaussNewton(**_settings(settings_file)) if settings_file else GaussNewton()


def _settings(path: Path) -> dict:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EddymotionError(f"{path}: cannot be read as JSON ({error}); correct it") from error
    known = {entry.name for entry in fields(GaussNewton)}
    if not isinstance(settings, dict) or set(settings) - known:
        raise EddymotionError(
            f"{path}: expected a JSON object with any of {', '.join(sorted(known))}"
        )
    if "levels" in settings:
        try:
            settings["levels"] = tuple(Level(**level) for level in settings["levels"])
        except (TypeError, AttributeError) as error:
            raise EddymotionError(
                f"{path}: a level has the keys fwhm, n_points and highpass ({error})"
            ) from error
    return settings

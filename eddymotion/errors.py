# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can act on."""

from __future__ import annotations

import os


class EddymotionError(ValueError):
    """Input or settings that cannot work.

    The message is one line that tells what was given, what was expected and what to do.
    Commands print it without a traceback.
    """


REMEDIES = {
    "DWI": "load it first: eddymotion.load({path!r})",
    "Motion": "read it first: eddymotion.evaluation.read_motion({path!r}).motion",
}
"""What to do with a path, by the kind of value that is expected."""


def check_kind(given: object, kind: type, who: str) -> None:
    """Raise unless `given` is of a kind; `who` wants it.

    Raises
    ------
    EddymotionError
        Saying how to read it, if it is a path.
    """
    if isinstance(given, kind):
        return
    if isinstance(given, (str, os.PathLike)):
        remedy = REMEDIES.get(kind.__name__, "read it first").format(path=os.fspath(given))
        raise EddymotionError(f"{who}: got a path, expected a {kind.__name__}; {remedy}")
    remedy = REMEDIES.get(kind.__name__, "give one").format(path="FILE")
    raise EddymotionError(
        f"{who}: got a {type(given).__name__}, expected a {kind.__name__}; {remedy}"
    )


class EngineError(EddymotionError):
    """Another program crashed, or left its result out: the call itself may be right."""

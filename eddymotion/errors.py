# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can act on."""

from __future__ import annotations

import functools
import os
import shlex
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

ANNEXED = "annex/objects"
"""In the target of a link, or the content of a small file, that stands for one of git-annex."""

LFS = "version https://git-lfs"
"""What a small file begins with that stands for one of Git LFS."""


class EddymotionError(ValueError):
    """Input or settings that cannot work.

    The message is one line that says what was given, what was expected and what to do.
    Commands print it without a traceback.
    """


Function = TypeVar("Function", bound=Callable[..., Any])


def renamed(**names: str) -> Callable[[Function], Function]:
    """Have a function take keywords under their former names as well, with a warning.

    Parameters
    ----------
    **names
        Former name → present name.
    """

    def renaming(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            for former, name in names.items():
                if former in given and name in given:
                    raise TypeError(
                        f"{function.__name__}: {former} is another name of {name}; "
                        "give only one of them"
                    )
            return function(*args, **with_present_names(given, names, function.__name__))

        return cast(Function, call)

    return renaming


def with_present_names(
    given: Mapping[str, Any], names: Mapping[str, str], where: str
) -> dict[str, Any]:
    """Rename keywords that have another name now, each with a warning; None is not given."""
    present = dict(given)
    for former, name in names.items():
        value = present.pop(former, None)
        if value is None:
            continue
        warnings.warn(
            f"{where}: {former} is now {name}; the former name will be removed in the next "
            "release",
            DeprecationWarning,
            stacklevel=3,
        )
        present[name] = value
    return present


SERIES_WANTED = "give a 4-D NIfTI image (from DICOM, dcm2niix makes one with its tables)"
"""What to do where there is no diffusion series."""

REMEDIES = {
    "Acquisition": "create it first: eddymotion.Acquisition(eddymotion.Gradients(bvals, bvecs))",
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


class LockLostError(EddymotionError):
    """Another run has taken over the outputs while this one slept: it must not write on."""


def absence(path: Path, advice: str = "check the path") -> str:
    """Say in one line that a file is not there, and what to do; how to fetch what is linked."""
    if os.path.isdir(path):  # unlike Path.is_dir, never an error
        return f"{path}: a folder; {advice}"
    if not os.path.islink(path):
        return f"{path}: {_why_absent(path)}; {advice}"
    target = os.readlink(path)
    if ANNEXED in Path(target).as_posix():
        return _annexed(path)
    return f"{path}: a link to {target}, which does not exist; restore that file, or {advice}"


def _why_absent(path: Path) -> str:
    """Say why a file is not there: in the words of the system where it has a reason of its own."""
    try:
        os.lstat(path)
    except (FileNotFoundError, ValueError):
        return "no such file"
    except OSError as error:
        return error.strerror or "no such file"
    return "no file"


def _annexed(path: Path) -> str:
    return f"{path}: its content is not present; get it with: datalad get {shlex.quote(str(path))}"


def describe_pointer_file(path: Path) -> str | None:
    """Say how to get the content of a file without any: git-annex and Git LFS leave such ones."""
    try:
        with path.open("rb") as stream:
            start = stream.read(100).decode("utf-8", "replace")
    except OSError:
        return None
    if ANNEXED in start:
        return _annexed(path)
    if start.startswith(LFS):
        return f"{path}: its content is not present; get it with: git lfs pull"
    return None if start else f"{path}: is empty; copy or convert it again"

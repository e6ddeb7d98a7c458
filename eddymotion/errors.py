# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can act on."""

import os
from pathlib import Path

ANNEXED = "annex/objects"
"""In the target of a link, or the content of a small file, that stands for one of git-annex."""

LFS = "version https://git-lfs"
"""What a small file begins with that stands for one of Git LFS."""


class EddymotionError(ValueError):
    """Input or settings that cannot work.

    The message is one line that tells what was given, what was expected and what to do.
    Commands print it without a traceback.
    """


class EngineError(EddymotionError):
    """Another program crashed, or left its result out: the call itself may be right."""


def absence(path: Path, advice: str = "check the path") -> str:
    """Say in one line that a file is not there, and what to do; how to fetch what is linked."""
    if os.path.isdir(path):  # unlike Path.is_dir, never an error
        return f"{path}: a folder; {advice}"
    if not os.path.islink(path):
        return f"{path}: no such file; {advice}"
    target = os.readlink(path)
    if ANNEXED in Path(target).as_posix():
        return f"{path}: its content is not here; get it with: datalad get {path}"
    return f"{path}: a link to {target}, which is not there; restore that file, or {advice}"


def stand_in(path: Path) -> str | None:
    """Say how to fetch what a small file stands for: git-annex and Git LFS leave such ones."""
    try:
        with path.open("rb") as stream:
            start = stream.read(100).decode("utf-8", "replace")
    except OSError:
        return None
    if ANNEXED in start:
        return f"{path}: its content is not here; get it with: datalad get {path}"
    if start.startswith(LFS):
        return f"{path}: its content is not here; get it with: git lfs pull"
    return None

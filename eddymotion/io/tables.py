# SPDX-License-Identifier: Apache-2.0
"""Gradient tables ⇄ files."""

from __future__ import annotations

import logging
import shlex
import warnings
from pathlib import Path

import numpy as np

from eddymotion.data.gradients import Gradients, to_fsl
from eddymotion.errors import EddymotionError, absence, describe_pointer_file
from eddymotion.io.headers import read_header, shape_of
from eddymotion.io.images import image_stem
from eddymotion.io.writing import write_text
from eddymotion.wording import why

log = logging.getLogger(__name__)


TABLES = ("bval", "bvec")
"""Suffixes of the two tables of a series."""


def table_beside(path: Path, suffix: str) -> Path:
    """Return the table of the name of an image; raise if there is none, and say what to do."""
    candidate = table_named_after(path, suffix)
    if not candidate.is_file():
        raise EddymotionError(absence(candidate, _advice(path, suffix)))
    return candidate


def table_named_after(path: Path, suffix: str) -> Path:
    """Return where the table of the name of an image would be."""
    return path.parent / f"{image_stem(path)}.{suffix}"


def _advice(path: Path, suffix: str) -> str:
    """Say what to do where an image has no table of its name: which ones are there, if any."""
    if len(shape_of(read_header(path))) < 4:
        return (
            "this is one volume: join all volumes of the series (mrcat -axis 3, fslmerge "
            "-t), in order"
        )
    missing = [table for table in TABLES if not table_named_after(path, table).is_file()]
    found = {table: file for table in missing if (file := _other_table(path, table))}
    if suffix not in found:
        named = f"(in Python {suffix}=, in eddymotion-correct --{suffix})"
        return f"add it next to {path.name}, or give another one {named}"
    files, keywords = " and ".join(map(str, found.values())), " ".join(f"{t}=" for t in found)
    options = " ".join(f"--{table} {shlex.quote(str(file))}" for table, file in found.items())
    belong = "are the tables" if len(found) > 1 else "is the table"
    return (
        f"if {files} {belong} of {path.name}, say so (in Python {keywords}, in eddymotion-correct "
        f"{options})"
    )


def _other_table(path: Path, suffix: str) -> Path | None:
    """Find the only table that has another name: ``bvals`` as in FSL, ``dwi.bvals``."""
    names = f"{image_stem(path)}.{suffix}s", f"{suffix}s", suffix
    others = [path.with_name(name) for name in names] + sorted(path.parent.glob(f"*.{suffix}"))
    found = [file for file in others if file.is_file()]
    return found[0] if len(found) == 1 else None


def read_gradient_table(bval: Path, bvec: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read FSL tables: b-values (N,) and image-axes b-vectors (N, 3), from 3×N or N×3 text."""
    b_values = read_numbers(bval)
    bvals = b_values.ravel()
    bvecs = read_numbers(bvec)
    if 3 not in bvecs.shape:
        swapped = 3 in b_values.shape and bvals.size > 3
        raise EddymotionError(
            f"{bvec}: found {bvecs.shape[0]} rows of {bvecs.shape[1]} numbers, expected 3 rows "
            "(or 3 columns)" + f"; {bval.name} has them: exchange the two" * swapped
        )
    if bvecs.shape[0] == 3:  # FSL's layout, a row an axis; so are three rows of three
        bvecs = bvecs.T
    if len(bvals) != len(bvecs):
        raise EddymotionError(
            f"{bvec}: found {len(bvecs)} b-vectors for the {len(bvals)} b-values of {bval.name}; "
            "give the two that belong together"
        )
    norms = np.linalg.norm(bvecs[np.isfinite(bvecs).all(axis=1)], axis=1)
    if ((norms > 1e-6) & (abs(norms - 1) > 0.05)).any():
        log.warning(
            "%s: some b-vectors are not of unit length; they are normalised, the b-values are "
            "kept", bvec.name
        )  # fmt: skip
    return bvals, bvecs


def read_numbers(path: Path) -> np.ndarray:
    """Read numbers separated by blanks: (rows, columns).

    Raises
    ------
    EddymotionError
        If the file is missing, empty, or holds anything else.
    """
    if not path.is_file():
        raise EddymotionError(absence(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the file is empty: reported below
            numbers = np.loadtxt(path, ndmin=2, encoding="utf-8-sig")
    except Exception as error:  # whatever a decoder raises: it unpacks by the name
        raise EddymotionError(
            describe_pointer_file(path)
            or f"{path}: not a table of numbers ({why(error)}); expected numbers separated by "
            "spaces"
        ) from error
    if numbers.size == 0:
        raise EddymotionError(f"{path}: empty; expected one entry per volume")
    return numbers


def write_gradient_table(bval: Path, bvec: Path, gradients: Gradients, affine: np.ndarray) -> None:
    """Write FSL tables: a row of b-values, three rows of image-axes components."""
    write_text(bval, " ".join(f"{value:g}" for value in gradients.bvals) + "\n")
    rows = to_fsl(gradients.bvecs, affine).T + 0.0  # no negative zeros
    write_text(bvec, "".join(" ".join(f"{value:.8f}" for value in row) + "\n" for row in rows))

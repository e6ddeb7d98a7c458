# SPDX-License-Identifier: Apache-2.0
"""Landmarks that somebody marked in two images, and how far a transform leaves them apart."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.errors import EddymotionError, absence
from eddymotion.io.given_tables import GivenTable
from eddymotion.wording import cut, short_repr, why

log = logging.getLogger(__name__)

LPS_SIGNS = np.array([-1.0, -1.0, 1.0])
"""LPS+ → RAS+, points."""

SYSTEMS = {"0": "RAS", "1": "LPS", "2": "IJK"}
"""Slicer's numbers of coordinate systems, before version 4.11."""

FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
SLICER3_COLUMNS = "label,x,y,z,sel,vis"
"""Of files that do not name their version."""


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Points of an image and their names.

    Parameters
    ----------
    points : (P, 3) array
        RAS+ mm.
    labels : tuple of P str
        Empty where a point has no name.
    source : str
        For messages.
    """

    points: np.ndarray
    labels: tuple[str, ...]
    source: str = "landmarks"

    __repr__ = short_repr

    @property
    def are_named(self) -> bool:
        """Whether each point has a name of its own."""
        return all(self.labels) and len(set(self.labels)) == len(self.labels)


@dataclass(frozen=True, eq=False)
class LandmarkErrors:
    """Target registration errors of paired landmarks.

    Parameters
    ----------
    labels : tuple of P str
    fixed, moving, mapped : (P, 3) array
        RAS+ mm; `mapped` is where the transform puts the fixed points, compared with `moving`.
    before, after : (P,) array
        Distances, mm; without a transform they are equal.
    inverse_mean_mm : float
        Mean distance under the inverse transform: smaller than that of `after` if the transform
        was given in the wrong direction.
    """

    labels: tuple[str, ...]
    fixed: np.ndarray
    moving: np.ndarray
    mapped: np.ndarray
    before: np.ndarray
    after: np.ndarray
    inverse_mean_mm: float

    __repr__ = short_repr


def read_landmarks(path: str | Path) -> Landmarks:
    """Read landmarks.

    Parameters
    ----------
    path : path
        Slicer's ``.fcsv`` or ``.mrk.json`` (all its markups; points that were not placed are
        left out), or a table with columns ``x``, ``y``, ``z`` (RAS+ mm) and perhaps ``label``.

    Raises
    ------
    EddymotionError
        If the file cannot be read, or holds no point.
    """
    path = Path(path)
    if not path.is_file():
        raise EddymotionError(absence(path))
    readers = {".fcsv": _read_fcsv, ".json": _read_markups, ".tsv": _read_tsv, ".csv": _read_tsv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise EddymotionError(
            f"{path}: landmarks must be in .fcsv or .mrk.json (3D Slicer) or .tsv; convert them "
            "to one of these"
        )
    try:
        points, labels = reader(path)
        array = np.array(points, float).reshape(-1, 3)
    except EddymotionError:
        raise
    except Exception as error:  # whatever somebody has put there
        raise EddymotionError(
            f"{path}: cannot be read as landmarks ({type(error).__name__}: {why(error)}); "
            "write it again from 3D Slicer, or give a table with columns x, y, z"
        ) from error
    if not len(array):
        raise EddymotionError(f"{path}: contains no placed landmarks; give a file with points")
    if not np.isfinite(array).all():
        raise EddymotionError(f"{path}: some coordinates are not numbers; correct them")
    return Landmarks(array, tuple(labels), str(path))


def _read_fcsv(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read Slicer's legacy table, of version 3 (no header) and 4."""
    text = path.read_text(encoding="utf-8-sig").splitlines()
    header = _fcsv_header(text)
    versioned = "Markups fiducial file version" in header
    columns = header.get("columns", FCSV_COLUMNS if versioned else SLICER3_COLUMNS).split(",")
    system = header.get("CoordinateSystem", "" if versioned else "RAS")
    rows = list(csv.reader(line for line in text if line.strip() and not line.startswith("#")))
    where = [columns.index(name) for name in ("x", "y", "z")]
    name = columns.index("label")
    points = np.array([[float(row[i]) for i in where] for row in rows]).reshape(-1, 3)
    labels = [row[name].strip() if len(row) > name else "" for row in rows]
    return points * _to_ras(path, system), labels


def _fcsv_header(text: Sequence[str]) -> dict[str, str]:
    """Return what comments say: ``# CoordinateSystem = LPS``, and so on."""
    fields = (line[1:].partition("=") for line in text if line.startswith("#") and "=" in line)
    return {key.strip(): value.strip().rstrip(",").strip() for key, _, value in fields}


def _read_markups(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read Slicer's markups, one list after the other."""
    markups = json.loads(path.read_text(encoding="utf-8-sig"))["markups"]
    points, labels = [], []
    for markup in markups:
        units = markup.get("coordinateUnits", "mm")
        if "mm" not in str(units):
            raise EddymotionError(f"{path}: coordinates in {units}, expected mm; convert them")
        signs = _to_ras(path, markup.get("coordinateSystem", "LPS"))
        for point in markup.get("controlPoints", []):
            if point.get("positionStatus", "defined") == "defined":
                points.append(np.asarray(point["position"], float) * signs)
                labels.append(str(point.get("label", "")).strip())
    return np.array(points), labels


def _read_tsv(path: Path) -> tuple[np.ndarray, list[str]]:
    table = GivenTable.read(path)
    points = table.numbers(*"xyz")
    return points, table.columns.get("label", [""] * len(points))


def _to_ras(path: Path, system: object) -> np.ndarray:
    """Return the signs that turn a coordinate system into RAS+."""
    name = SYSTEMS.get(str(system), str(system).upper())
    if name not in ("RAS", "LPS"):
        raise EddymotionError(
            f"{path}: coordinate system {cut(name) or 'not named'}, expected RAS or LPS; write "
            "'# CoordinateSystem = LPS' or RAS in its header (.mrk.json: coordinateSystem)"
        )
    return LPS_SIGNS if name == "LPS" else np.ones(3)


def pair_landmarks(
    fixed: Landmarks, moving: Landmarks, *, by_order: bool = False
) -> tuple[Landmarks, Landmarks]:
    """Pair landmarks by name where all names are unique in both, else by their order.

    Parameters
    ----------
    fixed, moving : Landmarks
    by_order : bool
        Do not look at the names.

    Returns
    -------
    Landmarks, Landmarks
        In the order of `fixed`; those without a partner are left out with a warning.

    Raises
    ------
    EddymotionError
        If no name is in both, or the numbers differ where the order decides.
    """
    if by_order or not (fixed.are_named and moving.are_named):
        if len(fixed.points) != len(moving.points):
            raise EddymotionError(
                f"{fixed.source}: {len(fixed.points)} landmarks, {moving.source}: "
                f"{len(moving.points)}; pairing by order needs equal numbers: use the same "
                "labels in both, or complete the shorter list"
            )
        labels = tuple(name or str(number) for number, name in enumerate(fixed.labels))
        return (
            Landmarks(fixed.points, labels, fixed.source),
            Landmarks(moving.points, labels, moving.source),
        )
    shared = [name for name in fixed.labels if name in moving.labels]
    if not shared:
        raise EddymotionError(
            f"{fixed.source} and {moving.source}: no label in common (the first are "
            f"{fixed.labels[0]!r} and {moving.labels[0]!r}); use the same labels in both, or "
            "pair them by order (eddymotion-evaluate landmarks --by-order)"
        )
    alone = sorted(set(fixed.labels) ^ set(moving.labels))
    if alone:
        log.warning("landmarks without a partner are ignored: %s", ", ".join(alone))
    return _select(fixed, shared), _select(moving, shared)


def _select(landmarks: Landmarks, labels: list[str]) -> Landmarks:
    where = [landmarks.labels.index(name) for name in labels]
    return Landmarks(landmarks.points[where], tuple(labels), landmarks.source)


def landmark_errors(
    fixed: Landmarks, moving: Landmarks, matrix: np.ndarray | None = None
) -> LandmarkErrors:
    """Measure how far paired landmarks are apart, before and after a transform.

    Parameters
    ----------
    fixed, moving : Landmarks
        Paired: from :func:`pair_landmarks`.
    matrix : (4, 4) array, optional
        Points of the fixed (reference) image → points of the moving image, RAS+ mm.

    Returns
    -------
    LandmarkErrors
        mm
    """
    matrix = np.eye(4) if matrix is None else matrix
    wrong_way = apply_affine(np.linalg.inv(matrix), fixed.points)
    return errors_of(fixed, moving, apply_affine(matrix, fixed.points), wrong_way)


def errors_of(
    fixed: Landmarks, moving: Landmarks, mapped: np.ndarray, wrong_way: np.ndarray
) -> LandmarkErrors:
    """Measure distances from where a transform and its inverse put the fixed points, (P, 3)."""

    def distances(points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points - moving.points, axis=1)

    return LandmarkErrors(
        fixed.labels,
        fixed.points,
        moving.points,
        mapped,
        before=distances(fixed.points),
        after=distances(mapped),
        inverse_mean_mm=float(distances(wrong_way).mean()),
    )


def distance_summary(distances: np.ndarray) -> dict[str, float]:
    """Return mean, median, 95th percentile and maximum of distances in mm."""
    return {
        "mean_mm": float(distances.mean()),
        "median_mm": float(np.median(distances)),
        "p95_mm": float(np.percentile(distances, 95)),
        "max_mm": float(distances.max()),
    }

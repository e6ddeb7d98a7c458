# SPDX-License-Identifier: Apache-2.0
"""What every engine refuses, in one place and in the same words."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.errors import EddymotionError
from eddymotion.images.grid import grid_indices, inside_shape, mask_center
from eddymotion.images.image import Image
from eddymotion.images.pyramid import MIN_POINTS
from eddymotion.wording import shown, why

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eddymotion.registration.base import Registrar

MIN_THICKNESS = 3
"""Voxels along each axis: motion in 3-D cannot be seen in less."""

MAX_PROBES = 20_000
"""Voxels of the fixed mask that are looked up in the moving image."""


def check_pair(
    fixed: Image,
    moving: Image,
    fixed_mask: np.ndarray | None,
    moving_mask: np.ndarray | None,
    transform: str,
    metric: str | None,
    registrar: Registrar,
    init: np.ndarray | None = None,
) -> str:
    """Refuse what cannot be registered.

    Parameters
    ----------
    fixed, moving, fixed_mask, moving_mask, transform, metric, init
        As in :meth:`eddymotion.registration.Registrar.register`.
    registrar : Registrar
        The engine: what it offers decides which `transform` and `metric` are known.

    Returns
    -------
    str
        The metric to use: `metric`, or the engine's default.

    Raises
    ------
    EddymotionError
        Unknown transform or metric; images that are not 3-D, thinner than three voxels, constant,
        or hold NaN or Inf; masks that are empty or of another shape; an `init` that is no
        invertible affine matrix, or under which the images do not overlap.
    """
    _check_choice("transform", transform, registrar.transforms, registrar)
    chosen = registrar.metrics[0] if metric is None else metric
    _check_choice("metric", chosen, registrar.metrics, registrar)
    if fixed.data.ndim != moving.data.ndim:
        raise EddymotionError(
            f"registration: the fixed image has {fixed.data.ndim} dimensions, the moving one "
            f"{moving.data.ndim}; expected 3 in both: give single volumes"
        )
    for name, image, mask in (("fixed", fixed, fixed_mask), ("moving", moving, moving_mask)):
        _check_image(name, image)
        _check_mask(name, image, mask)
        _check_contrast(name, image, mask)
    check_init(init)
    _check_overlap(fixed, moving, fixed_mask, moving_mask, init)
    return chosen


def nearest_of(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'? `` for a name that resembles a known one, else nothing."""
    near = get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def read_settings(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """Read an engine's settings, a JSON object with keys out of `known`."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EddymotionError(
            f"{path}: cannot be read as JSON ({why(error)}); correct it"
        ) from error
    if not isinstance(settings, dict):
        raise EddymotionError(
            f"{path}: expected a JSON object with any of {', '.join(known)}; "
            f"found a {type(settings).__name__}"
        )
    check_keys(path, settings, known)
    return settings


def check_keys(path: Path, settings: dict[str, Any], known: Sequence[str], of: str = "") -> None:
    """Refuse keys that are not `known`; name the first and the known one next to it."""
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise EddymotionError(
            f"{path}: unknown key {shown(unknown[0])}{of and ' ' + of}; "
            f"{nearest_of(unknown[0], known)}"
            f"known are {', '.join(known)}"
        )


def check_init(init: np.ndarray | None) -> None:
    """Refuse a start that is not an invertible (4, 4) affine matrix."""
    if init is None:
        return
    matrix = np.asarray(init, dtype=float)
    usable = (
        matrix.shape == (4, 4)
        and np.isfinite(matrix).all()
        and np.allclose(matrix[3], [0, 0, 0, 1])
        and np.linalg.det(matrix[:3, :3]) > 1e-6
    )
    if not usable:
        raise EddymotionError(
            f"registration: init is not a (4, 4) affine matrix of finite numbers that keeps "
            f"left and right (got shape {matrix.shape}); give fixed → moving in RAS+ mm"
        )


def _check_choice(kind: str, name: str, known: tuple[str, ...], registrar: Registrar) -> None:
    if name not in known:
        raise EddymotionError(
            f"registration: {type(registrar).__name__} does not know the {kind} {shown(name)}; "
            f"{nearest_of(str(name), known)}use one of {', '.join(known)}"
        )


def _check_image(name: str, image: Image) -> None:
    shape = image.data.shape
    if image.data.ndim != 3:
        raise EddymotionError(
            f"registration: the {name} image has shape {shape}, expected three dimensions; give a "
            "single volume"
        )
    if min(shape) < MIN_THICKNESS:
        raise EddymotionError(
            f"registration: the {name} image has shape {shape}, expected at least {MIN_THICKNESS} "
            "voxels along each axis; give the whole volume"
        )
    n_bad = image.data.size - int(np.isfinite(image.data).sum())
    if n_bad:
        raise EddymotionError(
            f"registration: the {name} image holds {n_bad} voxels of NaN or Inf out of "
            f"{image.data.size}; replace them, for example with zero"
        )


def _check_mask(name: str, image: Image, mask: np.ndarray | None) -> None:
    if mask is None:
        return
    if np.shape(mask) != image.data.shape:
        raise EddymotionError(
            f"registration: the {name} mask has shape {np.shape(mask)}, the {name} image "
            f"{image.data.shape}; give a mask on the grid of its image"
        )
    if not np.any(mask):
        raise EddymotionError(
            f"registration: the {name} mask is empty; give one that marks where the image is to "
            "be compared, or none"
        )


def _check_contrast(name: str, image: Image, mask: np.ndarray | None) -> None:
    values = image.data if mask is None else image.data[np.asarray(mask, bool)]
    if values.min() == values.max():
        where = "" if mask is None else " within its mask"
        raise EddymotionError(
            f"registration: the {name} image is constant{where} (all voxels are "
            f"{float(values.flat[0]):g}); there is nothing to register: check the file"
        )


def _check_overlap(
    fixed: Image,
    moving: Image,
    fixed_mask: np.ndarray | None,
    moving_mask: np.ndarray | None,
    init: np.ndarray | None,
) -> None:
    shape = fixed.data.shape
    voxels = grid_indices(shape) if fixed_mask is None else np.argwhere(fixed_mask)
    n_voxels = len(voxels)
    if n_voxels > MAX_PROBES:  # every n-th voxel could be a single plane
        voxels = voxels[np.random.default_rng(0).integers(n_voxels, size=MAX_PROBES)]
    matrix = np.eye(4) if init is None else np.asarray(init, float)
    points = apply_affine(matrix @ fixed.affine, voxels)
    inside = inside_grid(points, moving, moving_mask)
    common = round(inside.mean() * n_voxels)
    if common < min(MIN_POINTS, n_voxels):
        counts = np.ones(moving.data.shape) if moving_mask is None else moving_mask
        apart = np.linalg.norm(points.mean(axis=0) - mask_center(counts, moving.affine))
        raise EddymotionError(
            f"registration: the images do not overlap where they start ({common} voxels in "
            f"common, their centres {apart:.0f} mm apart); start from the centres of mass or "
            "from many starts, or give an init"
        )


def inside_grid(points: np.ndarray, image: Image, mask: np.ndarray | None = None) -> np.ndarray:
    """Whether points (P, 3), RAS+ mm, lie in an image and in its mask, if it has one: (P,)."""
    voxels = apply_affine(np.linalg.inv(image.affine), points)
    inside = inside_shape(voxels, image.data.shape)
    if mask is not None:
        nearest = np.clip(np.rint(voxels[inside]).astype(int), 0, np.array(mask.shape) - 1)
        inside[inside] = np.asarray(mask, bool)[tuple(nearest.T)]
    return inside

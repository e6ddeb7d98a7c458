# SPDX-License-Identifier: Apache-2.0
"""What a run may use of the machine: memory, processors, room on the disk, a scheduler."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eddymotion.errors import EddymotionError
from eddymotion.wording import why

LIBRARIES_GB = 0.5
"""Python, its libraries and compiled code, 0.1 of it where kernels are compiled first."""

SPLINE_BYTES = 4
"""A voxel of the level that is being solved, besides the series itself."""

VOLUME_GB = 0.002
"""What is read at the points of the finest level, for each volume."""

PAIR_GB = 4e-6
"""Normal equations and their factor with quadratic fields, for each pair of volumes."""

RESAMPLING_BYTES = 24
"""A voxel of a volume that NiTransforms resamples: its coefficients in float64, the volume itself
and the result, and those that wait to be written. Nothing is solved meanwhile."""

PREPARED_BYTES = 4
"""A voxel of the series without noise and ringing, float32."""

SLAB_SHARE, SLAB_BYTES = 0.3, 12
"""Part of the image that MP-PCA looks at in a thread, and bytes that a voxel of it takes."""


def memory_gb(image: str | Path, n_threads: int = 1, *, prepared: bool = False) -> float:
    """Estimate the memory (GB) that correcting a series takes at most, from its header.

    Parameters
    ----------
    image : path
    n_threads : int
    prepared : bool
        Whether noise or ringing is taken off.

    Raises
    ------
    EddymotionError
        If the image cannot be read or has not four dimensions.
    """
    from eddymotion.io.headers import read_header, scaling_of

    header = read_header(Path(image))
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    scaled = scaling_of(header) != (1.0, 0.0)
    stored = 4 if scaled or dtype.kind == "f" else min(dtype.itemsize, 4)
    volume, n_volumes = math.prod(shape[:3]), math.prod(shape[3:])
    voxels_gb = volume * n_volumes / 1e9
    solving = SPLINE_BYTES * voxels_gb + VOLUME_GB * n_volumes + PAIR_GB * n_volumes**2
    resampling = volume * RESAMPLING_BYTES * n_threads / 1e9
    if prepared:
        stored += PREPARED_BYTES + SLAB_SHARE * SLAB_BYTES * n_threads
    return LIBRARIES_GB + stored * voxels_gb + max(solving, resampling)


@dataclass(frozen=True)
class Limits:
    """What all series together may take.

    Parameters
    ----------
    n_procs : int
        Processors.
    memory_gb : float
    series_threads : int, optional
        Threads for one series; shared out when not given.
    """

    n_procs: int
    memory_gb: float
    series_threads: int | None = None

    def threads(self, images: Sequence[Path]) -> int:
        """Share the processors out among the series that fit side by side.

        The results do not depend on it.
        """
        if self.series_threads is not None:
            return min(self.series_threads, self.n_procs)
        if not images:
            return self.n_procs
        needs = sorted(memory_gb(image) for image in images)
        side_by_side = max(1, min(len(images), int(self.memory_gb / needs[len(needs) // 2])))
        return max(1, self.n_procs // side_by_side)


@dataclass(frozen=True)
class Plugin:
    """Who runs the nodes of a workflow: the name of a Nipype plugin and its arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def read_plugin_file(path: Path) -> Plugin:
    """Read a plugin file as fMRIPrep takes it: YAML or JSON with ``plugin`` and ``plugin_args``.

    Raises
    ------
    EddymotionError
        If it cannot be read or names no plugin.
    """
    import yaml

    expected = "expected e.g. 'plugin: SLURM' and 'plugin_args: {sbatch_args: \"--mem=8G\"}'"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise EddymotionError(
            f"{path}: cannot be read as YAML or JSON ({why(error)}); {expected}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise EddymotionError(f"{path}: no plugin given; {expected}")
    if unknown := sorted(set(content) - {"plugin", "plugin_args"}):
        raise EddymotionError(f"{path}: unknown entry {unknown[0]}; {expected}")
    arguments = content.get("plugin_args") or {}
    if not isinstance(arguments, dict):
        raise EddymotionError(f"{path}: plugin_args is not a mapping; {expected}")
    return Plugin(content["plugin"], arguments)


def warn_if_disk_is_small(folder: Path, images: Sequence[Path]) -> str | None:
    """Return a warning if the corrected series may not fit on the disk."""
    from eddymotion.io.headers import read_header

    needed = 0.0
    for image in images:
        with suppress(EddymotionError):  # reported later, with the series
            needed += 4e-9 * math.prod(read_header(image).get_data_shape())
    free = shutil.disk_usage(folder).free / 1e9
    if free > needed:
        return None
    return (
        f"{folder}: {1e3 * free:,.0f} MB are free, but the corrected series may take up to "
        f"{1e3 * needed:,.0f} MB; free some space if needed"
    )

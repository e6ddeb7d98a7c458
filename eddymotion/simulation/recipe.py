# SPDX-License-Identifier: Apache-2.0
"""All that determines a simulated series, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eddymotion.io.trajectory import is_trajectory
from eddymotion.simulation.kspace import KSpace
from eddymotion.simulation.output import (
    METADATA,
)
from eddymotion.simulation.patterns import COURSES
from eddymotion.simulation.synthetic import Contrast
from eddymotion.simulation.timing import SliceOrder, SliceTiming
from eddymotion.simulation.variants import (
    Cavity,
    Coverage,
)

DEFAULT_SCHEME = "single"
DEFAULT_COIL_BIAS = 0.13
DEFAULT_ORIENTATION = "LAS"
DEFAULT_VOXEL_SIZE = 2.0
DEFAULT_MULTIBAND = 3


@dataclass(frozen=True)
class Recipe:
    """What to simulate. Names are those of the options of ``eddymotion-simulate``.

    Strings that name files become paths.

    Parameters
    ----------
    scheme : str, optional
        A name of :data:`~eddymotion.simulation.schemes.SCHEMES`. Default: that of `series`, or
        :data:`DEFAULT_SCHEME`.
    bval, bvec : path, optional
        FSL tables instead, with components along the image axes of the simulated grid.
    phantom : (path, path), optional
        NIfTI maps; see :meth:`Phantom.from_files`. Default: :func:`procedural_head`.
    series : path, optional
        A real series to fit instead, after its motion is corrected; see `head`.
    motion : str or path
        Between volumes a :data:`~eddymotion.simulation.patterns.Pattern`, or a file to replay; see
        :func:`~eddymotion.simulation.motion.replayed_motion`; or, slice by slice, a
        :data:`~eddymotion.simulation.patterns.Course` or a table of
        :mod:`eddymotion.io.trajectory`.
    amplitude : float
        Factor on the motion.
    snr : float, optional
    coils : int
    coil_bias : float, optional
        See :func:`acquire`. Default: none for a fitted head, whose images have the shading of
        their coil already; else :data:`DEFAULT_COIL_BIAS`.
    dropout : float
        See :func:`acquire`.
    eddy_current : {"none", "linear", "quadratic"}
    eddy_amplitude : float
    pe_axis : str
        See :func:`simulate_eddy_currents`.
    voxel_size : tuple of three, optional
        mm, right-left, anterior-posterior, superior-inferior. Default: those of `series`, or
        :data:`DEFAULT_VOXEL_SIZE`.
    orientation : str, optional
        Default: :data:`DEFAULT_ORIENTATION`. A fitted head keeps its own grid unless
        `voxel_size`, `orientation` or `oblique` is given.
    oblique : tuple of three, optional
        Extrinsic x, y, z rotation of the grid, degrees.
    random_seed : int
    head : {"synthetic", "fitted"}, optional
        A :class:`SyntheticHead` of that seed; or, of `series`, a :class:`HarmonicHead`. Default:
        `phantom`; or, of `series`, a :class:`FittedHead` after the motion is estimated.
    contrast : {"adult", "infant"}
        Of a synthetic head.
    cavity : {"none", "fluid", "empty"}
        In the head, 5 cm wide; see :mod:`eddymotion.simulation.variants`.
    coverage : {"whole", "slab", "cropped"}
        42 mm of slices; or all but the lowest 30 mm of the brain.
    kspace : KSpace, optional
        Measure in k-space, along `pe_axis`; its own axis and seed are not used. `coil_bias` is 0
        by default then.
    susceptibility : float
        Strength of the field of a synthetic head at 3 T; see
        :class:`~eddymotion.simulation.off_resonance.Magnetised`.
    readout_time : float
        TotalReadoutTime, s, where there is such a field.
    rigid_field : bool
        The field turns with the head and does not change.
    direction : str, optional
        Entity ``dir`` of the names. Noise and motion are drawn anew for each, the head is the
        same.
    session : str, optional
        Entity ``ses`` of the names, likewise.
    repetition_time : float, optional
        From volume to volume, s; 4 by default.
    slice_order : {"interleaved", "sequential"}, optional
        Interleaved by default, where the motion goes on within volumes. With this or `multiband`
        the slice timing is written in any case.
    multiband : int, optional
        Slices that are excited together; 3 by default, likewise.
    slice_profile : float, optional
        See :func:`acquire`.
    """

    scheme: str | None = None
    bval: Path | None = None
    bvec: Path | None = None
    phantom: tuple[Path, Path] | None = None
    series: Path | None = None
    motion: str | Path = "moderate"
    amplitude: float = 1.0
    snr: float | None = 20.0
    coils: int = 1
    coil_bias: float | None = None
    dropout: float = 0.0
    eddy_current: str = "none"
    eddy_amplitude: float = 1.0
    pe_axis: str = "j"
    voxel_size: tuple[float, float, float] | None = None
    orientation: str | None = None
    oblique: tuple[float, float, float] | None = None
    random_seed: int = 0
    head: str | None = None
    contrast: Contrast = "adult"
    cavity: Cavity = "none"
    coverage: Coverage = "whole"
    kspace: KSpace | None = None
    susceptibility: float = 0.0
    readout_time: float = 0.05
    rigid_field: bool = False
    direction: str | None = None
    repetition_time: float | None = None
    slice_order: SliceOrder | None = None
    multiband: int | None = None
    slice_profile: float | None = None
    session: str | None = None

    def __post_init__(self) -> None:
        for name in ("bval", "bvec", "series"):
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else Path(given))
        if self.phantom:
            object.__setattr__(self, "phantom", tuple(map(Path, self.phantom)))
        if Path(self.motion).suffix:
            object.__setattr__(self, "motion", Path(self.motion))

    @property
    def moves_within(self) -> bool:
        """Whether the head moves while a volume is scanned."""
        if isinstance(self.motion, Path):
            return self.motion.suffix == ".tsv" and is_trajectory(self.motion)
        return self.motion in COURSES

    @property
    def timing(self) -> SliceTiming:
        """When slices are excited."""
        order, multiband = self.slice_order or "interleaved", self.multiband or DEFAULT_MULTIBAND
        seconds = self.repetition_time
        default: float = METADATA["RepetitionTime"]
        return SliceTiming(order, multiband, default if seconds is None else seconds)

    @property
    def seed(self) -> int:
        """Of noise and motion."""
        of_session = f"ses-{self.session}" if self.session else ""
        named = f"{self.direction or ''}{of_session}"
        if not named:
            return self.random_seed
        entropy = [self.random_seed, *named.encode()]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    @property
    def head_name(self) -> str:
        """What is scanned, in a few words."""
        name = self._head_source
        return name if self.cavity == "none" else f"{name} with a cavity ({self.cavity})"

    @property
    def _head_source(self) -> str:
        if self.series:
            how = " by harmonics" if self.head == "fitted" else ""
            return f"head fitted to {self.series.name}{how}"
        if self.head == "synthetic":
            return f"synthetic {self.contrast} head"
        return f"phantom {self.phantom[0].name}" if self.phantom else "built-in head"

    @property
    def measurement(self) -> KSpace | None:
        """Settings of k-space, with axis and seed; None of means over voxels.

        Coils are those of the scanner: all runs are received by the same.
        """
        if self.kspace is None:
            return None
        return replace(self.kspace, pe_axis=self.pe_axis, seed=self.random_seed)

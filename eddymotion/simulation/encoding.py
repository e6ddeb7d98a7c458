# SPDX-License-Identifier: Apache-2.0
"""How a scan encodes places of the head: what displaces its signal, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass

from eddymotion.simulation.echo_planar import Distortion
from eddymotion.simulation.eddy_currents import EddyCurrents
from eddymotion.simulation.kspace import Scanner


@dataclass(frozen=True, eq=False)
class Encoding:
    """What displaces the signal of a scan, and whether it is measured in k-space.

    Parameters
    ----------
    eddy : EddyCurrents, optional
    distortion : Distortion, optional
        By an off-resonance field; not in k-space.
    scanner : Scanner, optional
        Measures in k-space; when not given, the signal is averaged over each voxel.
    """

    eddy: EddyCurrents | None
    distortion: Distortion | None
    scanner: Scanner | None

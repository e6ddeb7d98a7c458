# SPDX-License-Identifier: Apache-2.0
from .acquisition import Grid as Grid
from .acquisition import acquire as acquire
from .acquisition import coil_sensitivity as coil_sensitivity
from .acquisition import dropped_slices as dropped_slices
from .base import Head as Head
from .courses import simulate_course as simulate_course
from .dataset import write_simulation as write_simulation
from .eddy_currents import EddyCurrents as EddyCurrents
from .eddy_currents import simulate_eddy_currents as simulate_eddy_currents
from .fitted import FittedHead as FittedHead
from .harmonics import HarmonicHead as HarmonicHead
from .kspace import KSpace as KSpace
from .motion import replayed_motion as replayed_motion
from .motion import simulate_motion as simulate_motion
from .off_resonance import Distortion as Distortion
from .off_resonance import Magnetised as Magnetised
from .off_resonance import echo_planar_image as echo_planar_image
from .off_resonance import simulate_pair as simulate_pair
from .output import write_bids as write_bids
from .patterns import COURSES as COURSES
from .patterns import PATTERNS as PATTERNS
from .phantom import Phantom as Phantom
from .phantom import procedural_head as procedural_head
from .recipe import Recipe as Recipe
from .schemes import SCHEMES as SCHEMES
from .schemes import cartesian_scheme as cartesian_scheme
from .schemes import shelled_scheme as shelled_scheme
from .simulated import Simulation as Simulation
from .simulated import simulate as simulate
from .synthetic import SyntheticHead as SyntheticHead
from .timing import SliceTiming as SliceTiming
from .within_volumes import simulate_within_volumes as simulate_within_volumes

__all__ = [
    "COURSES",
    "PATTERNS",
    "SCHEMES",
    "Distortion",
    "EddyCurrents",
    "FittedHead",
    "Grid",
    "HarmonicHead",
    "Head",
    "KSpace",
    "Magnetised",
    "Phantom",
    "Recipe",
    "Simulation",
    "SliceTiming",
    "SyntheticHead",
    "acquire",
    "cartesian_scheme",
    "coil_sensitivity",
    "dropped_slices",
    "echo_planar_image",
    "procedural_head",
    "replayed_motion",
    "shelled_scheme",
    "simulate",
    "simulate_course",
    "simulate_eddy_currents",
    "simulate_motion",
    "simulate_pair",
    "simulate_within_volumes",
    "write_bids",
    "write_simulation",
]

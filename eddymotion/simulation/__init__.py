"""Series of a moving head with known truth."""

from eddymotion.simulation.acquisition import (
    Grid,
    acquire,
    coil_sensitivity,
    dropped_slices,
    write_bids,
)
from eddymotion.simulation.motion import simulate_motion
from eddymotion.simulation.phantom import Phantom, procedural_head
from eddymotion.simulation.schemes import cartesian_scheme, shelled_scheme

__all__ = [
    "Grid",
    "Phantom",
    "acquire",
    "cartesian_scheme",
    "coil_sensitivity",
    "dropped_slices",
    "procedural_head",
    "shelled_scheme",
    "simulate_motion",
    "write_bids",
]

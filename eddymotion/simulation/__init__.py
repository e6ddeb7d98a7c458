"""Series of a moving head with known truth."""

from eddymotion.simulation.acquisition import Grid, acquire, shelled_scheme, write_bids
from eddymotion.simulation.motion import simulate_motion
from eddymotion.simulation.phantom import Phantom, procedural_head

__all__ = [
    "Grid",
    "Phantom",
    "acquire",
    "procedural_head",
    "shelled_scheme",
    "simulate_motion",
    "write_bids",
]

# SPDX-License-Identifier: Apache-2.0
from .dataset import DWI as DWI
from .dataset import Image as Image
from .derivatives import save as save
from .display import show as show
from .errors import EddymotionError as EddymotionError
from .estimation import assess as assess
from .estimation import estimate_motion as estimate_motion
from .files import load as load
from .geometry import Motion as Motion
from .gradients import Gradients as Gradients
from .masking import brain_mask as brain_mask
from .resampling import resample as resample

__all__ = [
    "DWI",
    "EddymotionError",
    "Gradients",
    "Image",
    "Motion",
    "assess",
    "brain_mask",
    "estimate_motion",
    "load",
    "resample",
    "save",
    "show",
]
__version__: str

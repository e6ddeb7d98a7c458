# SPDX-License-Identifier: Apache-2.0
from .data.acquisition import Acquisition as Acquisition
from .data.gradients import Gradients as Gradients
from .data.series import DWI as DWI
from .derivatives import save as save
from .errors import EddymotionError as EddymotionError
from .estimation import Joint as Joint
from .estimation import LeaveOneOut as LeaveOneOut
from .estimation import assess as assess
from .estimation import estimate_motion as estimate_motion
from .images.image import Image as Image
from .images.masking import brain_mask as brain_mask
from .io.series import load as load
from .mapping.motion import Motion as Motion
from .reports.display import show as show
from .resampling import resample as resample

__all__ = [
    "DWI",
    "Acquisition",
    "EddymotionError",
    "Gradients",
    "Image",
    "Joint",
    "LeaveOneOut",
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

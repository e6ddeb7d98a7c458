# SPDX-License-Identifier: Apache-2.0
"""Head-motion correction for diffusion MRI.

>>> import eddymotion as em
>>> dwi = em.load("sub-01_dwi.nii.gz")
>>> motion = em.estimate_motion(dwi)
>>> corrected = em.resample(dwi, motion)
>>> em.save(corrected, motion, "out/")

The names are loaded when first used (they are listed in ``__init__.pyi``), so that importing the
package, and ``--help``, cost nothing.
"""

from importlib.metadata import version
from typing import Any

import lazy_loader

from eddymotion.wording import HtmlValue

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("eddymotion")


def _drawn(value: Any) -> str:
    from eddymotion.reports.display import html_of

    return html_of(value)


HtmlValue._draw = staticmethod(_drawn)

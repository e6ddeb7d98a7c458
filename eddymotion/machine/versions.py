# SPDX-License-Identifier: Apache-2.0
"""Versions of what a result can depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "eddymotion", "numpy", "scipy", "numba", "nibabel", "nitransforms", "dipy", "nipype", "pybids",
    "antspyx", "itk-elastix",
)  # fmt: skip
"""Whose versions can matter to a result."""


def software_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can matter to a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

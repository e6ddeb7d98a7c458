# SPDX-License-Identifier: Apache-2.0
"""Shielding a command from settings of other programs in the user's or the current folder.

A result depends on the input and on the options, not on who runs the command, and where.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from pathlib import Path

from eddymotion.errors import EddymotionError
from eddymotion.machine.children import NOT_FOR_CHILDREN

FILES = {
    "matplotlibrc": "matplotlib",
    "nipype.cfg": "nipype",
    ".numba_config.yaml": "numba",
    "pybids_config.json": "bids",
}
"""Settings that a library reads from the current folder when it is imported."""

VARIABLES = {
    "MATPLOTLIBRC": os.devnull,
    "NIPYPE_CONFIG_DIR": os.devnull,
    "NO_ET": "1",
    "PYTHONSAFEPATH": "1",
}
"""For this process and its children."""

QUIET_WARNINGS = (
    DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning,
)  # fmt: skip
"""Those that Python itself keeps from users."""

NO_HOME = "/nonexistent"


def ignore_external_settings() -> None:
    """Keep settings out that lie in the home or in the current folder; before they are read.

    Raises
    ------
    EddymotionError
        If Python was told to drop docstrings: some libraries compute with theirs.
    """
    if sys.flags.optimize > 1:
        raise EddymotionError(
            "PYTHONOPTIMIZE=2 (python -OO) drops docstrings, which DIPY needs to be imported; "
            "unset it, or set it to 1"
        )
    os.environ.update(VARIABLES)
    os.environ.pop("PYBIDS_CONFIG", None)
    if sys.warnoptions:  # a warning in some library is no error of the run
        warnings.resetwarnings()
        for category in QUIET_WARNINGS:
            warnings.simplefilter("ignore", category)
    for name in NOT_FOR_CHILDREN:
        os.environ.pop(name, None)
    try:
        home = Path.home()
    except RuntimeError:  # a user that the system does not know, as in some containers
        os.environ["HOME"] = NO_HOME
        home = Path(NO_HOME)
    modules = [module for name, module in FILES.items() if os.path.lexists(name)]
    if modules:
        with contextlib.chdir(Path(__file__).parent):
            for module in modules:
                importlib.import_module(module)
    if "bids" in sys.modules or os.path.lexists(home / "pybids_config.json"):
        with contextlib.suppress(ImportError, ValueError):
            importlib.import_module("bids.config").reset_options()

# SPDX-License-Identifier: Apache-2.0
"""What a user can set, as one frozen value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Settings of a run. Names are those of the command-line options.

    Those in :data:`WITHOUT_EFFECT` change how fast a result comes, not what it is.
    """

    b0_threshold: float = 50.0
    model: str = "auto"
    estimator: str | None = None
    registration: str | None = None
    registration_settings: Path | None = None
    n_iterations: int | None = None
    brain_mask: Path | None = None
    min_q_distance: float = 0.0
    eddy_current: str = "auto"
    pe_axis: str | None = None
    no_shell_alignment: bool = False
    resampling: str = "nitransforms"
    output_space: Path | None = None
    output_space_transform: str = "auto"
    output_space_contrast: str = "dwiref"
    output_space_mask: Path | None = None
    replace_outliers: bool = False
    fsl_outputs: bool = False
    cnr_maps: bool = False
    residuals: bool = False
    eddy_fields: bool = False
    ignore: tuple[str, ...] = ()
    random_seed: int = 0
    nprocs: int = 1

    def effective(self) -> dict[str, Any]:
        """Return what determines the result, as JSON-ready values."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
            if name not in WITHOUT_EFFECT
        }

    def anywhere(self) -> Settings:
        """Return the same with absolute paths: workflow nodes run in folders of their own."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        paths: dict[str, Any] = {k: v.resolve() for k, v in given.items() if isinstance(v, Path)}
        return replace(self, **paths)


WITHOUT_EFFECT = frozenset({"nprocs"})
SETTING_NAMES = frozenset(entry.name for entry in fields(Settings))

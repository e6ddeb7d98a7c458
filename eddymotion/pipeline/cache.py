# SPDX-License-Identifier: Apache-2.0
"""Results of earlier runs, and whether they can be used again."""

from __future__ import annotations

import glob
import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.derivatives import Outputs
from eddymotion.derivatives.finished import damage, intact, is_damaged, read_sidecar, sha256
from eddymotion.errors import EddymotionError
from eddymotion.io.images import image_stem
from eddymotion.io.motion import read_written_motion, write_motion
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.tsv import Table
from eddymotion.io.writing import write_json
from eddymotion.mapping.motion import Motion
from eddymotion.pipeline.fingerprint import motion_fingerprint_of
from eddymotion.pipeline.settings import Settings

log = logging.getLogger(__name__)

RIGID_TOLERANCE = 1e-6
"""Largest difference of a rotation times its transpose from the identity."""

SHOWN = 5
"""Names of files in a message."""

DIGITS = 16
"""Of a digest in a folder's name."""


@dataclass(frozen=True, eq=False)
class FoundMotion:
    """A motion, how many seconds it took, and what the estimation said at which of them.

    Parameters
    ----------
    motion : Motion
    seconds : float
    log : sequence of (seconds, message)
    """

    motion: Motion
    seconds: float
    log: Sequence[tuple[float, str]]


def known_motion(
    series: SeriesFiles, outputs: Outputs, settings: Settings, cache: MotionCache | None
) -> FoundMotion | None:
    """Return the motion found by an earlier run with these settings, from `cache` or outputs."""
    found = None if cache is None else cache.recall()
    if found is None:
        found = _motion_of_outputs(series, outputs, settings)
        if found is not None and cache is not None:
            cache.keep(found)
    return found


@dataclass(frozen=True)
class MotionCache:
    """A motion in the work folder, under the fingerprint of all that determines it.

    Parameters
    ----------
    folder : Path
    """

    folder: Path

    @classmethod
    def of(cls, series: SeriesFiles, settings: Settings, work_dir: Path) -> MotionCache:
        """Return the cache of a series under these settings."""
        digest = motion_fingerprint_of(series, settings)[:DIGITS]
        return cls(work_dir / "motion" / f"{image_stem(series.dwi)}_{digest}")

    def keep(self, found: FoundMotion) -> None:
        """Write the motion; the file of timings, written last, marks it as complete."""
        xfm, details = self.folder / "xfm.txt", self.folder / "details.json"
        write_motion(xfm, details, found.motion)
        content = {"motion": found.seconds, "log": found.log}
        digests = {path.name: sha256(path) for path in (xfm, details)}
        write_json(self.folder / "stages.json", content | {"files": digests})

    def recall(self) -> FoundMotion | None:
        """Read the motion, its timings and its log, if they are there and unchanged."""
        if not (self.folder / "stages.json").is_file():
            return None
        try:
            content = json.loads((self.folder / "stages.json").read_text(encoding="utf-8"))
            for name, digest in content["files"].items():
                if sha256(self.folder / name) != digest:
                    raise ValueError(f"{name} was changed")
            motion = _rigid_motion(self.folder / "xfm.txt", self.folder / "details.json")
            lines = [(float(at), str(message)) for at, message in content["log"]]
            return FoundMotion(motion, float(content["motion"]), lines)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning(
                "%s: cannot be used (%s); the motion is estimated again", self.folder, error
            )
            return None


def remove_kept(series: Iterable[SeriesFiles], work_dir: Path) -> None:
    """Remove what is kept of some series, whose outputs are finished, and folders left empty."""
    for one in series:
        stem = image_stem(one.dwi)
        for folder in (work_dir / "motion").glob(f"{glob.escape(stem)}_*"):
            if folder.name[len(stem) : -DIGITS] in ("_", "_runs_"):
                shutil.rmtree(folder, ignore_errors=True)
    for folder in (work_dir / "motion", work_dir):
        with suppress(OSError):  # another run's, or not there
            folder.rmdir()


def _motion_of_outputs(
    series: SeriesFiles, outputs: Outputs, settings: Settings
) -> FoundMotion | None:
    """Read the motion of a finished run, if its settings match and the files are unchanged."""
    candidates = map(read_sidecar, (outputs, *outputs.elsewhere()))
    sidecar: dict[str, Any] = next(filter(None, candidates), {})
    if sidecar.get("MotionFingerprint") != motion_fingerprint_of(series, settings):
        return None
    files = outputs["xfm"], outputs["motion"]
    if not all(intact(path, sidecar) for path in files):
        return None
    try:
        motion = _rigid_motion(*files, of_run="RunPose" in sidecar)
        seconds = float(sidecar["StageSeconds"]["motion"])
    except (ValueError, KeyError, TypeError) as error:
        log.debug("%s: cannot be used (%s)", outputs["motion"], error)
        return None
    lines: list[tuple[float, str]] = []
    with suppress(EddymotionError):  # only the report shows it
        steps = Table.read(outputs["report_steps"])
        lines = [*zip(steps.numbers("seconds").tolist(), steps.columns["step"], strict=True)]
    return FoundMotion(motion, seconds, lines)


def _rigid_motion(xfm_file: Path, details_file: Path, *, of_run: bool = False) -> Motion:
    """Read a motion that is rigid; of one of several runs, that which the run alone showed."""
    motion = read_written_motion(xfm_file, details_file)
    if of_run:
        if motion.alone is None:
            raise ValueError("without the motion of the run alone")
        motion = motion.alone
    turns = motion.matrices[:, :3, :3]
    products = turns @ np.swapaxes(turns, 1, 2)
    off = np.abs(products - np.eye(3)).max(axis=(1, 2), initial=0.0) > RIGID_TOLERANCE
    off |= ~np.isfinite(motion.matrices).all(axis=(1, 2)) | (np.linalg.det(turns) < 0)
    off |= (motion.matrices[:, 3] != (0, 0, 0, 1)).any(axis=1)
    if off.any():
        volumes = ", ".join(map(str, np.flatnonzero(off)[:5]))
        raise ValueError(f"not rigid in volume {volumes}")
    return motion


def finished_summary(
    outputs: Outputs, fingerprint: str | None = None, *, name: str = ""
) -> dict[str, str] | None:
    """Return the summary of a finished run, if all it wrote is there and as it was written.

    Parameters
    ----------
    outputs : Outputs
    fingerprint : str, optional
        Of the run that is asked for. Without it any will do, and only sizes are compared.
    name : str
        Name of the series; with it, what is damaged is logged.
    """
    sidecar = read_sidecar(outputs)
    found = []
    if sidecar:
        if fingerprint not in (None, sidecar.get("Fingerprint")):
            return None
        found = damage(outputs, sidecar, quick=fingerprint is None)
    elif is_damaged(outputs["sidecar"]):
        found = [f"{outputs['sidecar'].name} (its content was changed)"]
    if found and name:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        log.warning("%s: changed since it was written: %s%s; the outputs are recomputed",
                    name, ", ".join(found[:SHOWN]), more)  # fmt: skip
    return None if found or not sidecar else sidecar.get("Summary")

"""A corrected series on disk, made in a second or two: what a run leaves before its page."""

from dataclasses import replace

import numpy as np

from eddymotion.derivatives import Outputs, write_outputs, write_sidecar
from eddymotion.estimation import assess
from eddymotion.geometry import Motion
from eddymotion.models import get_model
from eddymotion.reports.participant import build_participant_report
from eddymotion.reports.series import draw_series
from eddymotion.reports.slices import Slices
from eddymotion.resampling import Resampled
from eddymotion.settings import Settings

LOST = {5: (8, 9, 10), 12: tuple(range(6, 18))}
"""Volume → slices that lose nine tenths of their signal: few, and too many."""

TOLD = [(0.5, "b>0, 16 mm, 24 volumes: 4 steps"), (2.25, "b>0, 5 mm: <b>3</b> steps")]


def with_lost_slices(dwi):
    """Take signal away as :data:`LOST` says."""
    signal = np.array(dwi.signal)
    for volume, slices in LOST.items():
        signal[:, :, list(slices), volume] *= 0.1
    return replace(dwi, signal=signal)


def write_series(folder, label, dwi, motion, src=None, **sidecar):
    """Write what a run leaves of a series under ``folder/sub-LABEL``, the page too."""
    name = f"sub-{label}"
    outputs = Outputs(folder / name, src or name, folder / name / "figures")
    model = get_model("auto", dwi.gradients)
    before, after = (assess(dwi, pose, model) for pose in (Motion.identity(len(dwi)), motion))
    corrected = Resampled.of(dwi, motion, engine="fast")
    slices = Slices(corrected)
    volumes = slices.watching(corrected.volumes())
    write_outputs(corrected, motion, outputs, volumes=volumes, original=dwi, quality=after)
    draw_series(outputs, dwi, motion, model, Slices.of(dwi), slices, before, after, log=TOLD)
    content = {
        "Sources": [f"bids:raw:{name}/dwi/{name}_dwi.nii.gz"],
        "Settings": Settings().effective(),
        "Summary": {"model": type(model).__name__},
        "StageSeconds": {"motion": 2.5},
        "PackageVersions": {"numpy": np.__version__},
    }
    write_sidecar(outputs, content | sidecar)
    build_participant_report(folder, label)
    return outputs

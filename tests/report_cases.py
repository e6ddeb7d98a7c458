# SPDX-License-Identifier: Apache-2.0
"""A corrected series on disk, made in a second or two: what a run leaves before its page."""

import shutil
from dataclasses import replace

import numpy as np

from eddymotion.derivatives import Outputs, write_outputs, write_sidecar
from eddymotion.estimation import assess
from eddymotion.mapping.motion import Motion
from eddymotion.models import get_model
from eddymotion.pipeline.settings import Settings
from eddymotion.reports.data import ReportData
from eddymotion.reports.maps import JudgedSlices
from eddymotion.reports.participant import NO_ERRORS, write_report
from eddymotion.reports.series import draw_series
from eddymotion.reports.slices import PlaneGrid, Slices
from eddymotion.reports.sprites import Frames
from eddymotion.resampling import Resampled

LOST = {5: (8, 9, 10), 12: tuple(range(5, 26))}
"""Volume → slices that lose nine tenths of their signal: few, and most."""

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
    drawn = JudgedSlices(Slices.of(dwi), before), JudgedSlices(slices, after)
    draw_series(outputs, dwi, motion, model, *drawn, log=TOLD)
    content = {
        "Sources": [f"bids:raw:{name}/dwi/{name}_dwi.nii.gz"],
        "Settings": Settings().effective(),
        "Summary": {"model": type(model).__name__},
        "StageSeconds": {"motion": 2.5},
        "PackageVersions": {"numpy": np.__version__},
    }
    write_sidecar(outputs, content | sidecar)
    write_report(folder, label)
    return outputs


def written_page(folder, label, errors=NO_ERRORS):
    """Write the page of a participant, and return where it is."""
    write_report(folder, label, errors)
    return folder / f"sub-{label.removeprefix('sub-')}.html"


def copy_series(outputs, folder, label, src):
    """Copy what a run left of a series, but the images, under other names."""
    copied = Outputs(folder / f"sub-{label}", src, folder / f"sub-{label}" / "figures")
    for path in outputs.folder.rglob(f"{outputs.src}_*"):
        if not path.name.endswith(".nii.gz"):
            where = copied.figures if path.parent == outputs.figures else copied.folder / "dwi"
            where.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, where / path.name.replace(outputs.src, src, 1))
    return copied


def write_large(outputs, folder, label, n_volumes=64):
    """Make a series of `n_volumes` of a small one, in 1.5 mm, of noise: it compresses worst."""
    large = copy_series(outputs, folder, label, f"sub-{label}")
    data = ReportData.load(large["report_data"])
    which = np.arange(n_volumes) % len(data.bvals)
    mask = np.zeros((110, 130, 90), bool)
    mask[8:101, 5:125, 5:85] = True
    grid = PlaneGrid(np.diag([1.5, 1.5, 1.5, 1.0]), mask, (50, 65, 45))
    frames, rng = Frames.of(grid, n_volumes), np.random.default_rng(0)
    shapes = {"sagittal": (130, 90), "coronal": (110, 90), "axial": (110, 130)}
    planes = {
        name: rng.rayleigh(0.3, (*shape, n_volumes)).astype(np.float32)
        for name, shape in shapes.items()
    }
    sheet = frames.sheet(planes, np.ones(n_volumes))
    arrays = ("bvals", "bvecs_before", "bvecs_after", "z", "ratio", "correlation_before")
    replace(
        data,
        **{name: getattr(data, name)[which] for name in arrays},
        sheets=dict.fromkeys(("before", "after", "predicted"), sheet),
        boxes=frames.boxes,
        outline=frames.outline(grid),
    ).save(large["report_data"])
    header, *rows = large["confounds"].read_text().splitlines()
    large["confounds"].write_text("\n".join([header, *(rows[k] for k in which)]) + "\n")
    write_report(folder, label)
    return folder / f"sub-{label}.html"

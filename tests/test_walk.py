# SPDX-License-Identifier: Apache-2.0
"""The walk of a series through the house, as CONTRIBUTING tells it, is the one that a run takes.

``python tests/test_walk.py`` writes it into CONTRIBUTING.md again.
"""

import inspect
import re
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np

from eddymotion.cli import correct
from eddymotion.io.images import write_image
from eddymotion.io.tables import write_gradient_table
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, simulate_motion

LANDMARKS = (
    "cli.correct:correct_given",
    "pipeline.correct:correct_series",
    "io.series:load",
    "models:get_model",
    "estimation:estimate_motion",
    "data.checks:find_issues",
    "estimation.joint:solve_jointly",
    "estimation.equations.coupled:CoupledProblem.solve",
    "mapping.volume:VolumeMapping.sample_with_gradient",
    "images.image:Spline.sample_with_gradient",
    "estimation.frames:unite_frames",
    "estimation.quality:assess_both",
    "resampling:Resampled.of",
    "derivatives:write_outputs",
    "reports.series:draw_series",
    "reports.participant:write_participant_page",
)
"""Where a reader stops: module and function, in the order in which a run comes by."""

MOST_ROOMS = 12
ROLE = re.compile(r":\w+:(?=`)")
CONTRIBUTING = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
TOLD = re.compile(r"(?<=## The walk of a series\n\n).+?(?=\n\n[A-Z])", re.DOTALL)


def function_at(landmark):
    module, _, name = landmark.partition(":")
    found = import_module(f"eddymotion.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    return inspect.unwrap(getattr(found, "__func__", found))


def walk(folder):
    """Correct a small series, and return the landmarks as they come, each with its depth."""
    head, gradients = procedural_head(8.0), shelled_scheme({1000.0: 8}, 2)
    grid = Grid.covering(head, 8.0)
    dwi = acquire(head, gradients, simulate_motion("moderate", 10, grid.center, seed=1), grid)
    write_image(folder / "dwi.nii.gz", dwi.signal.astype(np.int16), dwi.affine, 3.0)
    write_gradient_table(folder / "dwi.bval", folder / "dwi.bvec", gradients, dwi.affine)
    landmarks = {function_at(landmark).__code__: landmark for landmark in LANDMARKS}
    passed = {}

    def look(frame, event, _):
        if event != "call" or frame.f_code not in landmarks or frame.f_code in passed:
            return
        depth, caller = 0, frame.f_back
        while caller is not None:
            depth, caller = depth + (caller.f_code in landmarks), caller.f_back
        passed[frame.f_code] = depth

    sys.setprofile(look)
    try:
        correct.main([str(folder / "dwi.nii.gz"), "-o", str(folder / "out"), "--nprocs", "1"])
    finally:
        sys.setprofile(None)
    return [(landmarks[code], depth) for code, depth in passed.items()]


def lines(stops):
    """Tell a walk: a list in Markdown, indented by who calls whom."""
    told = []
    for landmark, depth in stops:
        sentence = inspect.getdoc(function_at(landmark)).partition("\n")[0].rstrip(".")
        sentence = ROLE.sub("", sentence[0].lower() + sentence[1:]).replace("``", "`")
        told.append(f"{'  ' * depth}- `{landmark.replace(':', '.')}`: {sentence}")
    return "\n".join(told)


def test_a_series_walks_as_told_through_a_dozen_rooms_at_most(tmp_path):
    stops = walk(tmp_path)
    assert [landmark for landmark, _ in stops] == list(LANDMARKS)
    rooms = {re.match(r"\w+", landmark).group() for landmark in LANDMARKS}
    assert len(rooms) <= MOST_ROOMS
    (told,) = TOLD.findall(CONTRIBUTING.read_text(encoding="utf-8"))
    assert told == lines(stops), "python tests/test_walk.py writes it again"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        text = lines(walk(Path(folder)))
    whole = CONTRIBUTING.read_text(encoding="utf-8")
    CONTRIBUTING.write_text(TOLD.sub(lambda _: text, whole), encoding="utf-8")

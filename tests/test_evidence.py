# SPDX-License-Identifier: Apache-2.0
"""Benchmarks on real data, and the table of where it is weak."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine
from pages import ROOT

from benchmarks import at_rest, polarities, replay, tables, weak
from eddymotion.data.series import DWI
from eddymotion.evaluation.motion import ball_points
from eddymotion.images.image import Image
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, rigid_parameters
from eddymotion.simulation.motion import simulate_motion

NUMBERS = ROOT / "docs" / "benchmarks"


def test_pages_show_what_the_numbers_say():
    for path, text in weak.pages().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name}: the table is not that of the numbers; run python -m benchmarks.weak"
        )


def test_every_benchmark_has_a_line():
    asked = {figure.page for figure in weak.FIGURES}
    assert asked == {path.stem for path in NUMBERS.glob("*.tsv")}
    assert {figure.anchor for figure in weak.FIGURES} >= set(weak.CLAIMS)


def test_the_readme_quotes_nothing_that_was_measured_less_than_three_times():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    anchors = re.findall(r"docs/benchmarks/README\.md#([\w-]+)\) \|", readme)
    assert sorted(anchors) == sorted(weak.CLAIMS)
    for figure in weak.FIGURES:
        if figure.anchor in anchors:
            kept = figure.of(NUMBERS).with_seeds(3).values
            assert kept
            assert min(map(len, kept.values())) >= 3


def test_a_number_that_becomes_worse_moves_the_row_up(tmp_path):
    shutil.copytree(NUMBERS, tmp_path, dirs_exist_ok=True)
    rows = tables.read_tsv(tmp_path / "at-rest.tsv")
    rows[0]["all_mm"] = 7.654
    tables.write_tsv(tmp_path / "at-rest.tsv", rows)
    first = weak.weak_table(tmp_path).splitlines()[2]
    assert first == (
        '| <a id="at-rest-all"></a>[a static object: estimated displacement](at-rest.md) '
        "| ≤ 0.200 mm | **2 of 3** | oil, all | **7.654 mm** |"
    ).replace("≤ 0.200 mm", "≤_0.200_mm").replace("7.654 mm", "7.654_mm").replace("_", "\u00a0")


def test_the_worst_seed_decides_and_a_least_bound_is_one():
    figure = weak.Figure("a", "a", "what", "", 0.9, lambda rows: [], least=True)
    result = weak.Result(figure, {"low": [0.95, 0.85, 0.99], "high": [0.91], "few": [1.0]})
    assert result.weakest == "low"
    assert result.worst("low") == 0.85
    assert result.holding == ["high", "few"]
    assert result.median == 0.95
    assert list(result.with_seeds(3).values) == ["low"]
    line = weak.weak_line(result)
    assert line[1:] == ["≥\u00a00.900", "**2 of 3**", "low", "**0.850**, median 0.950 of 3"]


def test_ours_is_compared_with_the_best_that_ran_to_its_end():
    def row(tool, mm, seconds):
        return {"series": "s", "seed": 0, "tool": tool, "free_mm": mm, "cpu_seconds": seconds}

    rows = [row("nothing", 0.01, 0.1), row("ants", 0.04, 50), row("dipy", 0.2, 100),
            row("nifreeze:gp", "", 2), row("loop:gauss-newton", 0.05, 20),
            row("joint", 0.02, 10)]  # fmt: skip
    assert list(weak.against_best("free_mm")(rows)) == [("s", 0.5)]
    assert list(weak.against_best("cpu_seconds")(rows)) == [("s", 0.2)]
    assert list(weak.loop_against_best(rows)) == [("s", 1.25)]


@pytest.fixture(scope="module")
def tilted(tiny):
    """A small head at rest, on a grid that is neither straight nor alike along its axes."""
    turned = exp_rigid(np.array([4.0, -7.0, 3.0, 0.1, -0.2, 0.3]), np.zeros(3))
    return DWI(tiny.signal, turned @ tiny.affine, tiny.gradients, tiny.mask)


def test_a_pose_that_is_applied_moves_tissue_there(tilted):
    """What lay at p in the whole series lies at T p in the moved one, the affine cut and all."""
    pose = exp_rigid(np.array([3.0, -2.0, 4.0, 0.05, -0.04, 0.06]), tilted.center)
    poses = Motion.identity(len(tilted)).updated(np.array([4]), pose[None])
    moved = replay.moved_volumes(tilted, poses)
    affine = replay.cut_affine(tilted)
    voxels = np.argwhere(np.ones(moved.shape[:3], bool)[2:-2, 2:-2, 2:-2]) + 2
    there = apply_affine(affine, voxels.astype(float))
    shown = Image(moved[..., 4], affine).spline.sample(there)
    lay = tilted.volume(4).spline.sample(apply_affine(np.linalg.inv(pose), there))
    assert (
        np.abs(shown - lay).mean()
        < 0.02 * lay.mean()
        < np.abs(shown - tilted.volume(4).spline.sample(there)).mean()
    )
    unmoved = tilted.signal[replay.within(tilted)]
    np.testing.assert_allclose(moved[..., 3], unmoved[..., 3], atol=1e-3 * unmoved.max())


def test_the_difference_of_two_estimates_is_what_was_applied(tilted):
    """Whatever the motion was before, and whatever frame the second estimate chose."""
    before = simulate_motion("high", len(tilted), tilted.center, seed=4)
    applied = simulate_motion("moderate", len(tilted), tilted.center, seed=5)
    frame = exp_rigid(np.array([1.0, 2.0, -1.0, 0.02, 0.0, -0.03]), tilted.center)
    after = Motion(applied.matrices @ before.matrices @ frame)
    found = replay.scores(tilted, before, applied, after)
    names = ("free_mm", "free_deg", "frame_mm", "frame_deg", "largest_mm")
    np.testing.assert_allclose([found[name] for name in names], 0, atol=1e-6)
    halved = Motion(np.stack([exp_rigid(p / 2, tilted.center) for p in
                              rigid_parameters(applied.matrices, tilted.center)]))  # fmt: skip
    found = replay.scores(tilted, before, applied, Motion(halved.matrices @ before.matrices))
    assert found["slope_t"] == pytest.approx(0.5, abs=0.02)
    assert found["slope_r"] == pytest.approx(0.5, abs=0.02)


def test_a_field_counts_as_the_rigid_motion_nearest_to_it():
    """A shear along y that grows with x turns about z by half of it, a head moved besides."""
    points = ball_points(np.array([5.0, -3.0, 8.0]))
    pose = exp_rigid(np.array([3.0, -2.0, 4.0, 0.05, -0.04, 0.06]), np.zeros(3))
    np.testing.assert_allclose(replay.best_rigid(points, apply_affine(pose, points)), pose,
                               atol=1e-9)  # fmt: skip
    sheared = points.copy()
    sheared[:, 1] += 0.02 * (points[:, 0] - 5.0)
    turned = rigid_parameters(replay.best_rigid(points, sheared), points.mean(axis=0))
    np.testing.assert_allclose(turned, [0, 0, 0, 0, 0, 0.01], atol=1e-5)


def test_displacement_of_an_object_at_rest_is_told_across_the_phase_encoding(tilted):
    along = np.array([0.0, 1.0, 0.0])
    acquisition = replace(tilted.acquisition, phase_encoding=np.tile(along, (len(tilted), 1)))
    dwi = replace(tilted, acquisition=acquisition)
    poses = Motion.identity(len(dwi)).matrices.copy()
    poses[2, :3, 3] = [0.3, 5.0, 0.4]
    found = at_rest.displacements(Motion(poses), dwi)
    assert found["across_largest_mm"] == pytest.approx(0.5, abs=1e-5)
    assert found["all_largest_mm"] == pytest.approx(np.sqrt(0.5**2 + 25), abs=1e-5)
    assert found["across_mm"] == pytest.approx(0.5 / np.sqrt(len(dwi)), abs=1e-5)


def test_volumes_are_paired_by_their_direction_in_the_head(tilted):
    order = np.roll(np.arange(len(tilted)), 1)
    other = replace(tilted, acquisition=tilted.acquisition.select(order))
    pairs, angles = polarities.pairs_of_volumes([tilted, other])
    assert pairs
    for first, second in pairs:
        np.testing.assert_array_equal(tilted.gradients.bvecs[first], other.gradients.bvecs[second])
    assert angles.max() < 1e-4

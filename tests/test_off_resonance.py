# SPDX-License-Identifier: Apache-2.0
"""The off-resonance field: as a value, from images of opposite polarity, and from maps."""

import json
import shutil
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import apply_affine

from eddymotion.cli.fieldmap import main
from eddymotion.cli.simulate import main as simulate_main
from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.estimation.off_resonance import estimate_off_resonance
from eddymotion.estimation.off_resonance.descent import FieldEquations
from eddymotion.estimation.off_resonance.images import Distorted, combined
from eddymotion.estimation.off_resonance.measured import MeasuredMap, phase_difference, radians
from eddymotion.estimation.off_resonance.problem import LEVELS, FieldLevel, FieldProblem
from eddymotion.estimation.off_resonance.view import FieldState
from eddymotion.fieldmaps import FieldmapPaths, FieldmapSettings
from eddymotion.fieldmaps.inputs import read_inputs
from eddymotion.images.grid import grid_points
from eddymotion.images.image import Image
from eddymotion.images.lattice import Lattice, separable
from eddymotion.io.images import read_image, write_image
from eddymotion.io.sidecars import acquisition_of
from eddymotion.io.topup import topup_field
from eddymotion.mapping.off_resonance import OffResonance, Readout, undistorted
from eddymotion.mapping.rigid import exp_rigid
from eddymotion.simulation import Grid, SyntheticHead, procedural_head
from eddymotion.simulation.echo_planar import pushed_means
from eddymotion.simulation.off_resonance import Magnetised, echo_planar_image, shim_terms
from eddymotion.simulation.sampling import View

TURN = exp_rigid(np.r_[1.0, 2.0, -1.5, np.deg2rad([4.0, -2.0, 3.0])], np.zeros(3))


@cache
def head():
    return procedural_head(3.0)


@cache
def bumps():
    """A field of the head, Hz, without a constant: steep in front, gentle elsewhere."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -100
    points = apply_affine(affine, np.moveaxis(np.indices((51, 51, 51)), 0, -1))
    hertz = np.zeros(points.shape[:3])
    for height, middle, width in ((70, (0, 60, -30), 22), (-45, (45, -10, -30), 20),
                                  (35, (-40, -40, 20), 35)):  # fmt: skip
        hertz += height * np.exp(-((points - middle) ** 2).sum(-1) / (2 * width**2))
    brain = apply_affine(head().affine, np.argwhere(head().brain))
    hertz -= Image(hertz.astype(np.float32), affine).spline.sample(brain).mean()
    return Image(hertz.astype(np.float32), affine)


def pair(directions=("j-", "j"), voxel=4.0, pose=None, rotation=None, orientation="LAS", snr=50):
    grid = Grid.covering(head(), voxel, orientation, rotation)
    pose = np.eye(4) if pose is None else pose
    images = []
    for number, direction in enumerate(directions):
        readout = Readout.of(grid.affine, direction, 0.04)
        image = echo_planar_image(head(), grid, bumps(), readout, pose=pose if number else None,
                            snr=snr, seed=number)  # fmt: skip
        images.append(Distorted(image, readout))
    return images


def error_mm(found, readout):
    """Field less the truth over the brain, without its mean, mm."""
    brain = apply_affine(head().affine, np.argwhere(head().brain)[::5])
    difference = found.hertz(brain) - bumps().spline.sample(brain)
    return (difference - difference.mean()) * readout.mm_per_hertz


def some_field(seed=0):
    affine = np.diag([15.0, 12.0, 14.0, 1.0])
    affine[:3, 3] = -90
    return OffResonance(20 * np.random.default_rng(seed).normal(size=(13, 15, 14)), affine)


def test_the_gradient_of_a_field_is_its_slope():
    field, points = some_field(), np.random.default_rng(1).uniform(-130, 130, (500, 3))
    inside = apply_affine(np.linalg.inv(field.affine), points)
    ends = np.abs(inside - 1), np.abs(inside - np.array(field.coefficients.shape) + 2)
    points = points[(np.minimum(*ends) > 0.01).all(axis=1)]  # there is a kink at its ends
    hertz, slopes = field.hertz_with_gradient(points)
    np.testing.assert_array_equal(hertz, field.hertz(points))
    for axis in range(3):
        step = 0.02 * np.eye(3)[axis]
        rise = field.hertz(points + step).astype(float) - field.hertz(points - step)
        np.testing.assert_allclose(slopes[:, axis], rise / 0.04, atol=2e-3)


@pytest.mark.parametrize("turn", [np.eye(3), TURN[:3, :3]], ids=["parallel", "oblique"])
def test_a_grid_shows_what_points_show(turn):
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, -9.0], [8, 0, 0], [0, 10, 0]])
    affine[:3, 3] = 70, -60, -50
    field, shape = some_field(), (12, 14, 15)
    points = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3))
    hertz, slopes = field.hertz_with_gradient(points)
    on_grid, gradient = field.on_grid_with_gradient(shape, affine)
    np.testing.assert_allclose(on_grid.ravel(), hertz, atol=1e-3)
    np.testing.assert_allclose(gradient.reshape(-1, 3), slopes, atol=1e-3)
    np.testing.assert_array_equal(field.on_grid(shape, affine), on_grid)


def test_a_fitted_map_goes_on_where_it_says_nothing():
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    x, y, _ = np.indices((20, 20, 16)) * 4.0
    plane = (0.8 * x - 0.5 * y + 7).astype(np.float32)
    known = x < 48
    noisy = np.where(known, plane, 1e4)
    field = OffResonance.of_image(Image(noisy, affine), known)
    np.testing.assert_allclose(field.on_grid(plane.shape, affine), plane, atol=1.0)
    assert not OffResonance.none().hertz(np.zeros((2, 3))).any()


def test_bending_energy_is_that_of_second_derivatives():
    lattice = Lattice((7, 8, 6), np.diag([10.0, 8.0, 12.0, 1.0]))
    c = np.random.default_rng(0).normal(size=lattice.shape)
    at = [1 + (np.arange(12 * (n - 3)) + 0.5) / 12 for n in lattice.shape]
    volume = np.prod(lattice.spacing) / 12**3
    total = 0.0
    for first, second in product(range(3), range(3)):
        orders = np.bincount([first, second], minlength=3)
        matrices = lattice.matrices(at, orders)
        scale = lattice.spacing[first] * lattice.spacing[second]
        total += ((separable(matrices, c) / scale) ** 2).sum() * volume
    assert (c * lattice.bent(c)).sum() == pytest.approx(total, rel=0.02)


def test_what_is_recorded_lies_along_the_phase_encoding():
    """A dot, 50 Hz off, 40 ms: two voxels along j, against it with j-; positive as in FSL."""
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    for direction, moved_by in (("j", 2), ("j-", -2), ("i", 2)):
        dot = np.zeros((20, 20, 20), np.float32)
        axis = "ij".index(direction[0])
        place = [10, 10, 10]
        place[axis] += moved_by
        dot[tuple(place)] = 1
        constant = OffResonance(np.full((4, 4, 4), 50.0), np.diag([90.0, 90, 90, 1]))
        readout = Readout.of(affine, direction, 0.04)
        corrected, stretch = undistorted(
            Image(dot, affine), readout, constant, np.eye(4), dot.shape, affine
        )
        assert np.unravel_index(np.nanargmax(corrected), dot.shape) == (10, 10, 10)
        np.testing.assert_allclose(stretch, 1)


def test_the_scanner_conserves_signal_and_moves_it_as_the_field_says():
    image, opposite = (one.image for one in pair(snr=None))
    still = echo_planar_image(head(), Grid(image.data.shape, image.affine), _constant(0.0),
                        Readout.of(image.affine, "j", 0.04), snr=None)  # fmt: skip
    for one in (image, opposite):
        np.testing.assert_allclose(one.data.sum(1), still.data.sum(1), rtol=2e-3, atol=5)
    moved = echo_planar_image(head(), Grid(image.data.shape, image.affine), _constant(50.0),
                        Readout.of(image.affine, "j", 0.04), snr=None)  # fmt: skip
    np.testing.assert_allclose(moved.data[:, 4:-2], still.data[:, 2:-4], atol=0.5)


def _constant(hertz):
    affine = np.diag([80.0, 80.0, 80.0, 1.0])
    affine[:3, 3] = -240
    return Image(np.full((7, 7, 7), hertz, np.float32), affine)


@cache
def coarse_pair():
    return pair(voxel=5.0)


@cache
def pair_without_field():
    first = coarse_pair()[0].image
    grid = Grid(first.data.shape, first.affine)
    return [
        replace(one, image=echo_planar_image(head(), grid, _constant(0.0), one.readout, snr=50,
                                             seed=seed))
        for seed, one in enumerate(coarse_pair())
    ]  # fmt: skip


@cache
def small_problem():
    """Three images of two axes at a coarse level, off the minimum."""
    images = tuple(pair(("j-", "j", "i"), voxel=7.0, pose=TURN))
    mask = images[0].image.data > 200
    start = np.stack([np.eye(4)] * 3)
    shown = [Image(one.image.data / 800, one.image.affine) for one in images]
    problem = FieldProblem.at(
        FieldLevel(8.0, 14.0, 40.0, 0.1, 8), images, shown, mask, start, 0.3, n_shades=4
    )
    random = np.random.default_rng(0)
    c = random.normal(size=problem.lattice.shape).astype(np.float32) * 8
    poses = (np.eye(4), exp_rigid(np.full(6, 0.01), problem.center),
             exp_rigid(np.full(6, -0.01), problem.center))  # fmt: skip
    gains = np.outer([0, 0.1, -0.05], [1.0, 0.5, -0.3, 0.8])
    return problem, FieldState(c, poses, gains)


def test_the_gradient_of_the_cost():
    problem, state = small_problem()
    variance = 0.05
    right = FieldEquations.of(problem, problem.view(state), state, variance).right
    random = np.random.default_rng(1)
    n = state.coefficients.size
    scale = np.concatenate([np.full(n, 1.0), np.tile([0.2] * 3 + [4e-3] * 3 + [0.02] * 4, 2)])
    for part in (slice(0, n), slice(n, n + 3), slice(n + 3, n + 6), slice(n + 6, None)):
        step = np.zeros(len(right))
        step[part] = random.normal(size=len(step[part])) * scale[part]
        costs = []
        for sign in (1, -1):
            there = problem.moved(state, step, 0.05 * sign)
            costs.append(problem.cost(problem.view(there), there, variance))
        slope = (costs[0] - costs[1]) / 0.1
        assert slope == pytest.approx(-2 * right @ step, rel=0.03, abs=0.02 * abs(costs[0]))


def test_the_normal_operator_is_that_of_the_plain_matrix(monkeypatch):
    """With all slopes in it, the operator is JᵀWJ of the differences, and the priors."""
    monkeypatch.setattr("eddymotion.estimation.off_resonance.descent.SEEN_SLOPE", -1.0)
    problem, state = small_problem()
    view = problem.view(state)
    equations = FieldEquations.of(problem, view, state, 0.05)
    bases = [np.einsum("ia,jb,kc->ijkabc", *m)[problem.counts].reshape(len(problem.points), -1)
             for m in problem.matrices]  # fmt: skip
    toward = view.shifts @ problem.to_axes.T
    n, k, each = state.coefficients.size, len(problem.images), 6 + len(problem.shading)
    jacobian = np.zeros((k, len(problem.points), n + each * (k - 1)))
    for image in range(k):
        jacobian[image, :, :n] = view.by_field[image][:, None] * bases[0]
        for axis in range(3):
            slope = view.by_slope[image] * toward[image, axis]
            jacobian[image, :, :n] += slope[:, None] * bases[axis + 1]
        if image:
            columns = np.concatenate(
                [view.by_pose[image - 1], view.values[image] * problem.shading]
            )
            jacobian[image, :, n + each * (image - 1) : n + each * image] = columns.T
    jacobian *= view.seen[:, :, None]
    centred = (jacobian - jacobian.sum(0) / view.n_seen[:, None]) * view.seen[:, :, None]
    weight = problem.volume / 0.05
    plain = weight * np.einsum("kpa,kpb->ab", centred, centred, optimize=True)
    random = np.random.default_rng(2)
    for _ in range(2):
        x = random.normal(size=plain.shape[0])
        x[n:] *= 0.01
        expected = plain @ x
        expected[:n] += (
            problem.stiffness * problem.lattice.bent(x[:n].reshape(problem.lattice.shape)).ravel()
        )
        prior = np.zeros((each * (k - 1),) * 2)
        problem.prior(prior, state)
        expected[n:] += prior @ x[n:]
        found = equations.normal(x)
        for part in (slice(0, n), slice(n, None)):
            worst = np.abs(found[part] - expected[part]).max()
            assert worst < 2e-3 * np.abs(expected[part]).max()


@pytest.mark.parametrize(
    ("directions", "pose", "rotation", "orientation"),
    [
        (("i", "i-"), TURN, None, "PSL"),
        (("j", "j-"), None, TURN[:3, :3], "RAS"),
        (("j-", "i"), TURN, None, "LAS"),
    ],
    ids=["moved, other axes", "oblique", "two axes"],
)
def test_a_field_is_found(directions, pose, rotation, orientation):
    images = pair(directions, 5.0, pose, rotation, orientation)
    found = estimate_off_resonance(images, poses=np.stack([np.eye(4), _near(pose)]))
    wrong = error_mm(found.field, images[0].readout)
    none = error_mm(OffResonance.none(), images[0].readout)
    assert none.std() > 1.5
    assert wrong.std() < 0.4
    assert np.quantile(np.abs(wrong), 0.95) < 0.6
    before, after = found.similarity
    assert before < after
    assert after > 0.97
    left = found.poses[1] @ np.linalg.inv(np.eye(4) if pose is None else pose)
    assert np.rad2deg(np.linalg.norm(left[:3, :3] - np.eye(3))) < 1.5
    truth = echo_planar_image(
        head(), Grid(*found.grid), _constant(0.0), images[0].readout, snr=None
    )
    inside = found.mask & (truth.data > 100)
    assert _relative(found.combined, truth.data, inside) < 0.12
    assert _relative(found.combined, truth.data, inside) < 0.5 * _relative(
        images[0].image.data, truth.data, inside
    )


def _near(pose):
    return np.eye(4) if pose is None else pose @ exp_rigid(np.r_[0.4, 0, 0.4, 0, 0, 0.01], [0] * 3)


def _relative(image, truth, where):
    gain = np.median(truth[where]) / np.median(image[where])
    return np.sqrt(np.mean((gain * image[where] - truth[where]) ** 2)) / truth[where].mean()


@pytest.mark.slow
def test_registration_is_the_start_and_polarities_exchanged_give_the_opposite():
    first, second = pair(pose=TURN, voxel=5.0)
    found = estimate_off_resonance([first, second])
    assert error_mm(found.field, first.readout).std() < 0.35
    opposite = [Distorted(one.image, Readout(-one.readout.direction, one.readout.mm_per_hertz))
                for one in (first, second)]  # fmt: skip
    other = estimate_off_resonance(opposite, poses=found.start)
    np.testing.assert_allclose(other.hertz, -found.hertz, atol=0.05)
    np.testing.assert_allclose(other.combined, found.combined, rtol=1e-3, atol=1)


@cache
def brightness():
    """Smooth over the head, about 2 : 1."""
    first = coarse_pair()[0].image
    x, y, z = grid_points(first.data.shape, first.affine).T / 80
    return np.exp(0.3 * y - 0.24 * y * z + 0.2 * x * x - 0.16 * y**3).reshape(first.data.shape)


@pytest.mark.parametrize("hertz", ["none", "bumps"])
@pytest.mark.slow
def test_brightness_that_differs_smoothly_is_no_field(hertz):
    images = coarse_pair() if hertz == "bumps" else pair_without_field()
    shaded = Image(np.float32(images[1].image.data * brightness()), images[1].image.affine)
    found = estimate_off_resonance([images[0], replace(images[1], image=shaded)],
                                   poses=np.stack([np.eye(4)] * 2))  # fmt: skip
    wrong = found.displacement[found.mask]
    if hertz == "bumps":
        wrong = error_mm(found.field, images[0].readout)
    assert wrong.std() < 0.4  # 1.5 mm where a ratio is taken for stretch
    ratio = np.log(found.brightness[1] * brightness())[found.mask]
    assert ratio.std() < 0.05
    assert found.shading > 0.08
    assert min(found.similarity) == found.similarity[0]
    assert found.similarity[1] > 0.97


def test_brightness_that_does_not_differ_is_a_number():
    found = estimate_off_resonance(coarse_pair(), levels=LEVELS[:3])
    assert found.shading < 1e-6
    assert found.log_gains.shape == (2, 1)


def test_the_constant_is_that_of_the_start():
    """A constant field and a shift along the phase encoding are the same: the start decides."""
    images = pair(voxel=5.0)
    shifted = np.eye(4)
    shifted[:3, 3] = 3.0 * images[1].readout.direction
    starts = (np.stack([np.eye(4), pose]) for pose in (np.eye(4), shifted))
    here, there = (
        estimate_off_resonance(images, poses=start, levels=LEVELS[:3]) for start in starts
    )
    apart = (there.hertz - here.hertz)[here.mask] * images[0].readout.mm_per_hertz
    assert apart.mean() == pytest.approx(-1.5, abs=0.15)
    assert apart.std() < 0.2


def test_what_is_stretched_counts_most_in_the_combination():
    images = np.array([[[[1.0, np.nan, 2.0]]], [[[3.0, 5.0, 4.0]]]])
    stretch = np.array([[[[0.5, 1.0, -0.2]]], [[[1.5, 1.0, 1.0]]]])
    np.testing.assert_allclose(combined(images, stretch).ravel(), [2.8, 5.0, 4.0], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b: [a], "1 image given"),
        (lambda a, b: [a, Distorted(b.image, a.readout)], "same phase encoding in space"),
        (lambda a, b: [a, Distorted(_away(b.image), b.readout)], "image 2 shows 0 voxels"),
        (lambda a, b: [a, Distorted(_away(b.image), b.readout, "b")], "b shows 0 .* image 1"),
    ],
)
def test_images_that_tell_nothing_are_refused(change, words):
    with pytest.raises(EddymotionError, match=words):
        estimate_off_resonance(change(*pair(voxel=7.0)))


@pytest.mark.slow
def test_images_may_lie_on_other_grids_and_show_a_part():
    first = pair(("j-",), 5.0)[0]
    turn = exp_rigid(np.r_[0, 0, 0, 0.2, 0.1, -0.15], np.zeros(3))[:3, :3]
    other = pair(("i", "i-"), 6.0, TURN, turn, "PSL")[1]
    affine = other.image.affine.copy()
    affine[:3, 3] += 4 * affine[:3, 1]
    part = Distorted(Image(other.image.data[:, 4:], affine), other.readout)
    found = estimate_off_resonance([first, part])
    assert error_mm(found.field, first.readout).std() < 0.5
    assert np.isnan(found.corrected[1]).any()
    assert np.isfinite(found.combined).all()


def _away(image):
    affine = image.affine.copy()
    affine[0, 3] += 1000
    return Image(image.data, affine)


def test_the_head_in_the_field_of_the_scanner():
    """Pitch changes the field, a turn about the main field does not; the shims stay behind."""
    magnetised = Magnetised(SyntheticHead(0), voxel_size=6.0)
    brain = apply_affine(magnetised.head.affine, np.argwhere(magnetised.head.brain)[::7])
    rest = magnetised.hertz().spline.sample(brain)
    assert abs(rest.mean()) < 3
    assert 8 < rest.std() < 40
    pitch, yaw = (exp_rigid(np.r_[0, 0, 0, np.deg2rad(turn)], np.zeros(3))
                  for turn in ((5, 0, 0), (0, 0, 5)))  # fmt: skip
    changed = magnetised.hertz(pitch).spline.sample(brain) - rest
    same = magnetised.unshimmed(yaw).spline.sample(brain) - magnetised.unshimmed().spline.sample(
        brain
    )
    assert 3 < changed.std() < 25
    assert same.std() < 0.01


def test_the_field_of_a_pose_is_that_of_its_dipoles():
    """The twin multiplies the spectrum of the head by the kernel of dipoles along the field."""
    magnetised = Magnetised(SyntheticHead(2), strength=0.8, voxel_size=8.0)
    shape, affine = magnetised.grid.shape, magnetised.grid.affine
    points = grid_points(shape, affine)
    pose = exp_rigid(np.r_[4, -2, 6, np.deg2rad([14, -9, 20])], np.array([0, -20, -60.0]))
    main = pose[:3, :3].T @ [0, 0, 1]
    k = np.stack(np.meshgrid(*[np.fft.fftfreq(shape[0])] * 2, np.fft.rfftfreq(shape[0]),
                             indexing="ij"))  # fmt: skip
    kernel = 1 / 3 - np.tensordot(main, k, 1) ** 2 / np.maximum((k**2).sum(0), 1e-12)
    kernel[0, 0, 0] = 0
    matter = magnetised.head.matter_at(points).reshape(shape)
    field = np.fft.irfftn(kernel * np.fft.rfftn(matter), shape, axes=(0, 1, 2))
    hertz = -9.4e-6 * 0.8 * 3 * 42.577478518e6 * field
    np.testing.assert_allclose(magnetised.unshimmed(pose).data, hertz, atol=2e-3)
    shims = shim_terms(apply_affine(pose, points)) @ magnetised.shims
    np.testing.assert_allclose(magnetised.hertz(pose).data, hertz - shims.reshape(shape),
                               atol=5e-3)  # fmt: skip


def test_the_scanner_adds_up_what_each_cell_records():
    """The twin cuts each cell into a thousand."""
    grid, rest = Grid((1, 3, 12), np.diag([2.0, 2.0, 2.0, 1.0])), View(0.0, np.zeros(3), np.eye(4))
    cells = np.random.default_rng(0).uniform(50, 100, (24, 3, 1)).astype(np.float32)

    class Cells:
        shape, affine, white_signal, brain = (1, 3, 24), np.diag([2.0, 2, 1, 1]), 1.0, None

        def signal_at(self, points, bval, bvec):
            at = np.floor(points[:, 2] + 1).astype(int)  # mm from the face of the first voxel
            return cells[at, np.round(points[:, 1] / 2).astype(int), 0]

        def signal(self, bval, bvec):
            raise NotImplementedError

    z = np.arange(-30, 60, 1.0)
    wavy = np.tile((30 * np.sin(z / 1.5)).astype(np.float32), (8, 8, 1))
    affine = np.eye(4)
    affine[:3, 3] = -3, -3, -30
    hertz = Image(wavy, affine)
    readout = Readout.of(grid.affine, "k", 0.04)
    found = pushed_means(Cells(), rest, grid, hertz, readout)
    edges = np.arange(-1, 23 + 1e-9, 0.5)  # of the cells, mm
    shifted = edges + readout.mm_per_hertz * hertz.spline.sample(
        np.stack([0 * edges, 0 * edges, edges], axis=1)
    )
    assert (np.diff(shifted) < 0).any()  # folded somewhere
    assert np.abs(np.diff(shifted)).max() > 2 * 0.5  # stretched elsewhere
    expected = np.zeros((3, 12))
    for start, stop, first in zip(shifted[:-1], shifted[1:], edges[:-1], strict=True):
        places = start + (np.arange(1000) + 0.5) / 1000 * (stop - start)
        voxels = np.floor((places + 1) / 2).astype(int)
        for voxel in voxels[(voxels >= 0) & (voxels < 12)]:
            expected[:, voxel] += cells[int(np.floor(first + 1)), :, 0] / 4 / 1000
    np.testing.assert_allclose(found[0], expected, atol=0.3)


def test_phases_become_hertz():
    pytest.importorskip("skimage")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    x, y, z = np.indices((24, 24, 20))
    hertz = 12 * (x - 12) + 3.0 * (y - 12) + 30
    magnitude = Image((((x - 12) ** 2 + (y - 12) ** 2 + (z - 10) ** 2) < 80) * 900.0, affine)
    early, late = (2 * np.pi * hertz * time for time in (0.00492, 0.00738))
    wrap = [np.angle(np.exp(1j * phase)) for phase in (early, late)]
    stored = [np.round(4096 * phase / np.pi) for phase in wrap]
    difference = phase_difference(*(radians(phase, "x") for phase in stored))
    found = MeasuredMap.of_phases(Image(difference, affine), magnitude, 0.00246)
    period = 1 / 0.00246
    assert found.known.sum() > 300
    left = found.hertz.data[found.known] - hertz[found.known]
    np.testing.assert_allclose(left, np.round(left.mean() / period) * period, atol=1.0)
    assert abs(np.median(found.hertz.data[found.known])) < period / 2


def test_what_is_dark_in_the_magnitude_says_little():
    """Its phases are noise; the magnitude lies on a grid of its own."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    x, y, _ = np.indices((24, 24, 20))
    hertz, dark = (2.0 * x - 3.0 * y + 10).astype(np.float32), x // 2 == 6
    noisy = hertz + dark * np.random.default_rng(0).normal(30, 100, hertz.shape)
    finer = np.diag([2.0, 2.0, 2.0, 1.0])
    finer[:3, 3] = -1
    shown = np.kron(np.where(dark, 12.0, 400.0), np.ones((2, 2, 2))).astype(np.float32)
    measured = MeasuredMap(Image(noisy.astype(np.float32), affine), np.ones(hertz.shape, bool),
                           Image(shown, finer))  # fmt: skip
    wrong = measured.field().on_grid(hertz.shape, affine) - hertz
    assert np.sqrt(np.mean(wrong**2)) < 4
    blind = MeasuredMap(measured.hertz, measured.known)
    assert np.sqrt(np.mean((blind.field().on_grid(hertz.shape, affine) - hertz) ** 2)) > 15


@pytest.mark.parametrize(
    ("stored", "tolerance"),
    [
        (lambda phase: np.round((phase + np.pi) / (2 * np.pi) * 4095), 4e-3),  # Siemens
        (lambda phase: np.round(phase / np.pi * 2048) * 2, 3e-3),  # from -4096 on
        (lambda phase: np.round(phase * 1000), 3e-3),  # GE: thousandths of a radian
        (np.rad2deg, 3e-3),
        (lambda phase: phase, 1e-6),
    ],
)
def test_the_phase_zero_is_found_in_whatever_a_scanner_writes(stored, tolerance):
    phase = np.linspace(-np.pi, np.pi, 3001)[:-1]
    np.testing.assert_allclose(radians(stored(phase), "x"), phase, atol=tolerance)


@pytest.mark.parametrize(
    ("units", "factor"), [("Hz", 1), ("rad/s", 1 / (2 * np.pi)), ("T", 42.577478518e6)]
)
def test_units_of_a_map(units, factor):
    values = Image(np.full((4, 4, 4), 3.0, np.float32), np.eye(4))
    found = MeasuredMap.in_units(values, units).hertz.data
    np.testing.assert_allclose(found, 3 * factor, rtol=1e-6)
    with pytest.raises(EddymotionError, match="expected Hz, rad/s or T"):
        MeasuredMap.in_units(values, "ppm")


def written_pair(folder, **sidecar):
    paths = []
    for name, direction, one in zip(("AP", "PA"), ("j-", "j"), coarse_pair(), strict=True):
        path = folder / f"sub-1_dir-{name}_epi.nii.gz"
        write_image(path, one.image.data, one.image.affine)
        known = {"PhaseEncodingDirection": direction, "TotalReadoutTime": 0.04, **sidecar}
        text = json.dumps({key: value for key, value in known.items() if value is not None})
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(text)
        paths.append(str(path))
    return paths


def test_the_command_writes_field_images_and_page(tmp_path, capsys):
    paths = written_pair(tmp_path)
    out = tmp_path / "out"
    assert main([*paths, "-o", str(out), "--fsl-outputs"]) == 0
    names = {path.name for path in out.iterdir()}
    stem = "sub-1_fmapid-auto00000"
    topup = [out / f"{stem}_topup_{end}" for end in
             ("fieldcoef.nii.gz", "movpar.txt", "acqparams.txt")]  # fmt: skip
    hertz, affine, _ = read_image(out / f"{stem}_desc-preproc_fieldmap.nii.gz")
    read = topup_field(topup[0], hertz.shape, affine).on_grid(hertz.shape, affine)
    np.testing.assert_allclose(read, hertz, atol=1e-2)
    assert topup[2].read_text() == "0 -1 0 0.04\n0 1 0 0.04\n"
    assert names == {
        *(path.name for path in topup),
        *(f"{stem}_desc-{kind}_fieldmap{end}" for kind in ("preproc", "coeff", "epi")
          for end in (".nii.gz", ".json")),
        f"{stem}_fieldmap.html", "sub-1_dir-AP_desc-preproc_epi.nii.gz",
        "sub-1_dir-PA_desc-preproc_epi.nii.gz",
    }  # fmt: skip
    summary = json.loads((out / f"{stem}_desc-preproc_fieldmap.json").read_text())
    assert summary["Units"] == "Hz"
    assert summary["Similarity"]["After"] > 0.95 > summary["Similarity"]["Before"]
    assert summary["Encodings"][0] == {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.04}
    page = (out / f"{stem}_fieldmap.html").read_text()
    assert page.count('em-moving">') == 3
    assert "<script" not in page
    said = capsys.readouterr().out
    assert "correlation" in said
    assert all(f"written: {path}\n" in said for path in topup)


def test_a_pair_without_readout_times_works_with_a_warning(tmp_path, caplog):
    paths = tuple(map(Path, written_pair(tmp_path, TotalReadoutTime=None)))
    inputs = read_inputs(FieldmapPaths(paths), FieldmapSettings())
    assert inputs.nominal
    assert "no TotalReadoutTime next to it" in caplog.text
    assert len({one.readout.mm_per_hertz for one in inputs.images}) == 1
    assert [one.name for one in inputs.images] == [path.name for path in paths]


@pytest.mark.parametrize(
    ("sidecar", "seconds"),
    [
        ({"EffectiveEchoSpacing": 5e-4, "ReconMatrixPE": 101}, 0.05),
        ({"EffectiveEchoSpacing": 5e-4}, 5e-4 * (coarse_pair()[0].image.data.shape[1] - 1)),
        ({"EstimatedTotalReadoutTime": 0.02, "EstimatedEffectiveEchoSpacing": 1e-4}, 0.02),
        ({"EstimatedEffectiveEchoSpacing": 5e-4, "ReconMatrixPE": 81}, 0.04),
        ({"EffectiveEchoSpacing": 5e-4, "ReconMatrixPE": 101, "EstimatedTotalReadoutTime": 1e-3},
         0.05),
        ({"EffectiveEchoSpacing": 0.5, "ReconMatrixPE": 101}, None),  # milliseconds
        ({"EffectiveEchoSpacing": 5e-4, "ReconMatrixPE": 1}, None),
    ],
)  # fmt: skip
def test_a_readout_time_follows_from_other_fields(sidecar, seconds, tmp_path, caplog):
    """As BIDS defines it, and as dcm2niix estimates it where the scanner does not store it."""
    paths = written_pair(tmp_path, TotalReadoutTime=None, **sidecar)
    assert read_times(paths) == pytest.approx([seconds, seconds])
    assert ("no TotalReadoutTime" in caplog.text) == (seconds is None)
    image, affine, _ = read_image(Path(paths[0]))
    gradients = Gradients(np.zeros(1), np.zeros((1, 3)))
    metadata = {"PhaseEncodingAxis": "j", **sidecar}
    found = acquisition_of(gradients, metadata, image.shape, affine, None, "sub-1").readout_times
    assert (None if found is None else found.tolist()) == pytest.approx(seconds and [seconds])
    stated = metadata | {"TotalReadoutTime": 0.03}
    found = acquisition_of(gradients, stated, image.shape, affine, None, "sub-1").readout_times
    assert found.tolist() == [0.03]


def test_readout_times_that_differ_leave_none_for_another_image(tmp_path):
    """All images had that of the first of them."""
    paths = [*written_pair(tmp_path), str(tmp_path / "third.nii.gz")]
    shutil.copy(paths[0], paths[2])
    (tmp_path / "third.json").write_text('{"PhaseEncodingDirection": "i"}')
    assert read_times(paths) == [0.04, 0.04, 0.04]
    other = '{"PhaseEncodingDirection": "j", "TotalReadoutTime": 0.03}'
    (tmp_path / "sub-1_dir-PA_epi.json").write_text(other)
    with pytest.raises(EddymotionError, match=r"third.*no TotalReadoutTime .*0\.03 and 0\.04 s"):
        read_times(paths)


def test_a_mask_counts_whichever_way_its_axes_are_stored(tmp_path):
    paths = tuple(map(Path, written_pair(tmp_path)))
    image = coarse_pair()[0].image
    brain = image.data > np.median(image.data)
    flipped = image.affine @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] += image.affine[:3, 0] * (image.data.shape[0] - 1)
    for name, data, affine in (("as", brain, image.affine), ("back", brain[::-1], flipped)):
        write_image(tmp_path / f"{name}.nii.gz", data.astype(np.uint8), affine)
        files = FieldmapPaths(paths, mask=tmp_path / f"{name}.nii.gz")
        np.testing.assert_array_equal(read_inputs(files, FieldmapSettings()).mask, brain)
    write_image(tmp_path / "none.nii.gz", 0 * brain.astype(np.uint8), image.affine)
    with pytest.raises(EddymotionError, match="marks no voxel"):
        read_inputs(FieldmapPaths(paths, mask=tmp_path / "none.nii.gz"), FieldmapSettings())


def read_times(paths):
    inputs = read_inputs(FieldmapPaths(tuple(map(Path, paths))), FieldmapSettings())
    return [encoding["TotalReadoutTime"] for encoding in inputs.encodings]


@pytest.mark.parametrize(
    ("sidecar", "arguments", "words"),
    [
        ({}, ["A"], "one image alone does not show its distortion"),
        ({"PhaseEncodingDirection": "j"}, ["A", "B"], "same phase encoding in space"),
        ({"PhaseEncodingDirection": None, "PhaseEncodingAxis": "j"}, ["A", "B"],
         "PhaseEncodingAxis j does not give the polarity"),
        ({"TotalReadoutTime": None}, ["A", "--fieldmap", "B", "--units", "Hz"],
         "add it to the sidecar"),
        ({"TotalReadoutTime": None}, ["A", "B", "--fsl-outputs"], "give --readout-time"),
        ({}, ["A", "--fieldmap", "B"], "no Units next to it"),
        ({}, ["A", "--fieldmap", "B", "--units", "ppm"], "expected Hz, rad/s or T"),
        ({}, ["A", "--phasediff", "B"], "no EchoTime1 next to it"),
        ({}, ["A", "--phase1", "B"], "needed together"),
        ({}, ["A", "B", "--magnitude", "B"], "applies to a measured map"),
        ({}, ["A", "B", "--pe-axis", "j"], "--pe-axis: 1 given, expected one for each of the 2"),
        ({}, ["A", "B", "--pe-axis", "x", "j"], "invalid choice"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_in_one_line(tmp_path, capsys, sidecar, arguments, words):
    a, b = written_pair(tmp_path, **sidecar)
    call = [{"A": a, "B": b}.get(word, word) for word in arguments]
    try:
        code = main([*call, "-o", str(tmp_path / "out")])
    except SystemExit as ended:
        code = ended.code
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert code == 2
    assert len(said) == 1
    assert words in said[0]
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.slow
def test_runs_of_opposite_polarity_are_simulated(tmp_path, capsys):
    """The head and its field are the same, the noise is not; the sidecars say what is what."""
    (tmp_path / "t.bval").write_text("0 700 700\n")
    (tmp_path / "t.bvec").write_text("0 1 0\n0 0 1\n0 0 0\n")
    images = []
    for label, axis in (("AP", "j-"), ("PA", "j")):
        call = ["--head", "synthetic", "--susceptibility", "0.7", "--voxel-size", "8",
                "--bval", str(tmp_path / "t.bval"), "--bvec", str(tmp_path / "t.bvec"),
                "--direction", label, "--pe-axis", axis, "--motion", "none"]  # fmt: skip
        assert simulate_main([str(tmp_path / "sim"), *call]) == 0
        stem = tmp_path / "sim" / "sub-01" / "dwi" / f"sub-01_dir-{label}_dwi"
        sidecar = json.loads(stem.with_suffix(".json").read_text())
        assert sidecar["PhaseEncodingDirection"] == axis
        assert sidecar["TotalReadoutTime"] == 0.05
        images.append(read_image(stem.with_suffix(".nii.gz"))[0][..., 0])
    fields = [read_image(tmp_path / "sim" / "truth" / f"sub-01_dir-{label}_fieldmap.nii.gz")[0]
              for label in ("AP", "PA")]  # fmt: skip
    np.testing.assert_array_equal(*fields)
    assert fields[0].std() > 10
    assert np.corrcoef(*(image.ravel() for image in images))[0, 1] < 0.97
    with pytest.raises(SystemExit, match="2"):
        simulate_main([str(tmp_path / "other"), "--susceptibility", "1"])
    assert "add --head synthetic" in capsys.readouterr().err

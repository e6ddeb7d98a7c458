# SPDX-License-Identifier: Apache-2.0
"""Registration of simulated pairs: our own engine, starts, names and refusals."""

import json

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.mapping.rigid import exp_rigid, target_registration_error
from eddymotion.registration import (
    GaussNewton,
    Level,
    Registrar,
    get_registrar,
    initial_transform,
    registrar_names,
)
from eddymotion.registration.gauss_newton import COARSE_TO_FINE, REFINE, steps_at
from eddymotion.registration.groups import GROUPS
from eddymotion.registration.initial import even_rotations
from eddymotion.registration.metrics import METRICS, HistogramFit, Windows, build_fit
from eddymotion.testing import RegistrarConformance, known_pair
from eddymotion.testing.pairs import cropped, pose, speckled_pair
from eddymotion.testing.registration import TRUTHS, pair_for

ONE_WAY = GaussNewton(symmetric=False)
REMAPS = {
    "inverted": lambda signal: np.where(signal > 100, 1700 - signal, 0),
    "folded": lambda signal: 1000 * np.sin(np.pi * np.minimum(signal, 1500) / 1700) ** 2,
}


class TestGaussNewton(RegistrarConformance):
    tolerance_mm = 0.2
    rigid_metrics = METRICS

    @pytest.fixture
    def registrar(self):
        return GaussNewton()


def inverse_gap(one, other, points):
    """Largest distance (mm) between a matrix and the inverse of another."""
    return target_registration_error(np.linalg.inv(other.matrix), one.matrix, points).max()


@pytest.mark.parametrize(
    ("millimetres", "degrees"),
    [([20, 0, 0], [0, 0, 0]), ([0, 0, -20], [0, 0, 0]), ([0, 0, 0], [20, 0, 0]),
     ([0, 0, 0], [0, 0, -20]), ([11, -12, 11.5], [11, 12, -11])],
)  # fmt: skip
def test_large_motion_is_recovered_from_identity(millimetres, degrees):
    pair = known_pair(pose(millimetres, degrees), margin=6)
    found = ONE_WAY.register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask)
    assert found.converged, found.message
    assert pair.error(found) < 0.2


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_known_case_of_digital_image_correlation(noise):
    pair = speckled_pair(voxels=(0, 3, 2.5), degrees=(3, 0, 0), noise=noise)
    found = GaussNewton().register(pair.fixed, pair.moving)
    center = (np.array(pair.fixed.data.shape) - 1) / 2
    moved = apply_affine(found.matrix, center) - center
    turned = Rotation.from_matrix(found.matrix[:3, :3]).as_rotvec(degrees=True)
    np.testing.assert_allclose(moved, [0, 3, 2.5], atol=0.05)
    np.testing.assert_allclose(turned, [3, 0, 0], atol=0.05)


@pytest.fixture(scope="module", params=REMAPS)
def remapped(request):
    return known_pair(TRUTHS["rigid"], remap=REMAPS[request.param])


@pytest.mark.parametrize("metric", ["lncc", "cr", "mi", "nmi"])
def test_contrast_may_be_another(remapped, metric):
    pair = remapped
    found = ONE_WAY.register(pair.fixed, pair.moving, metric=metric, fixed_mask=pair.fixed_mask)
    assert pair.error(found) < 0.35, found.message


@pytest.mark.parametrize(
    ("transform", "metric"),
    [("similarity", "lncc"), ("similarity", "mi"), ("affine", "lncc"), ("affine", "cr"),
     ("affine", "nmi")],
)  # fmt: skip
@pytest.mark.slow
def test_metrics_find_more_than_rigid_motion(transform, metric):
    pair = pair_for(transform)
    found = GaussNewton().register(
        pair.fixed, pair.moving, transform=transform, metric=metric, fixed_mask=pair.fixed_mask
    )
    assert pair.error(found) < 0.3, found.message


@pytest.mark.parametrize("metric", METRICS)
def test_step_of_each_metric_leads_to_where_the_values_agree(metric):
    random = np.random.default_rng(0)
    values = np.sin(np.arange(9600) / 7.0) + 0.3 * random.normal(size=9600)
    columns = random.normal(size=(9600, 3))
    shift = np.array([0.02, -0.04, 0.03])
    target = 50.0 * (values + columns @ shift) + 3.0 * random.normal(size=9600)
    fit = build_fit(metric, values, columns, target)
    found = fit.evaluate(target)
    np.testing.assert_allclose(found.step(), shift, atol=0.01)
    assert (np.linalg.eigvalsh(found.hessian) > 0).all()
    exact = build_fit(metric, values + columns @ shift, columns, target).evaluate(target)
    assert exact.cost < found.cost
    assert np.abs(exact.slope).max() < 0.2 * np.abs(found.slope).max()


@pytest.mark.parametrize("normalised", [True, False])
def test_slope_of_information_is_exact(normalised):
    random = np.random.default_rng(0)
    values = random.normal(size=3000)
    target = np.cos(values) + 0.3 * random.normal(size=3000)
    columns = random.normal(size=(3000, 1))
    windows, bins = Windows.over(values, 16), Windows.over(target, 16)

    def at(step):
        moved = values + step * columns[:, 0]
        weights = [windows.weights(moved, order) for order in range(3)]
        return HistogramFit(*weights, columns, bins, normalised).evaluate(target)

    numeric = (at(1e-2).cost - at(-1e-2).cost) / 2e-2
    assert at(0.0).slope[0] == pytest.approx(numeric, rel=0.01)


@pytest.mark.parametrize("transform", GROUPS)
def test_wide_levels_take_the_steps_that_their_images_show(transform):
    group = GROUPS[transform]
    wide = [steps_at(level, group).name for level in COARSE_TO_FINE]
    assert wide == ["shift", "rigid", *([transform] * 3)]


@pytest.mark.parametrize("transform", GROUPS)
def test_reversed_step_is_the_step_of_the_inverse(transform):
    group, matrix = GROUPS[transform], TRUTHS[transform]
    here, there = np.array([10.0, -20.0, 30.0]), np.array([-5.0, 15.0, 8.0])
    step = 1e-5 * np.arange(1, group.basis.shape[1] + 1)
    reversal = group.reversal(matrix, here, there)
    inverse = np.linalg.inv(matrix @ group.exp(step, here))
    expected = np.linalg.inv(matrix) @ group.exp(reversal @ step, there)
    np.testing.assert_allclose(inverse, expected, atol=2e-6)


@pytest.fixture(scope="module")
def unlike_grids():
    return known_pair(TRUTHS["affine"], moving_voxel_sizes=(3.5, 4.0, 5.0))


@pytest.mark.parametrize(
    ("metric", "masked"),
    [("ssd", True), ("ssd", False), ("lncc", False), ("cr", True), ("mi", False), ("nmi", True)],
)
@pytest.mark.slow
def test_exchanged_images_give_the_inverse(unlike_grids, metric, masked):
    pair = unlike_grids
    masks = {"fixed_mask": pair.fixed_mask, "moving_mask": pair.moving_mask} if masked else {}
    swapped = dict(zip(masks, reversed(masks.values()), strict=True))
    engine = GaussNewton()
    one = engine.register(pair.fixed, pair.moving, transform="affine", metric=metric, **masks)
    other = engine.register(pair.moving, pair.fixed, transform="affine", metric=metric, **swapped)
    assert inverse_gap(one, other, pair.points) < 0.05
    assert pair.error(one) < 0.3


def test_one_way_is_not_inverse_consistent_but_as_accurate():
    pair = pair_for("rigid")
    one = ONE_WAY.register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask)
    other = ONE_WAY.register(pair.moving, pair.fixed, fixed_mask=pair.moving_mask)
    assert inverse_gap(one, other, pair.points) > 1e-3
    assert pair.error(one) < 0.2


@pytest.mark.parametrize("metric", ["ssd", "lncc", "nmi"])
def test_fields_of_view_may_be_cropped_and_overlap_in_part(metric):
    pair = pair_for("rigid")
    fixed, fixed_mask = cropped(pair.fixed, pair.fixed_mask, 2, slice(0, 28))
    moving, moving_mask = cropped(pair.moving, pair.moving_mask, 2, slice(14, None))
    found = GaussNewton().register(
        fixed, moving, metric=metric, fixed_mask=fixed_mask, moving_mask=moving_mask
    )
    assert pair.error(found) < 0.4, found.message


def test_exchanged_images_give_the_inverse_where_they_overlap_in_part():
    pair = pair_for("rigid")
    fixed, _ = cropped(pair.fixed, pair.fixed_mask, 2, slice(0, 28))
    moving, _ = cropped(pair.moving, pair.moving_mask, 2, slice(14, None))
    one = GaussNewton().register(fixed, moving, metric="cr")
    other = GaussNewton().register(moving, fixed, metric="cr")
    assert inverse_gap(one, other, pair.points) < 0.05
    assert pair.error(one) < 0.3, one.message


def test_intensity_scale_and_offset_do_not_matter():
    pair = pair_for("rigid")
    plain = ONE_WAY.register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask)
    for scale, offset in ((5.0, 0.0), (0.02, 300.0), (-1.0, 2000.0)):
        other = Image(scale * pair.moving.data + np.float32(offset), pair.moving.affine)
        found = ONE_WAY.register(pair.fixed, other, fixed_mask=pair.fixed_mask)
        assert target_registration_error(found.matrix, plain.matrix, pair.points).max() < 0.01


def test_flipped_axes_change_nothing_but_the_sampling():
    pair = pair_for("rigid")
    plain = GaussNewton().register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask)
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = pair.fixed.data.shape[0] - 1
    fixed = Image(pair.fixed.data[::-1], pair.fixed.affine @ flip)
    found = GaussNewton().register(fixed, pair.moving, fixed_mask=pair.fixed_mask[::-1])
    assert target_registration_error(found.matrix, plain.matrix, pair.points).max() < 0.15


def test_seeds_agree():
    pair = pair_for("rigid")
    found = [
        ONE_WAY.register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask, seed=seed).matrix
        for seed in (0, 1, 2)
    ]
    for other in found[1:]:
        assert target_registration_error(other, found[0], pair.points).max() < 0.15


def test_start_near_the_answer_needs_only_the_finest_level():
    pair = pair_for("rigid")
    near = pair.truth @ pose([0.5, -0.5, 0.3], [0.3, 0.4, -0.3])
    engine = GaussNewton(levels=REFINE, symmetric=False)
    found = engine.register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask, init=near)
    assert pair.error(found) < 0.2


def test_rigid_result_of_an_affine_start_is_rigid():
    pair = pair_for("rigid")
    stretched = pair.truth @ pose([0, 0, 0], [0, 0, 0], zoom=1.05, shears=(0.02, 0, 0))
    found = GaussNewton().register(
        pair.fixed, pair.moving, fixed_mask=pair.fixed_mask, init=stretched
    )
    assert pair.error(found) < 0.2


def test_result_tells_in_words_and_numbers_how_it_ended():
    pair = pair_for("rigid")
    good = ONE_WAY.register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask)
    assert good.message.startswith("converged: last step ")
    assert "mm" in good.message
    assert f"after {good.n_iterations} iterations" in good.message
    assert good.cost[-1] <= good.cost[0]
    hasty = GaussNewton(max_iterations=1).register(
        pair.fixed, pair.moving, fixed_mask=pair.fixed_mask
    )
    assert not hasty.converged
    assert "iteration limit" in hasty.message


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_many_starts_recover_40_degrees_and_60_mm(seed):
    random = np.random.default_rng(seed)
    axis, way = (v / np.linalg.norm(v) for v in random.normal(size=(2, 3)))
    truth = exp_rigid(np.concatenate([60 * way, np.deg2rad(40) * axis]), np.zeros(3))
    pair = known_pair(truth)  # the moved head leaves the field of view in part
    start = initial_transform(pair.fixed, pair.moving, "multi")
    found = GaussNewton().register(pair.fixed, pair.moving, init=start)
    assert pair.error(found) < 0.3, found.message


def test_starts_from_header_mass_and_axes():
    pair = known_pair(pose([30, -20, 25], [20, 0, -150]), margin=14)
    start = {
        method: pair.error(initial_transform(pair.fixed, pair.moving, method))
        for method in ("header", "mass", "axes")
    }
    middle = pair.points.mean(axis=0)[None]
    mass = initial_transform(
        pair.fixed, pair.moving, "mass", fixed_mask=pair.fixed_mask, moving_mask=pair.moving_mask
    )
    np.testing.assert_array_equal(initial_transform(pair.fixed, pair.moving, "header"), np.eye(4))
    assert target_registration_error(mass, pair.truth, middle).max() < 2.0
    assert start["axes"] < 15.0 < start["mass"] < start["header"]
    with pytest.raises(EddymotionError, match="did you mean 'mass'"):
        initial_transform(pair.fixed, pair.moving, "masses")


def test_rotations_of_the_many_starts_leave_no_gap():
    starts = Rotation.from_matrix(even_rotations(800))
    anywhere = Rotation.random(200, random_state=0)
    gaps = [np.rad2deg((starts * one.inv()).magnitude().min()) for one in anywhere]
    assert max(gaps) < 30


def test_names_and_settings_files_become_registrars(tmp_path):
    assert registrar_names()[:4] == ("gauss-newton", "dipy", "ants", "elastix")
    assert get_registrar("gauss-newton") == GaussNewton()
    assert isinstance(get_registrar("gauss-newton"), Registrar)
    path = tmp_path / "settings.json"
    path.write_text(
        json.dumps(
            {"levels": [{"fwhm": 8, "n_points": 500}], "max_iterations": 3, "symmetric": False}
        )
    )
    expected = GaussNewton(levels=(Level(8, 500),), max_iterations=3, symmetric=False)
    assert get_registrar("gauss-newton", path) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"tolerence": 1}', r"settings\.json: unknown key 'tolerence'; did you mean 'tolerance'"),
        ('{"levels": [{"fwmh": 1, "n_points": 500}]}', "'fwmh' of a level; did you mean 'fwhm'"),
        ('{"levels": [{"fwhm": 1}]}', "needs both fwhm and n_points"),
        ('{"levels": 3}', "must be a list"),
        ("[1]", "expected a JSON object"),
        ("{", "cannot be read as JSON"),
        ('{"tolerance": -1}', "above zero"),
        ('{"symmetric": "yes"}', "expected true or false"),
        ('{"levels": [{"fwhm": 8, "n_points": 5}]}', "at least 100"),
    ],
)
def test_bad_settings_are_named(tmp_path, text, words):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(EddymotionError, match=words):
        get_registrar("gauss-newton", path)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(EddymotionError, match=r"'ant' is unknown; did you mean 'ants'\? use one"):
        get_registrar("ant")
    with pytest.raises(EddymotionError, match="use one of gauss-newton, dipy, ants, elastix"):
        get_registrar("flirt")


THEIRS = """
from eddymotion.registration import GaussNewton

class Engine:
    transforms, metrics = ("rigid",), ("ssd",)

    def register(self, fixed, moving, **options):
        return GaussNewton().register(fixed, moving, **options)
"""


def test_other_packages_add_theirs_by_entry_point(monkeypatch, tmp_path):
    distribution = tmp_path / "their_engines-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: their-engines\n")
    (distribution / "entry_points.txt").write_text(
        "[eddymotion.registrars]\ntheirs = their_engines:Engine\n"
        "broken = no_such_package_anywhere:Engine\nwrong = json:JSONDecoder\n"
    )
    (tmp_path / "their_engines.py").write_text(THEIRS)
    assert "theirs" not in registrar_names()
    monkeypatch.syspath_prepend(tmp_path)
    assert {"broken", "theirs", "wrong"} <= set(registrar_names())
    pair = pair_for("rigid")
    found = get_registrar("theirs").register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask)
    assert pair.error(found) < 0.2
    for name, words in (("broken", "no_such_package"), ("wrong", "lacks register")):
        with pytest.raises(EddymotionError, match=words):
            get_registrar(name)
    with pytest.raises(EddymotionError, match="takes no settings file"):
        get_registrar("theirs", tmp_path / "settings.json")

"""Registration of simulated pairs."""

import json

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import binary_erosion
from scipy.spatial.transform import Rotation

from eddymotion.dataset import Image
from eddymotion.errors import EddymotionError
from eddymotion.geometry import rigid_matrix, target_registration_error
from eddymotion.registration import GaussNewton, Level, Registrar, get_registrar
from eddymotion.registration.gauss_newton import REFINE
from eddymotion.simulation import Grid

ORIGIN = np.zeros(3)


def pose(millimetres, degrees):
    return rigid_matrix(np.array(millimetres, float), np.deg2rad(degrees), ORIGIN)


SMALL = pose([2, -1.5, 1], [2, 1, -3])


def padded(grid, voxels):
    affine = grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, voxels)
    return Grid(tuple(n + 2 * voxels for n in grid.shape), affine)


def surface(mask, affine):
    return apply_affine(affine, np.argwhere(mask & ~binary_erosion(mask)))


def worst_error(found, true, mask, affine):
    return target_registration_error(found, true, surface(mask, affine)).max()


@pytest.fixture(scope="module")
def fine_grid(head):
    return padded(Grid.covering(head, 3.0), 8)


@pytest.fixture(scope="module")
def small_pair(b0_pair, fine_grid):
    return b0_pair(SMALL, fine_grid, fine_grid)


@pytest.mark.parametrize(
    ("millimetres", "degrees"),
    [([20, 0, 0], [0, 0, 0]), ([0, 0, -20], [0, 0, 0]), ([0, 0, 0], [20, 0, 0]),
     ([0, 0, 0], [0, 0, -20]), ([11, -12, 11.5], [11, 12, -11])],
)  # fmt: skip
def test_large_motion_is_recovered_from_identity(b0_pair, fine_grid, millimetres, degrees):
    true = pose(millimetres, degrees)
    fixed, moving, mask = b0_pair(true, fine_grid, fine_grid)
    found = GaussNewton().register(fixed, moving, fixed_mask=mask)
    assert found.converged, found.message
    assert worst_error(found.matrix, true, mask, fixed.affine) < 0.1


def test_grids_may_be_oblique_anisotropic_and_different(head, b0_pair, fine_grid):
    turn = Rotation.from_euler("xyz", [12, -20, 15], degrees=True).as_matrix()
    other = padded(Grid.covering(head, (2.5, 3.0, 4.0), "PSL", turn), 3)
    fixed, moving, mask = b0_pair(SMALL, fine_grid, other)
    found = GaussNewton().register(fixed, moving, fixed_mask=mask)
    assert worst_error(found.matrix, SMALL, mask, fixed.affine) < 0.1


def test_intensity_scale_and_offset_do_not_matter(small_pair):
    fixed, moving, mask = small_pair
    plain = GaussNewton().register(fixed, moving, fixed_mask=mask)
    for scale, offset in ((5.0, 0.0), (0.02, 300.0), (-1.0, 2000.0)):
        other = Image(scale * moving.data + np.float32(offset), moving.affine)
        found = GaussNewton().register(fixed, other, fixed_mask=mask)
        assert worst_error(found.matrix, plain.matrix, mask, fixed.affine) < 0.01


def test_seeds_agree_and_the_same_seed_repeats(small_pair):
    fixed, moving, mask = small_pair
    registrar = GaussNewton()
    first = registrar.register(fixed, moving, fixed_mask=mask, seed=0)
    again = registrar.register(fixed, moving, fixed_mask=mask, seed=0)
    np.testing.assert_array_equal(first.matrix, again.matrix)
    for seed in (1, 2):
        other = registrar.register(fixed, moving, fixed_mask=mask, seed=seed)
        assert worst_error(other.matrix, first.matrix, mask, fixed.affine) < 0.06


def test_start_near_the_answer_needs_only_the_finest_level(small_pair):
    fixed, moving, mask = small_pair
    near = SMALL @ pose([0.5, -0.5, 0.3], [0.3, 0.4, -0.3])
    found = GaussNewton(levels=REFINE).register(fixed, moving, fixed_mask=mask, init=near)
    assert worst_error(found.matrix, SMALL, mask, fixed.affine) < 0.1


def test_result_tells_in_words_and_numbers_how_it_ended(small_pair):
    fixed, moving, mask = small_pair
    good = GaussNewton().register(fixed, moving, fixed_mask=mask)
    assert good.message.startswith("converged: last step ")
    assert "mm" in good.message
    assert f"after {good.n_iterations} iterations" in good.message
    assert good.cost[-1] <= good.cost[0]
    hasty = GaussNewton(max_iterations=1).register(fixed, moving, fixed_mask=mask)
    assert not hasty.converged
    assert "iteration limit" in hasty.message


def test_images_that_do_not_overlap_say_so_and_keep_the_start(small_pair):
    fixed, moving, mask = small_pair
    away = moving.affine.copy()
    away[:3, 3] += 1000
    found = GaussNewton().register(fixed, Image(moving.data, away), fixed_mask=mask)
    assert not found.converged
    assert "do not overlap" in found.message
    np.testing.assert_array_equal(found.matrix, np.eye(4))


def test_callers_images_stay_unchanged(small_pair):
    fixed, moving, mask = small_pair
    before = fixed.data.copy(), moving.data.copy(), mask.copy()
    GaussNewton(levels=REFINE).register(fixed, moving, fixed_mask=mask)
    for array, copy in zip((fixed.data, moving.data, mask), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_names_and_settings_files_become_registrars(tmp_path):
    assert isinstance(get_registrar("gauss-newton"), Registrar)
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"levels": [{"fwhm": 8, "n_points": 500}], "max_iterations": 3}))
    expected = GaussNewton(levels=(Level(8, 500),), max_iterations=3)
    assert get_registrar("gauss-newton", path) == expected
    with pytest.raises(EddymotionError, match="use one of gauss-newton"):
        get_registrar("flirt")
    for text in ('{"speed": 1}', "[1]", "{", '{"levels": [{"sigma": 1}]}'):
        path.write_text(text)
        with pytest.raises(EddymotionError, match=r"settings\.json"):
            get_registrar("gauss-newton", path)

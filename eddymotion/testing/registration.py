# SPDX-License-Identifier: Apache-2.0
"""What every registration engine must do.

A test module of an engine reads ::

    class TestMine(RegistrarConformance):
        tolerance_mm = 0.3

        @pytest.fixture
        def registrar(self):
            return MyRegistrar()
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.registration import Registrar, Registration
from eddymotion.registration.base import TRANSFORMS
from eddymotion.testing.pairs import KnownPair, known_pair, pose

TRUTHS = {
    "rigid": pose([4, -3, 5], [4, -3, 5]),
    "similarity": pose([4, -3, 5], [4, -3, 5], zoom=1.05),
    "affine": pose([4, -3, 5], [4, -3, 5], zoom=1.03, shears=(0.03, -0.02, 0.03)),
    "syn": pose([2, -1, 2], [2, -1, 2], zoom=1.02, shears=(0.02, -0.01, 0.02)),
}


@lru_cache(maxsize=8)
def pair_for(transform: str) -> KnownPair:
    """Return the pair for a transform; made once, so leave it as it is."""
    return known_pair(TRUTHS[transform])


class RegistrarConformance:
    """Tests of an engine; subclass it and give the fixture ``registrar``.

    Attributes
    ----------
    tolerance_mm : float
        Largest error in the brain that is accepted, with voxels of 4 mm.
    warp_tolerance_mm : float
        The same for a nonlinear transform.
    rigid_metrics : tuple of str
        Metrics that are tried with a rigid transform; all that are offered when empty.
    skipped_transforms : tuple of str
        Those offered that are not tried (where they take too long, say).
    """

    tolerance_mm: float = 0.5
    warp_tolerance_mm: float = 4.0
    rigid_metrics: tuple[str, ...] = ()
    skipped_transforms: tuple[str, ...] = ()

    @pytest.fixture
    def registrar(self) -> Registrar:
        """Return the engine under test."""
        raise NotImplementedError("give the fixture `registrar` in the subclass")

    def test_it_is_a_registrar_and_says_what_it_offers(self, registrar: Registrar) -> None:
        """The protocol is met, with known names."""
        assert isinstance(registrar, Registrar)
        assert registrar.metrics
        assert set(registrar.transforms) <= set(TRANSFORMS)
        assert "rigid" in registrar.transforms

    @pytest.mark.parametrize("transform", TRANSFORMS)
    def test_known_truth_is_recovered(self, registrar: Registrar, transform: str) -> None:
        """Each transform finds what it can describe; rotations stay rotations."""
        if transform not in registrar.transforms or transform in self.skipped_transforms:
            pytest.skip(f"{transform} is not offered")
        pair = pair_for(transform)
        found = registrar.register(
            pair.fixed, pair.moving, transform=transform, fixed_mask=pair.fixed_mask
        )
        self.check_result(found)
        tolerance = self.warp_tolerance_mm if transform == "syn" else self.tolerance_mm
        assert pair.error(found) < tolerance, found.message
        there = found.map(pair.points)
        slip = np.linalg.norm(found.map(there, inverse=True) - pair.points, axis=1)
        assert slip.max() < (1.0 if transform == "syn" else 1e-6)
        if transform == "rigid":
            linear = found.matrix[:3, :3]
            np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-4)

    def test_metrics_agree(self, registrar: Registrar) -> None:
        """Whatever is minimised, the truth is the same."""
        pair = pair_for("rigid")
        for metric in self.rigid_metrics or registrar.metrics:
            found = registrar.register(
                pair.fixed, pair.moving, metric=metric, fixed_mask=pair.fixed_mask
            )
            assert pair.error(found) < self.tolerance_mm, (metric, found.message)

    def test_grids_may_be_oblique_anisotropic_and_different(self, registrar: Registrar) -> None:
        """World coordinates decide, not voxels."""
        turn = Rotation.from_euler("xyz", [12, -20, 15], degrees=True).as_matrix()
        pair = known_pair(
            TRUTHS["rigid"], orientation="LAS", moving_orientation="PSL",
            moving_voxel_sizes=(3.5, 4.0, 5.0), turn=turn,
        )  # fmt: skip
        found = registrar.register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask)
        assert pair.error(found) < 1.5 * self.tolerance_mm, found.message

    def test_origin_of_the_world_does_not_matter(self, registrar: Registrar) -> None:
        """A head far from the origin is found as well."""
        pair = pair_for("rigid")
        away = np.eye(4)
        away[:3, 3] = [300, -200, 400]
        moved = replace(
            pair,
            fixed=Image(pair.fixed.data, away @ pair.fixed.affine),
            moving=Image(pair.moving.data, away @ pair.moving.affine),
            truth=away @ pair.truth @ np.linalg.inv(away),
        )
        found = registrar.register(moved.fixed, moved.moving, fixed_mask=pair.fixed_mask)
        assert moved.error(found) < self.tolerance_mm, found.message

    def test_start_is_used(self, registrar: Registrar) -> None:
        """A pair that is farther apart than can be searched is found from a near start."""
        far = pose([60, -50, 45], [0, 0, 60])
        pair = pair_for("rigid")
        moved = replace(
            pair, moving=Image(pair.moving.data, far @ pair.moving.affine), truth=far @ pair.truth
        )
        near = moved.truth @ pose([2, 1, -2], [1, -2, 1])
        found = registrar.register(
            moved.fixed, moved.moving, init=near, fixed_mask=pair.fixed_mask
        )
        assert moved.error(found) < self.tolerance_mm, found.message

    def test_masks_hide_what_does_not_move_along(self, registrar: Registrar) -> None:
        """A bright object that stays in the scanner is ignored outside the masks."""
        pair = pair_for("rigid")
        fixed, moving = pair.fixed.data.copy(), pair.moving.data.copy()
        fixed[:4], moving[:4] = 6000.0, 6000.0
        found = registrar.register(
            Image(fixed, pair.fixed.affine), Image(moving, pair.moving.affine),
            fixed_mask=pair.fixed_mask, moving_mask=pair.moving_mask,
        )  # fmt: skip
        assert pair.error(found) < 1.5 * self.tolerance_mm, found.message

    def test_same_seed_repeats_and_callers_arrays_stay(self, registrar: Registrar) -> None:
        """A run can be repeated, and leaves its input alone."""
        pair = pair_for("rigid")
        arrays = pair.fixed.data, pair.moving.data, pair.fixed_mask
        before = [array.copy() for array in arrays]
        first, again = (
            registrar.register(pair.fixed, pair.moving, fixed_mask=pair.fixed_mask, seed=3)
            for _ in range(2)
        )
        np.testing.assert_allclose(again.matrix, first.matrix, atol=1e-5)
        for array, copy in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(array, copy)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"transform": "elastic"}, "'elastic'.*use one of"),
            ({"metric": "beauty"}, "'beauty'.*use one of"),
            ({"moving": "nan"}, "7 voxels of NaN"),
            ({"fixed": "constant"}, "constant"),
            ({"moving": "constant"}, "constant"),
            ({"moving": "thin"}, "at least 3 voxels"),
            ({"moving": "4-D"}, "dimensions"),
            ({"moving": "away"}, "do not overlap"),
            ({"fixed_mask": np.ones((3, 3, 3), bool)}, "mask has shape"),
            ({"moving_mask": "empty"}, "mask is empty"),
            ({"init": np.zeros((4, 4))}, "init is not"),
        ],
        ids=lambda value: str(value) if isinstance(value, str) else "-".join(value),
    )
    def test_bad_input_is_refused_in_words(
        self, registrar: Registrar, change: dict, words: str
    ) -> None:
        """Each is one clear error, before the engine starts."""
        pair = pair_for("rigid")
        arguments = {"fixed": pair.fixed, "moving": pair.moving, **change}
        for name in ("fixed", "moving", "moving_mask"):
            if isinstance(arguments.get(name), str):
                arguments[name] = _corrupted(pair.moving, arguments[name])
        with pytest.raises(EddymotionError, match=words):
            registrar.register(**arguments)

    def check_result(self, found: Registration) -> None:
        """Every field is what the protocol says."""
        assert found.matrix.shape == (4, 4)
        np.testing.assert_array_equal(found.matrix[3], [0, 0, 0, 1])
        assert np.isfinite(found.matrix).all()
        assert isinstance(found.converged, bool)
        assert len(found.message.split()) > 2
        assert np.isfinite(found.cost).all()


def _corrupted(image: Image, how: str) -> Image | np.ndarray:
    """Return what no engine can use."""
    data = image.data.copy()
    if how == "nan":
        data.flat[:7] = np.nan
    elif how == "constant":
        data[:] = 5.0
    elif how == "thin":
        data = data[:, :, :1]
    elif how == "4-D":
        data = np.stack([data, data], axis=3)
    elif how == "empty":
        return np.zeros(data.shape, bool)
    elif how == "away":
        away = np.eye(4)
        away[:3, 3] = apply_affine(image.affine, data.shape) + 5000.0
        return Image(data, away @ image.affine)
    return Image(data, image.affine)

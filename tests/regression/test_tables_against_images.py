# SPDX-License-Identifier: Apache-2.0
"""b-values that contradict the images are refused by volume, and the fitting reading is given."""

from dataclasses import replace

import numpy as np
import pytest

import eddymotion as em
from eddymotion.data.checks import find_issues
from eddymotion.data.checks.appearance import Appearance
from eddymotion.data.checks.labels import Labels
from eddymotion.data.checks.scales import scaled_vectors
from eddymotion.data.checks.tables import contradictions
from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.mapping.motion import Motion
from eddymotion.simulation import (
    SCHEMES,
    Grid,
    acquire,
    procedural_head,
    shelled_scheme,
    write_bids,
)


def labelled(dwi, bvals, bvecs=None):
    bvecs = dwi.gradients.bvecs if bvecs is None else bvecs
    return replace(dwi, gradients=Gradients(bvals, bvecs))


def only(dwi):
    (found,) = contradictions(dwi)
    assert found.certain
    return str(found)


def test_bright_volumes_without_direction_are_no_shell(moving):
    bvals = np.full(len(moving), 1000.0)
    b0s = moving.gradients.b0s
    assert f"volumes {', '.join(map(str, b0s))} are labelled b=1000 but as bright as b=0" in only(
        labelled(moving, bvals)
    )


@pytest.mark.parametrize("b0_is_lost", [True, False])
def test_one_volume_under_the_wrong_label_is_named(moving, b0_is_lost):
    bvals, b0s = moving.gradients.bvals.copy(), moving.gradients.b0s
    wrong = int(b0s[1] if b0_is_lost else moving.gradients.dwis[5])
    bvals[wrong] = 1000.0 if b0_is_lost else 0.0
    kind = "1000 but as bright as b=0" if b0_is_lost else "0 but as dark as b=1000"
    assert f"volume {wrong} is labelled b={kind}" in only(labelled(moving, bvals))


def test_the_only_b0_under_the_label_of_another_volume(moving):
    """The label b=0 tells nothing then: what is bright, and unlike its shell, is found first."""
    few = moving.select(np.array([moving.gradients.b0s[0], *moving.gradients.dwis]))
    rows = np.arange(len(few))
    rows[[0, 7]] = 7, 0
    found = only(labelled(few, few.gradients.bvals[rows], few.gradients.bvecs[rows]))
    assert "volume 0 is labelled b=1000 but as bright as b=0" in found
    assert "volume 7 is labelled b=0 but as dark as b=1000" in found


@pytest.mark.parametrize(("step", "back"), [(1, "earlier"), (-1, "later")])
def test_a_table_shifted_by_a_volume_is_found(moving, step, back):
    old = moving.gradients
    shifted = labelled(moving, np.roll(old.bvals, step), np.roll(old.bvecs, step, axis=0))
    assert f"fit the images if each is moved one volume {back}" in only(shifted)


def test_vectors_that_encode_b_values_are_reported(two_shells):
    bvals = two_shells.gradients.bvals
    text = scaled_vectors(labelled(two_shells, np.full(len(bvals), 2000.0)), np.sqrt(bvals / 2000))
    assert text is not None
    assert "that gives b=0, 1000, 2000" in str(text)
    assert scaled_vectors(two_shells, np.sqrt(bvals / 2000)) is None


def test_darkness_and_gain_are_no_labels(moving):
    signal = np.array(moving.signal)
    signal[..., moving.gradients.b0s[1]] *= 0.42  # as dark as b=1000
    signal[..., moving.gradients.dwis[3]] *= 0.3
    signal[..., len(moving) // 2 :] *= 2.3  # as bright as b=0
    assert contradictions(replace(moving, signal=signal)) == []


@pytest.mark.parametrize("name", ["abcd", "csdsi", "few"])
def test_schemes_that_fit_are_left_alone(name):
    head, gradients = procedural_head(6.0), SCHEMES[name].build()
    rest = Motion.identity(len(gradients))
    dwi = acquire(head, gradients, rest, Grid.covering(head, 6.0), snr=10)
    assert contradictions(dwi) == []


def test_points_of_a_lattice_are_never_taken_for_another_level():
    head, gradients = procedural_head(6.0), SCHEMES["csdsi"].build()
    rest = Motion.identity(len(gradients))
    dwi = acquire(head, gradients, rest, Grid.covering(head, 6.0), snr=20)
    signal = np.array(dwi.signal)
    highest, lower = (gradients.bvals == gradients.bvals.max()), gradients.bvals < 3000
    strange = int(np.flatnonzero(highest)[0])
    signal[..., strange] = signal[..., lower & (gradients.bvals > 2500)].mean(axis=3)
    assert contradictions(replace(dwi, signal=signal)) == []


def test_exchanged_shells_are_reported(two_shells):
    bvals = two_shells.gradients.bvals
    exchanged = np.select([bvals == bvals.max(), bvals > 50], [1000.0, bvals.max()], 0.0)
    (found,) = contradictions(labelled(two_shells, exchanged))
    assert not found.certain
    assert "are brighter than volumes" in str(found)
    (found,) = contradictions(labelled(two_shells, np.where(bvals > 50, 0.0, 1000.0)))
    assert "(b=1000) are brighter than volumes" in str(found)


@pytest.mark.parametrize("step", [3, 5, 7])
def test_no_volume_is_named_twice(two_shells, step):
    old = two_shells.gradients
    shifted = labelled(two_shells, np.roll(old.bvals, step), np.roll(old.bvecs, step, axis=0))
    looks = Appearance.of(shifted)
    found = Labels.of(looks, shifted.gradients.bvals, 50.0, shelled=True).mislabelled()
    volumes = [one.volume for one in found]
    assert len(volumes) == len(set(volumes))


def looks_of_shells(brightness, bvals, like):
    """Volumes as bright as told, whose patterns are those of the b-values `like`, nearly."""
    random = np.random.default_rng(0)
    kinds = {bval: random.normal(size=60) for bval in np.unique(like)}
    patterns = np.stack([kinds[bval] + 0.3 * random.normal(size=60) for bval in like])
    patterns -= patterns.mean(axis=1, keepdims=True)
    patterns /= np.linalg.norm(patterns, axis=1, keepdims=True)
    return Labels.of(Appearance(np.array(brightness), patterns), bvals, 50.0, shelled=True)


@pytest.mark.parametrize(("off", "told"), [(0.4, False), (0.45, False), (0.55, True), (0.9, True)])
def test_one_shell_is_taken_for_another_only_where_brightness_is_far_off(off, told):
    """With few directions a shell scatters by 0.35, and some look like those of another one."""
    bvals = np.repeat([0.0, 2000.0, 5000.0], [2, 6, 7])
    brightness, like = np.repeat([0.0, off - 2.0, -2.0], [2, 6, 7]), bvals.copy()
    brightness[-1], like[-1] = off - 2.0, 2000.0
    found = looks_of_shells(brightness, bvals, like).mislabelled()
    assert [(one.volume, one.label, one.like, one.certain) for one in found] == (
        [(14, 5000.0, 2000.0, False)] if told else []
    )


@pytest.mark.parametrize(
    ("label", "lost", "told"),
    [(3000.0, 0.8, True), (3000.0, 1.3, False), (300.0, 0.8, True), (300.0, 0.3, False),
     (2000.0, 0.85, False), (2000.0, 0.75, True), (1500.0, 0.75, False)],
)  # fmt: skip
def test_the_only_volume_of_a_shell_is_compared_with_others(label, lost, told):
    """One wrong b-value is a shell of its own; no tissue loses less than half for each of it."""
    bvals = np.repeat([0.0, 1000.0, label], [2, 8, 1])
    brightness, like = np.repeat([0.0, -0.8, -lost], [2, 8, 1]), np.minimum(bvals, 1000.0)
    found = looks_of_shells(brightness, bvals, np.where(bvals > 50, 1000.0, like)).mislabelled()
    expected = [(10, label, 1000.0, label > 1000, False)] if told else []
    assert [(v.volume, v.label, v.like, v.brighter, v.certain) for v in found] == expected


def test_an_object_without_diffusion_has_no_wrong_bvalue():
    bvals = np.repeat([0.0, 700.0, 100.0, 3000.0], [2, 8, 1, 1])
    like = np.where(bvals > 50, 700.0, 0.0)
    assert looks_of_shells(np.zeros(12), bvals, like).mislabelled() == []


def test_one_wrong_bvalue_is_named(moving):
    bvals, wrong = moving.gradients.bvals.copy(), int(moving.gradients.dwis[5])
    bvals[wrong] = 3000.0
    issues = find_issues(labelled(moving, bvals))
    assert [issue.kind for issue in issues] == ["tables"]
    assert f"volume {wrong} is labelled b=3000 but as bright as b=1000" in issues[0].text
    assert not issues[0].severe


def test_loading_refuses_and_can_be_told_not_to(moving, tmp_path):
    bvals = moving.gradients.bvals.copy()
    bvals[moving.gradients.b0s[1]] = 1000.0
    path = write_bids(tmp_path, "01", labelled(moving, bvals), Motion.identity(len(moving)))
    with pytest.raises(
        EddymotionError, match=r"^/.*dwi\.nii\.gz: .*as bright as b=0.*--ignore tables"
    ):
        em.load(path)
    assert len(em.load(path, ignore=("tables",))) == len(moving)


@pytest.mark.parametrize(
    ("factor", "reading"),
    [(1000, "divided by 1000"), (0.1, "multiplied by 10"), (10, "divided by 10")],
)
def test_another_unit_gives_an_impossible_diffusivity(moving, two_shells, factor, reading):
    for dwi in (moving, two_shells):
        (found,) = contradictions(labelled(dwi, dwi.gradients.bvals * factor))
        assert f"the images fit b-values in s/mm² {reading}" in str(found)
        assert found.certain is (factor != 10)


def test_thousandths_are_named(moving):
    with pytest.raises(EddymotionError, match=r"up to 1 may be in ms/µm².*multiply them by 1000"):
        labelled(moving, moving.gradients.bvals / 1000)


@pytest.mark.parametrize(("label", "true"), [(1000, 2000), (2000, 1000)])
def test_a_few_volumes_under_the_label_of_another_shell_are_named(two_shells, label, true):
    bvals = two_shells.gradients.bvals.copy()
    wrong = np.flatnonzero(bvals == true)[[2, 9]]
    bvals[wrong] = label
    (found,) = contradictions(labelled(two_shells, bvals))
    side = "dark" if true > label else "bright"
    expected = f"volumes {wrong[0]}, {wrong[1]} are labelled b={label} but as {side} as b={true}"
    assert expected in str(found)
    assert not found.certain


def test_a_dark_volume_is_of_its_shell(two_shells):
    signal = np.array(two_shells.signal)
    signal[..., two_shells.gradients.shells[0][3]] *= 0.2
    assert contradictions(replace(two_shells, signal=signal)) == []


@pytest.mark.parametrize("bvals", [(3000, 10_000, 4), (4000, 10_000, 8)])
def test_a_lone_volume_at_the_noise_floor_is_not_blamed(head, grid, bvals):
    """It looks like the shell that nearly reached the floor as well."""
    low, high, snr = bvals
    gradients = shelled_scheme({low: 15, high: 1}, 2)
    dwi = acquire(head, gradients, Motion.identity(len(gradients)), grid, snr=snr)
    assert not contradictions(dwi)

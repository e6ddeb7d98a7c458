# SPDX-License-Identifier: Apache-2.0
"""Predictions in place of lost slices; maps of signal and contrast; residuals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from eddymotion.cli import correct
from eddymotion.data.acquisition import Acquisition, Slicing
from eddymotion.data.gradients import comparable_groups
from eddymotion.estimation import assess, blocks
from eddymotion.estimation.blocks import Blocks
from eddymotion.estimation.held_out import fitted, predict, predict_lost
from eddymotion.estimation.maps import cnr_maps
from eddymotion.estimation.replacement import Replaced
from eddymotion.io.images import write_image
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.tables import write_gradient_table
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.models import AverageModel, get_model
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.stages import load_series
from eddymotion.resampling import Resampled, resample
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme


@pytest.fixture(scope="module")
def dropped(moving):
    """Take signal from one slice of every other volume: series, which lost something."""
    signal, lost = np.array(moving.signal), np.zeros((len(moving), moving.shape[2]), bool)
    random = np.random.default_rng(7)
    brain = np.flatnonzero(moving.mask.sum(axis=(0, 1)) > 200)
    for volume in moving.gradients.dwis[::2]:
        index = random.choice(brain)
        signal[:, :, index, volume] *= random.uniform(0.2, 0.5)
        lost[volume, index] = True
    return replace(moving, signal=signal), lost


@pytest.fixture(scope="module")
def quality(dropped, truth):
    return assess(dropped[0], truth)


@pytest.fixture(scope="module")
def replaced(dropped, truth, quality):
    corrected = Resampled.of(dropped[0], truth, engine="fast")
    return Replaced.of(corrected, quality.model, quality.outliers)


def images(series):
    return np.stack(list(series.volumes()), axis=3)


def test_replaced_voxels_are_near_those_that_lost_nothing(dropped, replaced, moving, truth):
    before, after = images(replaced.corrected), images(replaced)
    ideal = resample(moving, truth, engine="fast").signal
    touched = before != after
    brain = moving.mask[..., None] & touched
    lost, left = (np.sqrt(((image - ideal)[brain] ** 2).mean()) for image in (before, after))
    noise = np.sqrt(((ideal - predict(ideal, moving.gradients, get_model("gp", moving.gradients)))
                     [brain] ** 2).mean())  # fmt: skip
    assert left < 0.25 * lost
    assert left < 1.2 * noise
    shown = touched.any(axis=(0, 1, 2))
    np.testing.assert_array_equal(shown, dropped[1].any(axis=1))


def test_no_other_voxel_changes(dropped, replaced, moving, truth):
    before, after = images(replaced.corrected), images(replaced)
    changed = before != after
    for volume in np.flatnonzero(dropped[1].any(axis=1)):
        heights = Blocks.of(replaced).heights(volume, grid_points(moving))
        (slices,) = dropped[1][volume].nonzero()
        far = np.abs(heights[:, None] - slices).min(axis=1) > 2.5
        assert not changed[..., volume].T.ravel()[far].any()
        at = np.abs(heights[:, None] - slices).min(axis=1) < 0.3
        inside = at & moving.mask.T.ravel()
        assert changed[..., volume].T.ravel()[inside].mean() > 0.98


def grid_points(dwi):
    return Blocks.of(dwi).points(slice(0, dwi.shape[2]))


def test_a_lost_slice_at_rest_becomes_the_prediction(still):
    signal, volume, index = np.array(still.signal), int(still.gradients.dwis[4]), 16
    signal[:, :, index, volume] *= 0.3
    dwi, nothing = replace(still, signal=signal), Motion.identity(len(still))
    quality = assess(dwi, nothing)
    assert np.argwhere(quality.outliers.flagged).tolist() == [[volume, index]]
    corrected = Resampled.of(dwi, nothing, engine="fast")
    shown = images(Replaced.of(corrected, quality.model, quality.outliers))[..., volume]
    # what the others predict is the same with the slice as it was: it is held out
    predicted = predict(still.signal, still.gradients, quality.model)[..., volume]
    expected = predicted[:, :, index] * quality.outliers.gain[volume]
    np.testing.assert_allclose(shown[:, :, index], expected, rtol=1e-4, atol=0.01)
    rest = np.delete(np.arange(still.shape[2]), range(index - 2, index + 3))
    plain = images(corrected)[..., volume]
    np.testing.assert_array_equal(shown[:, :, rest], plain[:, :, rest])


def test_nothing_lost_nothing_changed(still):
    corrected = Resampled.of(still, Motion.identity(len(still)), engine="fast")
    quality = assess(still, Motion.identity(len(still)), AverageModel())
    none = replace(quality.outliers, z=np.zeros_like(quality.outliers.z))
    series = Replaced.of(corrected, AverageModel(), none)
    for shown, plain in zip(series.volumes(), corrected.volumes(), strict=True):
        np.testing.assert_array_equal(shown, plain)


@pytest.fixture(scope="module")
def random_losses(two_shells):
    """Signal of a few voxels (V, N), and what is lost of it: a fifth of all, at random."""
    signal = two_shells.signal[two_shells.mask][:300]
    lost = np.random.default_rng(12).random(signal.shape) < 0.2
    lost[:, two_shells.gradients.b0s] = False
    return signal, lost


@pytest.mark.parametrize("name", ["gp", "average"])
def test_volumes_that_lost_the_same_voxel_are_held_out_together(two_shells, random_losses, name):
    """Conjugate gradients against elimination of the whole block, voxel by voxel."""
    gradients, (signal, lost) = two_shells.gradients, random_losses
    model = fitted(get_model(name, gradients), two_shells.signal[two_shells.mask], gradients)
    precision, expected = model.precision(gradients), signal.astype(float)
    for values, gone in zip(expected, lost, strict=True):
        away = np.linalg.solve(precision[np.ix_(gone, gone)], precision[gone] @ values)
        values[gone] -= away
    spoilt = np.where(lost, 1e6, signal).astype(np.float32)
    found = predict_lost(spoilt, lost, gradients, model)
    np.testing.assert_allclose(found[lost], expected[lost], atol=2e-3 * signal.mean())
    assert (spoilt[lost] == 1e6).all()


def test_models_of_any_kind_fill_in_by_turns(two_shells, random_losses):
    gradients, (signal, lost) = two_shells.gradients, random_losses
    spoilt, model = np.where(lost, 1.0, signal), get_model("dti", gradients)
    found = predict_lost(spoilt, lost, gradients, model)
    ideal = predict(signal, gradients, model)
    left, blind = (
        np.sqrt(np.nanmean((image - ideal) ** 2))
        for image in (found, predict(spoilt, gradients, model))
    )
    assert left < 0.2 * blind


def test_what_a_whole_shell_has_lost_is_not_made_up(two_shells, random_losses):
    gradients, (signal, lost) = two_shells.gradients, random_losses
    shell, lost = gradients.shells[1], np.array(lost)
    lost[:5, shell] = True
    found = predict_lost(signal, lost, gradients, AverageModel())
    assert np.isnan(found[:5, shell]).all()
    assert np.isfinite(found[5:]).all()


def naive_maps(signal, gradients, model):
    predicted = predict(signal, gradients, model)
    left = signal - predicted
    b0s = signal[..., gradients.b0s]
    maps = [b0s.mean(axis=3) / b0s.std(axis=3, ddof=1)]
    for shell in gradients.shells:
        maps.append(predicted[..., shell].std(axis=3, ddof=1) / left[..., shell].std(3, ddof=1))
    return np.stack(maps, axis=3), left


@pytest.fixture(scope="module")
def two_shell_model(two_shells):
    return assess(two_shells, Motion.identity(len(two_shells))).model


def test_maps_are_the_ratios_of_standard_deviations(two_shells, two_shell_model):
    expected, left = naive_maps(two_shells.signal, two_shells.gradients, two_shell_model)
    residuals = np.empty(two_shells.signal.shape, np.float32)
    found = cnr_maps(two_shells, two_shell_model, residuals=residuals)
    assert found.shape[3] == 1 + len(comparable_groups(two_shells.gradients)) == 3
    mask = two_shells.mask
    np.testing.assert_allclose(found[mask], expected[mask], rtol=1e-3)
    assert not found[~mask].any()
    np.testing.assert_allclose(residuals, left, atol=1e-3 * np.abs(left).max())


def test_contrast_is_signal_over_noise():
    """Half the noise, twice the SNR; CNR rises, too."""
    coarse, gradients = procedural_head(8.0), shelled_scheme({1000: 24}, 5)
    nothing, maps = Motion.identity(len(gradients)), []
    for snr in (15, 30):
        dwi = acquire(coarse, gradients, nothing, Grid.covering(coarse, 8.0), snr=snr)
        maps.append(cnr_maps(dwi, assess(dwi, nothing).model)[dwi.mask])
    low, high = (np.median(values, axis=0) for values in maps)
    np.testing.assert_allclose(high[0] / low[0], 2.0, rtol=0.1)
    assert 1.3 < high[1] / low[1] < 2.2


def test_maps_of_a_moving_head_are_those_of_the_aligned_one(moving, truth):
    aligned, corrected = resample(moving, truth, engine="fast"), Resampled.of(moving, truth)
    model = assess(moving, truth).model
    inside = np.all(aligned.signal > 0, axis=3) & moving.mask
    found, expected = cnr_maps(corrected, model), cnr_maps(aligned, model)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=0.01)


def test_slabs_do_not_change_a_map(two_shells, two_shell_model, monkeypatch):
    whole = cnr_maps(two_shells, two_shell_model)
    plane = 4 * np.prod(two_shells.shape[:2]) * len(two_shells)
    monkeypatch.setattr(blocks, "LEAST_BYTES", 2 * plane)
    monkeypatch.setattr(blocks, "MOST_BYTES", 2 * plane)
    slabs = list(Blocks.of(two_shells).slabs())
    assert len(slabs) > 3
    assert [s.start for s in slabs[1:]] == [s.stop for s in slabs[:-1]]
    np.testing.assert_allclose(
        cnr_maps(two_shells, two_shell_model, n_threads=2), whole, rtol=1e-5
    )


def test_lost_slices_are_neither_signal_nor_residual(dropped, truth, quality, moving):
    corrected = Resampled.of(dropped[0], truth, engine="fast")
    whole = cnr_maps(Resampled.of(moving, truth, engine="fast"), quality.model)
    blind = cnr_maps(corrected, quality.model)
    aware = cnr_maps(corrected, quality.model, outliers=quality.outliers)
    mask = moving.mask & (whole[..., 1] > 0)
    off = [np.abs(np.log(found[mask, 1] / whole[mask, 1])).mean() for found in (aware, blind)]
    assert off[0] < 0.4 * off[1]


def test_blocks_read_what_resampling_gives(moving, truth):
    """Through eddy-current fields, too."""
    random = np.random.default_rng(11)
    fields = EddyCurrents(random.normal(scale=1.0, size=(len(moving), 9)), np.array([0.0, 1, 0]),
                          moving.center)  # fmt: skip
    for motion in (truth, replace(truth, eddy_currents=fields)):
        corrected = Resampled.of(moving, motion, engine="fast")
        expected = images(corrected)
        slab = slice(10, 14)
        voxels = random.choice(np.prod(moving.shape[:2]) * 4, 3000, replace=False)
        found = Blocks.of(corrected, 2).read(slab, voxels)
        for volume in range(len(moving)):
            flat = expected[:, :, slab, volume].T.ravel()[voxels]
            np.testing.assert_allclose(found[:, volume], flat, atol=2e-3 * flat.max())


def test_scores_follow_the_slicing_of_the_volume(dropped, truth):
    dwi = replace(dropped[0], acquisition=Acquisition(dropped[0].gradients, Slicing(axis=1)))
    outliers = assess(dwi, truth).outliers
    assert outliers.z.shape == (len(dropped[0]), dropped[0].shape[1])


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """Write a small series that lost slices, with its sidecar: image, what is lost."""
    folder = tmp_path_factory.mktemp("scan")
    coarse, gradients = procedural_head(6.0), shelled_scheme({1000: 14}, 3)
    nothing = Motion.identity(len(gradients))
    dwi = acquire(coarse, gradients, nothing, Grid.covering(coarse, 6.0), snr=40)
    signal, lost = np.array(dwi.signal), np.zeros((len(dwi), dwi.shape[2]), bool)
    brain = np.flatnonzero(dwi.mask.sum(axis=(0, 1)) > 100)
    for volume, index in zip(gradients.dwis[1::4], brain[3::3], strict=False):
        signal[:, :, index, volume] *= 0.3
        lost[volume, index] = True
    write_image(folder / "scan_dwi.nii.gz", np.round(signal).astype(np.int16), dwi.affine)
    write_gradient_table(folder / "scan_dwi.bval", folder / "scan_dwi.bvec", gradients, dwi.affine)
    n_shots = -(-dwi.shape[2] // 2)
    timing = np.tile(np.arange(n_shots) / 10, 2)[: dwi.shape[2]].tolist()
    metadata = {"SliceTiming": timing, "PhaseEncodingDirection": "j-"}
    (folder / "scan_dwi.json").write_text(json.dumps(metadata))
    return folder / "scan_dwi.nii.gz", lost


def run(image, folder, *options):
    return correct.main([str(image), "-o", str(folder), "--nprocs", "1", "--resampling", "fast",
                         "--n-iterations", "4", *options])  # fmt: skip


@pytest.fixture(scope="module")
def everything(scanned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    options = ("--replace-outliers", "--cnr-maps", "--residuals", "--fsl-outputs")
    assert run(scanned[0], folder, *options) == 0
    return folder


def table(path):
    header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_command_replaces_lists_and_counts_lost_slices(scanned, everything):
    rows = table(everything / "scan_desc-hmc_outliers.tsv")
    found = {(int(row["volume"]), int(row["slice"])) for row in rows}
    planted = set(map(tuple, np.argwhere(scanned[1]).tolist()))
    assert len(found & planted) >= 0.8 * max(len(found), len(planted))
    assert {row["replaced"] for row in rows} == {"true"}
    content = json.loads((everything / "scan_desc-hmc_outliers.json").read_text())["Outliers"]
    sidecar = json.loads((everything / "scan_desc-preproc_dwi.json").read_text())
    n_shots = -(-scanned[1].shape[1] // 2)
    assert content["SlicesExcitedTogether"][0] == [0, n_shots]
    assert sidecar["PhaseEncodingDirection"] == "j-"
    assert content["Lost"] == len(found) == sidecar["OutlierSlices"]["Lost"]
    assert content["PercentReplaced"] == pytest.approx(
        100 * len(found) / content["Judged"], abs=1e-3
    )
    percent = [float(row["outlier_percent"])
               for row in table(everything / "scan_desc-confounds_timeseries.tsv")]  # fmt: skip
    np.testing.assert_allclose(percent, content["PercentLostPerVolume"], atol=1e-3)
    assert {volume for volume, _ in found} == set(np.flatnonzero(percent))


def test_command_writes_maps_residuals_and_eddys_files(everything):
    def read(name):
        return nib.load(everything / name).get_fdata()

    series = read("scan_desc-preproc_dwi.nii.gz")
    cnr = read("scan_desc-cnr_dwimap.nii.gz")
    content = json.loads((everything / "scan_desc-cnr_dwimap.json").read_text())
    assert content["Volumes"] == ["SNR of b=0", "CNR of b=1000"]
    mask = read("scan_desc-brain_mask.nii.gz") > 0
    assert cnr.shape == (*mask.shape, 2)
    assert np.median(cnr[mask, 0]) > 5
    prefix = "scan_desc-preproc_dwi.eddy_"
    np.testing.assert_array_equal(read(f"{prefix}cnr_maps.nii.gz"), cnr)
    flags = np.loadtxt(everything / f"{prefix}outlier_map", skiprows=1)
    rows = table(everything / "scan_desc-hmc_outliers.tsv")
    assert np.argwhere(flags).tolist() == [[int(r["volume"]), int(r["slice"])] for r in rows]
    assert (everything / f"{prefix}parameters").is_file()
    assert (everything / "scan_desc-hmc_xfm.mat" / "MAT_0000").is_file()
    residuals = read("scan_desc-residuals_dwi.nii.gz")
    assert residuals.shape == series.shape
    assert np.abs(residuals[mask].mean()) < 0.05 * series[mask].mean()


def test_without_replacement_lost_slices_stay_and_nothing_else_differs(
    scanned, everything, tmp_path
):
    again = tmp_path / "again"  # in a folder with more than is asked for now
    shutil.copytree(everything, again)
    assert run(scanned[0], again) == 0
    name = "scan_desc-preproc_dwi.nii.gz"
    replaced, plain = (nib.load(folder / name).get_fdata() for folder in (everything, again))
    differ = (replaced != plain).any(axis=(0, 1, 2))
    rows = table(again / "scan_desc-hmc_outliers.tsv")
    assert set(np.flatnonzero(differ)) == {int(row["volume"]) for row in rows}
    assert {row["replaced"] for row in rows} == {"false"}
    kinds = ("*.eddy_*", "*cnr*", "*residuals*", "*.mat")
    assert not [path for kind in kinds for path in again.glob(kind)]
    assert all(list(everything.glob(kind)) for kind in kinds)


def test_sidecars_that_contradict_the_image_are_reported_and_left_alone(scanned, tmp_path, caplog):
    image = shutil.copy(scanned[0], tmp_path)
    for kind in ("bval", "bvec"):
        shutil.copy(scanned[0].with_name(f"scan_dwi.{kind}"), tmp_path)
    (tmp_path / "scan_dwi.json").write_text('{"SliceTiming": [0, 1]}')
    series = SeriesFiles(Path(image))
    slicing = load_series(series, Settings()).acquisition.slicing
    assert (slicing.axis, slicing.groups) == (2, ())
    assert "SliceTiming has 2 entries" in caplog.text

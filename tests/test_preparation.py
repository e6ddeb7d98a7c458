# SPDX-License-Identifier: Apache-2.0
"""Noise and ringing are taken off what is resampled; motion is found in what was acquired."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from eddymotion.cli import correct
from eddymotion.errors import EddymotionError
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.machine.parallel import silent
from eddymotion.mapping.motion import Motion
from eddymotion.pipeline.preparation import (
    AROUND_BRAIN_MM,
    patch_radius,
    prepare,
    without_noise_mppca,
    without_noise_patch2self,
    without_ringing,
)
from eddymotion.pipeline.series_steps import apply
from eddymotion.pipeline.settings import Settings
from eddymotion.simulation import (
    Grid,
    acquire,
    procedural_head,
    shelled_scheme,
    simulate_motion,
    write_bids,
)

SNR = 15.0


@pytest.fixture(scope="module")
def series():
    """A head at rest without noise and with it, b=0 volumes between the others."""
    head, scheme = procedural_head(8.0), shelled_scheme({1000: 20}, 3)
    grid, still = Grid.covering(head, 8.0), Motion.identity(len(scheme))
    return tuple(acquire(head, scheme, still, grid, snr=snr) for snr in (1e5, SNR))


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        (lambda dwi: without_noise_mppca(dwi, 1, silent), 0.7, 1.15),
        (without_noise_patch2self, 1.0, 1.3),  # the noise, and that of the prediction
    ],
)
def test_volumes_come_nearer_to_the_truth_and_the_noise_is_told(series, method, low, high):
    truth, noisy = series
    signal, noise = method(noisy)
    brain, dwis = noisy.mask, noisy.gradients.dwis

    def off(shown):
        return np.sqrt(np.square((shown - truth.signal.astype(float))[brain]).mean(axis=0))

    assert off(signal)[dwis].mean() < 0.8 * off(noisy.signal)[dwis].mean()
    true = np.median(off(noisy.signal))
    assert low * true < np.median(noise[brain]) < high * true


def test_slabs_and_threads_are_dipys_principal_components(series):
    from dipy.denoise.localpca import mppca

    _, noisy = series
    noisy = noisy.select(noisy.gradients.dwis[:8])
    (one, sigma), (two, _) = (without_noise_mppca(noisy, n, silent) for n in (1, 2))
    np.testing.assert_array_equal(one, two)
    near = distance_transform_edt(~noisy.mask) * 8 <= AROUND_BRAIN_MM
    whole, deviation = mppca(
        noisy.signal.astype(np.float32), mask=near, patch_radius=2, return_sigma=True
    )
    done = np.isfinite(sigma)
    np.testing.assert_allclose(one[done], whole[done], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(sigma[done], deviation[done], rtol=1e-4)
    np.testing.assert_array_equal(one[~done], noisy.signal[~done].astype(np.float32))
    assert done[noisy.mask].mean() > 0.95


def test_patch2self_is_the_regression_of_each_volume_on_the_others(series):
    _, noisy = series
    ours, _ = without_noise_patch2self(noisy)
    rows = noisy.signal.reshape(-1, len(noisy)).astype(float)
    for group in (noisy.gradients.b0s, noisy.gradients.dwis):
        others = np.column_stack([np.ones(len(rows)), rows[:, group[:-1]]])
        expected = others @ np.linalg.lstsq(others, rows[:, group[-1]])[0]
        np.testing.assert_allclose(ours[..., group[-1]].ravel(), expected, atol=0.01)


@pytest.mark.parametrize("axis", [0, 2])
def test_ringing_within_slices_is_taken_off(axis):
    """A box of which only low frequencies were acquired, within the slices of an axis."""
    fine = np.zeros((96, 96))
    fine[21:70, 30:75] = 100
    spectrum = np.fft.fftshift(np.fft.fft2(fine))[24:72, 24:72] / 4
    rung = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum)))
    true = fine.reshape(48, 2, 48, 2).mean(axis=(1, 3))
    volume = np.moveaxis(np.stack([rung, 0.5 * rung, rung], axis=2), 2, axis)
    clean = np.moveaxis(without_ringing(volume[..., None], axis, 1, silent)[..., 0], axis, 2)
    flat = np.ones((48, 48), bool)
    for edge in (10, 11, 34, 35):
        flat[edge - 1 : edge + 2] = False
    for edge in (15, 37):
        flat[:, edge - 1 : edge + 2] = False
    before, after = (np.abs(one - true)[flat].mean() for one in (rung, clean[..., 0]))
    assert after < 0.75 * before
    np.testing.assert_allclose(clean[..., 1], 0.5 * clean[..., 0], atol=1e-3)


def test_what_was_left_out_stays_so_and_nothing_is_negative(series):
    noisy = series[1].select(series[1].gradients.dwis[:3])
    signal = np.array(noisy.signal)
    signal[:3] = 0
    settings = Settings(denoise="patch2self", degibbs=True)
    clean = prepare(replace(noisy, signal=signal), settings, silent).dwi.signal
    assert (clean[:3] == 0).all()
    assert clean.min() >= 0
    assert prepare(noisy, Settings(), silent).dwi is noisy


@pytest.mark.parametrize(("n_volumes", "radius"), [(6, 2), (124, 2), (125, 3), (343, 4)])
def test_a_patch_has_more_voxels_than_there_are_volumes(n_volumes, radius):
    assert patch_radius(n_volumes) == radius


def test_thin_images_are_refused(series):
    _, noisy = series
    thin = replace(noisy, signal=noisy.signal[:, :, :4], mask=noisy.mask[:, :, :4])
    with pytest.raises(EddymotionError, match="MP-PCA needs at least 5 voxels along each axis"):
        without_noise_mppca(thin, 1, silent)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The command on a moving head, with and without."""
    folder, raw = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("raw")
    head, scheme = procedural_head(10.0), shelled_scheme({1000: 8}, 2)
    motion = simulate_motion("moderate", len(scheme), np.zeros(3), seed=2)
    dwi = acquire(head, scheme, motion, Grid.covering(head, 10.0), snr=SNR)
    image = write_bids(raw, "01", dwi, motion)
    for name, options in (("plain", []), ("clean", ["--denoise", "mppca", "--degibbs"])):
        assert correct.main([str(image), "-o", str(folder / name), *options]) == 0
    return image, folder


@pytest.mark.slow
def test_the_motion_is_that_of_the_series_as_acquired(runs):
    _, folder = runs
    names = ("sub-01_from-orig_to-dwiref_mode-image_desc-hmc_xfm.txt",
             "sub-01_desc-confounds_timeseries.tsv")  # fmt: skip
    for name in names:
        assert (folder / "plain" / name).read_bytes() == (folder / "clean" / name).read_bytes()
    plain, clean = (nib.load(folder / one / "sub-01_desc-preproc_dwi.nii.gz").get_fdata()
                    for one in ("plain", "clean"))  # fmt: skip
    assert not np.allclose(plain, clean)


@pytest.mark.slow
def test_map_of_the_noise_and_words_say_what_was_done(runs):
    _, folder = runs
    noise = folder / "clean" / "sub-01_space-orig_desc-noise_dwimap.nii.gz"
    assert nib.load(noise).get_fdata().max() > 0
    assert "MP-PCA" in json.loads(Path(str(noise).replace(".nii.gz", ".json")).read_text())[
        "Description"]  # fmt: skip
    assert not list((folder / "plain").glob("*noise*"))
    sidecar = json.loads((folder / "clean" / "sub-01_desc-preproc_dwi.json").read_text())
    assert sidecar["Methods"]["denoised"] == "mppca"
    assert sidecar["Methods"]["without_ringing"]
    assert sidecar["Summary"]["taken off before resampling"].startswith("MP-PCA, noise ")
    page = (folder / "clean" / "sub-01.html").read_text()
    assert "Veraart et al., 2016" in page
    assert "Kellner et al., 2016" in page


@pytest.mark.slow
def test_a_node_applies_the_same(runs, tmp_path):
    image, folder = runs
    stem = "sub-01_from-orig_to-dwiref_mode-image_desc-hmc_xfm"
    details = folder / "clean" / f"{stem}.json"
    settings = Settings(denoise="mppca", degibbs=True)
    found = apply(
        SeriesFiles(image), folder / "clean" / f"{stem}.txt", settings, tmp_path, details
    )
    ours = nib.load(folder / "clean" / "sub-01_desc-preproc_dwi.nii.gz").get_fdata()
    np.testing.assert_array_equal(nib.load(found["dwi_file"]).get_fdata(), ours)

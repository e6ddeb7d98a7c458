# SPDX-License-Identifier: Apache-2.0
"""Files in, files out: what is read, what is refused, what comes back."""

import gzip
import hashlib
import logging
import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nitransforms.io.fsl import FSLLinearTransform
from nitransforms.linear import load as load_with_nitransforms

from eddymotion.data.gradients import to_fsl
from eddymotion.errors import EddymotionError
from eddymotion.fieldmaps import inputs as fieldmap_inputs
from eddymotion.images.grid import grid_center
from eddymotion.io.images import read_image, write_image
from eddymotion.io.itk import read_itk, write_itk
from eddymotion.io.motion import write_fsl_matrices, write_x5
from eddymotion.io.series import load, mean_b0
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.tables import write_gradient_table
from eddymotion.io.writing import replacing
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.pairs.inputs import read_volume
from eddymotion.pipeline.runs.b0s import load_b0s
from eddymotion.simulation import Grid

SCALE, OFFSET = 0.05, 10.0


@pytest.fixture
def write_series(tmp_path, tiny):
    """Write the tiny series with its tables, changed in one way or another."""

    def write(
        name="a_dwi.nii.gz", data=None, *, kind=nib.Nifti1Image, dtype=np.float32,
        bvals=None, bvecs=None, transposed=False, change_header=None,
    ):  # fmt: skip
        data = np.array(tiny.signal) if data is None else data
        image = kind(data.astype(dtype), tiny.affine)
        image.set_qform(tiny.affine, 1)
        image.set_sform(tiny.affine, 1)
        if change_header:
            change_header(image.header)
        path = tmp_path / name
        image.to_filename(path)
        stem = name.removesuffix(".gz").removesuffix(".nii")
        bvals = tiny.gradients.bvals if bvals is None else bvals
        bvecs = to_fsl(tiny.gradients.bvecs, tiny.affine) if bvecs is None else bvecs
        np.savetxt(tmp_path / f"{stem}.bval", np.atleast_2d(bvals), fmt="%g")
        np.savetxt(tmp_path / f"{stem}.bvec", bvecs if transposed else np.transpose(bvecs))
        return path

    return write


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("name", ["a_dwi.nii", "a_dwi.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int16, np.float64])
def test_any_nifti_is_read_exactly_and_left_unchanged(
    write_series, tmp_path, tiny, name, kind, dtype
):
    data = np.round(tiny.signal)
    path = write_series(name, data, kind=kind, dtype=dtype)
    before = digests(tmp_path)
    dwi = load(path)
    assert dwi.signal.dtype == (np.float32 if dtype == np.float64 else dtype)
    assert dwi.volume(0).data.dtype == np.float32
    np.testing.assert_array_equal(dwi.signal, data)
    np.testing.assert_allclose(dwi.affine, tiny.affine, atol=1e-5)
    np.testing.assert_allclose(dwi.gradients.bvecs, tiny.gradients.bvecs, atol=1e-6)
    assert digests(tmp_path) == before


def test_integers_above_the_signed_range_stay_positive(write_series, tiny):
    data = np.round(tiny.signal / tiny.signal.max() * 65_000)
    np.testing.assert_array_equal(load(write_series(data=data, dtype=np.uint16)).signal, data)


def test_stored_slope_and_intercept_are_applied(write_series, tiny):
    stored = np.round((tiny.signal - OFFSET) / SCALE).astype(np.int16)
    path = write_series("a_dwi.nii", stored, dtype=np.int16)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([SCALE, OFFSET], "<f4").tobytes()
    path.write_bytes(content)
    np.testing.assert_allclose(load(path).signal, stored * SCALE + OFFSET, rtol=1e-5)
    compressed = path.with_name("b_dwi.nii.gz")
    compressed.write_bytes(gzip.compress(bytes(content)))
    again = load(compressed, bval=path.with_suffix(".bval"), bvec=path.with_suffix(".bvec"))
    np.testing.assert_array_equal(again.signal, load(path).signal)


@pytest.mark.parametrize("name", ["a_dwi.nii", "a_dwi.nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_reading_holds_no_more_than_the_float32_series(tmp_path, name, dtype):
    data = np.random.default_rng(0).integers(0, 1000, (48, 48, 32, 40)).astype(dtype)
    nib.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / name)
    read_image(tmp_path / name)  # imports and caches
    tracemalloc.start()
    found, _, _ = read_image(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < found.nbytes * 1.25  # int16 beside float32 would be 1.5
    np.testing.assert_array_equal(found, data)


def test_mean_b0_equals_numpy(tiny):
    expected = tiny.signal[..., tiny.gradients.b0s].astype(float).mean(axis=3)
    found = mean_b0(tiny.signal, tiny.gradients)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("stored", "expected"), [(np.nan, None), (0.0, None), (3.5, 3.5)])
def test_repetition_time_may_be_missing(write_series, stored, expected):
    def change(header):
        header["pixdim"][4] = stored

    assert load(write_series(change_header=change)).repetition_time == expected


@pytest.mark.parametrize("transposed", [False, True])
def test_tables_in_rows_or_columns_with_trace_rows_and_b5(write_series, tiny, transposed):
    bvals = tiny.gradients.bvals.copy()
    bvecs = to_fsl(tiny.gradients.bvecs, tiny.affine)
    bvals[tiny.gradients.b0s[1]] = 5
    bvecs[tiny.gradients.b0s[1]] = 1, 0, 0
    trace = tiny.gradients.dwis[-1]
    bvecs[trace] = 0
    dwi = load(write_series(bvals=bvals, bvecs=bvecs, transposed=transposed))
    np.testing.assert_array_equal(dwi.gradients.b0s, tiny.gradients.b0s)
    np.testing.assert_array_equal(np.flatnonzero(dwi.gradients.is_trace), [trace])
    others = np.delete(tiny.gradients.dwis, -1)
    np.testing.assert_allclose(
        dwi.gradients.bvecs[others], tiny.gradients.bvecs[others], atol=1e-6
    )


def test_b0_threshold_decides_what_is_b0(write_series, tiny):
    bvals = np.where(tiny.gradients.is_b0, 80, tiny.gradients.bvals)
    path = write_series(bvals=bvals)
    assert len(load(path, b0_threshold=100).gradients.b0s) == 2
    assert len(load(path).gradients.b0s) == 0


def test_series_without_b0_is_read(write_series, tiny):
    dwis = tiny.gradients.dwis
    path = write_series(
        data=tiny.signal[..., dwis], bvals=tiny.gradients.bvals[dwis],
        bvecs=to_fsl(tiny.gradients.bvecs[dwis], tiny.affine),
    )  # fmt: skip
    dwi = load(path)
    assert len(dwi.gradients.b0s) == 0
    assert dwi.reference == 0
    assert dwi.mask.any()


def test_specks_without_a_number_are_filled_masked_and_reported(write_series, tiny, caplog):
    data = np.array(tiny.signal)
    first, second = (tuple(voxel) for voxel in np.argwhere(tiny.mask)[[50, 100]])
    data[(*first, 3)] = np.nan
    data[(*second, 5)] = np.inf
    with caplog.at_level(logging.WARNING):
        dwi = load(write_series(data=data))
    assert "2 voxels are NaN or infinite" in caplog.text
    for voxel, volume in ((first, 3), (second, 5)):
        assert not dwi.mask[voxel]
        around = tiny.signal[(*(slice(i - 1, i + 2) for i in voxel), volume)]
        assert around.min() < dwi.signal[(*voxel, volume)] < around.max()
        others = np.arange(len(tiny)) != volume
        np.testing.assert_array_equal(dwi.signal[voxel][others], tiny.signal[voxel][others])
    assert dwi.mask.sum() > 0.9 * tiny.mask.sum()


@pytest.mark.parametrize("reader", [
    lambda path: read_volume(path, "fixed")[0].data,
    lambda path: fieldmap_inputs._volume(path, ()).data,
    lambda path: load_b0s(SeriesFiles(path, metadata={})).signal[..., 0],
], ids=["pair", "field map", "run of b=0"])  # fmt: skip
def test_specks_of_single_images_are_filled_too(tmp_path, tiny, reader):
    data = np.array(tiny.signal[..., 0], np.float32)
    speck = tuple(np.argwhere(tiny.mask)[50])
    around = data[tuple(slice(i - 1, i + 2) for i in speck)].copy()
    data[speck] = np.nan
    write_image(tmp_path / "image.nii.gz", data, tiny.affine)
    assert around.min() < reader(tmp_path / "image.nii.gz")[speck] < around.max()


def test_pieces_without_a_number_are_zero_in_all_volumes(write_series, tiny):
    data = np.array(tiny.signal)
    piece = tuple(slice(i - 1, i + 2) for i in np.argwhere(tiny.mask)[50])
    data[(*piece, 3)] = np.nan
    dwi = load(write_series(data=data))
    assert not dwi.signal[piece].any()
    assert not dwi.mask[piece].any()


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_specks_that_no_volume_shows_are_filled_and_cut_tissue_is_not(
    write_series, tiny, caplog, dtype
):
    data = np.array(tiny.signal).astype(dtype)
    speck = tuple(np.round(np.argwhere(tiny.mask).mean(axis=0)).astype(int))
    data[speck] = 0
    data[:4] = 0
    once = (*np.add(speck, (2, 0, 0)), 4)
    data[once] = 0
    with caplog.at_level(logging.WARNING):
        dwi = load(write_series(data=data))
    assert "1 voxels of the brain are zero" in caplog.text
    assert not dwi.mask[speck]
    around = np.array(tiny.signal)[tuple(slice(i - 1, i + 2) for i in speck)]
    assert (dwi.signal[speck] > around.min(axis=(0, 1, 2)) - 1).all()
    assert dwi.signal[once] == 0
    assert not dwi.signal[:4].any()


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("n_beside", [1, 2, 5])
def test_voxels_far_too_bright_are_filled_and_bright_tissue_is_not(
    write_series, tiny, caplog, dtype, n_beside
):
    data = np.array(tiny.signal).astype(dtype)
    middle = np.round(np.argwhere(tiny.mask).mean(axis=0)).astype(int)
    around = data[(*(slice(i - 1, i + 2) for i in middle), 5)].copy()
    spike = (middle[0], slice(middle[1], middle[1] + n_beside), middle[2])
    tissue = (*np.add(middle, (3, 0, 0)), 5)
    data[(*spike, 5)], data[tissue] = 65000, 3 * data[..., 5].max()
    with caplog.at_level(logging.WARNING):
        dwi = load(write_series(data=data))
    named = "1 voxel" if n_beside == 1 else f"{n_beside} voxels"
    assert f": {named} far brighter than all others in volume 5 (" in caplog.text
    assert around.min() < dwi.signal[(*middle, 5)] < around.max()
    assert dwi.signal[(*spike, 5)].max() < data[tissue]
    assert not dwi.mask[spike].any()
    assert dwi.signal[tissue] == data[tissue]
    assert dwi.mask.sum() > 0.9 * tiny.mask.sum()


def test_given_mask_is_used(write_series, tmp_path, tiny):
    given = np.zeros(tiny.shape, np.uint8)
    given[8:12, 8:12, 8:12] = 1
    write_image(tmp_path / "mask.nii.gz", given, tiny.affine)
    np.testing.assert_array_equal(
        load(write_series(), mask=tmp_path / "mask.nii.gz").mask, given > 0
    )


def test_a_mask_may_be_stored_along_other_axes(write_series, tmp_path, tiny):
    given = np.zeros(tiny.shape, np.uint8)
    given[2:5, 8:12, 9:16] = 1
    image = nib.Nifti1Image(given, tiny.affine)
    for codes in ("LAS", "PSR", "IRP"):
        change = ornt_transform(io_orientation(tiny.affine), axcodes2ornt(codes))
        image.as_reoriented(change).to_filename(tmp_path / f"{codes}.nii.gz")
        found = load(write_series(), mask=tmp_path / f"{codes}.nii.gz").mask
        np.testing.assert_array_equal(found, given > 0, err_msg=codes)
    shift = nib.affines.from_matvec(np.eye(3), [9, 0, 0])
    nib.Nifti1Image(given[::-1], shift @ tiny.affine).to_filename(tmp_path / "away.nii.gz")
    with pytest.raises(EddymotionError, match=r"away\.nii\.gz: lies up to"):
        load(write_series(), mask=tmp_path / "away.nii.gz")


@pytest.mark.parametrize("at", [3, 4])
def test_a_fifth_axis_of_length_one_is_left_out(write_series, tiny, at):
    def time_unknown(header):
        header["pixdim"][4:6] = 7, 9

    image = write_series(
        data=np.expand_dims(np.array(tiny.signal), at), change_header=time_unknown
    )
    dwi = load(image)
    np.testing.assert_array_equal(dwi.signal, tiny.signal)
    assert dwi.repetition_time == (7 if at == 4 else None)


def test_tables_of_other_names_are_pointed_at(write_series, tmp_path):
    path = write_series()
    bval = path.with_name("a_dwi.bval").rename(tmp_path / "bvals")
    bvec = path.with_name("a_dwi.bvec").rename(tmp_path / "bvecs")
    with pytest.raises(EddymotionError, match=r"bvecs are the tables of a_dwi\.nii\.gz") as both:
        load(path)
    assert f"--bval {bval} --bvec {bvec}" in str(both.value)
    assert len(load(path, bval=bval, bvec=bvec)) == 10
    with pytest.raises(EddymotionError, match="exchange the two"):
        load(path, bval=bvec, bvec=bval)
    bval.rename(path.with_name("a_dwi.bval"))
    with pytest.raises(EddymotionError, match=r"if .*bvecs is the table of a_dwi\.nii\.gz"):
        load(path)


def test_single_volumes_are_to_be_joined(write_series, tiny):
    path = write_series(data=tiny.signal[..., 0])
    path.with_name("a_dwi.bval").unlink()
    with pytest.raises(EddymotionError, match=r"a_dwi\.bval: .* this is one volume: join"):
        load(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dwi.mif.gz", "mrconvert dwi.mif.gz dwi.nii.gz -export_grad_fsl"),
        ("0001.IMA", "dcm2niix"),
        ("dwi.bval", "give the image"),
    ],
)
def test_other_formats_are_told_by_their_names(name, message, tmp_path):
    (tmp_path / name).write_text("0")
    with pytest.raises(EddymotionError, match=message):
        load(tmp_path / name)


def test_arrays_are_told_what_they_can_be(tiny):
    with pytest.raises(EddymotionError, match=r"got a ndarray, expected a path.*eddymotion\.DWI"):
        load(tiny.signal)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (lambda w, d: w(bvals=d.gradients.bvals[:-1]), "a_dwi.bv", "10 b-vectors for the 9"),
        (lambda w, d: w(data=d.signal[..., :-1]), "a_dwi.bval", "10 b-values for the 9 volumes"),
        (lambda w, d: w(data=d.signal[..., 0]), "a_dwi.nii.gz", "four dimensions"),
        (lambda w, d: truncate(w()), "a_dwi.nii.gz", "truncated"),
        (lambda w, d: truncate(w("a_dwi.nii")), "a_dwi.nii", "truncated"),
        (lambda w, d: w(data=d.signal * (np.arange(10) != 3)), "a_dwi.nii.gz", "volume 3 .*zero"),
        (lambda w, d: w(bvals=[0] * 9 + [1000]), "a_dwi.nii.gz", "found 1 diffusion-weighted"),
        (lambda w, d: w(bvecs=np.ones((10, 4))), "a_dwi.bvec", "3 rows"),
    ],
    ids=[
        "lengths",
        "volumes",
        "3-D",
        "truncated-gz",
        "truncated",
        "zeros",
        "one-DWI",
        "4-columns",
    ],
)
def test_bad_series_gives_one_message_that_names_the_file(
    write_series, tiny, damage, file, message
):
    path = damage(write_series, tiny)
    with pytest.raises(EddymotionError, match=message) as error:
        load(path)
    assert file in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(write_series, tmp_path):
    path = write_series()
    path.with_name("a_dwi.bvec").unlink()
    with pytest.raises(EddymotionError, match=r"a_dwi\.bvec: no such file.*--bvec"):
        load(path)
    again = write_series()
    tables = {kind: again.with_name(f"a_dwi.{kind}") for kind in ("bval", "bvec")}
    with pytest.raises(EddymotionError, match=r"elsewhere\.nii: no such file"):
        load(tmp_path / "elsewhere.nii", **tables)


def test_text_that_is_no_image_and_no_table_is_named(write_series):
    path = write_series("a_dwi.nii")
    path.with_suffix(".bval").write_text("0 thousand\n")
    with pytest.raises(EddymotionError, match=r"a_dwi\.bval: not a table of numbers"):
        load(path)
    for text in ("no image", "no image at all, but long enough for a header" * 20):
        path = write_series("a_dwi.nii")
        path.write_text(text)
        with pytest.raises(EddymotionError, match=r"a_dwi\.nii: "):
            load(path)


def test_mask_of_another_shape_is_refused(write_series, tmp_path, tiny):
    write_image(tmp_path / "mask.nii.gz", np.ones((5, 6, 7), np.uint8), tiny.affine)
    with pytest.raises(EddymotionError, match=r"mask\.nii\.gz: found shape \(5, 6, 7\)"):
        load(write_series(), mask=tmp_path / "mask.nii.gz")


def test_affines_that_disagree_are_refused_until_one_is_disregarded(write_series, tiny):
    turned = tiny.affine @ rigid_matrix(np.zeros(3), np.array([0, 0, 0.2]), np.zeros(3))
    path = write_series(change_header=lambda header: header.set_qform(turned, 1))
    with pytest.raises(EddymotionError, match=r"a_dwi\.nii\.gz: sform and qform disagree"):
        load(path)
    sform, qform = load(path, ignore=["qform"]), load(path, ignore=["sform"])
    np.testing.assert_allclose(sform.affine, tiny.affine, atol=1e-4)
    np.testing.assert_allclose(qform.affine, turned, atol=1e-4)
    assert not np.allclose(sform.gradients.bvecs, qform.gradients.bvecs, atol=0.01)


def test_a_block_that_fails_leaves_nothing_behind(tmp_path):
    def fail_half_way():
        with replacing(tmp_path / "x.nii.gz") as path:
            path.write_text("half")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def poses(truth, tiny):
    return Motion(truth.matrices[: len(tiny)])


def test_itk_text_is_exact_and_nitransforms_agrees(tmp_path, poses):
    path = tmp_path / "xfm.txt"
    write_itk(path, poses.matrices)
    np.testing.assert_array_equal(read_itk(path), poses.matrices)
    read = load_with_nitransforms(path, fmt="itk")
    np.testing.assert_allclose(read.matrix, poses.matrices, atol=1e-6)
    assert [f"#Transform {i}" in path.read_text() for i in range(len(poses))] == [True] * len(
        poses
    )


def test_itk_center_of_rotation_is_understood(tmp_path):
    (tmp_path / "xfm.txt").write_text(
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: MatrixOffsetTransformBase_double_3_3\n"
        "Parameters: 0 -1 0 1 0 0 0 0 1 0 0 5\nFixedParameters: 10 0 0\n"
    )
    (matrix,) = read_itk(tmp_path / "xfm.txt")
    np.testing.assert_allclose(apply_affine(matrix, np.array([-10.0, 0, 0])), [-10, 0, 5])
    (tmp_path / "xfm.txt").write_text("nothing")
    with pytest.raises(EddymotionError, match="expected an ITK text file"):
        read_itk(tmp_path / "xfm.txt")


def test_x5_holds_the_exact_matrices(tmp_path, poses, tiny):
    from nitransforms.io.x5 import from_filename

    write_x5(tmp_path / "xfm.x5", poses, tiny)
    (node,) = from_filename(tmp_path / "xfm.x5")
    np.testing.assert_array_equal(node.transform, poses.matrices)


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PSL"])
def test_fsl_matrices_mean_what_flirt_and_nitransforms_mean(
    head, tmp_path, tiny, poses, orientation
):
    grid = Grid.covering(head, (8.0, 9.0, 10.0), orientation)
    signal = np.ones((*grid.shape, len(tiny)), np.float32)
    dwi = replace(tiny, signal=signal, affine=grid.affine, mask=np.ones(grid.shape))
    write_fsl_matrices(tmp_path, poses, dwi, dwi)
    image = nib.Nifti1Image(signal[..., 0], grid.affine)
    for index, matrix in enumerate(poses.matrices):
        text = (tmp_path / f"MAT_{index:04d}").read_text()
        ras = FSLLinearTransform.from_string(text).to_ras(moving=image, reference=image)
        np.testing.assert_allclose(ras, matrix, atol=1e-6)
    flirt = np.loadtxt(tmp_path / "MAT_0005")
    reference = grid_center(grid.shape, grid.affine) + np.array([20.0, -10, 15])

    def newimage_mm(world):
        voxel = apply_affine(np.linalg.inv(grid.affine), world)
        if np.linalg.det(grid.affine) > 0:
            voxel[0] = grid.shape[0] - 1 - voxel[0]
        return voxel * dwi.voxel_sizes

    np.testing.assert_allclose(
        apply_affine(flirt, newimage_mm(apply_affine(poses[5], reference))),
        newimage_mm(reference),
        atol=1e-6,
    )


def test_written_series_reads_back_the_same(tmp_path, tiny):
    write_image(tmp_path / "b_dwi.nii.gz", np.asarray(tiny.signal), tiny.affine, 2.5)
    write_gradient_table(
        tmp_path / "b_dwi.bval", tmp_path / "b_dwi.bvec", tiny.gradients, tiny.affine
    )
    back = load(tmp_path / "b_dwi.nii.gz")
    np.testing.assert_array_equal(back.signal, tiny.signal)
    np.testing.assert_allclose(back.gradients.bvecs, tiny.gradients.bvecs, atol=1e-7)
    assert back.repetition_time == 2.5
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]

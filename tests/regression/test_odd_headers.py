# SPDX-License-Identifier: Apache-2.0
"""Sound data under an odd header are read, whoever reads them; what is guessed is reported."""

import gzip
import logging

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from eddymotion.errors import EddymotionError
from eddymotion.evaluation import read_grid
from eddymotion.io.images import read_image
from eddymotion.io.series import load
from eddymotion.io.warps import read_displacements
from eddymotion.pairs.inputs import read_volume
from eddymotion.pipeline.limits import memory_gb

TURN = Rotation.from_euler("xyz", [90, 0, 180], degrees=True).as_matrix()
AFFINE = from_matvec(TURN @ np.diag([2.0, 2.5, 3.0]), [-7.0, 11.0, 5.0])
SHAPE = (7, 8, 6)
RNG = np.random.default_rng(0)
DATA = RNG.integers(1, 2000, (*SHAPE, 5)).astype(np.int16)


def written(path, change=lambda header: None, data=DATA, form="both", kind=nib.Nifti1Image):
    """Write an image whose header is changed in the file itself: nibabel would refuse to."""
    image = kind(data, AFFINE)
    image.set_sform(AFFINE, 1 if form in ("both", "sform") else 0)
    image.set_qform(AFFINE, 1 if form in ("both", "qform") else 0)
    image.header["pixdim"][4] = 3.0
    image.header.set_xyzt_units("mm", "sec")
    content = bytearray(image.to_bytes())
    size = image.header.template_dtype.itemsize
    fields = np.frombuffer(content[:size], image.header.template_dtype).copy()[0]
    change(fields)
    content[:size] = fields.tobytes()
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


def setting(**values):
    """Change fields of a header; ``name_3`` is an entry of the field ``name``."""

    def change(header):
        for name, value in values.items():
            name, _, index = name.partition("__")
            if index:
                header[name][int(index)] = value
            else:
                header[name] = value

    return change


def lengthen(header):
    """Make the quaternion longer than one by a few roundings, as some converters do."""
    for axis in "bcd":
        header[f"quatern_{axis}"] *= 1 + 2e-6


ODD = {
    "quaternion": lengthen,
    "units": setting(xyzt_units=255),
    "units of space only": setting(xyzt_units=7),
    "sform code": setting(sform_code=99, qform_code=0),
    "sform code, negative qform code": setting(sform_code=1, qform_code=-3),
    "qform code": setting(sform_code=0, qform_code=42),
    "qfac": setting(pixdim__0=0.0),
    "large qfac": setting(pixdim__0=7.0),
    "negative voxel sizes": setting(pixdim__1=-2.0, pixdim__3=-3.0),
    "no voxel sizes": setting(pixdim__1=0.0, pixdim__2=0.0, qform_code=0),
    "intent": setting(intent_code=9999),
    "slice code": setting(slice_code=77, dim_info=255),
    "slope zero": setting(scl_slope=0.0, scl_inter=5.0),
    "slope NaN": setting(scl_slope=np.nan, scl_inter=np.nan),
    "intercept NaN": setting(scl_slope=1.0, scl_inter=np.nan),
    "bits": setting(bitpix=0),
    "size of header": setting(sizeof_hdr=348),
    "magic of a pair": setting(magic=b"ni1"),
    "qform unusable": setting(quatern_b=np.nan),
    "quaternion infinite": setting(quatern_c=-np.inf),
    "sform unusable": setting(srow_y=0.0),
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_odd_header_of_sound_data(change, tmp_path):
    path = written(tmp_path / "odd.nii.gz", change)
    data, affine, _ = read_image(path)
    np.testing.assert_array_equal(data, DATA)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-4)
    grid = read_grid(path)
    assert grid.shape == SHAPE
    np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-4)
    assert memory_gb(path) > 0


@pytest.mark.parametrize("form", ["both", "sform", "qform"])
@pytest.mark.parametrize("ignore", [(), ("qform",), ("sform",)])
def test_quaternion_one_rounding_too_long(tmp_path, form, ignore):
    path = written(tmp_path / "odd.nii", lengthen, form=form)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(path).header.get_qform()  # otherwise nothing is tested here
    np.testing.assert_allclose(read_image(path, ignore)[1], AFFINE, atol=1e-4)


def test_what_is_made_up_is_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="eddymotion"):
        read_image(written(tmp_path / "a.nii", setting(quatern_b=np.nan)))
        read_image(written(tmp_path / "b.nii", setting(srow_x=np.nan)))
        read_image(written(tmp_path / "c.nii", setting(pixdim__2=0.0), form="qform"))
        read_image(written(tmp_path / "d.nii", setting(quatern_b=3.0), form="qform"))
        read_image(written(tmp_path / "e.nii", lengthen, form="qform"))
    assert [record.getMessage() for record in caplog.records] == [
        "a.nii: its qform cannot be inverted; the sform is used",
        "b.nii: its sform cannot be inverted; the qform is used",
        "c.nii: voxels of length zero in the header; 1 mm is assumed",
        "d.nii: the quaternion of the qform has length 3.16, expected at most 1; it is normalised",
    ]


def test_what_is_not_sound_is_still_refused(tmp_path, capfd):
    for change, words in (
        (setting(quatern_b=0.9, quatern_c=0.1), "sform and qform disagree"),
        (setting(srow_x=0.0, qform_code=0), "the affine cannot be inverted"),
        (setting(sform_code=0, quatern_b=np.nan), "the affine cannot be inverted"),
        (setting(magic=b"abc"), "not a NIfTI image"),
        (setting(datatype=9), "not a NIfTI image"),
        (setting(vox_offset=10.0), "not a NIfTI image"),
    ):
        path = written(tmp_path / "bad.nii", change)
        with pytest.raises(EddymotionError, match=words):
            read_image(path)
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(EddymotionError, match="is empty; copy or convert it again"):
        read_image(tmp_path / "empty.nii.gz")
    assert capfd.readouterr().err == ""  # nibabel's own lines
    with pytest.raises(EddymotionError, match="file of a pair"):
        read_grid(written(tmp_path / "x.img"))


@pytest.mark.parametrize(("units", "seconds"), [(255, 3.0), (8, 3.0), (16, 3e-3), (26, 3e-6)])
def test_undefined_units_are_seconds(tmp_path, units, seconds):
    path = written(tmp_path / "dwi.nii", setting(xyzt_units=units))
    np.savetxt(tmp_path / "dwi.bval", [[0, 1000, 1000, 1000, 1000]])
    np.savetxt(tmp_path / "dwi.bvec", RNG.normal(size=(5, 3)))
    assert load(path).repetition_time == pytest.approx(seconds)


def test_trailing_axes_of_one_and_wrong_extensions(tmp_path):
    data = DATA[..., None, None]
    np.testing.assert_array_equal(read_image(written(tmp_path / "a.nii", data=data))[0], DATA)
    image = nib.Nifti1Image(DATA, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 40))
    content = bytearray(image.to_bytes())
    content[352:356] = np.int32(2**30).tobytes()  # said to be longer than the file
    (tmp_path / "b.nii").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "b.nii")[0], DATA)
    other = nib.Nifti1Image(DATA.byteswap().view(">i2"), AFFINE, nib.Nifti1Header(endianness=">"))
    (tmp_path / "c.nii").write_bytes(other.to_bytes())
    np.testing.assert_array_equal(read_image(tmp_path / "c.nii")[0], DATA)
    second = written(tmp_path / "d.nii.gz", lengthen, kind=nib.Nifti2Image)
    np.testing.assert_array_equal(read_image(second)[0], DATA)


def test_gzip_is_told_by_the_content_not_the_name(tmp_path):
    plain, packed = written(tmp_path / "a.nii"), written(tmp_path / "b.nii.gz")
    plain.rename(tmp_path / "plain.nii.gz")
    packed.rename(tmp_path / "packed.nii")
    for name in ("plain.nii.gz", "packed.nii"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[0], DATA)


def test_displacement_field_with_an_odd_header(tmp_path):
    field = RNG.normal(size=(*SHAPE, 1, 3)).astype(np.float32)
    path = written(tmp_path / "warp.nii.gz", lengthen, data=field)
    found, affine = read_displacements(path)
    np.testing.assert_allclose(found, field[:, :, :, 0] * [-1, -1, 1])
    np.testing.assert_allclose(affine, AFFINE, atol=1e-4)


def test_series_and_pairs_are_read_from_them(tmp_path):
    """What ``correct`` and ``register`` begin with."""

    def odd(header):
        lengthen(header)
        header["xyzt_units"] = 255

    path = written(tmp_path / "dwi.nii.gz", odd, data=DATA[..., None])
    np.savetxt(tmp_path / "dwi.bval", [[0, 1000, 1000, 1000, 1000]])
    np.savetxt(tmp_path / "dwi.bvec", RNG.normal(size=(5, 3)))
    for ignore in ((), ("qform",), ("sform",)):
        assert load(path, ignore=ignore).shape == SHAPE
        image, _ = read_volume(path, "fixed", 1, ignore)
        np.testing.assert_array_equal(image.data, DATA[..., 1])
    one = written(tmp_path / "one.nii.gz", odd, data=DATA[..., :1, None, None])
    np.testing.assert_array_equal(read_volume(one, "fixed")[0].data, DATA[..., 0])

# SPDX-License-Identifier: Apache-2.0
"""Transforms on grids of any tilt are written; damaged files of transforms are one line."""

import io
import json

import h5py
import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from nitransforms.io.afni import AFNILinearTransform
from scipy.io import savemat
from scipy.spatial.transform import Rotation

from eddymotion.cli import register
from eddymotion.errors import EddymotionError
from eddymotion.evaluation import read_bvals, read_landmarks, read_motion
from eddymotion.images.image import Image
from eddymotion.io.images import write_image
from eddymotion.io.motion import read_written_motion, write_motion
from eddymotion.io.tables import read_gradient_table
from eddymotion.io.transforms import FORMATS, read_linear, write_linear
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.registration.engines.elastix_files import read_parameter_file

MATRIX = rigid_matrix([3.0, -4.0, 2.0], [0.1, -0.2, 0.05], np.array([5.0, 6.0, 7.0]))
SHAPE = (20, 22, 18)


def tilted(rng, degrees):
    turn = Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True)
    flips = np.diag(rng.choice([-1.0, 1.0], 3))
    affine = from_matvec(turn.as_matrix() @ flips @ np.diag([2.0, 2.2, 2.5]), rng.normal(0, 30, 3))
    return Image(np.zeros(SHAPE, np.float32), affine)


def test_afni_on_grids_of_any_tilt(tmp_path):
    rng, same = np.random.default_rng(1), 0
    points = rng.normal(0, 50, (20, 3))
    for _ in range(120):
        fixed, moving = tilted(rng, 90), tilted(rng, 45)
        write_linear(tmp_path / "x.aff12.1D", MATRIX, fixed, moving)
        found = read_linear(tmp_path / "x.aff12.1D", fixed, moving)
        np.testing.assert_allclose(
            apply_affine(found, points), apply_affine(MATRIX, points), atol=1e-6
        )
        try:  # where NiTransforms has a matrix and the same neighbours, it is the same
            struct = AFNILinearTransform.from_string((tmp_path / "x.aff12.1D").read_text())
            grids = [nib.Nifti1Image(one.data, one.affine) for one in (moving, fixed)]
            theirs = struct.to_ras(*grids)
        except np.linalg.LinAlgError:
            continue
        same += np.allclose(theirs, MATRIX, atol=1e-4)
    assert same > 20


def test_afni_axes_are_next_to_each_other_as_a_whole(tmp_path):
    """A grid of which two axes are nearest to x."""
    turn = Rotation.from_euler("zyx", [44, 44, 0], degrees=True).as_matrix()
    image = Image(np.zeros(SHAPE, np.float32), from_matvec(turn * 2.0, [0, 0, 0]))
    assert len(set(np.abs(turn).argmax(axis=0))) < 3
    write_linear(
        tmp_path / "x.aff12.1D", np.eye(4), image, Image(image.data, np.diag([2, 2, 2, 1]))
    )
    afni = np.loadtxt(tmp_path / "x.aff12.1D").reshape(3, 4)
    lps = np.diag([-1, -1, 1])
    np.testing.assert_allclose(lps @ afni[:, :3] @ lps, turn, atol=1e-6)


def damaged(whole, rng):
    """Cut, swap, and replace bytes of a file."""
    yield b""
    yield b"\xff\xfe\x00garbage\x80" * 40
    yield "plain text, ünd more\n".encode("latin-1")
    yield b'{"a": ' * 100_000
    yield b"\x1f\x8b\x08\x00" + bytes(200)
    yield b"Transform: " + b"long" * 50_000 + b"\nParameters: 1\nFixedParameters: 0 0 0\n"
    yield b"long" * 50_000 + b"\t2\n" + b"3" * 50_000 + b"\t4\n"
    for _ in range(6):
        yield whole[: rng.integers(1, len(whole))]
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            changed[place] = rng.integers(0, 256)
        yield bytes(changed)
    for number in (b"nan", b"inf", b"1e999", b"-", b"9" * 400):
        yield whole.replace(b"0.", number + b" ", 3)


def refused_or_read(read):
    """Whether a reader takes it; whatever it says is one line."""
    said = ""
    try:
        read()
    except EddymotionError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 700
    return not said


@pytest.mark.parametrize("ending", [*FORMATS.values(), "ants.mat"])
def test_damaged_transforms_are_one_line(ending, tmp_path):
    rng = np.random.default_rng(2)
    image = Image(np.zeros(SHAPE, np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    path = tmp_path / f"x{ending}"
    if ending == "ants.mat":
        buffer = io.BytesIO()
        savemat(buffer, {"AffineTransform_double_3_3": np.ones((12, 1)), "fixed": np.zeros(3)},
                format="4")  # fmt: skip
        path.write_bytes(buffer.getvalue())
    else:
        write_linear(path, MATRIX, image, image)
    for content in damaged(path.read_bytes(), rng):
        path.write_bytes(content)
        if refused_or_read(lambda: read_linear(path, image, image)):
            assert np.isfinite(read_linear(path, image, image)).all()
        if ending in (".x5", ".tfm"):
            refused_or_read(lambda: read_motion(path))


def test_sizes_that_a_file_declares_are_not_believed(tmp_path):
    image = Image(np.zeros(SHAPE, np.float32), np.eye(4))
    write_linear(tmp_path / "x.x5", MATRIX, image, image)
    with h5py.File(tmp_path / "x.x5", "a") as stored:
        node = stored["TransformGroup"]["0"]
        del node["Transform"]
        node.create_dataset("Transform", (200_000, 200_000, 4, 4), float, chunks=True)
    assert not refused_or_read(lambda: read_linear(tmp_path / "x.x5", image, image))
    assert not refused_or_read(lambda: read_motion(tmp_path / "x.x5"))
    header = np.array([0, 2**30, 2**30, 0, 6], "<i4").tobytes() + b"fixed\0"
    (tmp_path / "x.mat").write_bytes(header + bytes(100))
    assert not refused_or_read(lambda: read_linear(tmp_path / "x.mat", image, image))
    path = tmp_path / "x.nii"
    write_image(path, np.zeros((3, 3, 3), np.float32), np.eye(4))
    content = bytearray(path.read_bytes())
    content[40:56] = np.array([4, 32767, 32767, 32767, 300, 1, 1, 1], "<i2").tobytes()
    path.write_bytes(content)
    from eddymotion.io.images import read_image

    assert not refused_or_read(lambda: read_image(path))


@pytest.mark.parametrize("numbers", ["1 0 0 0 1 0 0 0 1 5", "1 0 0 0 1 0 0 0 1 5 6",
                                     "1 0 0 0 1 0 0 0 1 5 6 7 8"])  # fmt: skip
def test_translation_of_one_number_is_not_taken_for_three(numbers, tmp_path):
    (tmp_path / "x.tfm").write_text(
        f"#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )
    image = Image(np.zeros(SHAPE, np.float32), np.eye(4))
    with pytest.raises(EddymotionError, match="numbers are not a valid AffineTransform"):
        read_linear(tmp_path / "x.tfm", image, image)


def test_damaged_tables_landmarks_and_details_are_one_line(tmp_path):
    rng = np.random.default_rng(3)
    bval, bvec = tmp_path / "x.bval", tmp_path / "x.bvec"
    motion = Motion(np.stack([np.eye(4), MATRIX]), np.full((2, 6), 0.1), 0.2)
    write_motion(tmp_path / "xfm.txt", tmp_path / "details.json", motion)
    files = {
        "x.tsv": (b"x\ty\tz\tlabel\n0.5\t0.2\t0.3\ta\n", read_landmarks),
        "x.fcsv": (b"# Markups fiducial file version = 4.10\n# CoordinateSystem = 0\n"
                   b"id,0.5,0.2,0.3,0,0,0,1,1,1,0,a,,\n", read_landmarks),
        "x.mrk.json": (json.dumps({"markups": [{"controlPoints": [
            {"label": "a", "position": [0.5, 0.2, 0.3]}]}]}).encode(), read_landmarks),
        "x.bval": (b"0 1000 1000\n", read_bvals),
        "x.bvec": (b"0 0.5 0.1\n0 0.5 0.2\n1 0.1 0.3\n", lambda p: read_gradient_table(bval, p)),
        "x.bvec.gz": (b"0 0.5 0.1\n", lambda p: read_gradient_table(p, p)),
        "x.bvec.xz": (b"0 0.5 0.1\n", lambda p: read_gradient_table(p, p)),
        "details.json": ((tmp_path / "details.json").read_bytes(),
                         lambda p: read_written_motion(tmp_path / "xfm.txt", p)),
        "parameters.txt": (b'(Transform "EulerTransform")\n(Scales 0.5)\n', read_parameter_file),
    }  # fmt: skip
    bval.write_text("0 1000 1000")
    bvec.write_text("0 0 0\n0 1 0\n1 0 1")
    for name, (whole, read) in files.items():
        for content in damaged(whole, rng):
            (tmp_path / name).write_bytes(content)
            refused_or_read(lambda read=read, name=name: read(tmp_path / name))
    for content in ({"n_volumes": 2, "colour": 1}, {"n_volumes": 2, "frame_error": "wide"},
                    {"n_volumes": 2, "standard_errors": [[1, 2], [3]]}, [1], None):  # fmt: skip
        (tmp_path / "details.json").write_text(json.dumps(content))
        with pytest.raises(EddymotionError, match="cannot be read as the details"):
            read_written_motion(tmp_path / "xfm.txt", tmp_path / "details.json")


@pytest.fixture
def pair(tmp_path):
    """Two tilted images on whose grid NiTransforms' matrix for AFNI is singular."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (18, 20, 16)], indexing="ij")
    blob = (1000 * np.exp(-2 * (x**2 + 1.5 * y**2 + 0.7 * z**2))).astype(np.float32)
    turn = Rotation.from_euler("zyx", [44, 44, 0], degrees=True).as_matrix()
    paths = [tmp_path / f"{name}.nii.gz" for name in ("fixed", "moving")]
    for path in paths:
        write_image(path, blob, from_matvec(turn * 3.0, [0, 0, 0]))
    return [*map(str, paths), "-o", str(tmp_path / "out" / "x"), "--nprocs", "1"]


def test_register_on_a_strongly_oblique_grid(pair, tmp_path):
    assert register.main(pair) == 0
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"x{ending}" for ending in FORMATS.values()} | {"x.json", "x_overlay.png"} <= made

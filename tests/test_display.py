# SPDX-License-Identifier: Apache-2.0
"""What a notebook shows: pictures of the right planes, text that stays text, nothing fetched."""

import base64
import re
import runpy
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pictures

import eddymotion as em
from eddymotion.derivatives.confounds import confounds
from eddymotion.io.motion import read_written_motion, write_motion
from eddymotion.mapping.rigid import framewise_displacement, rigid_matrix, rigid_parameters
from eddymotion.reports.display import MOST_TILES, WIDTH, html_of
from eddymotion.reports.slices import PlaneGrid
from eddymotion.reports.sprites import Frames

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "gallery" / "plot_5_notebook.py"


def grey(picture):
    return np.asarray(Pictures.open(BytesIO(picture)).convert("L"), float)


def embedded(html):
    return [grey(base64.b64decode(data)) for data in re.findall(r"base64,([^\"]+)", html)]


@pytest.fixture(scope="module")
def ball():
    """A bright ball with a hole towards the right, the front and the top, RAS+."""
    x, y, z = np.indices((40, 44, 36)) * 2.0 - np.array([39, 43, 35]).reshape(3, 1, 1, 1)
    data = 1000.0 * (x**2 + y**2 + z**2 < 26**2)
    data *= 1 - 0.8 * ((x - 5) ** 2 + (y - 9) ** 2 + (z - 9) ** 2 < 13**2)
    return em.Image(
        data.astype(np.float32), nib.affines.from_matvec(2 * np.eye(3), [-39, -43, -35])
    )


def test_volumes_flicker_in_three_planes(ball):
    shown = em.show(ball, ball)
    first, second = (grey(picture) for picture in shown.pictures.values())
    np.testing.assert_array_equal(first, second)
    assert first.shape[1] == WIDTH
    html = shown._repr_html_()
    assert [picture.shape for picture in embedded(html)] == [first.shape] * 2
    assert "animation: em-flicker" in html
    assert "<script" not in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)


def test_the_hole_is_where_the_axes_say(ball):
    """Right, front and top of the planes, whatever the orientation on disk."""
    ornt = nib.orientations.axcodes2ornt("LPS")
    image = nib.Nifti1Image(ball.data, ball.affine).as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt)
    )
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    plain, turned = (grey(em.show(one, one).pictures["fixed"]) for one in (ball, image))
    frames = Frames.of(PlaneGrid(ball.affine, ball.data > 100, (0, 0, 0)), 1)
    scale = plain.shape[1] / frames.size[0]
    a_voxel_aside = np.roll(plain, round(scale), axis=1)
    assert np.abs(plain - turned).mean() < 0.05 * np.abs(plain - a_voxel_aside).mean()
    for left, top, width, height in frames.boxes.values():
        box = plain[int(scale * top) :, int(scale * left) :]
        box = box[: int(scale * height), : int(scale * width)]
        half, middle = box.shape[0] // 2, box.shape[1] // 2
        quarters = {
            (0, 0): box[:half, :middle], (0, 1): box[:half, middle:],
            (1, 0): box[half:, :middle], (1, 1): box[half:, middle:],
        }  # fmt: skip
        darkest = min(quarters, key=lambda place: quarters[place].mean())
        assert darkest == (0, 1)  # up and to the right: R, A and S


def test_a_transform_moves_it_back(ball):
    matrix = rigid_matrix(np.array([6.0, -4, 2]), np.array([0.1, 0.0, -0.1]), np.zeros(3))
    points = nib.affines.apply_affine(ball.affine, np.argwhere(np.ones(ball.data.shape)))
    inverse = np.linalg.inv(matrix)
    moved = np.nan_to_num(ball.spline.sample(points, inverse)).reshape(ball.data.shape)
    moving = em.Image(moved, ball.affine)
    fixed, away = (grey(one) for one in em.show(ball, moving).pictures.values())
    _, back = (grey(one) for one in em.show(ball, moving, matrix).pictures.values())
    assert np.abs(back - fixed).mean() < 0.2 * np.abs(away - fixed).mean()


def test_a_moving_image_on_another_grid(ball):
    small = em.Image(ball.data[::2, ::2, ::2], ball.affine @ np.diag([2.0, 2, 2, 1]))
    fixed, moving = (grey(one) for one in em.show(ball, small).pictures.values())
    assert np.corrcoef(fixed.ravel(), moving.ravel())[0, 1] > 0.95


def test_a_contour_is_drawn_and_labels_stay_text(ball, tmp_path):
    mask = ball.data > 0
    shown = em.show(ball, ball, contour=mask, labels=("<b>a</b>", "</style><script>"))
    assert set(re.findall(r"<(\w+)", shown._repr_html_())) == {"style", "div", "img", "span"}
    colors = np.asarray(Pictures.open(BytesIO(shown.pictures["<b>a</b>"])), float)
    orange = (colors[..., 0] - colors[..., 2] > 80).sum()
    assert orange > 500
    shown.save(tmp_path / "flicker.html")
    assert (tmp_path / "flicker.html").read_text().count("data:image/webp") == 2


def test_what_cannot_be_shown_says_so(ball, tiny, tmp_path):
    nib.save(nib.Nifti1Image(ball.data, ball.affine), tmp_path / "ball.nii.gz")
    assert len(em.show(tmp_path / "ball.nii.gz", str(tmp_path / "ball.nii.gz")).pictures) == 2
    with pytest.raises(em.EddymotionError, match=r"dwi\.volume\(i\)"):
        em.show(tiny, tiny)
    with pytest.raises(em.EddymotionError, match="4 dimensions, expected 3"):
        em.show(em.Image(tiny.signal, tiny.affine), ball)
    with pytest.raises(em.EddymotionError, match="give a mask on the grid"):
        em.show(ball, ball, contour=np.ones((2, 2, 2)))
    with pytest.raises(em.EddymotionError, match="two that differ"):
        em.show(ball, ball, labels=("a", "a"))
    with pytest.raises(TypeError, match="int"):
        html_of(3)


def test_a_motion_shows_its_traces(truth):
    html = truth._repr_html_()
    svg = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    space = "{http://www.w3.org/2000/svg}"
    lines = [
        one.text for one in svg.iter(f"{space}title") if one.text.startswith(("trans", "rot"))
    ]
    assert lines == [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    points = svg.find(f".//{space}polyline").attrib["points"].split()
    assert len(points) == len(truth)
    parameters = rigid_parameters(truth.matrices, np.zeros(3))
    heights = np.array([float(point.split(",")[1]) for point in points])
    assert np.corrcoef(heights, parameters[:, 0])[0, 1] < -0.999  # up is positive
    fd = framewise_displacement(parameters)[1:]
    assert f"{fd.mean():.2f} mm on average, {fd.max():.2f} at most" in html
    assert "Motion of 1 volumes" in em.Motion.identity(1)._repr_html_()


def test_a_notebook_and_the_confounds_tell_one_displacement(estimated, moving, tmp_path):
    """Both measure at the centre of the grid, which a motion knows: also one that was read."""
    elsewhere = estimated.framewise_displacement(estimated.center + np.array([0, 60, 40]))
    assert np.nanmax(np.abs(elsewhere - estimated.framewise_displacement())) > 0.01
    columns = confounds(moving.gradients, estimated, moving.center, None)
    head = columns.get("framewise_displacement_head", columns["framewise_displacement"])
    write_motion(tmp_path / "xfm.txt", tmp_path / "xfm.json", estimated)
    for motion in (estimated, read_written_motion(tmp_path / "xfm.txt", tmp_path / "xfm.json")):
        np.testing.assert_allclose(motion.framewise_displacement(), head, atol=1e-9)
        html = motion._repr_html_()
        assert f"{head[1:].mean():.2f} mm on average, {head[1:].max():.2f} at most" in html
        assert "those of the centre of the image grid" in html


def test_a_series_shows_a_mosaic(moving):
    named = replace(moving, source=Path("<script>.nii.gz"))
    html = named._repr_html_()
    assert "<script>" not in html
    assert repr(moving) in html
    (picture,) = embedded(html)
    assert WIDTH - 10 < picture.shape[1] <= WIDTH
    assert 20 < picture.mean() < 160
    many = moving.select(np.arange(3 * len(moving)) % len(moving))
    assert f"{MOST_TILES} of {len(many)} volumes" in many._repr_html_()


def test_the_notebook_runs():
    shown = runpy.run_path(str(EXAMPLE))
    assert len(shown["motion"]) == len(shown["dwi"])
    assert len(shown["flicker"].pictures) == 2

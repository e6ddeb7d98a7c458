# SPDX-License-Identifier: Apache-2.0
"""The other engines: DIPY, ANTs, elastix."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from eddymotion.errors import EddymotionError, EngineError
from eddymotion.images.image import Image
from eddymotion.io.itk import LPS
from eddymotion.io.warps import whole_displacements, write_displacements
from eddymotion.registration import Registrar, get_registrar
from eddymotion.registration.engines import ants, elastix, elastix_files, external
from eddymotion.registration.engines.ants import AntsRegistrar
from eddymotion.registration.engines.dipy import DipyRegistrar
from eddymotion.registration.engines.elastix import ElastixRegistrar
from eddymotion.registration.engines.external import (
    PairFiles,
    run_function,
    run_program,
    work_folder,
)
from eddymotion.registration.request import Request
from eddymotion.registration.settings import preset_json, preset_names, preset_text
from eddymotion.simulation import Grid
from eddymotion.testing import RegistrarConformance
from eddymotion.testing.pairs import pose
from eddymotion.testing.registration import pair_for

needs_ants = pytest.mark.skipif(
    not ants.ants_is_here(), reason="needs antsRegistration or antspyx: eddymotion[ants]"
)
needs_elastix = pytest.mark.skipif(
    shutil.which("elastix") is None, reason="needs the program elastix: Debian's package elastix"
)
needs_itk_elastix = pytest.mark.skipif(
    not elastix.has_itk_elastix(), reason="needs itk-elastix: eddymotion[elastix]"
)


def asked_for(fixed, moving, fixed_mask=None):
    return Request(fixed, moving, fixed_mask, None, "rigid", None, np.eye(4), 0)


ENGINES = [
    pytest.param(DipyRegistrar, id="dipy"),
    pytest.param(AntsRegistrar, id="ants", marks=needs_ants),
    pytest.param(
        lambda: ElastixRegistrar(parameters={"MaximumNumberOfIterations": 120}),
        id="elastix", marks=needs_elastix,
    ),
]  # fmt: skip
ORIGIN = np.zeros(3)
TURN = Rotation.from_euler("xyz", [12, -20, 15], degrees=True).as_matrix()


SMALL = pose([2, -1.5, 1], [2, 1, -3])


@pytest.fixture(scope="module")
def grids(head):
    def padded(grid, voxels):
        affine = grid.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ np.full(3, voxels)
        return Grid(tuple(n + 2 * voxels for n in grid.shape), affine)

    return (
        padded(Grid.covering(head, 4.5), 3),
        padded(Grid.covering(head, (4.0, 4.5, 5.0), "LAS", TURN), 2),
    )


@pytest.fixture(scope="module")
def pair(b0_pair, grids):
    """A small motion, from a plain grid to an oblique one in LAS."""
    return b0_pair(SMALL, *grids)


class TestDipy(RegistrarConformance):
    rigid_metrics = ("mi",)
    warp_tolerance_mm = 3.0
    skipped_transforms = ("syn",)  # below, with a warp that no matrix describes

    @pytest.fixture
    def registrar(self):
        return DipyRegistrar(n_points=6000)


@needs_ants
class TestAnts(RegistrarConformance):
    rigid_metrics = ("mi", "ssd", "gc")  # cc takes a minute: below
    skipped_transforms = ("syn",)

    @pytest.fixture
    def registrar(self):
        return AntsRegistrar()


@needs_elastix
@pytest.mark.slow
class TestElastix(RegistrarConformance):
    rigid_metrics = elastix.ElastixRegistrar.metrics
    skipped_transforms = ("similarity",)  # Debian's program is built without it

    @pytest.fixture
    def registrar(self):
        return ElastixRegistrar()


@needs_itk_elastix
@pytest.mark.slow
class TestItkElastix(RegistrarConformance):
    @pytest.fixture
    def registrar(self, monkeypatch):
        monkeypatch.setattr(elastix, "_program_serves", lambda transform: False)
        return ElastixRegistrar()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rigid_registration_keeps_the_scales_of_its_start(pair, engine):
    fixed, moving, mask = pair
    scaled = np.diag([1.05, 0.97, 1.02, 1.0])
    bigger = Image(moving.data, moving.affine)
    found = engine().register(fixed, bigger, fixed_mask=mask, init=scaled)
    stretch = np.linalg.svd(found.matrix[:3, :3], compute_uv=False)
    np.testing.assert_allclose(stretch, [1.05, 1.02, 0.97], atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_seed_repeats_in_threads_too(pair, engine):
    fixed, moving, mask = pair
    before = fixed.data.copy(), moving.data.copy(), mask.copy()
    here = Path.cwd()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(
            lambda _: engine().register(fixed, moving, fixed_mask=mask, seed=3), range(2)
        ))  # fmt: skip
    np.testing.assert_array_equal(found[0].matrix, found[1].matrix)
    assert found[0].cost == found[1].cost
    assert Path.cwd() == here
    for array, copy in zip((fixed.data, moving.data, mask), before, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- warps -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warped(b0_pair, grids):
    """A moving image on an oblique grid, and a fixed one that is a known warp of it."""
    plain, oblique = grids
    _, moving, mask = b0_pair(SMALL, plain, oblique, snr=60.0)
    random = np.random.default_rng(5)
    field = np.stack([gaussian_filter(random.standard_normal(plain.shape), 5) for _ in "xyz"], -1)
    field *= 12.0 / np.abs(field).max()
    points = apply_affine(plain.affine, np.indices(plain.shape).reshape(3, -1).T)
    seen = moving.spline.sample(points + field.reshape(-1, 3), SMALL)
    fixed = Image(np.nan_to_num(seen).reshape(plain.shape), plain.affine)
    inner = apply_affine(plain.affine, np.argwhere(mask))
    return fixed, moving, mask, inner, apply_affine(SMALL, inner + field[mask])


QUICK = {"syn_iterations": (40, 30, 10)}


def rms(distances):
    return np.sqrt((distances**2).sum(axis=1).mean())


@pytest.fixture(scope="module")
def dipy_warp(warped):
    fixed, moving, mask, _, _ = warped
    engine = DipyRegistrar(**QUICK)
    return engine.register(fixed, moving, transform="syn", metric="cc", fixed_mask=mask)


def check_warp(found, warped, share):
    """The known warp is found but for a share of it, and the inverse leads back."""
    fixed, _, mask, points, true = warped
    linear = rms(apply_affine(found.matrix, points) - true)
    assert rms(found.map(points) - true) < share * linear
    inside = apply_affine(fixed.affine, np.argwhere(mask))
    missed = np.linalg.norm(found.warp.map(found.warp.map(inside), inverse=True) - inside, axis=1)
    assert np.quantile(missed, 0.99) < 0.1 * fixed.voxel_sizes.min()
    back = found.map(found.map(points), inverse=True)
    assert rms(back - points) < 0.2
    np.testing.assert_array_equal(found.warp.affine, fixed.affine)


@pytest.mark.slow
def test_dipy_syn_recovers_a_known_warp(warped, dipy_warp):
    check_warp(dipy_warp, warped, 0.45)
    assert "of SyN" in dipy_warp.message


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "share"), [("em", 0.6), ("ssd", 0.8)])
def test_other_metrics_of_dipy_syn_recover_it_too(warped, metric, share):
    fixed, moving, mask, _, _ = warped
    found = DipyRegistrar().register(
        fixed, moving, transform="syn", metric=metric, fixed_mask=mask
    )
    check_warp(found, warped, share)


def test_warps_of_dipy_are_fields_that_nitransforms_reads(warped, dipy_warp, tmp_path):
    from nitransforms.nonlinear import load as load_field

    fixed, moving, mask, points, _ = warped
    assert np.abs(dipy_warp.warp.forward[mask]).max() > 2.0
    there, back = tmp_path / "there.nii.gz", tmp_path / "back.nii.gz"
    for path, image, inverse in ((there, fixed, False), (back, moving, True)):
        field = whole_displacements(dipy_warp, image.data.shape, image.affine, inverse=inverse)
        write_displacements(path, field, image.affine)
    moved = load_field(str(there), fmt="itk").map(points)
    np.testing.assert_allclose(moved, dipy_warp.map(points), atol=0.01)
    assert rms(load_field(str(back), fmt="itk").map(moved) - points) < 0.3


@needs_ants
@pytest.mark.slow
def test_ants_syn_recovers_a_known_warp(warped):
    fixed, moving, mask, _, _ = warped
    found = AntsRegistrar().register(fixed, moving, transform="syn", fixed_mask=mask)
    check_warp(found, warped, 0.45)


def test_dipy_syn_may_start_from_the_given_matrix(warped):
    fixed, moving, mask, _, _ = warped
    engine = DipyRegistrar(prealignment="init", syn_iterations=(2,))
    found = engine.register(fixed, moving, transform="syn", fixed_mask=mask, init=SMALL)
    np.testing.assert_allclose(found.matrix, SMALL)


@needs_ants
@pytest.mark.parametrize("transform", ["affine", pytest.param("syn", marks=pytest.mark.slow)])
def test_what_ants_warps_is_what_nitransforms_resamples(warped, transform, tmp_path, monkeypatch):
    from nitransforms.linear import Affine
    from nitransforms.nonlinear import load as load_field
    from nitransforms.resampling import apply

    def run_and_keep_the_image(command, *, folder, **options):
        command[command.index("--output") + 1] = "[found,warped.nii.gz]"
        printed = run_program(command, folder=folder, **options)
        shutil.copy(folder / "warped.nii.gz", tmp_path)
        return printed

    monkeypatch.setattr(ants, "run_program", run_and_keep_the_image)
    fixed, moving, mask, points, true = warped
    n_stages = {"affine": 2, "syn": 3}[transform]
    engine = AntsRegistrar(settings={
        "number_of_iterations": [[30], [20], [60]][:n_stages],
        "shrink_factors": [[2]] * n_stages, "smoothing_sigmas": [[1.0]] * n_stages,
    })  # fmt: skip
    found = engine.register(fixed, moving, transform=transform, fixed_mask=mask)
    theirs = np.asarray(nib.load(tmp_path / "warped.nii.gz").dataobj)
    if transform == "syn":
        field = whole_displacements(found, fixed.data.shape, fixed.affine)
        write_displacements(tmp_path / "field.nii.gz", field, fixed.affine)
        ours = load_field(str(tmp_path / "field.nii.gz"), fmt="itk")
        start = rms(apply_affine(SMALL, points) - true)
        assert rms(found.map(points) - true) < 0.8 * start
    else:
        ours = Affine(found.matrix, reference=nib.Nifti1Image(fixed.data, fixed.affine))
    resampled = apply(ours, nib.Nifti1Image(moving.data, moving.affine), order=1)
    difference = np.abs(np.asarray(resampled.dataobj) - theirs)[mask]
    assert difference.max() < 0.005 * theirs.max()
    assert difference.mean() < 0.0005 * theirs.max()


@needs_ants
@pytest.mark.slow
def test_cross_correlation_of_ants_finds_the_same():
    pair = pair_for("rigid")
    found = AntsRegistrar().register(
        pair.fixed, pair.moving, metric="cc", fixed_mask=pair.fixed_mask
    )
    assert pair.error(found) < TestAnts.tolerance_mm


def test_elastix_has_no_syn_and_says_who_has(pair):
    fixed, moving, _ = pair
    with pytest.raises(EddymotionError, match=r"no symmetric normalisation.*ants or dipy"):
        ElastixRegistrar().register(fixed, moving, transform="syn")


# --- elastix's files ---------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("transformix") is None, reason="needs the program transformix")
@pytest.mark.parametrize("kind", ["EulerTransform", "EulerTransform-zyx", "AffineTransform"])
def test_parameter_files_mean_what_transformix_does(tmp_path, kind):
    linear = Rotation.from_rotvec([0.2, -0.1, 0.3]).as_matrix() @ np.diag([1.1, 0.9, 1.0])
    numbers = [0.2, -0.1, 0.3] if kind.startswith("Euler") else [*linear.ravel()]
    parameters = {
        "Transform": [kind.partition("-")[0]],
        "NumberOfParameters": [str(len(numbers) + 3)],
        "TransformParameters": [str(value) for value in [*numbers, 4.0, -5.0, 6.0]],
        "InitialTransformParametersFileName": ["NoInitialTransform"],
        "HowToCombineTransforms": ["Compose"],
        "FixedImageDimension": ["3"], "MovingImageDimension": ["3"],
        "FixedInternalImagePixelType": ["float"], "MovingInternalImagePixelType": ["float"],
        "Size": ["9", "9", "9"], "Index": ["0", "0", "0"], "Spacing": ["1", "1", "1"],
        "Origin": ["0", "0", "0"], "Direction": ["1", "0", "0", "0", "1", "0", "0", "0", "1"],
        "UseDirectionCosines": ["true"], "CenterOfRotationPoint": ["10", "20", "-30"],
        "ComputeZYX": ["true" if kind.endswith("zyx") else "false"],
        "ResampleInterpolator": ["FinalBSplineInterpolator"], "Resampler": ["DefaultResampler"],
    }  # fmt: skip
    elastix_files.write_parameter_file(tmp_path / "transform.txt", parameters)
    points = np.array([[0.0, 0.0, 0.0], [30.0, -20.0, 10.0]])
    rows = "\n".join(" ".join(map(str, point)) for point in points)
    (tmp_path / "points.txt").write_text(f"point\n{len(points)}\n{rows}\n")
    run_program(
        ["transformix", "-def", "points.txt", "-tp", "transform.txt", "-out", "."],
        folder=tmp_path, outputs=[tmp_path / "outputpoints.txt"],
    )  # fmt: skip
    lines = (tmp_path / "outputpoints.txt").read_text().splitlines()
    theirs = [line.split("OutputPoint = [ ")[1].split("]")[0].split() for line in lines]
    read = elastix_files.read_parameter_file(tmp_path / "transform.txt")
    lps = LPS @ elastix_files.parameter_file_matrix(read) @ LPS
    np.testing.assert_allclose(apply_affine(lps, points), np.array(theirs, float), atol=1e-4)


def test_similarity_of_elastix_turns_scales_and_shifts():
    turn = Rotation.from_rotvec([0.3, -0.2, 0.1])
    center, shift = np.array([5.0, -4.0, 3.0]), np.array([1.0, 2.0, 3.0])
    parameters = {
        "Transform": ["SimilarityTransform"],
        "TransformParameters": [*map(str, turn.as_quat()[:3]), *map(str, shift), "1.2"],
        "CenterOfRotationPoint": [*map(str, center)],
    }
    lps = LPS @ elastix_files.parameter_file_matrix(parameters) @ LPS
    np.testing.assert_allclose(lps @ [*center, 1], [*(center + shift), 1], atol=1e-12)
    np.testing.assert_allclose(lps[:3, :3], 1.2 * turn.as_matrix(), atol=1e-12)


# --- settings ----------------------------------------------------------------------------------


def test_presets_come_with_the_package_for_every_transform():
    for engine, registrar in (("ants", AntsRegistrar), ("elastix", ElastixRegistrar)):
        assert preset_names(engine)[0] == "default"
        for transform in registrar.transforms:
            assert preset_text(engine, "default", transform)
    with pytest.raises(EddymotionError, match="did you mean 'default'"):
        AntsRegistrar(preset="defualt")


@pytest.fixture
def everything_is_here(monkeypatch):
    monkeypatch.setattr(ants, "ants_is_here", lambda: True)
    monkeypatch.setattr(elastix, "elastix_is_here", lambda: True)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("dipy", {"n_bin": 16}, "'n_bin'.*did you mean 'n_bins'"),
        ("dipy", {"iterations": [10, 5]}, "iterations and sigmas are 2 and 3 numbers"),
        ("dipy", {"prealignment": "rigid"}, "use one of affine, init"),
        ("ants", {"shrink_factor": [[1]]}, "'shrink_factor'.*did you mean 'shrink_factors'"),
        ("ants", {"metric": ["Matts"]}, "'metric' cannot be"),
        ("ants", {"transforms": []}, r"'transforms' are \[\], expected a list that ends with"),
        ("ants", {"transforms": ["Rigid"], "metric": ["CC", "CC"]}, "2 entries for the 1 stages"),
        ("ants", {"n_threads": 0}, "n_threads is 0, expected a whole number of at least 1"),
        ("elastix", {"preset": "fast"}, "preset 'fast' is unknown"),
        ("elastix", {"parameters": {"NumberOfSpatialSample": 9}},
         "'NumberOfSpatialSample'.*did you mean 'NumberOfSpatialSamples'"),
        ("elastix", {"parameters": {"Transform": []}}, "'Transform' is .*expected a name"),
        ("elastix", {"parameters": {"Metric": {}}}, "'Metric' is {}, expected a name"),
        ("elastix", {"maps": {}}, "unknown key 'maps'"),
    ],
)  # fmt: skip
def test_wrong_settings_name_the_file_and_what_is_meant(
    tmp_path, everything_is_here, name, settings, words
):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(EddymotionError, match=rf"settings\.json: .*{words}"):
        get_registrar(name, path)


def test_settings_of_other_programs_are_taken(tmp_path, everything_is_here):
    path = tmp_path / "dwi-to-dwi.json"
    path.write_text(json.dumps({
        "collapse_output_transforms": True, "convergence_threshold": [1e-5],
        "convergence_window_size": [5], "dimension": 3, "interpolation": "BSpline",
        "metric": ["Mattes"], "metric_weight": [1.0], "number_of_iterations": [[100, 50, 0]],
        "output_transform_prefix": "vol_", "output_warped_image": True,
        "radius_or_number_of_bins": [32], "sampling_percentage": [0.25],
        "sampling_strategy": ["Random"], "shrink_factors": [[2, 2, 1]], "sigma_units": ["vox"],
        "smoothing_sigmas": [[4.0, 2.0, 0.0]], "transform_parameters": [[0.01]],
        "transforms": ["Rigid"], "use_histogram_matching": [True],
        "winsorize_lower_quantile": 0.0001, "winsorize_upper_quantile": 0.9998,
    }))  # fmt: skip
    registrar = get_registrar("ants", path)
    assert isinstance(registrar, Registrar)
    with work_folder() as folder:
        image = Image(np.random.default_rng(0).random((8, 8, 8)), np.eye(4))
        files = PairFiles.write(folder, asked_for(image, image, np.ones((8, 8, 8), bool)))
        command = " ".join(registrar._command(files, registrar._stages("rigid", None), seed=4))
    for part in ("Rigid[ 0.01 ]", "100x50x0", "4.0x2.0x0.0vox", "--random-seed 5",
                 "[ fixed-mask.nii, NULL ]", "--output found", "[ 0.0001, 0.9998 ]"):  # fmt: skip
        assert part in command
    assert str(folder) not in command
    with pytest.raises(EddymotionError, match="'Rigid', but 'affine' was requested"):
        registrar._stages("affine", None)


def test_settings_are_completed_by_the_preset_stage_by_stage():
    given = {"transforms": ["SyN"], "metric": ["MeanSquares"]}
    stages = AntsRegistrar(settings=given)._stages("syn", None)
    preset = preset_json("ants", "default", "syn")
    assert stages["shrink_factors"] == [
        preset["shrink_factors"][preset["transforms"].index("SyN")]
    ]
    assert stages["metric"] == ["MeanSquares"]
    assert AntsRegistrar()._stages("syn", "mi")["metric"] == ["Mattes", "Mattes", "Mattes"]
    with pytest.raises(EddymotionError, match="2 entries for the 1 stages"):
        AntsRegistrar(settings={"metric": ["CC", "CC"]})._stages("rigid", None)
    parts = AntsRegistrar(settings={"metric": [["Mattes", "CC"]]})
    with work_folder() as folder:
        image = Image(np.random.default_rng(0).random((8, 8, 8)), np.eye(4))
        files = PairFiles.write(folder, asked_for(image, image))
        with pytest.raises(EddymotionError, match="do not fit together"):
            parts._command(files, parts._stages("rigid", None), seed=0)
    with pytest.raises(EddymotionError, match="2 number_of_iterations, 3 shrink_factors"):
        AntsRegistrar(settings={"number_of_iterations": [[5, 5]]})._stages("rigid", None)


def test_elastix_parameter_files_are_settings(tmp_path, everything_is_here):
    path = tmp_path / "mine.txt"
    path.write_text('(Transform "EulerTransform") // mine\n(NumberOfResolutions 2)\n')
    registrar = get_registrar("elastix", path)
    parameters = registrar._parameters("rigid", "gc", 0)
    assert parameters["NumberOfResolutions"] == ["2"]
    assert parameters["Metric"] == ["AdvancedNormalizedCorrelation"]
    with pytest.raises(EddymotionError, match="'EulerTransform', but 'affine'"):
        registrar._parameters("affine", None, 0)
    path.write_text('(Transform "EulerTransform)\n')
    with pytest.raises(EddymotionError, match=r"mine\.txt: line 1 is"):
        get_registrar("elastix", path)
    path.write_text("Transform = Euler\n")
    with pytest.raises(EddymotionError, match=r"mine\.txt: line 1 is 'Transform = Euler'"):
        get_registrar("elastix", path)


# --- what other programs do wrong --------------------------------------------------------------


@pytest.mark.parametrize(("name", "package"), [("ants", "antspyx"), ("elastix", "itk-elastix")])
def test_an_engine_that_is_not_there_says_what_to_install(monkeypatch, name, package):
    for module in (ants, elastix):
        monkeypatch.setattr(module.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(external, "find_spec", lambda _: None)
    with pytest.raises(EddymotionError, match=rf"{package}; pip install 'eddymotion\[{name}\]'"):
        get_registrar(name)


def put_program(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo 'cannot read fixed.nii' >&2; exit 3", "exit code 3.*cannot read fixed.nii"),
        ("echo 'half way'; kill -SEGV $$", r"crashed \(SIGSEGV\).*half way"),
        ("echo 'all fine'; exit 0", "without writing result.txt.*all fine"),
        ("touch result.txt; exit 0", "without writing result.txt; no output"),
    ],
)
def test_a_failing_program_is_an_error_and_a_stale_file_no_result(tmp_path, text, words):
    put_program(tmp_path / "programs", "engine", text)
    (tmp_path / "result.txt").write_text("stale")
    with pytest.raises(EddymotionError, match=words):
        run_program(
            ["engine"], folder=tmp_path, outputs=[tmp_path / "result.txt"],
            programs=tmp_path / "programs",
        )  # fmt: skip


def test_a_crash_of_ants_reaches_the_user(pair, tmp_path, monkeypatch):
    put_program(tmp_path, "antsRegistration", "echo 'Exception caught: bad input'; kill -ABRT $$")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    fixed, moving, mask = pair
    with pytest.raises(EddymotionError, match=r"antsRegistration crashed \(SIGABRT\).*bad input"):
        AntsRegistrar().register(fixed, moving, fixed_mask=mask)


@needs_ants
def test_a_stage_of_ants_that_fails_is_no_result(pair):
    """ANTs wants four voxels along each axis, says so, and ends well with its start."""
    fixed, _, mask = pair
    thin = Image(fixed.data[..., 10:13], fixed.affine)
    with pytest.raises(EngineError, match=r"failed in a stage.*minimum of four pixels"):
        AntsRegistrar().register(thin, thin, fixed_mask=mask[..., 10:13])


FUNCTIONS = """
import os
from pathlib import Path

def write(folder):
    print("writing")
    (folder / "result.txt").write_text(str(os.getpid()))

def fail(folder):
    print("about to fail", flush=True)
    raise ValueError("no such luck")

def crash(folder):
    print("about to crash", flush=True)
    os.abort()
"""


def test_functions_run_in_a_process_that_stays_until_it_crashes(tmp_path, monkeypatch):
    (tmp_path / "some_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    import some_functions

    output = tmp_path / "result.txt"
    assert run_function(some_functions.write, tmp_path, [output]) == "writing\n"
    first = output.read_text()
    run_function(some_functions.write, tmp_path, [output])
    assert output.read_text() == first != str(os.getpid())
    with pytest.raises(EddymotionError, match=r"ValueError: no such luck.*about to fail"):
        run_function(some_functions.fail, tmp_path)
    with pytest.raises(EddymotionError, match=r"crash crashed \(SIGABRT\).*about to crash"):
        run_function(some_functions.crash, tmp_path)
    external.end_workers()
    run_function(some_functions.write, tmp_path, [output])
    assert output.read_text() != first


def test_axes_that_are_not_perpendicular_are_refused(pair, tmp_path):
    fixed, moving, _ = pair
    shear = np.eye(4)
    shear[0, 1] = 0.2
    with pytest.raises(EddymotionError, match=r"not perpendicular.*gauss-newton"):
        PairFiles.write(tmp_path, asked_for(fixed, Image(moving.data, shear @ moving.affine)))

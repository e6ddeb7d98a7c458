# SPDX-License-Identifier: Apache-2.0
"""The leave-one-out loop by single volumes, each step from files to files.

:func:`split`, then in each pass :func:`resample_volume` → :func:`plan` → :func:`predict_volume` →
:func:`register_pair` → :func:`move_all`, and :func:`unite` at the end. The transforms are those of
``estimator="lovo"`` of :func:`eddymotion.estimate_motion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eddymotion.data.gradients import Gradients, from_fsl
from eddymotion.data.series import DWI
from eddymotion.derivatives import Outputs
from eddymotion.errors import EddymotionError
from eddymotion.estimation.estimators import N_PASSES
from eddymotion.estimation.frames import unite_frames
from eddymotion.estimation.held_out import fitted, predict
from eddymotion.estimation.lovo import (
    LEAST_LEFT,
    conclude,
    fill_lost,
    is_predicted,
    lost_voxels,
    register_unless_worse,
)
from eddymotion.estimation.lovo.moving_together import Following, move_together, reach_of
from eddymotion.estimation.lovo.prediction_grid import prediction_grid
from eddymotion.estimation.lovo.schedule import Pass, plan_passes, registrar_at
from eddymotion.estimation.outlier_volumes import far_from_neighbours, recover_outlier_volumes
from eddymotion.estimation.quality import ENOUGH
from eddymotion.images.grid import Box, Grid, mask_center
from eddymotion.images.image import Image
from eddymotion.io.images import image_stem, read_image, write_image
from eddymotion.io.itk import read_itk, write_itk
from eddymotion.io.motion import read_written_motion
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.tables import read_gradient_table
from eddymotion.machine.parallel import Compute, one_blas_thread
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid
from eddymotion.models import AverageModel, Model
from eddymotion.models.dipy import DipyModel
from eddymotion.pipeline.contradictions import refuse_beyond_loop
from eddymotion.pipeline.series_steps import Paths, write_found
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.stages import load_series, model_for, tables_of
from eddymotion.registration import GaussNewton, Registrar
from eddymotion.registration.registry import chosen_registrar
from eddymotion.resampling.masks import covered_mask, mask_on_grid


def split(series: SeriesFiles, settings: Settings, out_dir: Path) -> Paths:
    """Write each volume of a series as an image of its own, with the identity as its transform.

    Returns
    -------
    dict
        ``volume_files`` (float32) and ``matrix_files``, a list each; ``mask_file``;
        ``bval_file`` and ``bvec_file`` of the series, where they were found; and ``nonnegative``,
        whether no voxel is below zero.
    """
    dwi = load_series(series, settings)
    mask_file = Outputs.in_folder(out_dir, series.dwi)["mask"]
    write_image(mask_file, dwi.mask.astype(np.uint8), dwi.affine)
    stem = image_stem(series.dwi)
    volume_files = [out_dir / f"{stem}_vol-{index:04d}.nii" for index in range(len(dwi))]
    matrix_files = [path.with_name(path.stem + "_xfm.txt") for path in volume_files]
    for index, volume_file in enumerate(volume_files):
        write_image(volume_file, dwi.volume(index).data, dwi.affine)
        write_itk(matrix_files[index], np.eye(4)[None])
    lists = {"volume_files": volume_files, "matrix_files": matrix_files, "mask_file": mask_file}
    tables = dict(zip(("bval_file", "bvec_file"), tables_of(series), strict=True))
    return lists | tables | {"nonnegative": _is_nonnegative(dwi)}


def resample_volume(
    volume_file: Path,
    matrix_file: Path,
    out_dir: Path,
    *,
    nonnegative: bool = False,
    to_predict: bool = False,
) -> Paths:
    """Resample one volume, by the compiled kernel.

    Parameters
    ----------
    volume_file : Path
        The original volume.
    matrix_file : Path
        ITK text, reference → volume.
    out_dir : Path
    nonnegative : bool
        Whether to clip at zero where the kernel undershoots.
    to_predict : bool
        Whether the grid is that of the predictions of the leave-one-out loop
        (:mod:`eddymotion.estimation.lovo.prediction_grid`), and not that of the volume.

    Returns
    -------
    dict
        ``out_file``.
    """
    data, affine, _ = read_image(volume_file)
    volume = Image(data, affine)
    grid = _grid_of(volume)
    if to_predict:
        grid = prediction_grid(grid)
    resampled = _resampled(volume, read_itk(matrix_file)[0], grid, nonnegative)
    out_file = out_dir / f"{image_stem(volume_file)}_aligned.nii"
    write_image(out_file, resampled, grid.affine)
    return {"out_file": out_file}


def _grid_of(image: Image) -> Grid:
    x, y, z = image.data.shape
    return Grid((x, y, z), image.affine)


def _resampled(volume: Image, pose: np.ndarray, grid: Box, nonnegative: bool) -> np.ndarray:
    resampled = volume.spline.on_grid(grid.shape, grid.affine, pose)
    if nonnegative:
        np.maximum(resampled, 0.0, out=resampled)
    return resampled.T


def _is_nonnegative(dwi: DWI) -> bool:
    return all(bool(volume.min() >= 0) for volume in dwi.volumes())


def plan(
    aligned_files: Sequence[Path],
    matrix_files: Sequence[Path],
    series: SeriesFiles,
    settings: Settings,
    out_dir: Path,
    *,
    pass_number: int,
) -> Paths:
    """Gather the volumes for a pass of the leave-one-out loop, and plan it.

    Parameters
    ----------
    aligned_files, matrix_files : sequences of Path
        A volume each: resampled to predict, and by which transform.
    series : SeriesFiles
        The original one.
    settings : Settings
        With the brain mask.
    out_dir : Path
    pass_number : int
        From one on.

    Returns
    -------
    dict
        ``aligned_file`` (4-D, with lost signal filled by the prediction); ``init_files`` (one a
        volume: the transform to start from, a new one for volumes that went astray); ``xfm_file``
        (all of these); ``mask_file`` (the part of the brain inside all volumes); ``lost_files``
        (one a volume: where it lost its signal); ``volumes`` (their indices); ``relaxation``
        (which part of the way to its prediction each volume should go on its own) and ``center``
        (of the brain, about which the way is measured).
    """
    signal, affine = _stack(aligned_files)
    brain = _brain(settings.brain_mask)
    grid = prediction_grid(_grid_of(brain))
    mask = mask_on_grid(brain, grid.shape, grid.affine)
    motion = _motion_of(matrix_files)
    aligned = DWI(signal, affine, _gradients(*tables_of(series), affine, settings), mask)
    step = _pass(aligned.gradients, settings, pass_number)
    stem = f"{image_stem(series.dwi)}_pass-{pass_number}"
    init_files, lost = list(matrix_files), None
    if step.seeks_lost or len(far_from_neighbours(motion, _center(brain))[0]):
        dwi, seed = load_series(series, settings), settings.random_seed
        found, motion = motion, recover_outlier_volumes(dwi, motion, seed=seed)
        nonnegative = _is_nonnegative(dwi)
        for volume in np.flatnonzero(
            (motion.matrices != found.matrices).any(axis=(1, 2))
        ).tolist():
            init_files[volume] = out_dir / f"{stem}_vol-{volume:04d}_xfm.txt"
            write_itk(init_files[volume], motion[volume][None])
            signal[..., volume] = _resampled(dwi.volume(volume), motion[volume], grid, nonnegative)
        if step.seeks_lost:
            lost = lost_voxels(dwi, motion, step.model, grid, Compute(seed=seed))
            turned = aligned.with_gradients(aligned.gradients.rotated(motion.rotations))
            signal = fill_lost(turned, step.model, lost)
    written = {
        "aligned_file": out_dir / f"{stem}_aligned.nii",
        "xfm_file": out_dir / f"{stem}_xfm.txt",
        "mask_file": out_dir / f"{stem}_mask.nii",
    }
    write_image(written["aligned_file"], signal, affine)
    write_itk(written["xfm_file"], motion.matrices)
    covered = covered_mask(Image(mask, affine), motion, _grid_of(brain))
    write_image(written["mask_file"], covered.astype(np.uint8), affine)
    return written | {
        "init_files": init_files,
        "lost_files": _write_lost(lost, aligned, out_dir / stem),
        "volumes": list(range(len(aligned))),
        "relaxation": step.relaxation.tolist(),
        "center": _center(brain).tolist(),
    }


def predict_volume(
    aligned_file: Path,
    bval_file: Path,
    bvec_file: Path,
    volume: int,
    settings: Settings,
    out_dir: Path,
    *,
    xfm_file: Path | None = None,
    pass_number: int | None = None,
) -> Paths:
    """Predict one volume of an aligned series from all the others.

    Parameters
    ----------
    aligned_file : Path
        4-D image.
    bval_file, bvec_file : Path
    volume : int
        The one that is held out, counted from 0.
    settings : Settings
    out_dir : Path
    xfm_file : Path, optional
        The transforms by which the series was aligned, where the tables are those of the original:
        its b-vectors are rotated with them.
    pass_number : int, optional
        Predict as in that pass of the leave-one-out loop; as the settings say when not given.

    Returns
    -------
    dict
        ``predicted_file``; NaN where the others predict nothing.
    """
    signal, affine, _ = read_image(aligned_file)
    original = _gradients(bval_file, bvec_file, affine, settings)
    if signal.ndim != 4 or signal.shape[3] != len(original):
        raise EddymotionError(
            f"{aligned_file}: found an image of shape {signal.shape} for {len(original)} "
            "b-values; give the aligned series that belongs to the tables"
        )
    if not 0 <= volume < len(original):
        raise EddymotionError(
            f"volume {volume}: {aligned_file} has volumes 0 to {len(original) - 1}"
        )
    turns = None if xfm_file is None else read_written_motion(xfm_file).rotations
    gradients = original if turns is None else original.rotated(turns)
    if pass_number is None:
        model = model_for(original, settings)
    else:
        model = _pass(original, settings, pass_number).model
    predicted = _held_out(signal, gradients, model, volume)
    stem = image_stem(aligned_file).removesuffix("_aligned")
    out_file = out_dir / f"{stem}_vol-{volume:04d}_predicted.nii"
    write_image(out_file, predicted, affine)
    return {"predicted_file": out_file}


def register_pair(
    fixed_file: Path,
    moving_file: Path,
    settings: Settings,
    out_dir: Path,
    *,
    fixed_mask_file: Path | None = None,
    lost_file: Path | None = None,
    init_file: Path | None = None,
    seed: int = 0,
    pass_number: int | None = None,
    relaxation: float = 1.0,
    center: Sequence[float] | None = None,
) -> Paths:
    """Register an image to another one.

    Parameters
    ----------
    fixed_file, moving_file : Path
        Voxels of the fixed image that are NaN do not count.
    settings : Settings
        Says who registers.
    out_dir : Path
    fixed_mask_file : Path, optional
        Where the fixed image counts.
    lost_file : Path, optional
        Where the moving image shows nothing, on the grid of the fixed image; that does not count.
    init_file : Path, optional
        ITK text: where to start, fixed → moving; the identity without.
    seed : int
    pass_number : int, optional
        Register as in that pass of the leave-one-out loop.
    relaxation : float
        Part of the way from the start to the transform found that is taken.
    center : (3,) sequence, optional
        The point about which the way is measured, RAS+ mm.

    Returns
    -------
    dict
        ``matrix_file`` (ITK text, fixed → moving), ``converged`` and ``message``. The start is
        kept if less than half of the mask is known, or less than a tenth of it shows signal.
    """
    fixed, affine, _ = read_image(fixed_file)
    moving, moving_affine, _ = read_image(moving_file)
    where = np.ones(fixed.shape, bool)
    if fixed_mask_file is not None:
        where = read_image(fixed_mask_file)[0] > 0
    if not where.any():
        raise EddymotionError(f"{fixed_mask_file}: no voxel is above zero; give another mask")
    init = np.eye(4) if init_file is None else read_itk(init_file)[0]
    known = np.isfinite(fixed)
    enough = known[where].mean() > ENOUGH
    if lost_file is not None:
        known &= read_image(lost_file)[0] == 0
        enough = enough and known[where].mean() > LEAST_LEFT
    matrix, converged, message = init, False, "too little signal to register; its pose is kept"
    if enough:
        registrar = _registrar(settings, pass_number)
        images = Image(np.nan_to_num(fixed), affine), Image(moving, moving_affine)
        if pass_number is None:
            mask = None if fixed_mask_file is None and known.all() else where & known
            found = registrar.register(*images, fixed_mask=mask, init=init, seed=seed)
        else:
            found = register_unless_worse(registrar, *images, where & known, init, seed)
        matrix, converged, message = found.matrix, found.converged, found.message
        if center is not None:
            twist = log_rigid(np.linalg.inv(init) @ matrix, np.asarray(center))
            matrix = init @ exp_rigid(relaxation * twist, np.asarray(center))
    out_file = out_dir / f"{image_stem(moving_file)}_xfm.txt"
    write_itk(out_file, matrix[None])
    return {"matrix_file": out_file, "converged": converged, "message": message}


def move_all(
    series: SeriesFiles,
    aligned_file: Path,
    predicted_files: Sequence[Path],
    fixed_mask_file: Path,
    xfm_file: Path,
    matrix_files: Sequence[Path],
    settings: Settings,
    out_dir: Path,
    *,
    pass_number: int,
) -> Paths:
    """Move all volumes at the end of a pass of the leave-one-out loop.

    Parameters
    ----------
    series : SeriesFiles
        The original one.
    aligned_file : Path
        From :func:`plan`, as the mask and `xfm_file`.
    predicted_files : sequence of Path
        A volume each.
    fixed_mask_file : Path
        The part of the brain inside all volumes.
    xfm_file : Path
        The transforms from which the registrations started.
    matrix_files : sequence of Path
        One a volume: the transform that its registration found.
    settings : Settings
        With the brain mask.
    out_dir : Path
    pass_number : int
        From one on.

    Returns
    -------
    dict
        ``matrix_files``, a volume each.
    """
    head = _brain(settings.brain_mask)
    signal, affine, _ = read_image(aligned_file)
    original, init = _gradients(*tables_of(series), affine, settings), _motion_of([xfm_file])
    step = _pass(original, settings, pass_number)
    turned = original.rotated(init.rotations)
    with one_blas_thread():
        following = Following.of(fitted(step.model, signal, turned), turned)
    motion = move_together(
        init,
        _motion_of(matrix_files),
        _stack(predicted_files)[0],
        _brain(fixed_mask_file),
        following,
        relaxation=step.relaxation,
        center=_center(head),
        reach=reach_of(_grid_of(head)),
        compute=Compute(settings.nprocs, settings.random_seed),
    )
    stem = f"{image_stem(series.dwi)}_pass-{pass_number}"
    moved_files = [
        out_dir / f"{stem}_vol-{index:04d}_moved_xfm.txt" for index in range(len(motion))
    ]
    for path, matrix in zip(moved_files, motion.matrices, strict=True):
        write_itk(path, matrix[None])
    return {"matrix_files": moved_files}


def unite(
    series: SeriesFiles,
    matrix_files: Sequence[Path],
    predicted_files: Sequence[Path],
    settings: Settings,
    out_dir: Path,
) -> Paths:
    """Bring b=0 and diffusion-weighted volumes into one frame: the end of the loop.

    Parameters
    ----------
    series : SeriesFiles
        The original series.
    matrix_files, predicted_files : sequences of Path
        Of the last pass, a volume each.
    settings : Settings
        With the brain mask.
    out_dir : Path

    Returns
    -------
    dict
        As :func:`~eddymotion.pipeline.series_steps.estimate`.
    """
    dwi = load_series(series, settings)
    grid = prediction_grid(dwi)
    mask = mask_on_grid(Image(dwi.mask, dwi.affine), grid.shape, grid.affine)
    known = is_predicted(_stack(predicted_files)[0], mask)
    model = model_for(dwi.gradients, settings)
    compute = Compute(settings.nprocs, settings.random_seed)
    motion = unite_frames(
        dwi,
        conclude(dwi, _motion_of(matrix_files), known, model, compute),
        align_shells=not settings.no_shell_alignment,
        compute=compute,
    )
    motion = replace(motion, center=dwi.center)
    return write_found(dwi, motion, Outputs.in_folder(out_dir, series.dwi))


def n_passes(settings: Settings) -> int:
    """Return how often the loop goes over the series."""
    return settings.n_iterations or N_PASSES


def refuse_settings_beyond_loop(settings: Settings) -> None:
    """Raise if the settings ask for what the leave-one-out loop does not do."""
    if settings.estimator == "joint":
        raise EddymotionError(
            "estimator joint: the expanded graph is the leave-one-out loop; use the estimator "
            "lovo, or the graph that is not expanded"
        )
    refuse_beyond_loop(settings.given, "the expanded graph")


def _brain(mask_file: Path | None) -> Image:
    if mask_file is None:
        raise EddymotionError("no brain mask was given: the loop needs a brain mask")
    data, affine, _ = read_image(mask_file)
    return Image(data > 0, affine)


def _center(brain: Image) -> np.ndarray:
    return mask_center(brain.data, brain.affine)


def _motion_of(matrix_files: Sequence[Path]) -> Motion:
    return Motion(np.concatenate([read_itk(path) for path in matrix_files]))


def _gradients(bval: Path, bvec: Path, affine: np.ndarray, settings: Settings) -> Gradients:
    bvals, bvecs = read_gradient_table(bval, bvec)
    return Gradients(bvals, from_fsl(bvecs, affine), settings.b0_threshold)


def _pass(gradients: Gradients, settings: Settings, number: int) -> Pass:
    """Return a pass of the loop; `gradients` of the original series."""
    model = model_for(gradients, settings)
    passes = plan_passes(model, _registrar(settings), gradients, n_passes(settings))
    if not 1 <= number <= len(passes):
        raise EddymotionError(
            f"pass {number}: the loop has {len(passes)} passes, counted from 1; raise n_iterations"
        )
    return passes[number - 1]


def _write_lost(lost: list[np.ndarray] | None, dwi: DWI, stem: Path) -> list[Path]:
    """Write where each volume lost its signal; those that lost nothing share one empty image."""
    empty = np.zeros(dwi.shape, np.uint8)
    paths = [stem.with_name(f"{stem.name}_lost-nothing.nii")] * len(dwi)
    write_image(paths[0], empty, dwi.affine)
    for volume, voxels in enumerate(lost or ()):
        if len(voxels):
            image = empty.copy()
            image[np.unravel_index(voxels, dwi.shape, order="F")] = 1
            paths[volume] = stem.with_name(f"{stem.name}_lost-{volume:04d}.nii")
            write_image(paths[volume], image, dwi.affine)
    return paths


def _registrar(settings: Settings, pass_number: int | None = None) -> Registrar:
    chosen = chosen_registrar(settings.registration, settings.registration_settings)
    registrar = chosen or GaussNewton()
    if pass_number is None:
        return registrar
    return registrar_at(registrar, pass_number, n_passes(settings))


def _held_out(signal: np.ndarray, gradients: Gradients, model: Model, volume: int) -> np.ndarray:
    """Predict one volume: all at once where that costs next to nothing, else it alone."""
    is_b0 = gradients.is_b0[volume]
    with one_blas_thread():
        if isinstance(model, DipyModel) and not is_b0:
            return model.predict_one(signal, gradients, volume)
        return predict(signal, gradients, AverageModel() if is_b0 else model)[..., volume]


def _stack(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read 3-D images as one 4-D array, and their affine."""
    first, affine, _ = read_image(files[0])
    signal = np.empty((*first.shape, len(files)), np.float32, order="F")
    for index, path in enumerate(files):
        signal[..., index] = read_image(path)[0]
    return signal, affine

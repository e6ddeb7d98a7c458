# SPDX-License-Identifier: Apache-2.0
"""ANTs as an engine: ``antsRegistration``, its settings as Nipype's interface takes them.

Nipype checks the settings and writes the command line. It is run here and not by Nipype, whose
interfaces change the working directory of the whole process while they run: several volumes are
registered at a time, in threads. Where ``antsRegistration`` is not on PATH, the same program
inside antspyx runs, in a process of its own as well.

ANTs sends a point ``x`` of the fixed image to ``affine(warp(x))``: its files are read as they are.

References
----------
Avants et al. (2011), NeuroImage 54:2033.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import from_matvec

from eddymotion.errors import EddymotionError, EngineError
from eddymotion.images.grid import read_linearly
from eddymotion.images.image import Image
from eddymotion.io.itk import write_itk
from eddymotion.io.warps import read_warp
from eddymotion.mapping.registration import Registration, Warp
from eddymotion.registration.checks import read_settings
from eddymotion.registration.engines.ants_inputs import (
    OURS,
    assign,
    completed,
    input_names,
    interface_with,
)
from eddymotion.registration.engines.external import (
    PairFiles,
    environment,
    find_in_package,
    last_lines,
    relative_command,
    run_program,
    work_folder,
)
from eddymotion.registration.request import Engine, Request, ending
from eddymotion.registration.settings import (
    check_number,
    check_preset,
    preset_json,
    refusing_with,
)
from eddymotion.wording import shown, why

log = logging.getLogger(__name__)

PROGRAM = "antsRegistration"

INSTALL = (
    f"ANTs is not installed: no {PROGRAM} on PATH, and no antspyx; "
    "pip install 'eddymotion[ants]', or the package ants of Debian 13 and conda-forge"
)

STAGES = {"rigid": "Rigid", "similarity": "Similarity", "affine": "Affine", "syn": "SyN"}
"""The last stage of each transform."""

METRICS = {"mi": ("Mattes", 32), "cc": ("CC", 3), "ssd": ("MeanSquares", 0), "gc": ("GC", 0)}
"""ANTs' names; and the bins, or the radius in voxels."""

MIN_SHRUNK_SIZE = 12
"""Voxels along the shortest axis that are left at a level of a preset."""

MIN_SAMPLES = 20_000
"""Voxels of the mask at which a preset compares the images, if there are so many."""

ITERATION = re.compile(r"DIAGNOSTIC,\s*(\d+),\s*([-+.\deE]+|nan|inf)\s*,", re.IGNORECASE)
LEVEL_START = re.compile(r"DIAGNOSTIC,\s*Iteration", re.IGNORECASE)


@dataclass(frozen=True)
class AntsRegistrar(Engine):
    """Registration with ANTs.

    Parameters
    ----------
    preset : str
        What is used where `settings` say nothing.
    settings : dict
        Inputs of ``nipype.interfaces.ants.Registration``: ``transforms``, ``metric``,
        ``number_of_iterations``, ``shrink_factors`` …, each a list with an entry a stage. Keys
        that are left out come from the preset's stage with the same transform.
    n_threads : int
        Of ANTs for one pair. With more than one, the last digits can differ from run to run.
    """

    preset: str = "default"
    settings: dict[str, Any] = field(default_factory=dict)
    n_threads: int = 1

    transforms = tuple(STAGES)
    metrics = tuple(METRICS)

    def __post_init__(self) -> None:
        check_preset("ants", self.preset)
        check_number("n_threads", self.n_threads, least=1, whole=True)
        if not isinstance(self.settings, dict):
            raise EddymotionError(f"settings are {shown(self.settings)}, expected a dict")
        refused = [key for key in self.settings if key in OURS]
        if refused:
            raise EddymotionError(
                f"settings: {refused[0]!r} is set for each pair automatically; leave it out"
            )
        interface_with(self.settings)  # values that Nipype refuses are refused now
        if "transforms" in self.settings:
            completed(self.settings, preset_json("ants", self.preset, self._kind()))

    @classmethod
    def from_settings(cls, path: Path | None) -> AntsRegistrar:
        """Read Nipype's inputs, and ``preset`` and ``n_threads``, from a JSON file.

        Keys that name the images or outputs are left aside: files made for other programs hold
        them.

        Raises
        ------
        EddymotionError
            If ANTs is not installed, or the file has an unknown key or a value of a wrong type.
        """
        if not ants_is_here():
            raise EddymotionError(f"registration ants: {INSTALL}")
        if path is None:
            return cls()
        inputs = [name for name in input_names() if name not in OURS]
        settings = read_settings(path, [*inputs, "preset", "n_threads", *OURS])
        ours = {key: settings.pop(key) for key in ("preset", "n_threads") if key in settings}
        for key in [key for key in settings if key in OURS]:
            log.info("%s: %r is set for each pair automatically; ignored", path.name, key)
            del settings[key]
        return refusing_with(path, lambda: cls(settings=settings, **ours))

    def _register(self, request: Request) -> Registration:
        """Register; a metric that is given replaces that of the last stage."""
        fixed, nonlinear = request.fixed, request.transform == "syn"
        stages = self._stages(request.transform, request.metric)
        n_voxels = fixed.data.size if request.fixed_mask is None else int(request.fixed_mask.sum())
        self._fit_to_size(stages, min(fixed.data.shape), n_voxels)
        with work_folder() as folder:
            pair = PairFiles.write(folder, request)
            command = self._command(pair, stages, request.seed)
            matrix_file = folder / "found0GenericAffine.mat"
            warp_files = [folder / f"found1{name}Warp.nii.gz" for name in ("", "Inverse")]
            printed = run_program(
                command, folder=folder, n_threads=self.n_threads, programs=program_folder(folder),
                outputs=[matrix_file, *(warp_files if nonlinear else [])],
            )  # fmt: skip
            refuse_start_as_result(printed)
            matrix = pair.to_world(read_ants_matrix(matrix_file))
            warp = read_warp(*warp_files) if nonlinear else None
        if warp is not None:
            placed = from_matvec(np.eye(3), pair.origins[0]) @ warp.affine
            warp = on_grid_of(fixed, replace(warp, affine=placed))
        return _result(matrix, warp, printed, stages)

    def _kind(self) -> str:
        """Return the transform that the settings estimate."""
        names = self.settings["transforms"]
        last = "SyN" if names and names[-1].endswith("SyN") else (names or [""])[-1]
        for transform, stage in STAGES.items():
            if stage == last:
                return transform
        raise EddymotionError(
            f"'transforms' are {shown(names)}, expected a list that ends with one of "
            f"{', '.join(STAGES.values())}"
        )

    def _stages(self, transform: str, metric: str | None) -> dict[str, Any]:
        """Return the inputs for a transform: the settings, completed by the preset."""
        if "transforms" in self.settings and self._kind() != transform:
            raise EddymotionError(
                "registration ants: the last of 'transforms' in the settings is "
                f"{self.settings['transforms'][-1]!r}, but {transform!r} was requested; end them "
                f"with {STAGES[transform]!r}, or request the transform of the settings"
            )
        stages = completed(self.settings, preset_json("ants", self.preset, transform))
        if metric is not None:
            name, detail = METRICS[metric]
            stages["metric"] = [*stages["metric"][:-1], name]
            stages["radius_or_number_of_bins"] = [*stages["radius_or_number_of_bins"][:-1], detail]
            if metric == "cc" and "sampling_strategy" in stages:
                stages["sampling_strategy"] = [*stages["sampling_strategy"][:-1], "None"]
        return stages

    def _fit_to_size(self, stages: dict[str, Any], shortest: int, n_voxels: int) -> None:
        """Shrink less and sample more where the preset would leave too little of an image."""
        most = max(shortest // MIN_SHRUNK_SIZE, 1)
        if "shrink_factors" not in self.settings:
            stages["shrink_factors"] = [
                [min(factor, most) for factor in factors] for factors in stages["shrink_factors"]
            ]
        if "sampling_percentage" not in self.settings:
            least = min(MIN_SAMPLES / n_voxels, 1.0)
            stages["sampling_percentage"] = [
                max(share or 1.0, least) for share in stages["sampling_percentage"]
            ]

    def _command(self, pair: PairFiles, stages: dict[str, Any], seed: int) -> list[str]:
        """Return the command line that Nipype makes, with paths relative to the folder."""
        interface = interface_with(stages)
        inputs: dict[str, Any] = {
            "fixed_image": str(pair.fixed),
            "moving_image": str(pair.moving),
            "output_transform_prefix": "found",
            "write_composite_transform": False,
            "collapse_output_transforms": True,
            "random_seed": seed + 1,  # zero would mean the clock
            "num_threads": self.n_threads,
            "verbose": True,
        }
        if pair.fixed_mask or pair.moving_mask:
            n_stages = len(stages["transforms"])
            inputs["fixed_image_masks"] = [str(pair.fixed_mask or "NULL")] * n_stages
            inputs["moving_image_masks"] = [str(pair.moving_mask or "NULL")] * n_stages
        start = pair.folder / "start.txt"
        write_itk(start, pair.start[None])
        inputs["initial_moving_transform"] = [str(start)]
        assign(interface, inputs)
        try:
            line = interface.cmdline
        except Exception as error:  # whatever values that do not fit together raise there
            raise EddymotionError(
                f"registration ants: the settings do not fit together ({why(error)}); give each "
                "key one entry for every stage, with as many parts as the stage has metrics"
            ) from error
        return relative_command(line, pair.folder)


def ants_is_here() -> bool:
    """Whether ``antsRegistration`` or antspyx is installed."""
    return shutil.which(PROGRAM) is not None or _library() is not None


def _library() -> Path | None:
    """Return antspyx's compiled library."""
    return find_in_package("ants", "lib.*.so", "lib*.pyd")


def program_folder(folder: Path) -> Path | None:
    """Return a folder in which antsRegistration lies, None if that is on PATH.

    Parameters
    ----------
    folder : path
        Where a small script that runs antspyx's program is put.

    Raises
    ------
    EddymotionError
        If there is neither.
    """
    if shutil.which(PROGRAM, path=environment(1)["PATH"]):
        return None
    library = _library()
    if library is None:
        raise EddymotionError(f"registration ants: {INSTALL}")
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('lib', {str(library)!r})\n"
        "library = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(library)\n"
        f"sys.exit(library.{PROGRAM}(sys.argv[1:]))\n"
    )
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    (programs / f"{PROGRAM}.py").write_text(code, encoding="utf-8")
    script = programs / PROGRAM
    called = f"{shlex.quote(sys.executable)} -I {shlex.quote(str(script))}.py"
    script.write_text(f'#!/bin/sh\nexec {called} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return programs


def read_ants_matrix(path: Path) -> np.ndarray:
    """Read an ITK affine transform with NiTransforms: (4, 4), RAS+ mm."""
    from nitransforms.io.itk import ITKLinearTransform

    return np.asarray(ITKLinearTransform.from_filename(str(path)).to_ras(), dtype=float)


def refuse_start_as_result(printed: str) -> None:
    """Raise if a stage failed: ANTs ends well all the same, with the start as its result."""
    if "Exception caught" in printed:
        raise EngineError(f"{PROGRAM} failed in a stage; {last_lines(printed)}")


def on_grid_of(image: Image, warp: Warp) -> Warp:
    """Bring a warp to the grid of an image: ANTs leaves it on the grid of its last level."""
    if warp.forward.shape[:3] == image.data.shape:
        return replace(warp, affine=image.affine)
    to_field = np.linalg.inv(warp.affine) @ image.affine

    def resampled(field: np.ndarray) -> np.ndarray:
        parts = np.moveaxis(field, -1, 0)
        shape = image.data.shape
        return np.stack([read_linearly(part, to_field, shape, "nearest") for part in parts], -1)

    return Warp(resampled(warp.forward), resampled(warp.inverse), image.affine)


def _result(
    matrix: np.ndarray, warp: Warp | None, printed: str, stages: dict[str, Any]
) -> Registration:
    levels = costs_of_levels(printed)
    n_iterations = sum(len(level) for level in levels)
    costs = levels[-1] if levels else ()
    limit = stages["number_of_iterations"][-1][-1]
    converged = bool(costs) and len(costs) < limit
    message = ending(converged, n_iterations, costs, " of ANTs")
    return Registration(matrix, converged, message, costs, n_iterations, warp)


def costs_of_levels(printed: str) -> list[tuple[float, ...]]:
    """Return the metric after each iteration of each level, from what antsRegistration printed."""
    levels: list[list[float]] = []
    for line in printed.splitlines():
        if LEVEL_START.search(line):
            levels.append([])
        elif levels and (found := ITERATION.search(line)):
            levels[-1].append(float(found.group(2)))
    return [tuple(level) for level in levels if level]

# SPDX-License-Identifier: Apache-2.0
"""elastix as an engine: the program through Nipype's interface, or itk-elastix.

Settings are elastix's own parameter maps. As with ANTs, Nipype writes the command line and the
program is run here. itk-elastix takes many seconds to import, so its processes stay for the next
pair. Both read the same files and write the same parameter file, in which
``T(x) = A (x − c) + c + t`` maps points to the moving image in LPS+, after the transform that the
search started from.

elastix has no symmetric normalisation: ``syn`` is refused.

References
----------
Klein et al. (2010), IEEE TMI 29:196.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.mapping.registration import Registration
from eddymotion.registration.checks import read_settings
from eddymotion.registration.engines.elastix_files import (
    ParameterMap,
    elastix_values,
    parameter_file_matrix,
    parse_parameters,
    read_parameter_file,
    start_parameters,
    write_parameter_file,
)
from eddymotion.registration.engines.external import (
    PairFiles,
    find_in_package,
    nipype_interface,
    relative_command,
    run_function,
    run_program,
    work_folder,
)
from eddymotion.registration.request import Engine, Request
from eddymotion.registration.settings import (
    check_number,
    check_preset,
    elastix_parameters,
    preset_text,
    refusing_with,
)
from eddymotion.wording import shown

log = logging.getLogger(__name__)

PROGRAM = "elastix"

INSTALL = (
    f"elastix is not installed: no {PROGRAM} on PATH, and no itk-elastix; "
    "pip install 'eddymotion[elastix]', or the package elastix of Debian"
)

TRANSFORMS = {
    "rigid": "EulerTransform",
    "similarity": "SimilarityTransform",
    "affine": "AffineTransform",
}

METRICS = {
    "mi": "AdvancedMattesMutualInformation",
    "nmi": "NormalizedMutualInformation",
    "gc": "AdvancedNormalizedCorrelation",
    "ssd": "AdvancedMeanSquares",
}

OURS = ("RandomSeed", "WriteResultImage", "InitialTransformParametersFileName",
        "InitialTransformParameterFileName", "DefaultOutputPrecision")  # fmt: skip
"""What is set for each pair, whatever a file says."""

NUMBERED = re.compile(r"^(Metric|Fixed|Moving|Transform)\d+\w*$")
"""Parameters of one of several metrics, with a number in their name."""

MISSPELT = 0.75
"""Likeness to a known name from which on an unknown one counts as misspelt: elastix ignores names
that it does not know, and has more of them than are known here."""

SETTLED = 0.02
"""Share of the whole fall of the cost by which it may fall in the last third: more is not the end.
Stochastic gradient descent has no other sign of convergence."""


@dataclass(frozen=True)
class ElastixRegistrar(Engine):
    """Registration with elastix: rigid, similarity or affine.

    Parameters
    ----------
    preset : str
        The parameter map, where `parameters` say nothing.
    parameters : dict
        Parameters of elastix and their values, or lists of values with one per resolution.
    n_threads : int
        Of the program for one pair. With more than one, the last digits can differ from run to
        run. itk-elastix always takes one.
    """

    preset: str = "default"
    parameters: dict[str, Any] = field(default_factory=dict)
    n_threads: int = 1

    transforms = tuple(TRANSFORMS)
    metrics = tuple(METRICS)

    def __post_init__(self) -> None:
        check_preset("elastix", self.preset)
        check_number("n_threads", self.n_threads, least=1, whole=True)
        if not isinstance(self.parameters, dict):
            raise EddymotionError(
                f"parameters are {shown(self.parameters)}, expected names and values of elastix"
            )
        for name, value in self.parameters.items():
            if name in OURS:
                raise EddymotionError(
                    f"parameter {name!r} is set for each pair automatically; leave it out"
                )
            _check_parameter(name, value)
        _refuse_misspelt(self.parameters)

    @classmethod
    def from_settings(cls, path: Path | None) -> ElastixRegistrar:
        """Read a parameter file of elastix, or ``.json`` with the fields of this class.

        Raises
        ------
        EddymotionError
            If elastix is not installed, or the file cannot be read or has an unknown key.
        """
        if not elastix_is_here():
            raise EddymotionError(f"registration elastix: {INSTALL}")
        if path is None:
            return cls()
        if path.suffix == ".json":
            settings = read_settings(path, ["preset", "parameters", "n_threads"])
            return refusing_with(path, lambda: cls(**settings))
        parameters = {k: v for k, v in read_parameter_file(path).items() if k not in OURS}
        return refusing_with(path, lambda: cls(parameters=parameters))

    def _refuse(self, transform: str) -> None:
        if transform == "syn":
            raise EddymotionError(
                "registration: elastix has no symmetric normalisation ('syn'); use the engine "
                "ants or dipy for it, or one of rigid, similarity, affine"
            )

    def _register(self, request: Request) -> Registration:
        parameters = self._parameters(request.transform, request.metric, request.seed)
        with work_folder() as folder:
            pair = PairFiles.write(folder, request)
            write_parameter_file(folder / "parameters.txt", parameters)
            write_parameter_file(folder / "start.txt", start_parameters(pair.start))
            output = folder / "TransformParameters.0.txt"
            if _program_serves(request.transform):
                command = _command(pair, self.n_threads)
                run_program(command, folder=folder, outputs=[output], n_threads=self.n_threads)
            else:
                run_function(register_with_itk, folder, outputs=[output])
            found = parameter_file_matrix(read_parameter_file(output))
            matrix = pair.to_world(found @ pair.start)
            levels = _costs_of_levels(folder)
        return _result(matrix, levels)

    def _parameters(self, transform: str, metric: str | None, seed: int) -> ParameterMap:
        """Return the parameter map for a pair: the settings, completed by the preset."""
        parameters = parse_parameters(preset_text("elastix", self.preset, transform))
        parameters |= {name: elastix_values(value) for name, value in self.parameters.items()}
        kind = parameters["Transform"][0]
        if kind != TRANSFORMS[transform]:
            raise EddymotionError(
                f"registration elastix: the settings have the Transform {shown(kind)}, but "
                f"{transform!r} was requested, which is {TRANSFORMS[transform]!r}; change one of "
                "them"
            )
        if metric is not None:
            parameters["Metric"] = [METRICS[metric]]
        parameters["RandomSeed"] = [str(seed + 1)]
        parameters["WriteResultImage"] = ["false"]
        parameters["HowToCombineTransforms"] = ["Compose"]
        return parameters


def _command(pair: PairFiles, n_threads: int) -> list[str]:
    """Return the command line that Nipype makes, with paths relative to the folder."""
    interface = nipype_interface("elastix")
    interface.inputs.fixed_image = str(pair.fixed)
    interface.inputs.moving_image = str(pair.moving)
    interface.inputs.parameters = [str(pair.folder / "parameters.txt")]
    interface.inputs.initial_transform = str(pair.folder / "start.txt")
    interface.inputs.output_path = str(pair.folder)
    interface.inputs.num_threads = n_threads
    if pair.fixed_mask:
        interface.inputs.fixed_mask = str(pair.fixed_mask)
    if pair.moving_mask:
        interface.inputs.moving_mask = str(pair.moving_mask)
    return relative_command(interface.cmdline, pair.folder)


def register_with_itk(folder: Path) -> None:
    """Do what the program elastix does with the files of a folder; runs in its own process."""
    import itk

    names = ("fixed", "moving")
    fixed, moving = (itk.imread(str(folder / f"{name}.nii"), itk.F) for name in names)
    parameters = itk.ParameterObject.New()
    parameters.ReadParameterFile(str(folder / "parameters.txt"))
    engine = itk.ElastixRegistrationMethod.New(fixed, moving)
    engine.SetParameterObject(parameters)
    for name, use in (("fixed", engine.SetFixedMask), ("moving", engine.SetMovingMask)):
        if (folder / f"{name}-mask.nii").is_file():
            use(itk.imread(str(folder / f"{name}-mask.nii"), itk.UC))
    engine.SetInitialTransformParameterFileName(str(folder / "start.txt"))
    engine.SetOutputDirectory(str(folder))
    engine.SetNumberOfThreads(1)
    engine.LogToConsoleOn()
    engine.UpdateLargestPossibleRegion()


def _program_serves(transform: str) -> bool:
    """Whether the program is used: it is on PATH and can do it.

    Debian's is built without the similarity transform.
    """
    if shutil.which(PROGRAM) is None:
        if not has_itk_elastix():
            raise EddymotionError(f"registration elastix: {INSTALL}")
        return False
    return transform != "similarity" or not has_itk_elastix()


def elastix_is_here() -> bool:
    """Whether ``elastix`` or itk-elastix is installed."""
    return shutil.which(PROGRAM) is not None or has_itk_elastix()


def has_itk_elastix() -> bool:
    """Whether itk-elastix is installed."""
    return find_in_package("itk", "Configuration/ElastixConfig.py") is not None


def _check_parameter(name: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    usable = values and all(isinstance(item, (str, int, float)) for item in values)
    if not (name.isidentifier() and usable) or any('"' in str(item) for item in values):
        raise EddymotionError(
            f"parameter {shown(name)} is {shown(value)}, expected a name of elastix with a "
            "number, a word, true or false, or a list of these"
        )


def _refuse_misspelt(names: Iterable[str]) -> None:
    known = elastix_parameters()
    for name in names:
        if name in known or NUMBERED.match(name):
            continue
        near = get_close_matches(name, known, n=1, cutoff=MISSPELT)
        if near:
            raise EddymotionError(
                f"unknown parameter {shown(name)} of elastix; did you mean {near[0]!r}?"
            )
        log.warning("elastix: unknown parameter %r; passed on unchanged", name)


def _costs_of_levels(folder: Path) -> list[np.ndarray]:
    """Read the metric after each iteration, from the tables that elastix writes a resolution."""
    costs = []
    for path in sorted(folder.glob("IterationInfo.0.R*.txt")):
        head, *rows = path.read_text(encoding="utf-8").splitlines()
        column = next((k for k, name in enumerate(head.split("\t")) if "Metric" in name), None)
        if column is not None and rows:
            costs.append(np.array([float(row.split("\t")[column]) for row in rows if row.strip()]))
    return costs


def _result(matrix: np.ndarray, levels: list[np.ndarray]) -> Registration:
    n_iterations = sum(len(level) for level in levels)
    if not levels or len(levels[-1]) < 6:
        return Registration(matrix, True, "ended; elastix wrote no costs", (), n_iterations)
    costs = levels[-1]
    first, middle, last = (part.mean() for part in np.array_split(costs, 3))
    falls = middle - last
    converged = bool(falls <= SETTLED * max(abs(first - last), abs(last)))
    how = "settled" if converged else "stopped at the iteration limit while the cost still fell"
    message = (
        f"{how} after {n_iterations} iterations of elastix; mean cost of the last thirds "
        f"{first:.5g}, {middle:.5g}, {last:.5g}"
    )
    return Registration(matrix, converged, message, tuple(map(float, costs)), n_iterations)

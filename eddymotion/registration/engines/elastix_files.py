# SPDX-License-Identifier: Apache-2.0
"""elastix's parameter files: ``(Name value …)`` lines, for settings and for transforms.

A linear transform maps ``T(x) = A (x − c) + c + t`` in LPS+; matrices here are in RAS+ mm.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from eddymotion.errors import EddymotionError
from eddymotion.io.itk import LPS
from eddymotion.io.tsv import is_number
from eddymotion.io.writing import write_text
from eddymotion.wording import shown, why

LINE = re.compile(r"^\s*\(\s*(\w+)\s+(.*?)\s*\)\s*(?://.*)?$")

ParameterMap = dict[str, list[str]]
"""The names of a parameter file and their values, as words without quotes."""


def read_parameter_file(path: Path) -> ParameterMap:
    """Read a file of ``(Name value …)`` lines.

    Raises
    ------
    EddymotionError
        If it cannot be read, or a line is something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EddymotionError(
            f"{path}: cannot be read as text ({why(error)}); correct it"
        ) from error
    try:
        return parse_parameters(text)
    except EddymotionError as error:
        raise EddymotionError(f"{path}: {error}") from error


def parse_parameters(text: str) -> ParameterMap:
    """Return the parameters in a text of ``(Name value …)`` lines."""
    found: ParameterMap = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.strip().startswith("//"):
            continue
        match = LINE.match(line)
        if not match or match.group(2).count('"') % 2:
            raise EddymotionError(
                f"line {number} is {shown(line.strip())}, expected '(Name value)' as elastix "
                "has it"
            )
        found[match.group(1)] = shlex.split(match.group(2))
    return found


def write_parameter_file(path: Path, parameters: ParameterMap) -> None:
    """Write parameters as elastix reads them: numbers bare, words in quotes."""
    lines = []
    for name, values in parameters.items():
        shown = " ".join(value if is_number(value) else f'"{value}"' for value in values)
        lines.append(f"({name} {shown})\n")
    write_text(path, "".join(lines))


def elastix_values(value: Any) -> list[str]:
    """Return a value of JSON as elastix's words."""
    values = value if isinstance(value, list) else [value]
    return [str(item).lower() if isinstance(item, bool) else str(item) for item in values]


def start_parameters(start: np.ndarray) -> ParameterMap:
    """Return a matrix, RAS+ mm, as the parameters of an affine transform of elastix."""
    lps = LPS @ start @ LPS
    numbers = [*lps[:3, :3].ravel(), *lps[:3, 3]]
    return {
        "Transform": ["AffineTransform"],
        "NumberOfParameters": ["12"],
        "TransformParameters": [repr(float(number)) for number in numbers],
        "InitialTransformParametersFileName": ["NoInitialTransform"],
        "HowToCombineTransforms": ["Compose"],
        "FixedImageDimension": ["3"],
        "MovingImageDimension": ["3"],
        "CenterOfRotationPoint": ["0", "0", "0"],
    }


def parameter_file_matrix(parameters: ParameterMap) -> np.ndarray:
    """Return the matrix, RAS+ mm, of one linear transform of elastix, without its start.

    Raises
    ------
    EddymotionError
        If the transform is of another kind.
    """
    kind = parameters["Transform"][0]
    numbers = np.array(parameters["TransformParameters"], dtype=float)
    center = np.array(parameters.get("CenterOfRotationPoint", ["0", "0", "0"]), dtype=float)
    if kind == "EulerTransform":
        zyx = parameters.get("ComputeZYX", ["false"])[0] == "true"
        linear, shift = _euler(numbers[:3], zyx), numbers[3:]
    elif kind == "SimilarityTransform":
        linear, shift = numbers[6] * _versor(numbers[:3]), numbers[3:6]
    elif kind == "AffineTransform":
        linear, shift = numbers[:9].reshape(3, 3), numbers[9:]
    else:
        raise EddymotionError(f"elastix wrote a {shown(kind)}, which is not a linear transform")
    return LPS @ from_matvec(linear, shift + center - linear @ center) @ LPS


def _euler(angles: np.ndarray, zyx: bool) -> np.ndarray:
    """Return ITK's Euler rotation: Rz Rx Ry, or Rz Ry Rx."""
    x, y, z = (Rotation.from_euler(axis, angle) for axis, angle in zip("xyz", angles, strict=True))
    return (z * y * x if zyx else z * x * y).as_matrix()


def _versor(vector: np.ndarray) -> np.ndarray:
    """Return the rotation of a unit quaternion's vector part."""
    scalar = np.sqrt(max(1 - vector @ vector, 0.0))
    return Rotation.from_quat([*vector, scalar]).as_matrix()

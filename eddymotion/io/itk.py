# SPDX-License-Identifier: Apache-2.0
"""Linear transforms in ITK's text files: LPS+ mm there, matrices in RAS+ mm here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import scipy
from nibabel.affines import from_matvec

from eddymotion.errors import EddymotionError
from eddymotion.io.writing import write_text
from eddymotion.wording import cut, why

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS+ ⇄ LPS+, the world coordinates of ITK."""

EXPECTED = "expected an ITK text file with linear transforms (affine, rigid, similarity)"


def write_itk(
    path: Path, matrices: np.ndarray, kind: str = "MatrixOffsetTransformBase_double_3_3"
) -> None:
    """Write RAS+ matrices (N, 4, 4) as an ITK text file, at full precision."""
    lines = ["#Insight Transform File V1.0"]
    for index, matrix in enumerate(LPS @ np.asarray(matrices) @ LPS):
        numbers = [*matrix[:3, :3].ravel(), *matrix[:3, 3]]
        lines += [
            f"#Transform {index}",
            f"Transform: {kind}",
            "Parameters: " + " ".join(repr(float(number)) for number in numbers),
            "FixedParameters: 0 0 0",
        ]
    write_text(path, "\n".join(lines) + "\n")


def read_itk(path: str | Path) -> np.ndarray:
    """Read the linear transforms of an ITK text file.

    Returns
    -------
    (N, 4, 4) array
        RAS+ mm.

    Raises
    ------
    EddymotionError
        If it is not such a file, or not whole.
    """
    kinds, parameters, fixed = [], [], []
    try:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            key, _, rest = line.partition(":")
            if key == "Transform":
                kinds.append(rest.strip().partition("_")[0])
            elif key == "Parameters":
                parameters.append(np.array(rest.split(), float))
            elif key == "FixedParameters":
                fixed.append(np.array(rest.split(), float))
    except (OSError, ValueError) as error:
        raise EddymotionError(f"{path}: cannot be read ({why(error)}); {EXPECTED}") from error
    if not kinds or not len(kinds) == len(parameters) == len(fixed):
        raise EddymotionError(
            f"{path}: holds {len(kinds)} transforms, {len(parameters)} times their parameters and "
            f"{len(fixed)} times their centre; {EXPECTED}"
        )
    return np.array(
        [linear_transform(path, *given) for given in zip(kinds, parameters, fixed, strict=True)]
    )


def linear_transform(
    path: str | Path, kind: str, numbers: np.ndarray, fixed: np.ndarray
) -> np.ndarray:
    """Turn the parameters of one of ITK's linear transforms into a matrix (4, 4), RAS+.

    `path` is named where they are not those of such a transform.
    """
    n_expected, parts = KINDS.get(kind, (len(numbers), None))
    if len(numbers) != n_expected:
        raise EddymotionError(
            f"{path}: {len(numbers)} numbers are not a valid {kind} (expected {n_expected}); "
            f"{EXPECTED}"
        )
    if parts is None:
        raise EddymotionError(f"{path}: holds ITK's {cut(kind)}; {EXPECTED}")
    try:
        linear, translation = parts(numbers, fixed)
    except ValueError as error:
        raise EddymotionError(
            f"{path}: {len(numbers)} numbers are not a valid {kind} ({why(error)}); {EXPECTED}"
        ) from error
    if len(fixed) not in (0, 3, 4):
        raise EddymotionError(f"{path}: {len(fixed)} numbers are not a centre; {EXPECTED}")
    center = fixed[:3] if len(fixed) else np.zeros(3)
    return LPS @ from_matvec(linear, translation + center - linear @ center) @ LPS


def _affine(numbers: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return numbers[:9].reshape(3, 3), numbers[9:12]


def _translation(numbers: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.eye(3), numbers[:3]


def _euler(numbers: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles about x, y and z; a fourth number beside the centre gives the order of rotations."""
    from_euler = scipy.spatial.transform.Rotation.from_euler
    x, y, z = (from_euler(axis, angle) for axis, angle in zip("xyz", numbers[:3], strict=True))
    zyx = len(fixed) > 3 and fixed[3] != 0
    return (z * y * x if zyx else z * x * y).as_matrix(), numbers[3:6]


def _versor(numbers: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vector part of a unit quaternion, translation, and a scale if there is one."""
    scalar = np.sqrt(max(1 - (numbers[:3] ** 2).sum(), 0.0))
    rotation = scipy.spatial.transform.Rotation.from_quat([*numbers[:3], scalar]).as_matrix()
    return rotation * (*numbers[6:7], 1.0)[0], numbers[3:6]


KINDS: Mapping[str, tuple[int, Callable[..., tuple[np.ndarray, np.ndarray]]]] = {
    "MatrixOffsetTransformBase": (12, _affine),
    "AffineTransform": (12, _affine),
    "TranslationTransform": (3, _translation),
    "Euler3DTransform": (6, _euler),
    "VersorRigid3DTransform": (6, _versor),
    "Similarity3DTransform": (7, _versor),
}
"""Kinds of transforms that are read → how many parameters each has, and what makes of them and of
the fixed parameters a linear map (3, 3) and a translation (3,) about the centre."""

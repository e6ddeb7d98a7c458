# SPDX-License-Identifier: Apache-2.0
"""Whether the b-vectors have the order and the signs of the image axes.

A wrong sign of one component mirrors all directions, exchanged components turn them: angles
between them stay what they are, so that no prediction of a volume from the others shows it. Fibres
do: in a real brain they go on from voxel to voxel along themselves, mirrored or turned ones less
(Schilling et al. 2019, Magn Reson Imaging 58; MRtrix3's ``dwigradcheck``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from eddymotion.data.checks.appearance import Appearance
from eddymotion.data.checks.labels import Labels
from eddymotion.data.gradients import to_fsl
from eddymotion.data.series import DWI
from eddymotion.images.axes import image_axes
from eddymotion.machine.parallel import one_blas_thread

LOWEST, HIGHEST = 300.0, 1600.0
"""b-values (s/mm²) between which one tensor describes most of white matter; without such, up to
twice as high ones are used."""

LEAST_DIRECTIONS = 12
LEAST_VOXELS = 6000
"""Least number of voxels with fibres. Simulated heads with fewer agreed up to 1.05 times better
with a wrong sign."""

ANISOTROPIC = 0.2
"""Fractional anisotropy from which on there is one direction of fibres."""

ALONG_DEGREES = 30.0
"""Largest angle between a fibre and the line to a neighbour in which it continues."""

BETTER = 1.06
"""Fibres must continue better along other axes by this factor before that is said. In eleven real
series the right signs were 1.07 to 1.28 times better than any with one changed, and the right
order 1.05 to 1.3 times better than most others; in one of them j and k exchanged are as good."""

CLEARLY, ALIKE = 1.035, 0.999
"""And better by this factor than the next best reading that does not amount to the same. In
simulated heads, whose fibres end anywhere, some reading was up to 1.14 times better than the right
one, but 1.024 times better than the next at most; in real series the right one is 1.047 to 1.2
times better, but for that one series."""

ROUNDING = 1e-9
"""Rounding error of an anisotropy that is not computed from eigenvalues."""

VOLUMES_AT_A_TIME = 8

FORWARD = np.array([step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)])
"""To 13 of the 26 neighbours: the others are the same steps back."""


@dataclass(frozen=True)
class AxesReading:
    """Another reading of the components of b-vectors.

    Parameters
    ----------
    order : tuple of int
        Which of the components stands for each image axis.
    signs : tuple of float
        By which it is multiplied there.
    """

    order: tuple[int, ...]
    signs: tuple[float, ...]

    @property
    def mirrored_axis(self) -> str | None:
        """The image axis along which all is mirrored; None where axes are exchanged."""
        in_order = self.order == (0, 1, 2)
        return "ijk"[self.signs.index(-1.0)] if in_order and -1.0 in self.signs else None

    def applied(self, bvecs: np.ndarray) -> np.ndarray:
        """Read b-vectors (N, 3) along the image axes this way."""
        return bvecs[:, list(self.order)] * self.signs

    def along_former_axes(self, vector: np.ndarray) -> np.ndarray:
        """Turn a vector back (3,): ``applied(b) @ vector == b @ along_former_axes(vector)``."""
        former = np.empty(3)
        former[list(self.order)] = vector * self.signs
        return former

    def rows(self, affine: np.ndarray) -> str:
        """Say which rows of the .bvec of an image make a right one: ``2, -1, 3``."""
        sides = np.sign(np.diag(to_fsl(image_axes(affine).T, affine)))
        signs = sides * self.signs * sides[list(self.order)]
        if (signs < 0).sum() > 1:  # directions have no sign
            signs = -signs
        numbers = (np.array(self.order) + 1) * signs
        return ", ".join(f"{number:.0f}" for number in numbers)


MIRRORS = [AxesReading((0, 1, 2), signs) for signs in
           ((1.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, -1.0))]  # fmt: skip
READINGS = [
    AxesReading(order, mirror.signs) for order in permutations(range(3)) for mirror in MIRRORS
]
"""All 24: first the table as it is, then those with one other sign."""


def likelier_axes(dwi: DWI) -> AxesReading | None:
    """Return along which axes the b-vectors seem to be; None where along their own.

    Parameters
    ----------
    dwi : DWI
    """
    volumes = _of_one_tensor(dwi)
    if len(volumes) == 0:
        return None
    with one_blas_thread():
        voxels, weights, fibres = _fibres(dwi, volumes)
        if len(voxels) < LEAST_VOXELS:
            return None
        found = _continuities(dwi, voxels, weights, fibres)
    for among in (found, found[: len(MIRRORS)]):  # the right order may not be known, the sign be
        best = int(np.argmax(among))
        others = among[among < ALIKE * among[best]]
        next_best = max(others, default=0.0)
        if among[best] > BETTER * found[0] and among[best] > CLEARLY * next_best:
            return READINGS[best]
    return None


def _of_one_tensor(dwi: DWI) -> np.ndarray:
    """Choose b=0 and low shells, or twice as high ones; none where directions are few.

    Volumes that are far brighter or darker than others of their b-value are left out: the tensors
    of all voxels would take that for diffusion along their direction.
    """
    bvals, usual = dwi.gradients.bvals, _usual(dwi)
    for highest in (HIGHEST, 2 * HIGHEST):
        weighted = usual & (bvals >= LOWEST) & (bvals <= highest)
        directed = weighted & (np.linalg.norm(dwi.gradients.bvecs, axis=1) > 0.5)
        if directed.sum() >= LEAST_DIRECTIONS and len(dwi.gradients.b0s):
            return np.flatnonzero(directed | (usual & dwi.gradients.is_b0))
    return np.zeros(0, int)


def _usual(dwi: DWI) -> np.ndarray:
    """Whether each volume is about as bright as others of its b-value, (N,) bool."""
    appearance, gradients = Appearance.of(dwi), dwi.gradients
    if appearance is None:
        return np.ones(len(dwi), bool)
    threshold, shelled = gradients.b0_threshold, gradients.is_shelled
    alike = Labels.of(appearance, gradients.bvals, threshold, shelled=shelled).cores
    return np.isin(np.arange(len(dwi)), np.concatenate(alike))


def _fibres(dwi: DWI, volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a tensor to the logarithms where fibres are.

    Returns
    -------
    voxels : (P, 3) int array
    weights : (P,) array
        Their fractional anisotropy.
    fibres : (P, 3) array
        Its first eigenvector, along the image axes.
    """
    gradients = dwi.gradients.select(volumes)
    x, y, z = gradients.bvecs.T * np.sqrt(gradients.bvals / 1000)
    design = -np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    to_tensor = np.linalg.pinv(np.column_stack([design, np.ones(len(design))]))[:6]
    voxels = np.argwhere(dwi.mask.T)[:, ::-1]  # in the order of a series from a file
    tensor = np.zeros((6, len(voxels)))
    for first in range(0, len(volumes), VOLUMES_AT_A_TIME):
        some = slice(first, first + VOLUMES_AT_A_TIME)
        tensor += to_tensor[:, some].astype(np.float32) @ _logarithms(dwi, volumes[some], voxels)
    candidates = np.flatnonzero(_may_be_anisotropic(tensor))
    voxels = voxels[candidates]
    values, vectors = principal_directions(tensor[:, candidates])
    values = np.clip(values, 0, None)
    spread = ((values - values.mean(axis=0)) ** 2).sum(axis=0)
    anisotropy = np.sqrt(1.5 * spread / np.maximum((values**2).sum(axis=0), 1e-30))
    good = anisotropy > ANISOTROPIC
    along = (vectors[:, good].T @ image_axes(dwi.affine)).astype(np.float32)
    return voxels[good], anisotropy[good], along


def principal_directions(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of symmetric tensors, descending, and the first eigenvectors: (3, P) each.

    With ``q`` a third of the trace and ``6 p²`` the squared norm of ``A - q``, the eigenvalues are
    ``q + 2 p cos(φ + 2πk/3)``, where ``cos 3φ = det(A - q) / 2p³``. All columns of
    ``(A - v₂)(A - v₃) = (v₁ - v₂)(v₁ - v₃) e₁ e₁ᵀ`` are the first eigenvector; the one with the
    largest entry of the diagonal is the longest.

    Parameters
    ----------
    tensor : (6, P) array
        xx, yy, zz, xy, xz, yz.
    """
    mean = tensor[:3].mean(axis=0)
    xx, yy, zz = tensor[:3] - mean
    xy, xz, yz = tensor[3:]
    size = np.sqrt((xx**2 + yy**2 + zz**2 + 2 * (xy**2 + xz**2 + yz**2)) / 6)
    size = np.maximum(size, np.finfo(float).tiny)
    determinant = xx * (yy * zz - yz**2) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
    angle = np.arccos(np.clip(determinant / size / size / size / 2, -1, 1)) / 3
    largest, least = 2 * size * np.cos(angle), 2 * size * np.cos(angle + 2 * np.pi / 3)
    # of trace zero: v₂ + v₃ = -v₁
    product = -(largest + least) * least
    of_xy = xy * (xx + yy + largest) + xz * yz
    of_xz = xz * (xx + zz + largest) + xy * yz
    of_yz = yz * (yy + zz + largest) + xy * xz
    columns = np.array(
        [
            [xx * (xx + largest) + xy**2 + xz**2 + product, of_xy, of_xz],
            [of_xy, yy * (yy + largest) + xy**2 + yz**2 + product, of_yz],
            [of_xz, of_yz, zz * (zz + largest) + xz**2 + yz**2 + product],
        ]
    )
    longest = np.einsum("kkp->kp", columns).argmax(axis=0)
    first = np.take_along_axis(columns, longest[None, None], axis=0)[0]
    length = np.sqrt((first**2).sum(axis=0))
    values = mean + np.stack([largest, -(largest + least), least])
    return values, first / np.maximum(length, np.finfo(float).tiny)


def _may_be_anisotropic(tensor: np.ndarray) -> np.ndarray:
    """Whether tensors (6, P) may have a fractional anisotropy that counts, without eigenvalues.

    With eigenvalues ``v`` it is ``A² = 1.5 (1 - (Σv)² / (3 Σv²))``: from the trace and the norm of
    the tensor. Eigenvalues below zero count as zero, which makes ``Σv`` larger and ``Σv²``
    smaller, so that ``A`` grows only where ``Σv < 0``: these may all.
    """
    xx, yy, zz, *others = tensor
    trace = xx + yy + zz
    norm = xx**2 + yy**2 + zz**2 + 2 * sum(component**2 for component in others)
    least = ANISOTROPIC**2 / 1.5 - ROUNDING
    return (trace <= 0) | (norm - trace**2 / 3 > least * norm)


def _logarithms(dwi: DWI, volumes: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Return logarithms of the signal at voxels (P, 3), a row a volume: (n, P) float32."""
    where = np.ravel_multi_index(tuple(voxels.T[::-1]), dwi.shape[::-1])
    shown = (dwi.signal[..., volume].T.reshape(-1)[where] for volume in volumes)
    signal = np.stack([values.astype(np.float32) for values in shown])
    least = signal.mean(axis=1, keepdims=True, dtype=float) * 1e-3
    return np.log(np.maximum(signal, np.maximum(least, 1e-30).astype(np.float32)))


def _continuities(
    dwi: DWI, voxels: np.ndarray, weights: np.ndarray, fibres: np.ndarray
) -> np.ndarray:
    """Measure how much anisotropy lies in neighbours that fibres join, for each reading.

    Two neighbours are joined where the fibres of both run along the way between them.
    """
    shape = np.add(dwi.shape, 2)
    number, places = np.full(shape.prod(), -1), np.ravel_multi_index(tuple((voxels + 1).T), shape)
    number[places] = np.arange(len(voxels))
    limit, found = np.cos(np.deg2rad(ALONG_DEGREES)), np.zeros(len(READINGS))
    for step in FORWARD:
        other = number[places + step @ [shape[1] * shape[2], shape[2], 1]]
        joining = step * dwi.voxel_sizes / np.linalg.norm(step * dwi.voxel_sizes)
        read = np.stack([reading.along_former_axes(joining) for reading in READINGS])
        along = _bits(np.abs(fibres @ read.T.astype(np.float32)) > limit)
        here = np.flatnonzero(other >= 0)
        joined = along[here] & along[other[here]]
        some = np.flatnonzero(joined)
        here, there = here[some], other[here[some]]
        found += (weights[here] + weights[there]) @ _from_bits(joined[some])
    return found


def _bits(rows: np.ndarray) -> np.ndarray:
    """Write each row (P, 24) bool as one number: (P,) uint32, which float32 hold exactly."""
    return (rows @ np.exp2(np.arange(rows.shape[1], dtype=np.float32))).astype("<u4")


def _from_bits(bits: np.ndarray) -> np.ndarray:
    """Return the rows of :func:`_bits` as numbers, (P, 24)."""
    columns = bits[:, None].view(np.uint8)
    rows = np.unpackbits(columns, axis=1, count=len(READINGS), bitorder="little")
    return rows.astype(float)

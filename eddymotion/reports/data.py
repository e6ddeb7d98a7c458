# SPDX-License-Identifier: Apache-2.0
"""What the report shows and the other outputs do not hold: kept in one small file.

A run makes a :class:`ReportData` from arrays in memory and leaves it under ``figures/``. With the
tables and the sidecar it is all that a page is made of, so that pages can be written again without
the original series.
"""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.io.writing import replacing
from eddymotion.reports.maps import JudgedSlices, Measures
from eddymotion.reports.sprites import Frames, Sheet, white_levels
from eddymotion.wording import why

FORMAT = 1
"""Number of this file's layout; another one is not read."""

LARGEST = 500_000_000
"""Bytes of such a file when it is unpacked."""

_ARRAYS = (
    "bvals", "bvecs_before", "bvecs_after", "z", "ratio", "correlation_before",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ReportData:
    """What a page needs besides the tables.

    Parameters
    ----------
    series : str
        The series in words: size, shells.
    b0_threshold : float
        Volumes at or below this b-value are b=0.
    bvals : (N,) array
    bvecs_before, bvecs_after : (N, 3) array
        RAS+, as acquired and rotated with the head.
    z, ratio : (N, Z) array
        Scores and shares of the signal of :class:`~eddymotion.estimation.outliers.SliceOutliers`.
    correlation_before : (N,) array
        Of each volume as acquired with its held-out prediction.
    sheets : dict
        ``before``, ``after``, ``predicted`` → sprite sheet of the three planes.
    boxes : dict
        Plane → left, top, width, height in a frame, pixels.
    outline : list
        Edge of the brain, line segments in pixels of a frame.
    measures : dict
        Of :class:`~eddymotion.reports.maps.Measures`.
    predictor : str
        The model that predicted the planes.
    """

    series: str
    b0_threshold: float
    bvals: np.ndarray
    bvecs_before: np.ndarray
    bvecs_after: np.ndarray
    z: np.ndarray
    ratio: np.ndarray
    correlation_before: np.ndarray
    sheets: dict[str, Sheet]
    boxes: dict[str, tuple[int, int, int, int]]
    outline: list[list[float]]
    measures: dict[str, Any]
    predictor: str

    @classmethod
    def of(
        cls,
        dwi: DWI,
        before: JudgedSlices,
        after: JudgedSlices,
        predicted: dict[str, np.ndarray],
        predictor: str,
        measures: Callable[[], Measures],
    ) -> ReportData:
        """Collect what a run has in memory.

        Parameters
        ----------
        dwi : DWI
            The original series.
        before, after : JudgedSlices
            Of the original and of the corrected series.
        predicted : dict
            Of :func:`~eddymotion.reports.maps.predicted_planes` after correction.
        predictor : str
            By which model.
        measures : callable
            Returns the measures of both; they may be taken meanwhile.
        """
        old, new = before.slices, after.slices
        frames, white = Frames.of(new.grid, len(dwi)), white_levels(new)
        shown = {"before": old.planes, "after": new.planes, "predicted": predicted}
        return cls(
            series=repr(dwi),
            b0_threshold=dwi.gradients.b0_threshold,
            bvals=new.gradients.bvals,
            bvecs_before=old.gradients.bvecs,
            bvecs_after=new.gradients.bvecs,
            z=after.quality.outliers.z.astype(np.float32),
            ratio=after.quality.outliers.ratio.astype(np.float32),
            correlation_before=before.quality.correlation,
            sheets={name: frames.sheet(planes, white) for name, planes in shown.items()},
            boxes=frames.boxes,
            outline=frames.outline(new.grid),
            measures=asdict(measures()),
            predictor=predictor,
        )

    @property
    def gradients(self) -> Gradients:
        """b-values and rotated b-vectors."""
        return Gradients(self.bvals, self.bvecs_after, self.b0_threshold)

    def save(self, path: Path) -> None:
        """Write it as .npz, whole or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {
            f"sheet_{name}": np.frombuffer(sheet.data, np.uint8)
            for name, sheet in self.sheets.items()
        }
        layouts = {
            name: [sheet.width, sheet.height, sheet.columns] for name, sheet in self.sheets.items()
        }
        rest = {
            "format": FORMAT,
            "series": self.series,
            "b0_threshold": self.b0_threshold,
            "layouts": layouts,
            "boxes": self.boxes,
            "outline": self.outline,
            "measures": self.measures,
            "predictor": self.predictor,
        }
        text = np.frombuffer(json.dumps(rest).encode(), np.uint8)
        with replacing(path) as temporary:
            np.savez(temporary, allow_pickle=False, rest=text, **arrays)

    @classmethod
    def load(cls, path: Path) -> ReportData:
        """Read what :meth:`save` wrote.

        Raises
        ------
        EddymotionError
            If it is not such a file, or from another version.
        """
        try:
            _refuse_too_much(path)
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            rest = json.loads(arrays.pop("rest").tobytes())
            if rest["format"] != FORMAT:
                raise EddymotionError(
                    f"{path}: has format {rest['format']}, expected {FORMAT}; correct the series "
                    "again with this version"
                )
            sheets = {
                name: Sheet(arrays[f"sheet_{name}"].tobytes(), *map(int, layout))
                for name, layout in rest["layouts"].items()
            }
            return cls(
                **{name: arrays[name] for name in _ARRAYS},
                sheets=sheets,
                boxes={name: tuple(box) for name, box in rest["boxes"].items()},
                **{
                    name: rest[name]
                    for name in ("series", "b0_threshold", "outline", "measures", "predictor")
                },
            )
        except EddymotionError:
            raise
        except Exception as error:  # there is no end to what NumPy, zipfile and zlib may raise
            raise EddymotionError(
                f"{path}: cannot be read as the data of a report ({why(error)}); correct "
                "the series again"
            ) from error


def _refuse_too_much(path: Path) -> None:
    """Raise if an archive would take more memory than any report needs."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST:
        raise ValueError(f"it would take {size / 1e9:.3g} GB of memory")


class _Recorder(logging.Handler):
    """Keeps messages and when they came."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.started = time.perf_counter()
        self.lines: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((time.perf_counter() - self.started, record.getMessage()))


@contextmanager
def recorded_log() -> Iterator[list[tuple[float, str]]]:
    """Record what the estimation says, with the seconds since the beginning.

    Debug messages are recorded too; whether they are shown elsewhere is for the other handlers
    to say.
    """
    logger, recorder = logging.getLogger("eddymotion.estimation"), _Recorder()
    level = logger.level
    logger.addHandler(recorder)
    logger.setLevel(logging.DEBUG)
    try:
        yield recorder.lines
    finally:
        logger.setLevel(level)
        logger.removeHandler(recorder)

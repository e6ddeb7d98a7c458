# SPDX-License-Identifier: Apache-2.0
"""Nipype interfaces over :mod:`eddymotion.pipeline.parts`: each calls the function of its name.

Nodes of :class:`Estimate`, :class:`Apply` and :class:`Correct` hold the whole series: give them
``mem_gb=eddymotion.pipeline.limits.memory_gb(dwi_file, num_threads)`` and ``n_procs=num_threads``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("NO_ET", "1")  # no version ping: it waits for seconds behind a firewall

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    Undefined,
    isdefined,
    traits,
)

from eddymotion.interfaces import (
    ALL,
    APPLYING,
    FIELD_HELP,
    JUDGING,
    MOTION,
    PREDICTING,
    READING,
    REGISTERING,
    setting_default,
    setting_help,
    setting_type,
    settings_of,
    sidecar_beside,
    tables_beside,
)

if TYPE_CHECKING:
    from eddymotion.pipeline.correct import SeriesFiles

__all__ = [
    "Apply",
    "Correct",
    "Estimate",
    "Measure",
    "Plan",
    "PredictVolume",
    "RegisterPair",
    "Report",
    "ResampleVolume",
    "Split",
    "Unite",
]

_SCALARS = {float: traits.Float, int: traits.Int, str: traits.Str, bool: traits.Bool}


def _file(name: str, **metadata: Any) -> Any:
    return File(exists=True, desc=FIELD_HELP[name], **metadata)


def _files(name: str, **metadata: Any) -> Any:
    return traits.List(File(exists=True), desc=FIELD_HELP[name], **metadata)


def _setting(name: str) -> Any:
    """Return a trait for a setting; undefined means its default."""
    desc = f"{setting_help(name)} (default: {setting_default(name)})"
    kind, _ = setting_type(name)
    if kind is Path:
        return File(exists=True, desc=desc)
    if kind in _SCALARS:
        return _SCALARS[kind](desc=desc)
    return traits.List(traits.Str, desc=desc)


def _settings(names: Sequence[str]) -> type:
    """Return a base of an input spec that has traits for settings."""
    return type("_Settings", (BaseInterfaceInputSpec,), {name: _setting(name) for name in names})


class _SeriesInputSpec(BaseInterfaceInputSpec):
    dwi_file = _file("dwi_file", mandatory=True)
    bval_file = _file("bval_file")
    bvec_file = _file("bvec_file")
    mask_file = _file("mask_file")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc=FIELD_HELP["num_threads"])

    def get_hashval(self, hash_method: str | None = None) -> Any:
        """Take what lies beside the series for given: a node runs again when it changes."""
        beside, sidecar = {}, None
        if isdefined(self.dwi_file):
            for kind, table in tables_beside(Path(self.dwi_file)).items():
                if not isdefined(getattr(self, kind)):
                    beside[kind] = str(table)
            sidecar = sidecar_beside(Path(self.dwi_file))
        self.trait_set(**beside)
        try:
            parts, digest = super().get_hashval(hash_method)
        finally:
            self.trait_set(**dict.fromkeys(beside, Undefined))
        if sidecar is not None:
            told = hashlib.sha256(sidecar.read_bytes()).hexdigest()
            parts = [*parts, ("sidecar beside", told)]
            digest = hashlib.md5(f"{digest}{told}".encode(), usedforsecurity=False).hexdigest()
        return parts, digest


class _MovedInputSpec(_SeriesInputSpec):
    xfm_file = _file("xfm_file", mandatory=True)
    details_file = _file("details_file")


class _Step(SimpleInterface):
    """Inputs → paths and settings → a function of :mod:`eddymotion.pipeline.parts` → outputs."""

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        raise NotImplementedError

    def _run_interface(self, runtime: Any) -> Any:
        given = {name: value if isdefined(value) else None
                 for name, value in self.inputs.get().items()}  # fmt: skip
        found = self._call(given, Path(runtime.cwd))
        wanted = set(self.output_spec().copyable_trait_names())
        self._results.update({k: _plain(v) for k, v in found.items() if k in wanted})
        return runtime


def _plain(value: Any) -> Any:
    """Paths as text, in lists too."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _series(given: dict[str, Any], prefix: str = "") -> SeriesFiles:
    from eddymotion.pipeline.correct import SeriesFiles

    dwi = given[f"{prefix}file" if prefix else "dwi_file"]
    bval, bvec = (_path(given.get(f"{prefix}{kind}_file")) for kind in ("bval", "bvec"))
    return SeriesFiles(Path(dwi), bval, bvec)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


class _EstimateInputSpec(_settings(MOTION), _SeriesInputSpec):  # type: ignore[misc]
    pass


class _EstimateOutputSpec(TraitedSpec):
    xfm_file = _file("xfm_file")
    x5_file = _file("x5_file")
    details_file = _file("details_file")
    mask_file = _file("mask_file")


class Estimate(_Step):
    """Estimate the motion of a series; see :func:`eddymotion.pipeline.parts.estimate`."""

    input_spec = _EstimateInputSpec
    output_spec = _EstimateOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import parts

        return parts.estimate(_series(given), settings_of(given), out_dir)


class _ApplyInputSpec(_settings(APPLYING), _MovedInputSpec):  # type: ignore[misc]
    pass


class _ApplyOutputSpec(TraitedSpec):
    dwi_file = _file("corrected_file")
    bval_file = _file("corrected_bval_file")
    bvec_file = _file("corrected_bvec_file")
    dwiref_file = _file("dwiref_file")
    mask_file = _file("mask_file")


class Apply(_Step):
    """Resample a series, rotate its b-vectors; see :func:`eddymotion.pipeline.parts.apply`."""

    input_spec = _ApplyInputSpec
    output_spec = _ApplyOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import parts

        return parts.apply(_series(given), Path(given["xfm_file"]), settings_of(given), out_dir,
                           _path(given["details_file"]))  # fmt: skip


class _MeasureInputSpec(_settings(JUDGING), _MovedInputSpec):  # type: ignore[misc]
    pass


class _MeasureOutputSpec(TraitedSpec):
    confounds_file = _file("confounds_file")
    confounds_sidecar_file = _file("confounds_sidecar_file")


class Measure(_Step):
    """Tabulate motion and agreement; see :func:`eddymotion.pipeline.parts.measure`."""

    input_spec = _MeasureInputSpec
    output_spec = _MeasureOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import parts

        return parts.measure(_series(given), Path(given["xfm_file"]), settings_of(given), out_dir,
                             _path(given["details_file"]))  # fmt: skip


class _ReportInputSpec(_settings(MOTION), _MovedInputSpec):  # type: ignore[misc]
    corrected_file = _file("corrected_file", mandatory=True)
    corrected_bval_file = _file("corrected_bval_file")
    corrected_bvec_file = _file("corrected_bvec_file")


class _ReportOutputSpec(TraitedSpec):
    report_file = _file("report_file")
    motion_figure_file = _file("motion_figure_file")
    before_after_figure_file = _file("before_after_figure_file")


class Report(_Step):
    """Draw a series before and after, on a page; see :func:`eddymotion.pipeline.parts.report`."""

    input_spec = _ReportInputSpec
    output_spec = _ReportOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import parts

        return parts.report(_series(given), _series(given, "corrected_"), Path(given["xfm_file"]),
                            settings_of(given), out_dir,
                            _path(given["details_file"]))  # fmt: skip


class _CorrectInputSpec(_settings(ALL), _SeriesInputSpec):  # type: ignore[misc]
    pass


class _CorrectOutputSpec(_ApplyOutputSpec, _MeasureOutputSpec, _ReportOutputSpec):
    xfm_file = _file("xfm_file")
    x5_file = _file("x5_file")
    sidecar_file = _file("sidecar_file")
    outliers_file = _file("outliers_file")


class Correct(_Step):
    """Correct a series, with all outputs; see :func:`eddymotion.pipeline.parts.correct`."""

    input_spec = _CorrectInputSpec
    output_spec = _CorrectOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import parts

        return parts.correct(_series(given), settings_of(given), out_dir)


class _SplitInputSpec(_settings(READING), _SeriesInputSpec):  # type: ignore[misc]
    pass


class _SplitOutputSpec(TraitedSpec):
    volume_files = _files("volume_files")
    matrix_files = _files("matrix_files")
    mask_file = _file("mask_file")
    bval_file = _file("bval_file")
    bvec_file = _file("bvec_file")
    nonnegative = traits.Bool(desc=FIELD_HELP["nonnegative"])


class Split(_Step):
    """Write each volume as an image of its own; see :func:`eddymotion.pipeline.loop.split`."""

    input_spec = _SplitInputSpec
    output_spec = _SplitOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import loop as loop_parts

        return loop_parts.split(_series(given), settings_of(given), out_dir)


class _ResampleVolumeInputSpec(BaseInterfaceInputSpec):
    volume_file = _file("volume_file", mandatory=True)
    matrix_file = _file("matrix_file", mandatory=True)
    nonnegative = traits.Bool(False, usedefault=True, desc=FIELD_HELP["nonnegative"])


class _ResampleVolumeOutputSpec(TraitedSpec):
    out_file = _file("out_file")


class ResampleVolume(_Step):
    """Resample one volume; see :func:`eddymotion.pipeline.loop.resample_volume`."""

    input_spec = _ResampleVolumeInputSpec
    output_spec = _ResampleVolumeOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import loop as loop_parts

        return loop_parts.resample_volume(Path(given["volume_file"]), Path(given["matrix_file"]),
                                     out_dir, nonnegative=given["nonnegative"])  # fmt: skip


class _PlanInputSpec(_settings(MOTION), _SeriesInputSpec):  # type: ignore[misc]
    aligned_files = _files("aligned_files", mandatory=True)
    matrix_files = _files("matrix_files", mandatory=True)
    pass_number = traits.Int(mandatory=True, desc=FIELD_HELP["pass_number"])


class _PlanOutputSpec(TraitedSpec):
    aligned_file = _file("aligned_file")
    xfm_file = _file("xfm_file")
    mask_file = _file("fixed_mask_file")
    init_files = _files("init_files")
    lost_files = _files("lost_files")
    volumes = traits.List(traits.Int, desc=FIELD_HELP["volumes"])
    relaxation = traits.List(traits.Float, desc=FIELD_HELP["relaxation"])
    center = traits.List(traits.Float, desc=FIELD_HELP["center"])


class Plan(_Step):
    """Prepare a pass of the leave-one-out loop; see :func:`eddymotion.pipeline.loop.plan`."""

    input_spec = _PlanInputSpec
    output_spec = _PlanOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import loop as loop_parts

        return loop_parts.plan(given["aligned_files"], given["matrix_files"], _series(given),
                          settings_of(given), out_dir,
                          pass_number=given["pass_number"])  # fmt: skip


class _PredictVolumeInputSpec(_settings(PREDICTING)):  # type: ignore[misc]
    aligned_file = _file("aligned_file", mandatory=True)
    bval_file = _file("bval_file", mandatory=True)
    bvec_file = _file("bvec_file", mandatory=True)
    volume = traits.Int(mandatory=True, desc=FIELD_HELP["volume"])
    xfm_file = _file("xfm_file")
    pass_number = traits.Int(desc=FIELD_HELP["pass_number"])


class _PredictVolumeOutputSpec(TraitedSpec):
    predicted_file = _file("predicted_file")


class PredictVolume(_Step):
    """Predict a held-out volume; see :func:`eddymotion.pipeline.loop.predict_volume`."""

    input_spec = _PredictVolumeInputSpec
    output_spec = _PredictVolumeOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import loop as loop_parts

        tables = _series(given | {"dwi_file": given["aligned_file"]})
        return loop_parts.predict_volume(Path(given["aligned_file"]), tables, given["volume"],
                                    settings_of(given), out_dir,
                                    xfm_file=_path(given["xfm_file"]),
                                    pass_number=given["pass_number"])  # fmt: skip


class _RegisterPairInputSpec(_settings(REGISTERING)):  # type: ignore[misc]
    fixed_file = _file("fixed_file", mandatory=True)
    moving_file = _file("moving_file", mandatory=True)
    fixed_mask_file = _file("fixed_mask_file")
    lost_file = _file("lost_file")
    init_file = _file("init_file")
    seed = traits.Int(0, usedefault=True, desc=FIELD_HELP["seed"])
    pass_number = traits.Int(desc=FIELD_HELP["pass_number"])
    relaxation = traits.Float(1.0, usedefault=True, desc=FIELD_HELP["relaxation"])
    center = traits.List(traits.Float, desc=FIELD_HELP["center"])


class _RegisterPairOutputSpec(TraitedSpec):
    matrix_file = _file("matrix_file")
    converged = traits.Bool(desc=FIELD_HELP["converged"])
    message = traits.Str(desc=FIELD_HELP["message"])


class RegisterPair(_Step):
    """Register an image to another; see :func:`eddymotion.pipeline.loop.register_pair`."""

    input_spec = _RegisterPairInputSpec
    output_spec = _RegisterPairOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import loop as loop_parts

        return loop_parts.register_pair(Path(given["fixed_file"]), Path(given["moving_file"]),
                                   settings_of(given), out_dir,
                                   mask_file=_path(given["fixed_mask_file"]),
                                   lost_file=_path(given["lost_file"]),
                                   init_file=_path(given["init_file"]), seed=given["seed"],
                                   pass_number=given["pass_number"],
                                   relaxation=given["relaxation"],
                                   center=given["center"])  # fmt: skip


class _UniteInputSpec(_EstimateInputSpec):
    matrix_files = _files("matrix_files", mandatory=True)
    predicted_files = _files("predicted_files", mandatory=True)


class Unite(_Step):
    """Bring all volumes into one frame at the end; see :func:`eddymotion.pipeline.loop.unite`."""

    input_spec = _UniteInputSpec
    output_spec = _EstimateOutputSpec

    def _call(self, given: dict[str, Any], out_dir: Path) -> dict[str, Any]:
        from eddymotion.pipeline import loop as loop_parts

        return loop_parts.unite(_series(given), given["matrix_files"], given["predicted_files"],
                           settings_of(given), out_dir)  # fmt: skip

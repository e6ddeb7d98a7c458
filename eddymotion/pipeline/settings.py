# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF009 - what declares a setting returns a field
"""The settings of a run, as one frozen value, and the description of each setting.

From these follow the options of the commands, the inputs of the workflow nodes, and which settings
count for a result.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from eddymotion.errors import EddymotionError
from eddymotion.pipeline.contradictions import refuse_contradictions
from eddymotion.wording import PE_AXES, shown

if typing.TYPE_CHECKING:
    from eddymotion.io.sidecars import Anatomy

Stage = Literal[
    "gradients", "reading", "predicting", "sampling", "registering", "motion", "joining",
    "applying", "writing", "running",
]  # fmt: skip
"""Of a run: the first that heeds a setting. ``running`` changes how fast a result comes, not what
it is; ``joining``, ``applying`` and ``writing`` change what is made of the motion within a run,
not that motion itself."""


@dataclass(frozen=True)
class Setting:
    """What is known of a field of :class:`Settings` besides its type and default.

    Parameters
    ----------
    stage : str
    help : str
    shown_default : str
        What help of a command says about the default.
    choices : tuple of str
        All values there are, where these can be counted; of one that may be a number, the words.
    least : float, optional
        Of a number, or of one that may stand in place of the words.
    metavar : str, optional
        Its value in the help of a command.
    group : str
        Heading of its option in the help of a command; without one, it is each command's own.
    options : tuple of str
        Names of its option, where it has others than that of the field.
    node_input : str
        Name of the input of a node, where it has another one than that of the field.
    unset : str
        The word on the command line for nothing set, where there is one.
    """

    stage: Stage
    help: str
    shown_default: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    metavar: str | None = None
    group: str = ""
    options: tuple[str, ...] = ()
    node_input: str = ""
    unset: str = ""

    def takes(self, value: Any) -> bool:
        """Whether a value is allowed, as far as this is known without a dataset."""
        if value in self.choices or not (self.choices or self.least is not None):
            return True
        with suppress(TypeError, ValueError):
            return self.least is not None and float(value) >= self.least
        return False

    @property
    def expected(self) -> str:
        """The values there are, in words."""
        words = [f"one of {', '.join(self.choices)}"] if self.choices else []
        number = [] if self.least is None else [f"a number of at least {self.least:g}"]
        return ", or ".join(words + number)


def estimation(default: Any, stage: Stage, help: str, **known: Any) -> Any:
    """Declare a setting under the heading of the estimation."""
    return setting(default, stage, help, group="motion estimation", **known)


def output(default: Any, stage: Stage, help: str, **known: Any) -> Any:
    """Declare a setting under the heading of the outputs."""
    return setting(default, stage, help, group="outputs", **known)


def setting(default: Any, stage: Stage, help: str, **known: Any) -> Any:
    """Declare a field of :class:`Settings`; `known` as in :class:`Setting`."""
    return field(default=default, metadata={"setting": Setting(stage, help, **known)})


@dataclass(frozen=True)
class Settings:
    """Settings of a run. Names are those of the command-line options.

    Raises
    ------
    EddymotionError
        If a value is none there is, or settings exclude or need each other
        (:mod:`eddymotion.pipeline.contradictions`).
    """

    b0_threshold: float = estimation(
        50.0, "gradients", "volumes at or below this b-value (s/mm²) count as b=0",
        shown_default="%(default)g", least=0, metavar="B",
    )  # fmt: skip
    model: str = estimation(
        "auto", "predicting",
        "auto (by the scheme), gp (Gaussian process; gp-legendre or gp-spherical on shells, "
        "gp-qspace without), average, dti, wls-dti, dki, or dipy:NAME for any DIPY model that can "
        "predict",
        shown_default="%(default)s",
    )  # fmt: skip
    estimator: str | None = estimation(
        None, "motion",
        "joint: all volumes at once; lovo: leave one volume out, predict, register, repeat, with "
        "any model and registration",
        shown_default="joint, or lovo where --model or --registration needs it",
        choices=("joint", "lovo"),
    )  # fmt: skip
    registration: str | None = estimation(
        None, "registering",
        "backend that registers a volume to its prediction in lovo, which is chosen if this is "
        "given: gauss-newton (default), dipy, ants, elastix, or a backend of another package",
        metavar="BACKEND",
    )  # fmt: skip
    registration_settings: Path | None = estimation(
        None, "registering",
        "parameters of the registration backend (JSON; elastix: its own files, too)",
        metavar="FILE",
    )  # fmt: skip
    n_iterations: int | None = estimation(
        None, "registering",
        "passes of lovo over the series (default: 5), or maximum number of steps of joint at "
        "each level (default: 20)",
        least=1, metavar="N",
    )  # fmt: skip
    brain_mask: Path | None = setting(
        None, "reading", "brain mask on the grid of the series; computed when not given",
        metavar="FILE", node_input="mask_file",
    )  # fmt: skip
    min_q_distance: float = estimation(
        0.0, "predicting",
        "predictions leave out volumes closer than this to the held-out one in q-space, in "
        "units of sqrt(b / 1000 s/mm²); with joint, those for judging and replacing slices; "
        "with lovo, also those that volumes are registered to",
        shown_default="%(default)g", least=0, metavar="Q",
    )  # fmt: skip
    eddy_current: str = estimation(
        "auto", "motion", "eddy-current fields that joint estimates with the motion",
        shown_default="if the data show any: quadratic with enough directions, else linear",
        choices=("auto", "none", "linear", "quadratic", "cubic"),
    )  # fmt: skip
    within_volume: str = estimation(
        "auto", "motion",
        "motion within volumes, estimated by joint slice by slice; auto: in volumes where the "
        "data show any; N: in all, with N poses per volume; needs SliceTiming in the sidecar",
        shown_default="%(default)s", choices=("auto", "none"), least=2, metavar="{auto,none,N}",
    )  # fmt: skip
    pe_axis: str | None = estimation(
        None, "motion", "phase-encoding direction as in BIDS, such as j-",
        shown_default="from the JSON sidecar, else the axis that explains most",
        choices=PE_AXES, metavar="AXIS",
    )  # fmt: skip
    no_shell_alignment: bool = estimation(
        False, "motion",
        "do not estimate the offset between diffusion-weighted and b=0 volumes",
    )  # fmt: skip
    separate_all_dwis: bool = setting(
        False, "joining",
        "correct each run in its own frame, without the off-resonance field",
        shown_default="runs of a session share the frame of the first; runs of different phase "
        "encodings determine the field",
        group="runs of a session",
    )  # fmt: skip
    distortion_group_merge: str = setting(
        "none", "joining",
        "also write the runs of a session as one series: concat, one after the other; average, "
        "pairs of opposite polarity as one volume",
        shown_default="%(default)s", choices=("none", "concat", "average"),
        group="runs of a session",
    )  # fmt: skip
    fieldmap: Path | None = estimation(
        None, "joining",
        "off-resonance field, Hz, in the frame of the (first) series, such as FSL topup's --fout, "
        "or its _fieldcoef file; needs phase encoding and readout time in the sidecar",
        shown_default="found from runs of opposite phase encoding", metavar="FILE",
    )  # fmt: skip
    denoise: str = output(
        "none", "applying",
        "remove noise from the series that is resampled; the motion is estimated from the "
        "series as acquired: mppca (local principal components, by DIPY) or patch2self (each "
        "volume from the others)",
        shown_default="%(default)s", choices=("none", "mppca", "patch2self"),
    )  # fmt: skip
    degibbs: bool = output(
        False, "applying", "also remove Gibbs ringing from it, after the noise, by DIPY"
    )
    resampling: str | None = output(
        None, "applying",
        "interpolation engine: NiTransforms, or the compiled kernel, which is checked against it",
        shown_default="nitransforms, or fast with an "
                      "output space", choices=("nitransforms", "fast"),
    )  # fmt: skip
    output_space: Path | Literal["T1w"] | None = output(
        None, "applying",
        "image that defines the space and grid of the corrected series, still by one "
        "interpolation of the original volumes: a template or just a grid; T1w: that of the "
        "participant, from the dataset",
        shown_default="dwi, that of the series", metavar="{dwi,T1w,FILE}", unset="dwi",
    )  # fmt: skip
    output_resolution: float | Literal["native"] | None = output(
        None, "applying",
        "voxel size there, mm; native: that of the series, along the axes of the image",
        shown_default="native for T1w, else that of the image", metavar="{native,MM}",
    )  # fmt: skip
    output_space_transform: str = output(
        "auto", "applying",
        "how the series is registered to it; auto: not at all if it is already aligned or is "
        "blank, rigid if it is T1w or shows the same head, else syn (affine, then a warp)",
        shown_default="%(default)s", choices=("auto", "none", "rigid", "affine", "syn"),
    )  # fmt: skip
    output_space_contrast: str = output(
        "dwiref", "applying",
        "image of the series that is registered: the mean b=0 or the fractional anisotropy",
        shown_default="%(default)s", choices=("dwiref", "fa"),
    )  # fmt: skip
    output_space_mask: Path | None = output(
        None, "applying", "brain of the image, on its grid", metavar="FILE"
    )
    output_space_white_matter: Path | None = output(
        None, "applying",
        "white matter of the image, 0 to 1, on its grid: its edge is drawn on the series in the "
        "report",
        metavar="FILE",
    )  # fmt: skip
    replace_outliers: bool = output(
        False, "applying",
        "show the prediction from the other volumes in slices that lost signal",
        shown_default="show what was acquired, and list them",
    )  # fmt: skip
    fsl_outputs: bool = output(
        False,
        "writing",
        "also write the text files and CNR maps of FSL's eddy, and FLIRT matrices",
    )
    cnr_maps: bool = output(False, "writing", "map SNR of the b=0 volumes and CNR of each shell")
    residuals: bool = output(
        False, "writing", "write the residual of each volume from its prediction"
    )
    eddy_fields: bool = output(
        False, "writing", "write the eddy-current fields as displacement fields"
    )
    ignore: tuple[str, ...] = output(
        (), "reading",
        "sform, qform: ignore this affine where the two disagree; tables: accept b-values that "
        "contradict the images; fieldmaps: do not estimate the off-resonance field from runs of "
        "other phase encodings; fmap-jacobian: do not correct the brightness for it",
        choices=("sform", "qform", "tables", "fieldmaps", "fmap-jacobian"),
    )  # fmt: skip
    random_seed: int = setting(
        0, "sampling", "of the random sampling points",
        shown_default="%(default)d", least=0, metavar="SEED",
    )  # fmt: skip
    nprocs: int = setting(
        1, "running", "number of processors; results do not depend on it",
        shown_default="all, %(default)d", least=1, metavar="N",
        options=("--nprocs", "--nthreads", "--n-cpus", "--n-threads"), node_input="n_threads",
    )  # fmt: skip

    def in_space_of(self, anatomy: Anatomy | None) -> Settings:
        """Name the images of a participant where the output is to lie in its T1w space."""
        if self.output_space != "T1w" or anatomy is None:
            return self
        how = self.output_space_transform
        return replace(
            self,
            output_space=anatomy.t1w,
            output_space_mask=anatomy.brain_mask if how != "none" else None,
            output_space_white_matter=anatomy.white_matter if how != "none" else None,
            output_space_transform="rigid" if how == "auto" else how,
            output_resolution=self.output_resolution or "native",
        )

    def effective(self) -> dict[str, Any]:
        """Return what determines the result, as JSON-ready values."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
            if SETTINGS[name].stage != "running"
        }

    @property
    def prepares(self) -> bool:
        """Whether noise or ringing is taken off what is resampled."""
        return self.denoise != "none" or self.degibbs

    def __post_init__(self) -> None:
        for name, about in SETTINGS.items():
            given = getattr(self, name)
            for value in given if isinstance(given, (tuple, list)) else [given]:
                if value is not None and not about.takes(value):
                    raise EddymotionError(
                        f"{name} {shown(value)} given, expected {about.expected}"
                    )
        refuse_contradictions(self.given)

    @property
    def given(self) -> dict[str, Any]:
        """What differs from the defaults: name → value."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: v for name, v in values.items() if v != getattr(Settings, name)}

    def with_absolute_paths(self) -> Settings:
        """Return the same with absolute paths: workflow nodes run in folders of their own."""
        paths: dict[str, Any] = {name: path.resolve() for name, path in self.files().items()}
        return replace(self, **paths)

    def files(self) -> dict[str, Path]:
        """Return the files among what is set."""
        given = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in given.items() if isinstance(value, Path)}


SETTINGS: Mapping[str, Setting] = {
    entry.name: entry.metadata["setting"] for entry in fields(Settings)
}
"""Name → what is known of it."""


def of_stages(*stages: Stage) -> tuple[str, ...]:
    """Return the settings that some stages heed, but those which nodes get as inputs of others."""
    return tuple(
        name for name, about in SETTINGS.items() if about.stage in stages and not about.node_input
    )


AFTER_MOTION = frozenset(of_stages("joining", "applying", "writing"))
"""Settings that change what is made of a motion, not the motion itself."""

READING = of_stages("gradients", "reading")
"""Settings of a step that only reads the series."""

JUDGING = of_stages("gradients", "reading", "predicting", "sampling")
"""Settings of a step that compares volumes with their predictions."""

APPLYING = of_stages("gradients", "reading", "predicting", "sampling", "applying")
"""Settings of a step that resamples, and predicts what slices have lost."""

MOTION = tuple(name for name in of_stages(*typing.get_args(Stage)) if name not in AFTER_MOTION)
"""Settings of a step that finds the motion."""

JOINING = (*of_stages("gradients", "reading", "sampling"), "fieldmap")
"""Settings of a step that brings runs together."""

MERGING = (*of_stages("gradients"), "distortion_group_merge", "output_space")
"""Settings of a step that makes one series of corrected runs."""

REGISTERING = of_stages("registering")
"""Settings of a step that registers one pair."""

PREDICTING = of_stages("gradients", "predicting", "registering")
"""Settings of a step that predicts one volume; the passes of the loop depend on who registers."""

ALL = of_stages(*(stage for stage in typing.get_args(Stage) if stage != "joining"))


def kind_of(hint: Any) -> Any:
    """Return a type without its ``None`` and its words, and a list for any sequence."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) in (tuple, Sequence):
        return list[typing.get_args(hint)[0]]  # type: ignore[misc]
    return hint


KINDS = {name: kind_of(hint) for name, hint in typing.get_type_hints(Settings).items()}
"""Setting → its type."""

WORDS = {
    name: tuple(
        word
        for part in typing.get_args(hint)
        if typing.get_origin(part) is Literal
        for word in typing.get_args(part)
    )
    for name, hint in typing.get_type_hints(Settings).items()
}
"""Setting → words that it takes instead of a value of that type."""

OF_PARTICIPANTS = ("T1w",)
"""Words that mean something only where the participant is known."""


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Collect the settings among the inputs of a node; the rest is left alone, as is what is None.

    ``mask_file`` and ``n_threads`` become those of the settings.
    """
    values = {name: given.get(about.node_input or name) for name, about in SETTINGS.items()}
    return Settings(**{name: _of_kind(name, v) for name, v in values.items() if v is not None})


def _of_kind(name: str, value: Any) -> Any:
    """Convert the value of a setting to its type, unless it is a word."""
    if value in WORDS[name]:
        return value
    if KINDS[name] == list[str]:
        return tuple(value)
    try:
        return KINDS[name](value)
    except ValueError as error:
        expected = " or ".join((f"a {KINDS[name].__name__}", *WORDS[name]))
        raise EddymotionError(f"{name} {shown(value)} given, expected {expected}") from error

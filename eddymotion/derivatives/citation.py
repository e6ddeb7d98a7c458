# SPDX-License-Identifier: Apache-2.0
"""What to write in a paper, by what was done with each series."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from textwrap import fill
from typing import Any

from eddymotion import __version__
from eddymotion.wording import listed

MOST_NAMES = 6
"""Series that are named where they were treated differently."""

NONE_FOUND = "none found"
"""Of eddy-current fields that were sought."""

PREDICTIONS = {
    "gp-legendre": "a Gaussian process over the gradient scheme, with a covariance by spherical "
    "harmonics (cf. Andersson & Sotiropoulos, 2015)",
    "gp-spherical": "a Gaussian process over the gradient scheme, with a spherical covariance "
    "(Andersson & Sotiropoulos, 2015)",
    "gp-qspace": "a Gaussian process over q-space, with a Matérn covariance (cf. Andersson & "
    "Sotiropoulos, 2015)",
    "average": "the mean of the other volumes of the shell",
    "dti": "the diffusion tensor, fitted to the logarithm of the signal",
    "wls-dti": "the diffusion tensor, fitted to the logarithm of the signal by weighted least "
    "squares",
    "dki": "diffusional kurtosis, fitted to the logarithm of the signal",
}
"""Name of a model → what predicted."""

DENOISING = {
    "mppca": "noise components by MP-PCA (Veraart et al., 2016; DIPY, Garyfallidis et al., 2014)",
    "patch2self": "residuals of Patch2Self (Fadnavis et al., 2020)",
}
"""Name of a method → what took off noise."""

TRANSFORMS = {"rigid": "rigid", "affine": "affine", "syn": "affine and then nonlinear (SyN)"}

FOLLOWED = (
    " Where the head moved within a volume, its pose was followed from excitation to excitation "
    "(cf. Andersson et al., 2017)."
)
REBUILT = (
    " Volumes within which the head had moved were read slice by slice, each at its own pose, and "
    "interpolated across the slices by ordinary kriging (Matheron, 1963); the b-vectors were "
    "rotated by the mean pose of the volume."
)
"""What is said of motion within volumes."""


@dataclass(frozen=True)
class Methods:
    """What was done with a series; empty where that is not known.

    Parameters
    ----------
    estimator : {"joint", "lovo", ""}
    model : str
        A name of :func:`eddymotion.models.get_model`, or a class.
    min_q_distance : float
    registration : str
        What registered volumes to their predictions, with its settings file.
    passes : int
        Of the leave-one-out loop.
    eddy_currents : {"linear", "quadratic", "cubic", "none found", "none", ""}
    reference : {"b0", "first", ""}
        The frame: that of the first b=0 volume, or of the first volume.
    aligned : bool
        Whether the diffusion-weighted volumes were brought into the frame of the b=0 volumes.
    resampling : {"nitransforms", "fast", ""}
    output_space : str
        Name of the image that gave the space and the grid.
    output_transform : {"none", "rigid", "affine", "syn", ""}
        How the series was registered to it.
    replaced_outliers : bool
    followed_within : bool
        Whether the head was followed within volumes.
    n_runs : int
        Runs of the session that lie in one frame; none where the series is alone.
    off_resonance : {"", "runs", "given"}
        Where the field that was corrected came from.
    denoised : {"none", "mppca", "patch2self"}
        What took noise off the series that was resampled.
    without_ringing : bool
        Whether Gibbs ringing was taken off it.
    """

    estimator: str = ""
    model: str = ""
    min_q_distance: float = 0.0
    registration: str = ""
    passes: int = 0
    eddy_currents: str = ""
    reference: str = ""
    aligned: bool = True
    resampling: str = ""
    output_space: str = ""
    output_transform: str = ""
    replaced_outliers: bool = False
    followed_within: bool = False
    n_runs: int = 0
    off_resonance: str = ""
    denoised: str = "none"
    without_ringing: bool = False

    @classmethod
    def of(cls, sidecar: Mapping[str, Any]) -> Methods:
        """Read what a run left in the sidecar of the corrected image; unknown values are left."""
        found = sidecar.get("Methods")
        defaults = asdict(cls())
        found = found if isinstance(found, Mapping) else {}
        return cls(**{
            name: value
            for name, value in found.items()
            if name in defaults and isinstance(value, type(defaults[name]))
        })  # fmt: skip

    def plain(self) -> dict[str, Any]:
        """Return the same as a JSON-ready value."""
        return asdict(self)


def boilerplate(methods: Methods, version: str = __version__) -> str:
    """Describe the processing of a series in sentences that may be copied."""
    return " ".join(filter(None, sentences(methods, version)))


def sentences(methods: Methods, version: str) -> list[str]:
    """Return the sentences of :func:`boilerplate`: always as many, some of them empty."""
    lost = "Slices that lost signal were identified by comparison with the predictions"
    replaced = " and replaced by them" if methods.replaced_outliers else ""
    return [
        f"Head motion in the diffusion-weighted series was corrected with eddymotion {version}.",
        _estimation(methods),
        _prediction(methods),
        _eddy_currents(methods),
        _frame(methods) + _off_resonance(methods),
        _preparation(methods) + _resampling(methods),
        f"{lost}{replaced} (cf. Andersson et al., 2016).",
        "Framewise displacement follows Power et al. (2012), root-mean-square displacement "
        "Jenkinson (1999), contrast-to-noise ratio Bastiani et al. (2019), neighbouring-DWI "
        "correlation Yeh et al. (2019). Diffusion tensors in the report were fitted by "
        "weighted least squares (Salvador et al., 2005).",
    ]


def _estimation(methods: Methods) -> str:
    if methods.estimator == "joint":
        words = (
            "The poses of all volumes were estimated together, by least squares on the misfit of "
            "each volume to its prediction from the others."
        )
        return words + FOLLOWED * methods.followed_within
    if methods.estimator != "lovo":
        return ""
    passes = f", in {methods.passes} pass{'es' if methods.passes > 1 else ''}"
    return (
        "Each volume was predicted from all others by a signal model fitted without it "
        f"(leave-one-volume-out) and registered to its prediction by {methods.registration}"
        f"{passes if methods.passes else ''}."
    )


def _prediction(methods: Methods) -> str:
    if not methods.model:
        return ""
    if methods.model.startswith("dipy:"):
        words = f"DIPY's {methods.model.removeprefix('dipy:')} (Garyfallidis et al., 2014)"
    else:
        words = PREDICTIONS.get(methods.model, f"the model {methods.model}")
    near = (
        f", without volumes closer than {methods.min_q_distance:g} √(1000 s/mm²) in q-space where "
        + ("slices were judged" if methods.estimator == "joint" else "volumes were predicted")
    )
    return f"Predictions came from {words}{near if methods.min_q_distance else ''}."


def _eddy_currents(methods: Methods) -> str:
    if methods.eddy_currents in ("", "none"):
        return "Eddy currents were not corrected." if methods.eddy_currents else ""
    if methods.eddy_currents == NONE_FOUND:
        return (
            "Eddy-current fields were sought with the motion; the data showed none, and none were "
            "corrected."
        )
    return (
        f"Eddy-current fields, {methods.eddy_currents} polynomials along the phase-encoding axis, "
        "were estimated with the motion and corrected."
    )


def _off_resonance(methods: Methods) -> str:
    words = ""
    if methods.n_runs > 1:
        words = f" The {methods.n_runs} runs of the session lie in one frame."
    if not methods.off_resonance:
        return words
    source = (
        "a field map"
        if methods.off_resonance == "given"
        else "the b=0 images of runs of different phase encoding (cf. Andersson et al., 2003)"
    )
    return (
        f"{words} The off-resonance field, found from {source}, was taken to move with the head, "
        "and was corrected with its effect on the brightness in the same interpolation."
    )


def _frame(methods: Methods) -> str:
    if not methods.reference:
        return ""
    if not methods.aligned:
        return (
            "Diffusion-weighted and b=0 volumes were each brought into a frame of their own; the "
            "offset between the two was not estimated."
        )
    first = "the first b=0 volume" if methods.reference == "b0" else "the first volume"
    return f"The volumes were brought into the frame of {first}."


def _preparation(methods: Methods) -> str:
    parts = [DENOISING[methods.denoised]] if methods.denoised in DENOISING else []
    if methods.without_ringing:
        parts.append("Gibbs artefacts by subvoxel shifts (Kellner et al., 2016)")
    if not parts:
        return ""
    return (
        f"From the series as acquired {' and then '.join(parts)} were removed once its motion was "
        "known. "
    )


def _resampling(methods: Methods) -> str:
    space, how = methods.output_space, TRANSFORMS.get(methods.output_transform)
    registered = f"The series was registered to {space} ({how}). " if space and how else ""
    onto = f" on the grid of {space}" if space else ""
    by = {
        "nitransforms": " by NiTransforms (Goncalves et al., 2021)",
        "fast": " by eddymotion's own kernel",
    }.get(methods.resampling, "")
    words = (
        f"{registered}The volumes were resampled once{onto}, with cubic B-splines{by}; the "
        "b-vectors were rotated accordingly (Leemans & Jones, 2009)."
    )
    return words + REBUILT * methods.followed_within


def citation_text(sidecars: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what to write about some series, and the references: Markdown.

    Parameters
    ----------
    sidecars : mapping
        Name of a series → sidecar of its corrected image.
    """
    words = boilerplate_of_all(sidecars)
    text = fill(words, 100, break_long_words=False, break_on_hyphens=False)
    lines = ["# Citation text", "", text, "", *(f"- {line}" for line in references(words))]
    return "\n".join(lines) + "\n"


def boilerplate_of_all(sidecars: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the processing of several series; what differs is listed with their names."""
    described = {
        name: sentences(Methods.of(sidecar), version_of(sidecar))
        for name, sidecar in sidecars.items()
    }
    parts = [_merged(dict(zip(described, slot, strict=True))) for slot in zip(*described.values())]  # noqa: B905
    return " ".join(filter(None, parts))


def version_of(sidecar: Mapping[str, Any]) -> str:
    """Return the version of eddymotion that made a series."""
    return str(sidecar.get("EddymotionVersion", "(version not known)"))


def _merged(sentence_of: Mapping[str, str]) -> str:
    """Say a sentence once where it holds for all; else with the series that it holds for."""
    names: dict[str, list[str]] = {}
    for name, sentence in sentence_of.items():
        names.setdefault(sentence, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return " ".join(
        f"{listed(of, MOST_NAMES)}: {sentence}" for sentence, of in names.items() if sentence
    )


def bibtex() -> str:
    """Return the entries of all references."""
    return files(__package__).joinpath("references.bib").read_text(encoding="utf-8")


def references(text: str | None = None) -> list[str]:
    """Return one line a reference: those that a text cites, or all."""
    return [_line(entry) for entry in bibtex().split("\n@") if text is None or _cited(entry, text)]


def _cited(entry: str, text: str) -> bool:
    """Whether a text has the first author and, soon after, the year of an entry."""
    surname = _field(entry, "author").split(",")[0]
    between = r"[^.;)]*?(?:et al\.)?[^.;)]{0,3}"
    return bool(re.search(rf"{re.escape(surname)}{between}{_field(entry, 'year')}", text))


def _line(entry: str) -> str:
    names = _field(entry, "author").split(" and ")
    authors = names[0] + (" et al." if len(names) > 2 else "")
    if len(names) == 2:
        authors = " & ".join(names)
    where = _field(entry, "journal") or _field(entry, "institution") or _field(
        entry, "howpublished")  # fmt: skip
    volume = _field(entry, "volume") or _field(entry, "number")
    pages = _field(entry, "pages").replace("--", "–")
    doi = _field(entry, "doi")
    return (
        f"{authors} ({_field(entry, 'year')}). {_field(entry, 'title')}. {where}"
        + (f" {volume}" if volume else "")
        + (f":{pages}" if pages else "")
        + (f". doi:{doi}" if doi else "")
    )


def _field(entry: str, name: str) -> str:
    found = re.search(rf"\b{name} = \{{((?:[^{{}}]|\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})*)\}}", entry)
    return re.sub(r"\\H\{o\}|[{}]", lambda m: "ő" if m[0].startswith("\\") else "", found[1]) if (
        found) else ""  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""What to write in a paper, by the settings of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from textwrap import fill
from typing import Any

from eddymotion import __version__


def boilerplate(
    settings: Mapping[str, Any],
    *,
    estimator: str = "joint",
    model: str = "",
    version: str = __version__,
    has_b0: bool = True,
    has_eddy: bool = False,
) -> str:
    """Describe the processing in sentences that may be copied.

    Parameters
    ----------
    settings : mapping
        Of the sidecar.
    estimator : {"joint", "lovo", ""}
        The one that was used; empty where that is not known.
    model : str
        Class of the model that was used.
    version : str
        Of eddymotion.
    has_b0, has_eddy : bool
        Whether the series has b=0 volumes, and whether eddy-current fields were found.
    """
    fast = settings.get("resampling") == "fast"
    by = "" if fast else " by NiTransforms (Goncalves et al., 2021)"
    frame = "the first b=0 volume" if has_b0 else "the first volume"
    lost = "Slices that lost signal were identified by comparison with the predictions"
    replaced = " and replaced by them" if settings.get("replace_outliers") is True else ""
    sentences = [
        f"Head motion in the diffusion-weighted series was corrected with eddymotion {version}.",
        _estimation(estimator, settings),
        _prediction(model),
        "Eddy-current fields, polynomials along the phase-encoding axis, were estimated with the "
        "motion." if has_eddy else "",
        f"The volumes were brought into the frame of {frame} and resampled once, with cubic "
        f"B-splines{by}; the b-vectors were rotated accordingly (Leemans & Jones, 2009).",
        f"{lost}{replaced} (cf. Andersson et al., 2016).",
        "Framewise displacement follows Power et al. (2012), root-mean-square displacement "
        "Jenkinson (1999), contrast-to-noise ratio Bastiani et al. (2019), neighbouring-DWI "
        "correlation Yeh et al. (2019). Diffusion tensors in the report were fitted with DIPY "
        "(Garyfallidis et al., 2014).",
    ]  # fmt: skip
    return " ".join(filter(None, sentences))


def _estimation(estimator: str, settings: Mapping[str, Any]) -> str:
    if not estimator:
        return ""
    if estimator == "joint":
        return (
            "The poses of all volumes were estimated together, by least squares on the misfit of "
            "each volume to its prediction from the others."
        )
    backend = settings.get("registration", "gauss-newton")
    by = "" if backend == "gauss-newton" else f" by {backend}"
    return (
        "Each volume was predicted from all others by a signal model fitted without it "
        f"(leave-one-volume-out) and registered to its prediction{by}, repeatedly."
    )


def _prediction(model: str) -> str:
    if model and "GaussianProcess" not in model:
        return f"Predictions came from the model {model}."
    return (
        "Predictions came from a Gaussian process over the gradient scheme (Andersson & "
        "Sotiropoulos, 2015)."
    )


def citation_text() -> str:
    """Return what to write after a run with the default settings, and the references: Markdown."""
    words = fill(boilerplate({}), 100, break_long_words=False, break_on_hyphens=False)
    lines = ["# Citation text", "", words, "", *(f"- {line}" for line in references())]
    return "\n".join(lines) + "\n"


def bibtex() -> str:
    """Return the entries of all references."""
    return files(__package__).joinpath("references.bib").read_text(encoding="utf-8")


def references() -> list[str]:
    """Return one line a reference."""
    lines = []
    for entry in bibtex().split("\n@"):
        names = _field(entry, "author").split(" and ")
        authors = names[0] + (" et al." if len(names) > 2 else "")
        if len(names) == 2:
            authors = " & ".join(names)
        where = _field(entry, "journal") or _field(entry, "institution") or _field(
            entry, "howpublished")  # fmt: skip
        volume = _field(entry, "volume") or _field(entry, "number")
        pages = _field(entry, "pages").replace("--", "–")
        doi = _field(entry, "doi")
        lines.append(
            f"{authors} ({_field(entry, 'year')}). {_field(entry, 'title')}. {where}"
            + (f" {volume}" if volume else "")
            + (f":{pages}" if pages else "")
            + (f". doi:{doi}" if doi else "")
        )
    return lines


def _field(entry: str, name: str) -> str:
    found = re.search(rf"\b{name} = \{{((?:[^{{}}]|\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})*)\}}", entry)
    return re.sub(r"\\H\{o\}|[{}]", lambda m: "ő" if m[0].startswith("\\") else "", found[1]) if (
        found) else ""  # fmt: skip

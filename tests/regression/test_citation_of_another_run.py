# SPDX-License-Identifier: Apache-2.0
"""The text to cite tells what was done: in the file, on the page and in the log alike."""

import json

import numpy as np
import pytest

from eddymotion.cli import correct
from eddymotion.derivatives.citation import Methods, boilerplate_of_all, citation_text
from eddymotion.io.images import write_image
from eddymotion.io.tables import write_gradient_table
from eddymotion.mapping.motion import Motion
from eddymotion.models import get_model, name_of
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.sidecar import methods_of
from eddymotion.simulation import shelled_scheme


@pytest.fixture
def scan(tiny, tmp_path):
    write_image(tmp_path / "dwi.nii.gz", np.asarray(tiny.signal), tiny.affine)
    tables = tmp_path / "dwi.bval", tmp_path / "dwi.bvec"
    write_gradient_table(*tables, tiny.gradients, tiny.affine)
    return tmp_path / "dwi.nii.gz"


def test_a_loop_with_a_tensor_is_reported_everywhere(scan, tmp_path):
    out = tmp_path / "out"
    call = [str(scan), "-o", str(out), "--nprocs", "1", "--n-iterations", "1", "--model", "dti",
            "--resampling", "fast", "--no-shell-alignment", "--replace-outliers"]  # fmt: skip
    assert correct.main(call) == 0
    file = " ".join((out / "logs" / "CITATION.md").read_text().split())
    page = " ".join((out / "dwi.html").read_text().split())
    (log,) = (out / "logs").glob("*.log")
    for content in (file, page, " ".join(log.read_text().split())):
        for words in (
            "registered to its prediction by gauss-newton, in 1 pass.",
            "Predictions came from the diffusion tensor",
            "Eddy currents were not corrected.",
            "into a frame of their own",
            "own kernel",
            "and replaced by them",
        ):
            assert words in content
        for words in ("estimated together", "Gaussian process", "Goncalves"):
            assert words not in content.partition("BibTeX")[0]
    content = json.loads((out / "dwi_desc-preproc_dwi.json").read_text())["Methods"]
    assert content["estimator"] == "lovo"
    assert content["model"] == "dti"


def sidecar(**done):
    return {"Methods": Methods(**done).plain(), "EddymotionVersion": "1.2"}


def test_series_that_were_treated_differently_are_told_apart():
    same = {"estimator": "joint", "reference": "b0", "resampling": "fast"}
    many = sidecar(**same, model="gp-legendre", eddy_currents="quadratic")
    few = sidecar(**same, model="average", eddy_currents="none")
    text = boilerplate_of_all({"sub-01": many, "sub-02": few, "sub-03": many})
    assert text.count("estimated together") == 1
    assert "sub-01, sub-03: Predictions came from a Gaussian process" in text
    assert "sub-02: Predictions came from the mean of the other volumes" in text
    assert "sub-01, sub-03: Eddy-current fields, quadratic" in text
    assert "sub-02: Eddy currents were not corrected." in text
    assert boilerplate_of_all({"a": many}) == boilerplate_of_all({"a": many, "b": many})
    assert "Goncalves" not in citation_text({"sub-01": many})


def test_what_is_not_known_is_not_told():
    text = boilerplate_of_all({"a": {}, "b": {"Methods": {"estimator": 3, "other": "x"}}})
    assert "estimated" not in text
    assert "Predictions came" not in text
    assert "Eddy" not in text


@pytest.mark.parametrize(
    "name", ["gp-legendre", "gp-spherical", "gp-qspace", "average", "dti", "wls-dti", "dki"]
)
def test_models_keep_their_names(name):
    assert name_of(get_model(name, shelled_scheme({1000: 20, 2000: 20}, 4))) == name


def test_choices_by_default_are_resolved(tiny):
    motion = Motion.identity(len(tiny))
    methods = methods_of(tiny, motion, get_model("auto", tiny.gradients), Settings())
    assert (methods.model, methods.estimator) == ("gp-legendre", "joint")
    assert methods.eddy_currents == "none found"
    methods = methods_of(
        tiny, motion, get_model("auto", tiny.gradients), Settings(model="gp", eddy_current="none")
    )
    assert methods.eddy_currents == "none"

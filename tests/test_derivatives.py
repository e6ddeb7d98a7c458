# SPDX-License-Identifier: Apache-2.0
"""Single tables and texts among the outputs: what they say is so, and of no other run."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from eddymotion.data.gradients import Gradients
from eddymotion.derivatives import OnDemand, Outputs, _write_fields, write_sidecar
from eddymotion.derivatives.citation import Methods, boilerplate, references
from eddymotion.derivatives.course import write_course
from eddymotion.derivatives.dataset import write_dataset_files
from eddymotion.derivatives.on_demand import write_on_demand
from eddymotion.derivatives.outlier_table import outlier_summary
from eddymotion.derivatives.session import SessionOutputs, write_field
from eddymotion.estimation.outliers import SliceOutliers
from eddymotion.estimation.runs.joined import JoinedRuns
from eddymotion.io.trajectory import read_trajectory
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.trajectory import Trajectory
from eddymotion.pipeline.runs.one_series import _partners

ALONG = np.array([0.6, 0.8, 0.0])
OPPOSED = np.array([[0, -0.1, 0], [0, 0.1, 0]])


def turned(degrees):
    """A direction so far from ALONG."""
    return np.cos(np.deg2rad(degrees)) * ALONG + np.sin(np.deg2rad(degrees)) * np.eye(3)[2]


@pytest.mark.parametrize(
    ("bvals", "direction", "paired"),
    [
        ((1000, 1000), ALONG, True),
        ((1000, 1000), -ALONG, True),  # directions have no sign
        ((1000, 1090), ALONG, True),
        ((1000, 1200), ALONG, False),
        ((1000, 1000), turned(4), True),
        ((1000, 1000), turned(6), False),
        ((0, 0), ALONG, True),
        ((0, 1000), ALONG, False),
    ],
)
def test_volumes_of_opposite_polarity_are_pairs_if_their_gradients_are_the_same(
    bvals, direction, paired
):
    gradients = Gradients(np.array(bvals, float), np.stack([ALONG, direction]))
    partners = _partners(gradients, np.array([0, 1]), OPPOSED)
    assert partners == ([1, 0] if paired else [None, None])


def test_each_volume_has_one_partner():
    gradients = Gradients(np.full(5, 1000.0), np.tile(ALONG, (5, 1)))
    assert _partners(gradients, np.array([0, 0, 0, 1, 1]), OPPOSED) == [3, 4, None, 0, 1]


def units_of(field):
    sidecars = [field.path(kind, ".json") for kind in ("preproc", "coeff")]
    return {json.loads(path.read_text())["Units"] for path in sidecars}


def test_a_field_is_told_in_millimetres_of_the_run_that_it_displaces_most(tmp_path):
    """30 Hz everywhere in the brain; a run of unknown readout among them tells nothing."""
    mask = np.zeros((4, 4, 4), bool)
    mask[1:3, 1:3, 1:3] = True
    field = SimpleNamespace(
        on_grid=lambda *_: np.where(mask, 30.0, 900.0).astype(np.float32),
        coefficients=np.zeros((2, 2, 2)),
        affine=np.eye(4),
    )
    joined = JoinedRuns(
        poses=np.tile(np.eye(4), (3, 1, 1)), errors=np.zeros((3, 6)), field=field, mask=mask,
        shifts=np.array([[0, -0.03, 0.04], [0.02, 0, 0], [np.nan] * 3]), affine=np.eye(4),
        mean=np.zeros(mask.shape, np.float32), similarity=(0.5, np.nan),
    )  # fmt: skip
    outputs = SessionOutputs.of(Outputs(tmp_path / "sub-1", "sub-1", tmp_path / "figures"))
    write_field(outputs, joined, ["a", "b", "c"], fsl=True)
    told = json.loads(outputs.field.path("preproc", ".json").read_text())
    assert told["RMSDisplacement"] == pytest.approx(30 * 0.05, rel=1e-3)
    assert told["MillimetresPerHertz"] == [pytest.approx(0.05), pytest.approx(0.02), None]
    assert told["Similarity"] == {"Before": 0.5, "After": None}
    assert units_of(outputs.field) == {"Hz"}
    write_field(outputs, replace(joined, nominal=True), ["a", "b", "c"])
    assert units_of(outputs.field) == {"arbitrary"}
    assert not list(tmp_path.rglob("*topup*"))  # of a readout that nobody knows


def test_shares_of_lost_slices_are_of_those_that_were_judged():
    z = np.array([[-9.0, 0, 0, np.nan], [0, 0, np.nan, np.nan]])
    ratio = np.where(z < -5, 0.2, np.where(np.isfinite(z), 1.0, np.nan))
    told = outlier_summary(SliceOutliers(z, ratio), replaced=True)
    assert (told["Judged"], told["Lost"], told["PercentLost"]) == (5, 1, 20.0)
    assert told["PercentLostPerVolume"] == [pytest.approx(100 / 3, abs=1e-3), 0.0]
    assert (told["Replaced"], told["PercentReplaced"]) == (True, 20.0)
    none = outlier_summary(SliceOutliers(np.full((2, 4), np.nan), np.full((2, 4), np.nan)))
    assert (none["Judged"], none["PercentLost"], none["PercentReplaced"]) == (0, 0.0, 0.0)
    one = outlier_summary(SliceOutliers(z[:1, :1], ratio[:1, :1]))
    assert (one["Judged"], one["PercentLost"], one["PercentReplaced"]) == (1, 100.0, 0.0)


def test_a_readme_that_was_there_first_stays_and_ours_is_kept_up_to_date(tmp_path):
    (tmp_path / "README").write_text("mine")
    write_dataset_files(tmp_path, tmp_path / "raw")
    assert (tmp_path / "README").read_text() == "mine"
    ours = (tmp_path / ".bidsignore").read_text()
    (tmp_path / ".bidsignore").write_text("of an older version")
    write_dataset_files(tmp_path, tmp_path / "raw")
    assert (tmp_path / ".bidsignore").read_text() == ours


def test_fields_of_an_earlier_run_go_with_it(tmp_path):
    outputs = Outputs.in_folder(tmp_path, tmp_path / "x_dwi.nii.gz")
    eddy = EddyCurrents(np.zeros((2, 3)), np.eye(3)[1], np.zeros(3))
    with_fields = Motion(np.tile(np.eye(4), (2, 1, 1)), eddy_currents=eddy)
    _write_fields(outputs, with_fields)
    assert outputs["eddy"].is_file()
    assert outputs["eddy_sidecar"].is_file()
    _write_fields(outputs, Motion(with_fields.matrices))
    assert not list(tmp_path.iterdir())


def test_recorded_outputs_have_the_time_of_their_sidecar(tmp_path):
    """So that the next run need not read them to know that they are as they were."""
    outputs = Outputs.in_folder(tmp_path, tmp_path / "x_dwi.nii.gz")
    outputs["bval"].write_text("0 1000\n")
    os.utime(outputs["bval"], (1e9, 1e9))
    write_sidecar(outputs, {}, record=True)
    times = {path.stat().st_mtime_ns for path in (outputs["bval"], outputs["sidecar"])}
    assert len(times) == 1


def test_the_course_of_an_earlier_run_goes_with_it(tiny, tmp_path):
    outputs = Outputs.in_folder(tmp_path, tmp_path / "x_dwi.nii.gz")
    within = np.tile(np.eye(4), (len(tiny), tiny.n_slices, 1, 1))
    within[0, ::2, 0, 3] = 0.5
    motion = Motion(np.tile(np.eye(4), (len(tiny), 1, 1)))
    moved = replace(motion, trajectory=Trajectory(within, tiny.affine, 2))
    write_course(outputs, moved, tiny)
    table = np.genfromtxt(outputs["trajectory"], names=True, delimiter="\t")
    np.testing.assert_allclose(table["trans_x"], within[..., 0, 3].ravel(), atol=1e-6)
    again = read_trajectory(outputs["trajectory"], tiny.center)
    np.testing.assert_allclose(again.poses, within, atol=1e-6)
    assert np.isnan(again.times).all()  # of a series without SliceTiming
    assert outputs["trajectory_sidecar"].is_file()
    write_course(outputs, motion, tiny)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wanted", [True, False])
def test_displacement_fields_are_written_on_demand(wanted, tiny, tmp_path, caplog):
    outputs = Outputs.in_folder(tmp_path, tmp_path / "x_dwi.nii.gz")
    eddy = EddyCurrents(np.full((len(tiny), 3), 2.0), np.eye(3)[1], tiny.center)
    motion = Motion(np.tile(np.eye(4), (len(tiny), 1, 1)), eddy_currents=eddy)
    demand = OnDemand(eddy_fields=wanted)
    write_on_demand(demand, outputs, tiny, motion, tiny, quality=None)
    fields = sorted(outputs["eddy_fields"].glob("*.nii.gz"))
    assert len(fields) == (len(tiny) if wanted else 0)
    write_on_demand(demand, outputs, tiny, Motion(motion.matrices), tiny, quality=None)
    said = ["no eddy-current fields were found, so none are written"]  # the run adds its name
    assert caplog.messages == said * wanted


@pytest.mark.parametrize(
    ("source", "said", "unsaid"),
    [
        ("given", "found from a field map", "phase encoding"),
        ("runs", "b=0 images of runs of different phase encoding", "field map"),
        ("", "", "off-resonance"),
    ],
)
def test_where_a_field_comes_from_is_said(source, said, unsaid):
    text = boilerplate(Methods(estimator="joint", model="gp", off_resonance=source))
    assert said in text
    assert unsaid not in text


def test_what_was_done_with_lost_slices_is_said():
    for replaced in (False, True):
        text = boilerplate(Methods(estimator="joint", model="gp", replaced_outliers=replaced))
        assert ("and replaced by them" in text) == replaced


def test_references_name_one_author_two_and_the_first_of_many():
    names = [line.partition(" (")[0] for line in references()]
    assert {
        "Jenkinson, Mark", "Leemans, Alexander & Jones, Derek K.",
        "Fadnavis, Shreyas et al.", "Bastiani, Matteo et al.",
    } <= set(names)  # fmt: skip
    assert not any(" and " in name for name in names)

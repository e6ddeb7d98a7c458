# SPDX-License-Identifier: Apache-2.0
"""Copies in wrong places, links in circles, and data that are not here stop no other series."""

import shutil

import nibabel as nib
import pytest
from eddymotion.workflows.nipype import _words
from runs import QUICK, write_two_participants

from eddymotion.bids.series import Sorted, find_series
from eddymotion.cli import participant
from eddymotion.errors import EddymotionError, absence
from eddymotion.io.images import read_image
from eddymotion.io.series import load


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def images(root, **options):
    return [str(series.dwi.relative_to(root.resolve()))
            for of in find_series(root, **options).values() for series in of]  # fmt: skip


@pytest.fixture
def linked(tmp_path):
    """A dataset with misplaced copies and links of all kinds; what is right about it."""
    root, elsewhere = tmp_path / "ds", tmp_path / "elsewhere"
    write(root, "sub-01/dwi/sub-01_dwi.nii.gz", "sub-02/ses-a/dwi/sub-02_ses-a_dwi.nii.gz",
          "old/sub-01/dwi/sub-01_dwi.nii.gz", "sub-01/dwi/old/sub-01_dwi.nii.gz",
          "sub-02/ses-a/old/dwi/sub-02_ses-a_dwi.nii.gz", "sub-02/dwi/sub-01_dwi.nii.gz",
          "sub-02/ses-a/dwi/sub-02_ses-b_dwi.nii.gz", "sub-01/dwi/._sub-01_dwi.nii.gz",
          "derivatives/x/sub-01/dwi/sub-01_dwi.nii.gz")  # fmt: skip
    write(elsewhere, "sub-03/dwi/sub-03_dwi.nii.gz", "ses-x/dwi/sub-02_ses-x_dwi.nii.gz")
    for link, target in {
        "sub-01/raw": "..", "sub-01/dwi/raw": "../..", "sub-01/ses-1": ".",
        "sub-02/ses-b": "ses-a",
        "sub-02/ses-x": elsewhere / "ses-x", "sub-03": elsewhere / "sub-03", "sub-04": "sub-04",
        "sub-05": ".", "again": ".", "sub-02/ses-a/anat": "../ses-a",
    }.items():  # fmt: skip
        (root / link).symlink_to(target)
    right = ["sub-01/dwi/sub-01_dwi.nii.gz", "sub-02/ses-a/dwi/sub-02_ses-a_dwi.nii.gz",
             "sub-03/dwi/sub-03_dwi.nii.gz"]  # fmt: skip
    return root, right


def test_only_the_folders_of_bids_are_read_and_no_link_is_followed_out_or_twice(linked, caplog):
    root, right = linked
    assert images(root) == right
    for text in ("sub-02/dwi/sub-01_dwi.nii.gz: its name", "sub-02_ses-b_dwi.nii.gz: its name",
                 "sub-02/ses-b: leads to", "sub-02/ses-x: leads to"):  # fmt: skip
        assert text in caplog.text
    assert images(root, participants=["03"]) == right[-1:]


def test_names_that_are_nearly_right_are_told(tmp_path, caplog):
    near = ["sub-01_DWI.nii.gz", "sub-01_dwi (1).nii.gz", "sub-01_dwi_old.nii"]
    others = ["sub-01_dwi.nii.gz", "sub-01_sbref.nii.gz", "sub-01_acq-dwi_ADC.nii.gz"]
    write(tmp_path, *(f"sub-01/dwi/{name}" for name in near + others))
    assert images(tmp_path) == ["sub-01/dwi/sub-01_dwi.nii.gz"]
    told = [line.getMessage() for line in caplog.records if "skipped, since" in line.getMessage()]
    assert sorted(line.partition(": ")[0] for line in told) == sorted(
        f"sub-01/dwi/{name}" for name in near
    )


@pytest.mark.parametrize("link", ["ses-1", "ses-1/dwi"])
def test_a_link_is_not_read_in_place_of_the_folder_that_it_leads_to(link, tmp_path, caplog):
    write(tmp_path, "sub-01/dwi/sub-01_dwi.nii.gz", "dataset_description.json")
    (tmp_path / "sub-01" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "sub-01" / link).symlink_to(tmp_path / "sub-01/dwi")
    assert images(tmp_path) == ["sub-01/dwi/sub-01_dwi.nii.gz"]
    (message,) = caplog.messages
    assert message.startswith(f"sub-01/{link}: leads to ")


def test_an_index_ends_and_holds_the_same(linked, tmp_path):
    root, right = linked
    assert images(root, database_dir=tmp_path / "index") == right


def test_two_images_with_one_output_name_are_refused_by_name(tmp_path):
    write(tmp_path, "sub-01/dwi/sub-01_dwi.nii", "sub-01/dwi/sub-01_dwi.nii.gz",
          "sub-01/dwi/sub-01_run-1_dwi.nii.gz", "sub-02/ses-a/dwi/sub-02_dwi.nii.gz",
          "sub-02/ses-b/dwi/sub-02_dwi.nii.gz")  # fmt: skip
    found = Sorted.of(find_series(tmp_path), 50)
    assert [series.dwi.name for series in found.series["01"]] == ["sub-01_run-1_dwi.nii.gz"]
    assert sorted(found.refused["01"]) == ["sub-01/dwi/sub-01_dwi.nii",
                                           "sub-01/dwi/sub-01_dwi.nii.gz"]  # fmt: skip
    (why,) = set(found.refused["02"].values())
    assert why.startswith("sub-02/ses-a/dwi/sub-02_dwi.nii.gz and sub-02/ses-b/dwi/sub-02_dwi")
    assert found.n_series == 5


def test_nodes_side_by_side_have_folders_of_their_own():
    assert _words(["_acq-a+b", "_acq-a-b", "", "_acq-A_b", "-", "_acq-a_b_2"]) == [
        "acq_a_b", "acq_a_b_2", "dwi", "acq_A_b_3", "dwi_2", "acq_a_b_2_2",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_with_names_that_differ_in_a_sign_only(tmp_path, capsys):
    raw, output = tmp_path / "raw", tmp_path / "out"
    write_two_participants(raw)
    for path in list((raw / "sub-01" / "dwi").iterdir()):
        for acquisition in ("a+b", "a-b"):
            shutil.copy(path, path.with_name(path.name.replace("_", f"_acq-{acquisition}_")))
    shutil.rmtree(raw / "sub-02")
    image = raw / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    nib.load(image).to_filename(image.with_suffix(""))
    assert participant.main([str(raw), str(output), "participant", *QUICK, "--nprocs", "1"]) == 1
    printed = capsys.readouterr().err
    assert "2 of 4 series failed" in printed
    assert "are the same series; remove one of them" in printed
    written = {path.name for path in output.rglob("*_desc-preproc_dwi.nii.gz")}
    assert written == {f"sub-01_acq-a{sign}b_desc-preproc_dwi.nii.gz" for sign in "+-"}
    page = (output / "sub-01.html").read_text()
    assert "2 series failed" in page


def test_data_that_are_not_here_say_how_to_get_them(tmp_path):
    content = ".git/annex/objects/Xy/Zz/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz"
    image = tmp_path / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    image.parent.mkdir(parents=True)
    image.symlink_to(f"../../{content}")
    (series,) = find_series(tmp_path)["01"]
    with pytest.raises(
        EddymotionError,
        match="its content is not present; get it with: datalad ge",
    ):
        load(series.dwi)
    (tmp_path / content).parent.mkdir(parents=True)
    for written, command in (
        (f"/annex/objects/{content}\n", "datalad get"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ):
        (tmp_path / content).write_text(written)
        with pytest.raises(EddymotionError, match=f"not present; get it with: {command}"):
            read_image(image)
    (tmp_path / "a.txt").symlink_to("nowhere")
    assert "a link to nowhere, which does not exist" in absence(tmp_path / "a.txt")


def test_images_in_an_annex_are_read(tmp_path):
    raw = tmp_path / "raw"
    write_two_participants(raw)
    for path in list(raw.glob("sub-01/dwi/*")):
        kept = raw / ".git" / "annex" / "objects" / path.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.rename(kept)
        path.symlink_to(kept)
    (raw / "sub-01").rename(tmp_path / "elsewhere")
    (raw / "sub-01").symlink_to("../elsewhere")
    (series,) = find_series(raw, participants=["01"])["01"]
    assert len(load(series.dwi, bval=series.bval, bvec=series.bvec)) == 10
    assert series.metadata["RepetitionTime"] == 4.0

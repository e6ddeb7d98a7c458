# SPDX-License-Identifier: Apache-2.0
"""run-10 stood before run-2, and its first b=0 volume was the frame of the session."""

from pathlib import Path

from eddymotion.bids.tree import read_tree

NAMES = ["run-1", "run-2", "run-10", "run-010_part-mag", "٣"]


def test_runs_are_read_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "sub-01/dwi"
    folder.mkdir(parents=True)
    for name in reversed(NAMES):
        (folder / f"sub-01_{name}_dwi.nii.gz").touch()
    images = read_tree(tmp_path, ["01"]).images()
    assert [image.name for image in images] == [f"sub-01_{name}_dwi.nii.gz" for name in NAMES]
    assert {image.folder for image in images} == {Path("sub-01/dwi")}

# SPDX-License-Identifier: Apache-2.0
"""The README's commands exist, and its files too."""

import json
import re
import shlex
from pathlib import Path

import pytest

from eddymotion.cli import correct, evaluate, fieldmap, participant, register, simulate

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(name):
    return re.findall(rf"^{name} (.+)$", README, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "parser"),
    [
        ("eddymotion", participant.build_parser()),
        ("eddymotion-correct", correct.build_parser()),
        ("eddymotion-register", register.build_parser()),
        ("eddymotion-fieldmap", fieldmap.build_parser()),
    ],
)
def test_commands_parse(name, parser):
    found = commands(name)
    assert found
    for call in found:
        parser.parse(call.split())


def test_options_named_in_the_text_exist():
    known = {
        option
        for module in (participant, correct, register, fieldmap, simulate)
        for action in module.build_parser()._actions
        for option in action.option_strings
    }
    named = set(re.findall(r"`(--[a-z0-9-]+)", README))
    assert named
    assert named <= known


def test_make_targets_and_links_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in commands("make"):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\((?!http)([^)#\s]+)", README):
        assert (ROOT / link).exists(), link


def test_the_simulated_series_is_corrected_and_evaluated(tmp_path, monkeypatch):
    mains = {
        "eddymotion-simulate": simulate.main,
        "eddymotion-correct": correct.main,
        "eddymotion-evaluate": evaluate.main,
    }
    section = README.split("## Simulate and evaluate")[1]
    (block,) = re.findall(r"```bash\n(.+?)```", section.split("\n## ")[0], flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert mains[program](arguments) == 0, line
    scores = json.loads(Path("scores/motion.json").read_text(encoding="utf-8"))
    assert "estimated" in json.dumps(scores)
    assert {p.name for p in Path("scores").iterdir()} >= {"motion.png", "series.png"}


def test_python_example_runs_on_a_small_series(tmp_path, monkeypatch):
    import numpy as np

    from eddymotion.io.images import write_image
    from eddymotion.io.tables import write_gradient_table
    from eddymotion.mapping.motion import Motion
    from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme

    phantom = procedural_head(6.0)
    gradients = shelled_scheme({1000.0: 8}, 2)
    dwi = acquire(phantom, gradients, Motion.identity(10), Grid.covering(phantom, 6.0))
    write_image(tmp_path / "dwi.nii.gz", np.asarray(dwi.signal), dwi.affine)
    write_gradient_table(tmp_path / "dwi.bval", tmp_path / "dwi.bvec", gradients, dwi.affine)
    monkeypatch.chdir(tmp_path)
    example, *_ = re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "corrected" / "dwi_desc-preproc_dwi.nii.gz").is_file()

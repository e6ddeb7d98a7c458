# SPDX-License-Identifier: Apache-2.0
"""What a path holds is never a command, neither of a shell nor of Python."""

import os
from pathlib import Path

import pytest
from eddymotion.workflows.execution import find_plugin, run_workflow
from eddymotion.workflows.slurm import words_of

from eddymotion.errors import EddymotionError
from eddymotion.pipeline.limits import Plugin

from nipype.interfaces.utility import Function  # isort: skip
from nipype.pipeline.engine import Node, Workflow  # isort: skip

SBATCH = """\
#!/bin/sh
# runs a job at once, as a cluster would later
printf '%s\\n' "$@" > "$JOBS/asked"
for last; do :; done
sh "$last" > "$JOBS/printed" 2>&1
echo "Submitted batch job 17"
"""
NAME = """a b; touch 'broken'; touch broken'; open("broken", "w"); '$(touch broken)"""


def seven():
    return 7


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for the commands of SLURM."""
    programs = tmp_path / "programs"
    programs.mkdir()
    scripts = {"sbatch": SBATCH, "squeue": "#!/bin/sh\n", "scancel": "#!/bin/sh\n"}
    for name, text in scripts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(tmp_path))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "json.py").write_text("open('broken', 'w')\n")
    return tmp_path


def test_a_work_folder_is_a_name_and_no_command(cluster):
    workflow = Workflow("wf")
    workflow.add_nodes([Node(Function([], ["out"], seven), "first")])
    plugin = Plugin("SLURM", {"sbatch_args": "--time=20 --comment='two words'"})
    run_workflow(workflow, plugin, cluster / NAME)
    printed = (cluster / "printed").read_text()
    assert not list(cluster.rglob("broken*")), printed
    assert list((cluster / NAME / "wf" / "first").glob("result_*.pklz")), printed
    asked = (cluster / "asked").read_text().splitlines()
    assert asked[0] == f"--output={cluster / NAME}/wf/batch/slurm-%j.out"
    assert {"--time=20", "--comment=two words", "--cpus-per-task=1"} <= set(asked)


def test_plugins_that_use_a_shell_refuse_such_a_folder(tmp_path):
    with pytest.raises(EddymotionError, match=r"work folder '/a b'.*--work-dir"):
        find_plugin(Plugin("PBS"), Path("/a b"))
    assert find_plugin(Plugin("PBS"), Path("/a_b")) is not None


def test_an_open_quotation_mark_is_reported():
    assert words_of("--qos='a b' -p long") == ["--qos=a b", "-p", "long"]
    with pytest.raises(EddymotionError, match="close each quotation mark"):
        words_of("--comment='x")

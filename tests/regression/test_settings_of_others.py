# SPDX-License-Identifier: Apache-2.0
"""What lies in the current folder or in the home changes nothing and is not executed."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from eddymotion.mapping.motion import Motion
from eddymotion.models.dipy import DipyModel, find_model
from eddymotion.models.tensor import MIN_SIGNAL_FRACTION
from eddymotion.registration.engines.external import end_workers, run_function
from eddymotion.reports import save_figure
from eddymotion.reports.figures import motion_figure

FILES = {
    "matplotlibrc": b"text.usetex: True\n\xff\n",
    "nipype.cfg": b"[execution]\ncrashdump_dir = /nowhere\nplugin\n",
    ".numba_config.yaml": b"disable_jit: 1\n",
    "pybids_config.json": b'{"config_paths": 7}',
}
AT_HOME = {
    ".config/matplotlib/matplotlibrc": b"text.usetex: True\n",
    ".nipype/nipype.cfg": b"[execution]\ncrashdump_dir = /nowhere\n",
    "pybids_config.json": b'{"config_paths": 7}',
}
MODULES = ("json.py", "multiprocessing.py", "socket.py", "numpy.py")

BODY = """
import sys, warnings
from eddymotion.cli import console

def body():
    import matplotlib, nipype, numba
    from bids.config import get_option
    assert not matplotlib.rcParams["text.usetex"]
    assert nipype.config.get("execution", "crashdump_dir") != "/nowhere"
    assert numba.config.DISABLE_JIT == 0
    assert set(get_option("config_paths")) == {"bids", "derivatives"}
    warnings.warn("of a library")

sys.exit(console.run("program", body))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Be in a folder that is full of traps."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in MODULES:
        (folder / name).write_text("open('executed', 'w').close()\n")
    monkeypatch.chdir(folder)
    return folder


def test_a_command_reads_no_settings_but_its_own(here, tmp_path):
    for folder, files in ((here, FILES), (tmp_path, AT_HOME)):
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONWARNINGS": "error::UserWarning"}
    for name in ("MATPLOTLIBRC", "NIPYPE_CONFIG_DIR", "MPLCONFIGDIR", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-P", "-c", BODY], env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (here / "executed").exists()


def test_python_without_docstrings_is_refused():
    code = "from eddymotion.cli.simulate import main; raise SystemExit(main(['x', '--help']))"
    done = subprocess.run([sys.executable, "-OO", "-c", code], text=True, capture_output=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "PYTHONOPTIMIZE=2" in done.stderr


def test_figures_do_not_heed_a_matplotlibrc(tiny, tmp_path):
    with matplotlib.rc_context({"text.usetex": True, "font.family": "no such font"}):
        save_figure(motion_figure(tiny, Motion.identity(len(tiny.gradients))), tmp_path / "a.png")
    save_figure(motion_figure(tiny, Motion.identity(len(tiny.gradients))), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def write_seven(folder: Path) -> None:
    (folder / "seven").write_text("7")


@pytest.mark.slow
def test_processes_import_nothing_from_the_current_folder(here, two_shells, tmp_path, monkeypatch):
    """A series reaches each once: it was pickled for each held-out volume, 72 GB for 300."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    end_workers()  # those of other tests were started elsewhere
    run_function(write_seven, tmp_path, [tmp_path / "seven"])
    end_workers()
    model, gradients = find_model("TensorModel"), two_shells.gradients
    voxels = two_shells.signal[two_shells.mask][:3]
    expected = DipyModel(model).leave_one_out(voxels, gradients)
    counted = Counted(np.maximum(voxels, MIN_SIGNAL_FRACTION * voxels.max()))
    monkeypatch.setattr("eddymotion.models.dipy._with_signal", lambda _: (np.arange(3), counted))
    found = DipyModel(model, n_procs=2).leave_one_out(voxels, gradients)
    np.testing.assert_array_equal(found, expected)
    assert Counted.n_pickled == 2
    assert not (here / "executed").exists()


class Counted(np.ndarray):
    """An array that knows how often it was sent."""

    n_pickled = 0

    def __new__(cls, values):
        return np.asarray(values).view(cls)

    def __reduce__(self):
        Counted.n_pickled += 1
        return np.asarray(self).__reduce__()

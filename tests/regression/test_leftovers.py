# SPDX-License-Identifier: Apache-2.0
"""What a killed run was writing is removed by the next one; what lives or is not ours stays."""

import os
import subprocess
import sys
import tempfile
import time

import pytest

from eddymotion.cli import correct, evaluate, register, simulate
from eddymotion.io.writing import replacing
from eddymotion.machine import temporaries
from eddymotion.machine.temporaries import remove_stale_temporaries, temporary_name
from eddymotion.registration.engines.external import work_folder

KILLED = (
    "import os, signal, sys; from pathlib import Path\n"
    "from eddymotion.io.writing import replacing\n"
    "for folder in sys.argv[1:]:\n"
    "    replacing(Path(folder) / 'sub-01_dwi.nii.gz').__enter__().write_text('half')\n"
    "os.kill(os.getpid(), signal.SIGKILL)"
)


def kill_while_writing(*folders):
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, folders)], check=False)
    assert done.returncode < 0


@pytest.fixture(scope="module")
def name_of_the_dead():
    """What a process that has ended called a file."""
    code = (
        "from eddymotion.machine.temporaries import temporary_name; "
        "print(temporary_name('.nii.gz'))"
    )
    call = [sys.executable, "-c", code]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()


def hidden(folder):
    return sorted(path.name for path in folder.rglob(".*") if path.is_file())


def test_only_what_dead_writers_left_goes(tmp_path, monkeypatch):
    kill_while_writing(tmp_path, tmp_path / "figures")
    theirs = tmp_path / ".notes.txt"
    theirs.write_text("somebody's")
    former = tmp_path / ".0123456789ab.nii.gz"
    former.write_text("nobody knows")
    assert len(hidden(tmp_path)) == 4
    with replacing(tmp_path / "now.txt") as living:
        living.write_text("at work")
        monkeypatch.setattr(temporaries, "_machine", lambda: "0" * 12)
        elsewhere = [tmp_path / temporary_name(".nii.gz") for _ in range(2)]
        monkeypatch.undo()
        for path in elsewhere:
            path.write_text("half")
        os.utime(elsewhere[0], (time.time() - 4000, time.time() - 4000))
        remove_stale_temporaries(tmp_path, deep=True)
        expected = sorted([theirs.name, former.name, living.name, elsewhere[1].name])
        assert hidden(tmp_path) == expected
        remove_stale_temporaries(tmp_path, locked=True)
        assert hidden(tmp_path) == sorted([theirs.name, living.name])
    assert (tmp_path / "now.txt").read_text() == "at work"


def test_work_folders_of_killed_runs_go(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kill_in_work_folder = (
        "import os, signal; from eddymotion.registration.engines.external import work_folder\n"
        "at_work = work_folder(); (at_work.__enter__() / 'fixed.nii').write_text('half')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    call = [sys.executable, "-c", kill_in_work_folder]
    subprocess.run(call, check=False, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert len(list(tmp_path.iterdir())) == 1
    with work_folder() as folder, work_folder() as other:
        assert set(tmp_path.iterdir()) == {folder, other}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "arguments", "folders"),
    [
        (correct, ["{image}", "-o", "{out}"], ["", "figures", "logs"]),
        (register, ["{image}", "{image}", "-o", "{out}/pair"], [""]),
        (simulate, ["{out}", "--motion", "{image}"], ["", "truth", "sub-01/dwi"]),
        (evaluate, ["series", "{image}", "-o", "{out}/result"], [""]),
    ],
)
def test_every_command_tidies_its_folder(
    command, arguments, folders, name_of_the_dead, tmp_path, capsys
):
    image, out = tmp_path / "not an image.nii.gz", tmp_path / "out"
    image.write_text("")
    for folder in folders:
        (out / folder).mkdir(parents=True, exist_ok=True)
        (out / folder / name_of_the_dead).write_text("half")
    assert command.main([one.format(image=image, out=out) for one in arguments]) == 2
    assert hidden(out) == []

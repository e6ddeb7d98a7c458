# SPDX-License-Identifier: Apache-2.0
"""What is said never ends the work: no reader, a full disk, an encoding without arrows."""

import logging
import os
import subprocess
import sys

import pytest

from eddymotion.cli.streams import PLAIN
from eddymotion.machine.logs import LogFile

TALKS = """
import logging, sys
from eddymotion.cli import console
from pathlib import Path

def body():
    logging.getLogger("eddymotion").info("0.5 → 0.6")
    with console.logging_to(Path(sys.argv[1]), 0):
        for _ in range(1000):
            logging.getLogger("eddymotion").info("0.5 → 0.6 of \\udcff")
            print("90° → 91°")
        console.progress_for_console(0)
    Path(sys.argv[1], "done").touch()

sys.exit(console.run("program", body))
"""


def talk(folder, shell, **variables):
    """Run a command under a shell that spoils its console; exit code, output, error."""
    call = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" "$2" {shell}', sys.executable, TALKS,
            str(folder)]  # fmt: skip
    environment = os.environ | variables
    done = subprocess.run(call, capture_output=True, env=environment, timeout=60)
    assert (folder / "done").exists(), done
    (log,) = folder.glob("*.log")
    assert log.read_text(encoding="utf-8").count("0.5 → 0.6 of \\udcff") == 1000
    return done


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("2>&1 >/dev/null | true", 0, b""),
        (">/dev/null 2>/dev/full", 0, b""),
        (">/dev/null 2>&-", 0, b""),
        (">&- 2>/dev/null", 0, b""),
        ("2>/dev/null | head -1", 0, b""),
        (">/dev/full 2>&1", 1, b""),
    ],
)
def test_the_work_is_done_though_nobody_can_hear_of_it(shell, code, said, tmp_path):
    done = talk(tmp_path, shell)
    assert (done.returncode, done.stderr) == (code, said)


def test_results_that_are_lost_are_a_failure(tmp_path):
    done = talk(tmp_path, ">/dev/full 2> >(tail -1 >&2)")
    assert done.returncode == 1
    assert done.stderr.startswith(b"program: error: standard output cannot be written (No space")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_letters_that_a_console_lacks_are_written_plainly(encoding, tmp_path):
    done = talk(tmp_path, "", PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    arrow = "90°" if encoding != "ascii" else "90 deg"
    assert done.stdout.decode(encoding).startswith(f"{arrow} -> 91")
    assert b"0.5 -> 0.6 of \\udcff" in done.stderr
    assert "".join(PLAIN.values()).isascii()


def test_a_log_on_a_full_disk_is_reported_once(caplog, tmp_path):
    handler = LogFile(tmp_path / "log")
    handler.baseFilename = "/dev/full"
    log = logging.getLogger("eddymotion")
    log.addHandler(handler)
    try:
        log.warning("first")
        log.warning("second")
    finally:
        log.removeHandler(handler)
        handler.close()
    assert [record.message for record in caplog.records] == [
        "/dev/full: the log is incomplete (No space left on device)", "first", "second",
    ]  # fmt: skip

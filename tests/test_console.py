# SPDX-License-Identifier: Apache-2.0
"""What a run shows: how far it is and what became of it; completion; the doctor."""

import json
import logging
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import warnings
from itertools import pairwise

import numpy as np
import pytest

from eddymotion.cli import correct, evaluate, fieldmap, participant, register, simulate
from eddymotion.cli.board import USUAL, Board, Line, Timetable, Watch
from eddymotion.cli.closing import Outcome, folded, rows_of, show_table
from eddymotion.cli.console import logging_to
from eddymotion.cli.doctor import examine
from eddymotion.cli.screen import Bar, shortened, wrapped
from eddymotion.machine.logs import NOTICE
from eddymotion.pipeline.events import WAITING, EventReader, EventWriter
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids
from eddymotion.wording import duration

PARTS = (("reading", 0.0), ("motion", 2.0), ("quality", 42.0), ("resampling and writing", 46.0),
         ("pictures", 70.0))  # fmt: skip
SECONDS = 80.0


def told(name, began, until=SECONDS, pace=1.0):
    """What a series tells that takes as long as PARTS say, up to some second."""
    lines = [(name, {"at": began + pace * at, "stage": stage})
             for stage, at in PARTS if at <= until]  # fmt: skip
    ended = [(name, {"at": began + pace * SECONDS, "outcome": ""})]
    return lines + (ended if until >= SECONDS else [])


def test_help_breaks_no_word(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    commands = [command.build_parser() for command in (correct, fieldmap, participant, register)]
    for parser in [*commands, simulate.build_parser(), *evaluate.build_parsers()[1].values()]:
        assert re.findall(r"\S*[a-z]-\n +[a-z]\S*", parser.format_help()) == []


@pytest.mark.parametrize("pace", [1.0, 3.0])
def test_time_left_is_learnt_from_the_series_before(pace, capsys):
    """On a machine of any speed, and for a series that takes three times as long."""
    board = Board(["sub-01", "sub-02"])
    for name, what in told("sub-01", 1000.0):
        board.update(name, what)
    for now in (10.0, 30.0, 44.0, 60.0, 75.0):
        board = relearnt(board, now, pace)
        line = board.lines["sub-02"]
        left = line.left(2000.0 + pace * now, board.timetable)
        truth = pace * (SECONDS - now)
        if now > PARTS[2][1]:  # the pace of this series is known
            assert left == pytest.approx(truth, rel=0.25, abs=2.0), now
    assert "1 of 2 · sub-01 · done in 80 s" in capsys.readouterr().err


def relearnt(board, now, pace):
    board.lines["sub-02"] = Line(2, "sub-02")
    for name, what in told("sub-02", 2000.0, until=now, pace=pace):
        board.update(name, what)
    return board


def heard(board, name, events, now):
    for series, what in events:
        if what["at"] <= now:
            board.update(series, what)
    return board.lines[name]


@pytest.mark.parametrize("known", [0, 1])
def test_a_part_that_lasts_longer_than_foreseen_is_not_soon_done(known):
    """The pictures of a series that follows some others take five times as long as theirs."""
    began, lasts = PARTS[-1][1], 5 * (SECONDS - PARTS[-1][1])
    for waited in np.linspace(0.5, 0.8, 4) * lasts:
        board = Board(["sub-01", "sub-02"], verbosity=-1)
        for name, what in told("sub-01", 0.0) if known else ():
            board.update(name, what)
        now = 1000.0 + began + waited
        line = heard(board, "sub-02", told("sub-02", 1000.0, until=SECONDS - 1), now)
        assert line.left(now, board.timetable) > 0.25 * (lasts - waited)


def test_one_fast_beginning_does_not_shorten_what_all_series_took():
    """The first series read slowly: disk and kernels were cold."""
    cold, warm = (
        {"reading": 0.0, "motion": 20.0, "pictures": 80.0},
        {"reading": 0.0, "motion": 1.0},
    )
    course = (
        Timetable(USUAL).with_series(cold, 100.0).with_series({**warm, "pictures": 70.0}, 80.0)
    )
    assert course.seconds == pytest.approx(90)
    assert course.shares["motion"] == pytest.approx((0.2 + 1 / 80) / 2)
    line = Line(3, "sub-03", began=0.0)
    line.begin("reading", 0.0, course)
    line.begin("motion", 1.0, course)
    assert line.left(2.0, course) == pytest.approx(78, rel=0.25)


def test_a_bar_never_goes_back_and_nothing_is_left_at_its_end():
    board = Board(["sub-01"], verbosity=-1)
    events, shares = told("sub-01", 0.0, until=79.0), []
    for second in range(80):
        while events and events[0][1]["at"] <= second:
            board.update(*events.pop(0))
        shares.append(board.lines["sub-01"].done(second, board.timetable))
    assert all(late >= early for early, late in pairwise(shares))
    assert 0.85 < shares[-1] <= 1.0
    assert shares[0] == 0


def test_each_event_is_read_once_and_half_a_line_later(tmp_path):
    log = logging.getLogger("eddymotion.test_console")
    log.setLevel(logging.DEBUG)
    writer, reader = EventWriter(tmp_path / "sub-01.jsonl"), EventReader(tmp_path)
    log.addHandler(writer)
    log.warning("odd: %s", "ö")
    log.debug("motion", extra={"stage": "motion"})
    assert list(writer.progress(range(3), "filtering", 3)) == [0, 1, 2]
    events = [event for name, event in reader.read() if name == "sub-01"]
    assert [set(event) - {"at"} for event in events] == [{"level", "text"}, {"stage"},
                                                      {"step", "done", "total"}]  # fmt: skip
    assert events[0]["text"] == "odd: ö"
    line = json.dumps({"at": 1.0, "outcome": ""})
    with writer.path.open("a") as stream:
        stream.write(line[:5])
        stream.flush()
        assert list(reader.read()) == []
        stream.write(line[5:] + "\n")
    assert list(reader.read()) == [("sub-01", json.loads(line))]
    log.removeHandler(writer)


@pytest.mark.parametrize(
    ("verbosity", "seen"),
    [(-1, "problem"), (0, "problem reused"), (1, "problem reused detail")],
)
def test_what_is_said_of_many_series_depends_on_v_and_q(verbosity, seen, capsys):
    board = Board(["sub-01", "sub-02"], verbosity)
    for level, text in (
        (logging.WARNING, "problem"),
        (NOTICE, "reused"),
        (logging.INFO, "detail"),
    ):
        board.update("sub-01", {"at": 0.0, "level": level, "text": text})
    board.tell(board.lines["sub-01"], "estimating")
    printed = capsys.readouterr().err.split("\n")
    assert [line for line in printed if line.startswith("sub-01: ")] == [
        f"sub-01: {word}" for word in seen.split()
    ]
    assert ("1 of 2 · sub-01 · estimating" in printed) == (verbosity >= 0)


def test_a_warning_names_its_series_once_and_is_not_repeated_when_that_is_read_again(capsys):
    board = Board(["sub-01", "sub-02"])
    for name in ("sub-01", "sub-01", "sub-02", "sub-02"):
        for text in ("head moved", f"{name}_dwi.nii.gz: NaN"):
            board.update(name, {"at": 0.0, "level": logging.WARNING, "text": text})
    assert capsys.readouterr().err.splitlines() == [
        line for name in ("sub-01", "sub-02")
        for line in (f"{name}: head moved", f"{name}_dwi.nii.gz: NaN")
    ]  # fmt: skip


def test_time_that_a_run_waits_for_others_is_none_of_its_own(capsys):
    board = Board(["sub-01", "sub-02"])
    events = [("stage", "reading"), ("stage", "motion"), ("stage", WAITING),
              ("stage", "reading"), ("stage", "pictures"), ("outcome", "")]  # fmt: skip
    for (kind, what), at in zip(events, (5.0, 7.0, 15.0, 45.0, 50.0, 55.0), strict=True):
        board.update("sub-01", {"at": at, kind: what})
    assert "sub-01 · done in 20 s" in capsys.readouterr().err
    assert board.timetable.shares["motion"] == pytest.approx(0.1)
    assert board.timetable.shares["pictures"] == pytest.approx(0.75)


def test_what_libraries_warn_of_goes_to_the_log_alone(tmp_path, capsys):
    """Between bars, and from the worker of a series, it would stand in the middle of a line."""
    with logging_to(tmp_path, 0) as path:
        warnings.warn("divided\nby zero", RuntimeWarning, stacklevel=1)
        warned = warnings.showwarning
    assert warnings.showwarning is not warned
    assert capsys.readouterr().err == ""
    assert "RuntimeWarning: divided by zero (" in path.read_text()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (99, "99 s"), (720, "12 min"), (7500, "2 h 05 min")]
)
def test_times_are_written_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_no_word_is_broken_and_names_stay_apart():
    text = "sub-01_dwi.nii.gz: b=0 images of the runs of this session correlate by only r = 0.52"
    lines = wrapped(text, 40).splitlines()
    assert " ".join(line.strip() for line in lines) == text
    assert max(map(len, lines)) <= 40
    names = [f"sub-01_ses-{s}_acq-multiband_dir-AP_run-{r}" for s in "12" for r in "12"]
    assert len({shortened(name, 26) for name in names}) == 4
    assert all(len(Bar("1 of 4 · ", n, " · estimating", 0.5).text(48)) == 48 for n in names)
    assert folded("sub-01_ses-02_run-1", 14) == "sub-01_ses-02_\nrun-1"


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_closing_table_fits_and_says_where_the_reports_are(
    width, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("eddymotion.cli.closing.is_terminal", lambda _: True)
    rows = [
        Outcome("sub-01_ses-01_acq-multiband_dir-AP_run-1", "Usable with care", "1.62 mm",
              "2 of 380", "51", "sub-01.html", 1),
        Outcome("sub-02", "failed"),
    ]  # fmt: skip
    show_table(rows, tmp_path)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    table = [line for line in printed.splitlines() if not line.startswith("reports: ")]
    assert max(map(len, table)) <= width
    for word in ("Usable with care", "1.62 mm", "2 of 380", "51", "failed", str(tmp_path)):
        assert word in " ".join(printed.split()) or width < 80, word
    joined = "".join(line.split()[0] for line in table[3:] if line.split() and "_" in line)
    assert "run-1" in joined or "run-1" in printed


def test_a_narrow_table_leaves_out_columns_and_breaks_no_word(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("eddymotion.cli.closing.is_terminal", lambda _: True)
    name = "sub-01_ses-1_dir-AP"
    finished = Outcome(name, "Usable with care", "1.62 mm", "2 of 380", "51", "sub-01.html", 1)
    show_table([finished], tmp_path)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    table = printed[: printed.index("reports: ")]
    assert max(map(len, table.splitlines())) <= 40
    assert "Usable with care" in table
    broken = {word for line in table.splitlines()[3:] for word in line.split()[:1]}
    assert "".join(sorted(broken, key=name.find)) == name
    assert "seconds" not in table


def test_many_usable_series_are_counted_not_listed(caplog, tmp_path):
    rows = [Outcome(f"sub-{n:03d}", "Usable", level=0) for n in range(80)] + [
        Outcome("sub-x", "failed")
    ]
    with caplog.at_level(logging.INFO, "eddymotion"):
        show_table(rows, tmp_path)
    assert "and 80 other series: Usable" in caplog.text
    assert "sub-x" in caplog.text
    assert "sub-007" not in caplog.text


def test_a_series_refused_before_the_run_is_in_the_table():
    assert rows_of(Watch(), {"sub-01/dwi/sub-01_dwi.nii.gz": "why"}) == [
        Outcome("sub-01", "failed")
    ]


ON_A_TERMINAL = """
import logging, sys, time
from eddymotion.cli import console
from eddymotion.cli.board import Board, watching

def body():
    with console.messages(0):
        board = Board([f"sub-{n:02d}_acq-multiband_dir-AP_run-1" for n in range(1, 9)])
        def take():
            for stage in ("reading", "motion"):
                yield "sub-03_acq-multiband_dir-AP_run-1", {"at": time.time() - 9, "stage": stage}
        with watching(board, take):
            time.sleep(0.4)
            logging.getLogger("eddymotion").warning("a warning of several " + "words " * 20)

sys.exit(console.run("program", body))
"""


def test_bars_on_a_terminal_of_eighty_columns():
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1"}
    run = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], stderr=follower,
                           env=environment)  # fmt: skip
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
    assert run.wait() == 0
    parts = re.split(r"\n|\r|\x1b\[1A", shown.decode())
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part) for part in parts]
    bar = next(line for line in lines if "3 of 8" in line)
    assert re.search(r"3 of 8 · sub-.*run-1 · estimating", bar)
    assert "━" in bar
    assert "0 of 8 done" in "".join(lines)
    assert max(map(len, lines)) <= 80
    warning = [line for line in lines if "words" in line]
    assert len(warning) == 2
    assert not [line for line in warning if re.search(r"\bwor?d?$", line)]


@pytest.mark.parametrize("command", [participant, correct, register, fieldmap, simulate, evaluate])
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_knows_all_options(command, shell, capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--print-completion", shell])
    script = capsys.readouterr().out
    parsers = evaluate.build_parsers()[1].values() if command is evaluate else [
        command.build_parser()
    ]  # fmt: skip
    for parser in parsers:
        for option in parser._option_string_actions:
            assert option.lstrip("-") in script, option


COMPLETED = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--estimator", ""], {"joint", "lovo"}),
        (["in", "out", ""], {"participant", "group"}),
        (["--participant"], {"--participant-label"}),
    ],
)
def test_bash_completes(words, expected, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        participant.main(["--print-completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    call = ["bash", "-c", COMPLETED, "bash", tmp_path / "script", "eddymotion", *words]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) >= expected


AT_THE_PROMPT = [
    (participant, "eddymotion --estimator ", {"joint", "lovo"}),
    (participant, "eddymotion in out ", {"participant", "group"}),
    (evaluate, "eddymotion-evaluate ", {"landmarks", "motion", "series"}),
    (evaluate, "eddymotion-evaluate motion --mas", {"--mask"}),
    (evaluate, "eddymotion-evaluate motion a b --format ", {"afni", "eddy", "mcflirt", "spm"}),
    (participant, "eddymotion --work-dir only-a-f", {"only-a-folder"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["fish", "zsh"])
@pytest.mark.parametrize(("command", "typed", "expected"), AT_THE_PROMPT)
def test_fish_and_zsh_complete(shell, command, typed, expected, tmp_path, capsys):
    """Options, choices and folders of a command, and of the commands below it."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    with pytest.raises(SystemExit, match="0"):
        command.main(["--print-completion", shell])
    (tmp_path / f"_{typed.split()[0]}").write_text(capsys.readouterr().out)
    (tmp_path / "only-a-folder").mkdir()
    (tmp_path / "only-a-file").touch()
    shown = {"fish": offered_by_fish, "zsh": offered_by_zsh}[shell](typed, tmp_path, expected)
    assert all(word in shown for word in expected), shown
    assert "only-a-file" not in shown


def offered_by_fish(typed, folder, _):
    """What fish would offer, in its own words."""
    script = f'source _{typed.split()[0]}; complete -C "{typed}"'
    call = ["fish", "--no-config", "-c", script]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, check=True).stdout


def offered_by_zsh(typed, folder, expected):
    """What zsh shows at a prompt after Tab is pressed twice."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ.update(TERM="dumb", PS1="", COLUMNS="100", LINES="50")
        os.execvp("zsh", ["zsh", "-f", "-i"])
    set_up = "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; print rea''dy\n"
    os.write(terminal, set_up.encode())
    shown = read_until(terminal, {"ready"})
    os.write(terminal, f"{typed}\t\t".encode())
    shown = read_until(terminal, expected)
    os.close(terminal)
    os.waitpid(child, 0)
    return shown


def read_until(terminal, words, seconds=20):
    """Read from a terminal until all words are there, for some time at most."""
    shown, ends = "", time.monotonic() + seconds
    while time.monotonic() < ends and not all(word in shown for word in words):
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root, head = tmp_path_factory.mktemp("bids"), procedural_head(8.0)
    scheme, grid = shelled_scheme({1000.0: 6}, 1), Grid.covering(head, 8.0)
    from eddymotion.mapping.motion import Motion

    dwi = acquire(head, scheme, Motion.identity(7), grid)
    for label in ("01", "02"):
        write_bids(root, label, dwi, Motion.identity(7))
    (root / "sub-02/dwi/sub-02_dwi.bvec").unlink()
    np.savetxt(root / "sub-01/dwi/sub-01_dwi.bval", np.zeros((1, 6)) + 1000)
    return root


def test_the_doctor_tells_what_a_question_needs(raw, capsys, monkeypatch):
    monkeypatch.setattr("eddymotion.bids.series.problems_of", lambda _: {"X": ["a", "b"]})
    assert participant.main(["--doctor", str(raw)]) == 0
    printed = capsys.readouterr().out
    facts = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert len(printed.splitlines()) < 20
    assert f"numpy {np.__version__}" in facts["libraries"]
    assert facts["dataset"].endswith("2 participants, 2 series, 0 skipped, "
                                     "2 that cannot be corrected")  # fmt: skip
    assert "sub-01_dwi.nii.gz: 7 volumes, 6 b-values" in printed
    assert "sub-02_dwi.nii.gz: no b-vectors" in printed
    assert facts["validator"] == "X (2×)"
    assert {"processors", "memory", "kernels", "optional"} <= set(facts)


def test_the_doctor_needs_no_dataset_and_names_a_wrong_one(tmp_path):
    assert "dataset" not in examine()
    assert "no such folder" in examine(tmp_path / "nowhere").splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "gigabytes"),
    [("--mem-gb=16", 16), ("--mem=16G", 16), ("--mem_mb=16000", 16), ("--mem=500MB", 0.5),
     ("--mem_gb=2", 2)],
)  # fmt: skip
def test_memory_in_the_words_of_other_programs(given, gigabytes):
    options = participant.build_parser().parse(["in", "out", "participant", given])
    assert options.mem_gb == pytest.approx(gigabytes)


def test_names_of_options_may_have_underscores():
    call = ["in", "out", "participant", "--skip_bids_validation", "--n_cpus", "3", "--session_id",
            "a", "--bids_filter_file=" + __file__]  # fmt: skip
    options = participant.build_parser().parse(call)
    assert (options.skip_bids_validation, options.nprocs, options.session_id) == (True, 3, ["a"])
    assert str(options.bids_filter_file) == __file__

# SPDX-License-Identifier: Apache-2.0
"""What the documentation tells is understood by the programs it names, and is where it says.

``test_pages_run.py`` runs it.
"""

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from pages import CONTRIBUTING, DOCS, PAGES, ROOT, blocks, command_lines, name, shown_class

import eddymotion as em
from eddymotion.cli import correct, evaluate, fieldmap, participant, register, simulate
from eddymotion.derivatives.session import SessionOutputs
from eddymotion.testing import RegistrarConformance

PARSERS = {
    "eddymotion": lambda call: participant.build_parser().parse(call),
    "eddymotion-correct": lambda call: correct.build_parser().parse(call),
    "eddymotion-register": lambda call: register.build_parser().parse(call),
    "eddymotion-fieldmap": lambda call: fieldmap.build_parser().parse(call),
    "eddymotion-simulate": lambda call: simulate.build_parser().parse(call),
    "eddymotion-evaluate": lambda call: evaluate.build_parsers()[1][call[0]].parse(call[1:]),
}
in_pages = pytest.mark.parametrize("page", PAGES, ids=name)


def calls(page):
    """Return (program, arguments) of our commands on a page."""
    for line in command_lines(page):
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words and words[0] in PARSERS:
            yield words[0], [re.sub(r"^\$[A-Z_]+$", "4", word) for word in words[1:]]


@in_pages
def test_commands_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for program, arguments in calls(page):
        for word in map(Path, arguments):
            if word.suffix and not word.is_absolute() and ".." not in word.parts:
                (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / word).touch()
        assert is_understood(program, arguments), arguments


def is_understood(program, arguments):
    try:
        return PARSERS[program](arguments) is not None
    except SystemExit as ended:  # it has answered, or did not understand
        return ended.code == 0


def test_the_commands_of_the_pages_are_seen():
    found = {program for page in PAGES for program, _ in calls(page)}
    assert found == set(PARSERS)


@in_pages
def test_python_is_python_and_its_imports_exist(page):
    for _, source in blocks(page, "python"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("eddymotion"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@in_pages
def test_names_of_make_targets_and_modules_exist(page):
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for targets in re.findall(r"(?:`|^)make ([a-z -]+?)(?:`|$)", text, flags=re.MULTILINE):
        for target in targets.split():
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for path in re.findall(r"`(eddymotion/[\w/]+\.py|tests/[\w/]+\.py)`", text):
        assert (ROOT / path).is_file(), path


def test_what_people_expect_is_tested():
    lines = (DOCS / "project" / "expectations.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
        assert named, row
        for path, test in named:
            assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), test


@in_pages
def test_links_to_files_exist(page):
    for link in re.findall(r"\]\((?!\w+:)([^)#\s]+)", page.read_text(encoding="utf-8")):
        path = page.parent / link
        if path.parent.name == "auto_gallery":  # made from its sources when the site is built
            source = "GALLERY_HEADER.rst" if path.stem == "index" else f"{path.stem}.py"
            path = DOCS / "gallery" / source
        assert path.exists(), link


def anchors(page):
    """Headings of a page as they are linked to."""
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    words = re.findall(r"^#+ (.+)$", re.sub(r"\]\([^)]*\)", "]", text), flags=re.MULTILINE)
    headings = {re.sub(r"[^\w\- ]", "", word).strip().lower().replace(" ", "-") for word in words}
    return headings | set(re.findall(r'id="([^"]+)"', text))


@in_pages
def test_links_to_headings_lead_to_one(page):
    for link, anchor in re.findall(
        r"\]\((?!\w+:)([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")
    ):
        target = (page.parent / link).resolve() if link else page
        if target == DOCS / "project" / "contributing.md":
            target = CONTRIBUTING
        if target.suffix == ".md":
            assert anchor in anchors(target), f"{link}#{anchor}"


def test_outputs_page_names_every_output():
    text = (DOCS / "reference" / "outputs.md").read_text(encoding="utf-8")
    table = json.loads((ROOT / "eddymotion" / "derivatives" / "outputs.json").read_text())
    for kind, pattern in table.items():
        folder, _, file = pattern.partition("/")
        name = file.format(src="<src>", space="", target="target").partition(".")[0]
        assert folder == "figures" or f"`{name}" in text, (kind, pattern)


def actions():
    """Option → what the parser of one of our commands knows of it."""
    commands = (simulate, fieldmap, register, correct, participant)  # the last word is the last's
    parsers = [*evaluate.build_parsers()[1].values(), *(c.build_parser() for c in commands)]
    known = [action for parser in parsers for action in parser._actions]
    return {option: action for action in known for option in action.option_strings}


def ours(page):
    """What the tables of a page name as ours: second cells, and first ones that are the same."""
    rows = [line.split("|") for line in page.read_text(encoding="utf-8").splitlines()]
    cells = [row[1:3] for row in rows if len(row) > 3 and row[0] == "" and "---" not in row[1]]
    return [theirs + here if here.startswith(" the same") else here for theirs, here in cells]


COMPARISONS = sorted(DOCS.glob("how-to/coming-from-*.md"))
in_comparisons = pytest.mark.parametrize("page", COMPARISONS, ids=name)


@in_comparisons
def test_options_beside_those_of_other_programs_are_ours(page):
    known, named = actions(), re.findall(r"`(--[a-z0-9-]+)(?: (\S+))?`", " ".join(ours(page)))
    assert len(named) > 5
    for option, value in named:
        assert option in known
        choices = known[option].choices or (known[option].metavar or "").strip("{}").split(",")
        if value.startswith("{"):
            assert set(value.strip("{}").split(",")) <= set(choices)
        elif value and known[option].choices:
            assert value in choices


@in_comparisons
def test_options_of_other_programs_lead_to_ours(page, capsys):
    """A call with an option of a first cell says what stands in the second one."""
    text, led = page.read_text(encoding="utf-8"), 0
    for theirs, here in re.findall(r"^\| (`-.*?) \| (.*?) \|", text, flags=re.MULTILINE):
        there = re.findall(r"`(--?[a-zA-Z0-9_-]+)", theirs)
        instead = re.findall(r"`(--?[a-z0-9-]+)", here)
        for option in there if not here.startswith("the same") else ():
            if option.replace("_", "-") in actions():
                continue
            for command, call in ((correct, ["x"]), (participant, ["x", "y", "participant"])):
                with pytest.raises(SystemExit):
                    command.build_parser().parse([*call, option])
            said = capsys.readouterr().err
            assert "; write " in said or "; leave it out: " in said, said
            if here.startswith("`-"):
                assert any(name in said for name in instead), said
            led += 1
    assert led > 5


@in_comparisons
def test_files_beside_those_of_other_programs_are_ours(page):
    patterns = json.loads((ROOT / "eddymotion/derivatives/outputs.json").read_text()).values()
    files = {pattern.rpartition("/")[2].format(src="X", space="", target="T1w")
             for pattern in patterns} | {"X_desc-preproc_dwi.eddy_parameters"}  # fmt: skip
    field = "X_fmapid-auto00000"
    files |= {f"{field}_desc-{kind}_fieldmap.nii.gz" for kind in ("preproc", "coeff", "epi")}
    files |= {"X_desc-preproc_epi.nii.gz", f"{field}_topup"}
    named = re.findall(r"`(?:\*|<src>|…)(_desc[^`]+?)/?`", " ".join(ours(page)))
    assert named
    for written in named:
        stem, _, endings = written.partition("{")
        for ending in endings.rstrip("}").split(","):
            assert any(fnmatch(file, f"*{stem}{ending}") for file in files), written


def test_the_reference_names_all_outputs():
    text = (DOCS / "reference/outputs.md").read_text(encoding="utf-8")
    patterns = json.loads((ROOT / "eddymotion/derivatives/outputs.json").read_text()).values()
    files = [Path(pattern.format(src="", space="", target="target")) for pattern in patterns]
    session = SessionOutputs(Path(), "")
    files += [session.merged(""), *session.field.all(), session.field.topup]
    ends = {re.sub("_fmapid-[a-z0-9]+", "", file.name).partition(".")[0] for file in files
            if file.parent.name != "figures"}  # fmt: skip
    assert {end for end in ends if end not in text} == set()


def length(source):
    """Lines that are neither blank nor imports."""
    lines = [line for line in source.splitlines() if line.strip()]
    return sum(not line.startswith(("import ", "from ")) for line in lines)


def contributed(wanted):
    """Return a class that CONTRIBUTING.md shows, and its source."""
    source = shown_class(CONTRIBUTING, wanted)
    names = {"__name__": "contributed"}
    exec(compile(source, f"CONTRIBUTING.md: {wanted}", "exec"), names)
    return names[wanted], source


def test_the_model_of_30_lines_is_a_model(two_shells):
    quadratic, source = contributed("QuadraticModel")
    assert length(source) <= 30
    found = quadratic().leave_one_out(two_shells.signal, two_shells.gradients)
    shell = two_shells.gradients.shells[1]
    for volume in shell[:2]:
        rest = shell[shell != volume]
        design = np.einsum("ni,nj->nij", *(two_shells.gradients.bvecs,) * 2).reshape(-1, 9)
        signal = np.asarray(two_shells.signal, float)
        fit = np.linalg.lstsq(design[rest], signal[..., rest].reshape(-1, len(rest)).T)[0]
        np.testing.assert_allclose(
            found[..., volume].ravel(), design[volume] @ fit, atol=1e-3 * signal.max()
        )


def test_the_model_of_30_lines_serves_the_joint_solution(tiny):
    quadratic, _ = contributed("QuadraticModel")
    motion = em.estimate_motion(tiny, estimator=em.Joint(quadratic(), 2, "none"))
    assert motion.standard_errors is not None  # only the joint solution gives them


class TestTheRegistrarOf40Lines(RegistrarConformance):
    @pytest.fixture
    def registrar(self):
        engine, source = contributed("PlainRegistrar")
        assert length(source) <= 40
        return engine()


def test_unit_tests_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (listed,) = re.findall(r"suffix \.py,([\w\s\\]+)\)", makefile)
    for part in listed.replace("\\", "").split():
        assert (ROOT / "tests" / f"test_{part}.py").is_file(), part


def test_the_link_checker_sees_what_is_broken(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#x"><a href="#here">')
    (tmp_path / "b.html").write_text('<img src="none.png"><a href="a.html#here">')
    checker = DOCS / "_ext" / "check_links.py"
    done = subprocess.run(
        [sys.executable, checker, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "a.html: b.html#x", "b.html: none.png", "2 pages, 2 broken links"
    ]  # fmt: skip

"""What the documentation tells is run."""

import re
from pathlib import Path

import numpy as np
import pytest

import eddymotion as em
from eddymotion.testing import RegistrarConformance

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^ *```{language}\n(.+?)^ *```", text, flags=re.DOTALL | re.MULTILINE)


def length(source):
    """Lines that are neither blank nor imports."""
    lines = [line for line in source.splitlines() if line.strip()]
    return sum(not line.startswith(("import ", "from ")) for line in lines)


def contributed(name):
    """Return a class that CONTRIBUTING.md shows."""
    (source,) = [block for block in blocks(CONTRIBUTING, "python") if f"class {name}" in block]
    names = {"__name__": "contributed"}
    exec(compile(source, f"CONTRIBUTING.md: {name}", "exec"), names)
    return names[name], source


def test_the_model_of_30_lines_is_a_model(two_shells):
    quadratic, source = contributed("QuadraticModel")
    assert length(source) <= 30
    found = quadratic().leave_one_out(two_shells.signal, two_shells.gradients)
    for volume in two_shells.gradients.shells[1][:2]:
        shell = two_shells.gradients.shells[1]
        rest = shell[shell != volume]
        design = np.einsum("ni,nj->nij", *(two_shells.gradients.bvecs,) * 2).reshape(-1, 9)
        signal = np.asarray(two_shells.signal, float)
        fit = np.linalg.lstsq(design[rest], signal[..., rest].reshape(-1, len(rest)).T)[0]
        np.testing.assert_allclose(
            found[..., volume].ravel(), design[volume] @ fit, atol=1e-3 * signal.max()
        )


def test_the_model_of_30_lines_serves_the_joint_solution(tiny):
    quadratic, _ = contributed("QuadraticModel")
    motion = em.estimate_motion(tiny, model=quadratic(), eddy_currents="none", n_iterations=2)
    assert motion.standard_errors is not None  # only the joint solution gives them


class TestTheRegistrarOf40Lines(RegistrarConformance):
    @pytest.fixture
    def registrar(self):
        engine, source = contributed("PlainRegistrar")
        assert length(source) <= 40
        return engine()


def test_links_of_the_files_at_the_top_exist():
    for name in ("CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "changes/README.md"):
        path = ROOT / name
        for link in re.findall(r"\]\((?!http)([^)#\s]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{name}: {link}"

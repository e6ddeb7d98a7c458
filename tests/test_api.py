# SPDX-License-Identifier: Apache-2.0
"""What others may rely on stays: ``python tests/test_api.py`` writes public_api.txt again."""

import argparse
import importlib
import inspect
import re
from contextlib import suppress
from pathlib import Path

import pytest

from eddymotion.cli import correct, evaluate, fieldmap, participant, register, simulate
from eddymotion.simulation import Recipe

HERE = Path(__file__).resolve().parent
FROZEN = HERE / "public_api.txt"
REFERENCE = HERE.parent / "docs" / "reference" / "python.rst"
MODULES = (
    "eddymotion",
    "eddymotion.evaluation",
    "eddymotion.interfaces.nipype",
    "eddymotion.interfaces.pydra",
    "eddymotion.models",
    "eddymotion.registration",
    "eddymotion.simulation",
    "eddymotion.testing",
    "eddymotion.workflows.nipype",
    "eddymotion.workflows.pydra",
)
ENGINES = ("eddymotion.interfaces.nipype", "eddymotion.interfaces.pydra")


def exports(module_name):
    """Return (name, object) of what a module exports."""
    module = importlib.import_module(module_name)
    return [(name, getattr(module, name)) for name in sorted(module.__all__)]


def public_api():
    """Return a line for each name: its signature, or its fields."""
    lines = []
    for module in MODULES:
        for name, found in exports(module):
            lines += described(f"{module}.{name}", found)
    parsers = [m.build_parser() for m in (participant, correct, register, fieldmap, simulate)]
    for parser in (*parsers, *evaluate.build_parsers()[1].values()):
        lines += options_of(parser)
    return lines


def described(path, found):
    """Return the lines of one name."""
    if is_nipype(found):
        inputs = found().inputs.copyable_trait_names()
        return [f"{path} inputs: {listed(inputs)}", f"{path} outputs: {listed(fields_of(found))}"]
    if is_pydra(found):
        inputs = set(inspect.signature(found).parameters) - {"function", "constructor"}
        outputs = inspect.signature(found.Outputs).parameters
        return [f"{path} inputs: {listed(inputs)}", f"{path} outputs: {listed(outputs)}"]
    if inspect.isclass(found):
        return [f"{path}{signature_of(found)}", *(f"{path}.{m}" for m in members_of(found))]
    if callable(found):
        return [f"{path}{signature_of(found)}"]
    return [f"{path}: {listed(found)}"]


def is_nipype(found):
    return inspect.isclass(found) and hasattr(found, "input_spec")


def is_pydra(found):
    return inspect.isclass(found) and hasattr(found, "Outputs")


def fields_of(interface):
    return interface.output_spec().copyable_trait_names()


def listed(names):
    return " ".join(sorted(names))


def members_of(found):
    """Return methods and attributes that a class of ours adds to its bases, with signatures."""
    for name, _ in inspect.getmembers(found):
        if name.startswith("_") or hasattr(Exception, name):
            continue
        owner = next(base for base in found.__mro__ if name in vars(base))
        if not owner.__module__.startswith("eddymotion"):
            continue
        bound = getattr(found, name)
        is_method = inspect.isfunction(bound) or inspect.ismethod(bound)
        yield f"{name}{signature_of(bound)}" if is_method else name


def signature_of(found):
    """Return a signature without types; functions among the defaults by name."""
    try:
        signature = inspect.signature(found)
    except ValueError:  # an exception of ours
        return "(*args)"
    plain = [
        parameter.replace(annotation=parameter.empty, default=Shown.of(parameter.default))
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


class Shown:
    """A default whose text does not depend on the run."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text

    @classmethod
    def of(cls, default):
        if default is inspect.Parameter.empty:
            return default
        named = inspect.isroutine(default)
        return cls(default.__name__ if named else re.sub(r" at 0x\w+", "", repr(default)))


def options_of(parser):
    """Return a line for each argument of a command: its names and choices."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        names = " ".join(sorted(action.option_strings, reverse=True)) or action.dest
        choices = action.choices if isinstance(action.choices, (tuple, list)) else ()
        yield f"{parser.prog}: {names} {' | '.join(map(str, choices))}".rstrip()


def paths_of(found):
    """Return the annotations of what may be a path; of a class, those of its constructors too."""
    makers = [getattr(found, name) for name in vars(found)] if inspect.isclass(found) else []
    for maker in (found, *filter(inspect.ismethod, makers)):
        with suppress(TypeError, ValueError):  # no function, or one without a signature
            yield from (str(p.annotation) for p in inspect.signature(maker).parameters.values())


def test_a_path_can_be_given_as_a_string():
    """But to a class that turns strings into paths itself, and to `DWI`, which `load` makes."""
    functions = [(module, name, found) for module in MODULES for name, found in exports(module)]
    assert [
        f"{module}.{name}: {annotation}"
        for module, name, found in functions if name not in {"DWI", "Recipe"}
        for annotation in paths_of(found) if "Path" in annotation and "str" not in annotation
    ] == []  # fmt: skip
    recipe = Recipe(bval="x.bval", phantom=("tissue.nii", "peaks.nii"), motion="replayed.tsv")
    assert (recipe.bval, recipe.motion) == (Path("x.bval"), Path("replayed.tsv"))
    assert recipe.phantom == (Path("tissue.nii"), Path("peaks.nii"))


def test_public_names_and_signatures_are_those_written_down():
    now, then = public_api(), FROZEN.read_text(encoding="utf-8").splitlines()
    gone, new = set(then) - set(now), set(now) - set(then)
    assert not gone, "changed or gone: deprecate first (CONTRIBUTING.md), or put it back: " + str(
        sorted(gone)
    )
    assert not new, "new: python tests/test_api.py writes it down: " + str(sorted(new))


def test_changes_are_seen(monkeypatch):
    import eddymotion.images.masking

    assert "eddymotion.brain_mask(reference)" in public_api()
    monkeypatch.setattr(eddymotion, "brain_mask", lambda image, /, *, radius=2: None)
    assert "eddymotion.brain_mask(image, /, *, radius=2)" in public_api()


@pytest.mark.parametrize("module", MODULES)
def test_exports_are_documented(module):
    reference = REFERENCE.read_text(encoding="utf-8")
    for name, found in exports(module):
        if not callable(found):
            continue
        text = inspect.getdoc(found) or ""
        assert len(text.split()) > 2, f"{module}.{name} has no docstring"
        if module not in ENGINES:
            assert re.search(rf"\b{name}\b", reference), f"{module}.{name} is not in {REFERENCE}"
        if inspect.isfunction(found) and "\nParameters\n" in text:
            stated = set(
                re.findall(r"\w+", " ".join(re.findall(r"^(\S.*?)(?: : |$)", text, re.M)))
            )
            missing = set(inspect.signature(found).parameters) - stated
            assert not missing, f"{module}.{name} does not tell what {missing} is"


def test_type_stubs_list_what_is_exported():
    import eddymotion
    import eddymotion.simulation

    for module in (eddymotion, eddymotion.simulation):
        assert set(module.__all__) <= set(dir(module))


if __name__ == "__main__":
    FROZEN.write_text("\n".join(public_api()) + "\n", encoding="utf-8")
    print(f"{FROZEN}: {len(public_api())} names")

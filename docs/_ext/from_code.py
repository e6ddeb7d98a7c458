# SPDX-License-Identifier: Apache-2.0
"""Reference pages that are written from the code: commands, columns of tables."""

import argparse
from dataclasses import replace

import numpy as np
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

from eddymotion.cli import correct, evaluate, fieldmap, participant, register, simulate
from eddymotion.data.gradients import Gradients
from eddymotion.derivatives.confounds import confounds, descriptions
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.trajectory import Trajectory

COMMANDS = {
    "eddymotion": participant.build_parser,
    "eddymotion-correct": correct.build_parser,
    "eddymotion-register": register.build_parser,
    "eddymotion-fieldmap": fieldmap.build_parser,
    "eddymotion-simulate": simulate.build_parser,
    "eddymotion-evaluate": lambda: evaluate.build_parsers()[0],
}


class Command(Directive):
    """``{command} NAME``: all that ``NAME --help`` tells."""

    required_arguments = 1

    def run(self):
        """Return the arguments, and a section for each subcommand."""
        parser = COMMANDS[self.arguments[0]]()
        return [*body_of(parser), *(section_of(command) for command in subcommands(parser))]


class Columns(Directive):
    """``{columns}``: the confounds, as the JSON file beside them describes them."""

    def run(self):
        """Return a table, by way of its text."""
        rows = [
            f"| `{name}` | {text['Units']} | {text['Description']} |"
            for name, text in described_columns().items()
        ]
        table = ["| column | unit | meaning |", "|---|---|---|", *rows]
        holder = nodes.container()
        self.state.nested_parse(StringList(table, "confounds"), self.content_offset, holder)
        return holder.children


def described_columns():
    """Return the descriptions of the columns of a series with all estimates."""
    gradients = Gradients([0.0, 1000.0], np.eye(2, 3))
    fields = EddyCurrents(np.zeros((2, 3)), np.array([0.0, 1.0, 0.0]), np.zeros(3),
                          offsets=np.zeros(2), offset_errors=np.zeros(2))  # fmt: skip
    course = Trajectory(np.tile(np.eye(4), (2, 4, 1, 1)), np.eye(4))
    motion = replace(Motion.identity(2), standard_errors=np.zeros((2, 6)), eddy_currents=fields,
                     trajectory=course)  # fmt: skip
    return descriptions(confounds(gradients, motion, np.zeros(3), None))


def subcommands(parser):
    """Return the parsers of a parser's subcommands."""
    kinds = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [command for kind in kinds for command in kind.choices.values()]


def section_of(parser):
    """Return a section with a title for the parser of a subcommand."""
    section = nodes.section(ids=[nodes.make_id(parser.prog)])
    section += nodes.title(text=parser.prog)
    section += body_of(parser)
    return section


def body_of(parser):
    """Return what a parser's ``--help`` tells, as nodes."""
    paragraphs = (parser.description or "").split("\n\n")
    found = [nodes.paragraph(text=" ".join(paragraph.split())) for paragraph in paragraphs]
    found.append(literal(parser.format_usage().removeprefix("usage: ")))
    for group in parser._action_groups:
        shown = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        if shown:
            found.append(nodes.rubric(text=group.title))
            found.append(options_of(parser, shown))
    if parser.epilog:
        found.append(literal(parser.epilog))
    return found


def options_of(parser, actions):
    """Return a list of arguments with what they mean."""
    entries = nodes.definition_list(classes=["options"])
    for action in actions:
        term = nodes.term(ids=[nodes.make_id(f"{parser.prog} {name_of(action)}")])
        term += nodes.literal(text=spelled(action))
        text = (action.help or "") % meanings(parser, action)
        definition = nodes.definition("", nodes.paragraph(text=text))
        if action.choices and not isinstance(action.choices, dict) and action.metavar:
            choices = ", ".join(map(str, action.choices))
            definition += nodes.paragraph(text=f"One of {choices}.")
        entries += nodes.definition_list_item("", term, definition)
    return entries


def name_of(action):
    """Return the longest name of an argument."""
    return max(action.option_strings, key=len, default=action.dest)


def spelled(action):
    """Return all names of an argument, and what follows them."""
    formatter = argparse.HelpFormatter("")
    if not action.option_strings:
        return formatter._metavar_formatter(action, action.dest)(1)[0]
    values = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    names = ", ".join(action.option_strings)
    return f"{names} {values}" if action.nargs != 0 else names


def meanings(parser, action):
    """Return what ``%(default)s`` and the like stand for, whatever machine builds the page."""
    known = {**vars(action), "prog": parser.prog}
    if action.dest == "nprocs":
        known["default"] = 8  # of the machine that writes this page it says nothing
    return known


def literal(text):
    """Return a block of text as it stands."""
    return nodes.literal_block(text.rstrip(), text.rstrip(), language="text")


def keep_fields_of_workflows(app, what, name, found, options, lines):
    """Make the sections Inputs and Outputs, which numpydoc does not know, a part of Notes."""
    for title in ("Inputs", "Outputs"):
        heading = [title, "-" * len(title)]
        places = [i for i in range(len(lines)) if lines[i : i + 2] == heading]
        if not places:
            continue
        (place,) = places
        head = [] if "Notes" in lines else ["Notes", "-----"]
        lines[place : place + 2] = [*head, f"**{title}**", ""]


def setup(app):
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", keep_fields_of_workflows, priority=100)
    app.add_directive("command", Command)
    app.add_directive("columns", Columns)
    return {"parallel_read_safe": True}

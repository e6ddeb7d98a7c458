# SPDX-License-Identifier: Apache-2.0
"""Command-line options that several commands share → one frozen Settings object."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from eddymotion.cli.completion import PrintCompletion
from eddymotion.cli.converters import NUMBERS, Words, existing_file, positive, word_or_number
from eddymotion.machine.cgroups import available_cpus
from eddymotion.pipeline.settings import KINDS, SETTINGS, WORDS, Settings


def add_estimation_options(parser: argparse.ArgumentParser) -> None:
    """Add the domain options."""
    for heading in ("motion estimation", "outputs"):
        add_settings(parser, heading)


def add_settings(parser: argparse.ArgumentParser, heading: str) -> None:
    """Add the options of all settings under a heading."""
    group = parser.add_argument_group(heading)
    for name, about in SETTINGS.items():
        if about.group == heading:
            add_setting(group, name)


def add_setting(
    group: argparse._ActionsContainer, name: str, *option_strings: str, **changed: Any
) -> None:
    """Add the option of a setting, as it is declared but for what is `changed`."""
    about, kind = SETTINGS[name], KINDS[name]
    default = f" (default: {about.shown_default})" if about.shown_default else ""
    options: dict[str, Any] = {"dest": name, "help": about.help + default}
    if kind is bool:
        options["action"] = "store_true"
    elif kind == list[str]:
        options |= {"nargs": "+", "choices": about.choices, "default": []}
    elif kind is str and about.least is not None:
        options |= {"type": word_or_number(about.choices, int(about.least)),
                    "metavar": about.metavar, "default": getattr(Settings, name)}  # fmt: skip
    else:
        converter: Any = existing_file if kind is Path else NUMBERS.get((kind, about.least))
        if about.unset or WORDS[name]:
            converter = Words(converter, WORDS[name], about.unset)
        options |= {"type": converter, "choices": about.choices or None, "metavar": about.metavar,
                    "default": getattr(Settings, name)}  # fmt: skip
    names = option_strings or about.options or (f"--{name.replace('_', '-')}",)
    group.add_argument(*names, **(options | changed))


def add_running_options(
    parser: argparse.ArgumentParser, version: str, seed_of: str = "the random sampling points"
) -> None:
    """Add the options about resources and messages."""
    group = parser.add_argument_group("running")
    add_setting(group, "nprocs", default=available_cpus())
    group.add_argument(
        "--omp-nthreads",
        type=positive,
        metavar="N",
        help="threads per series (default: nprocs, divided among series that run at the same "
        "time; one in a cluster job)",
    )
    add_setting(group, "random_seed", help=f"of {seed_of} (default: %(default)d)")
    group.add_argument(
        "--config-file", type=existing_file, metavar="FILE",
        help="TOML file with options (long names without the dashes); the command line "
             "overrides it",
    )  # fmt: skip
    group.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    group.add_argument("-q", "--quiet", dest="verbose", action="store_const", const=-1, default=0,
                       help="print problems only")  # fmt: skip
    group.add_argument("--print-completion", action=PrintCompletion)
    group.add_argument("--version", action="version", version=f"eddymotion {version}")


def settings_from(options: argparse.Namespace) -> Settings:
    """Collect the options into the settings of a run.

    Raises
    ------
    EddymotionError
        If they contradict each other, or the registration backend cannot be used here.
    """
    values = {name: value for name, value in vars(options).items() if name in SETTINGS}
    values["ignore"] = tuple(options.ignore)
    values["nprocs"] = min(options.nprocs, options.omp_nthreads or options.nprocs)
    settings = Settings(**values)
    if {"registration", "registration_settings"} & settings.given.keys():
        from eddymotion.registration.registry import chosen_registrar

        chosen_registrar(settings.registration, settings.registration_settings)
    return settings

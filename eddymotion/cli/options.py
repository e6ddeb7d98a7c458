# SPDX-License-Identifier: Apache-2.0
"""Command-line options that several commands share → one frozen Settings object."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from eddymotion.cli.completion import PrintCompletion
from eddymotion.cli.config_file import read_config
from eddymotion.cli.foreign import advice
from eddymotion.errors import EddymotionError, absence
from eddymotion.machine.cgroups import available_cpus
from eddymotion.pipeline.settings import KINDS, SETTINGS, WORDS, Settings
from eddymotion.wording import one_line, shown

NOT_SET = ("help", "version", "config_file", argparse.SUPPRESS)
"""What the command line alone can ask for."""


WORDS_MISSING = "the following arguments are required"
"""How argparse begins to say so."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that says what to write instead.

    Parameters
    ----------
    surplus : str
        What to say of a word that is one too many.
    needless : mapping
        Options of other programs that there is no need of → why.
    **options
        Of `argparse.ArgumentParser`.
    """

    def __init__(
        self, surplus: str = "", needless: Mapping[str, str] = MappingProxyType({}), **options: Any
    ) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        self.surplus, self.needless = surplus, needless
        self._arguments: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        message = one_line(message + self._hint(message))
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parse; defaults come from ``--config-file``, unknown options get a suggestion."""
        arguments = self._dashed(sys.argv[1:] if arguments is None else arguments)
        self._arguments = arguments
        self._read_config(arguments)
        namespace, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._suggest(unknown[0]))
        return namespace

    def _dashed(self, arguments: Sequence[str]) -> list[str]:
        """Put dashes for underscores in names of options: other programs have either."""
        known, found = self._option_string_actions, list(arguments)
        for number, word in enumerate(found):
            if word == "--":
                break
            name, equals, value = word.partition("=")
            dashed = "--" + name[2:].replace("_", "-")
            if name.startswith("--") and name not in known and dashed in known:
                found[number] = f"{dashed}{equals}{value}"
        return found

    def misplaced_choice(self, namespace: argparse.Namespace) -> str | None:
        """Tell which option took the last words of the call, one of the choices at their end.

        Options with several values end where the next one begins, or with the call.
        """
        positionals = [action for action in self._actions if not action.option_strings]
        missing = sum(getattr(namespace, action.dest) is None for action in positionals)
        given = list(self._arguments)
        for action in self._greedy():
            places = [n for n, word in enumerate(given) if word in action.option_strings]
            values = getattr(namespace, action.dest)
            if places and values and values[-1] in (positionals[-1].choices or ()):
                end = places[-1] + 1 + len(values)
                taken = given[max(end - missing, places[-1] + 1) : end]
                own = given[: end - len(taken)] + ["LABEL"] * (len(taken) == len(values))
                at = 0 if missing == len(positionals) else places[-1]
                right = [*own[:at], *taken, *own[at:], *given[end:]]
                return (
                    f"{given[places[-1]]} took {' '.join(taken)}, too: it takes all words that "
                    f"follow it; write: {self.prog} {shlex.join(right)}"
                )
        return None

    def _greedy(self) -> list[argparse.Action]:
        return [action for action in self._actions if action.nargs == "+"]

    def _hint(self, message: str) -> str:
        """Say that an option took words that were not meant for it, where that may be so."""
        for action in self._greedy():
            used = any(name in self._arguments for name in action.option_strings)
            named = message.startswith(f"argument {'/'.join(action.option_strings)}: ")
            if named or (used and message.startswith(WORDS_MISSING)):
                name = action.option_strings[0]
                return f"; {name} takes all words that follow it: put other words before it"
        told = {word: self._advice(word) for word in self._arguments}
        foreign = [f"; for {word} {what}" for word, what in told.items() if what]
        return "".join(foreign[:1]) if message.startswith(WORDS_MISSING) else ""

    def _advice(self, argument: str) -> str | None:
        return advice(argument, self._option_string_actions, self.needless)

    def _suggest(self, unknown: str) -> str:
        if not unknown.startswith("-") and self.surplus:
            return f"{unknown}: {self.surplus}"
        if (told := self._advice(unknown)) is not None:
            return f"unknown argument {unknown}; {told}"
        options = [name for name in self._option_string_actions if name.startswith("--")]
        close = difflib.get_close_matches(unknown.split("=")[0], options, n=1)
        return f"unknown argument {unknown}" + (f"; did you mean {close[0]}?" if close else "")

    def _read_config(self, arguments: Sequence[str]) -> None:
        path = _value_of("--config-file", arguments)
        if path is None:
            return
        options = {
            name.removeprefix("--").replace("-", "_"): action
            for name, action in self._option_string_actions.items()
            if name.startswith("--") and action.dest not in NOT_SET
        }  # positional arguments stay on the command line
        try:
            for action, value in read_config(path, options):
                action.required = False
                self.set_defaults(**{action.dest: value})
        except EddymotionError as error:
            self.error(f"--config-file {path}: {error}")


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == option and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None


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


@dataclass(frozen=True)
class Words:
    """Converts to a word that is known, to None if it stands for nothing, or as another does."""

    otherwise: Callable[[str], Any]
    known: tuple[str, ...]
    unset: str

    def __call__(self, text: str) -> Any:
        """Convert; ``./word`` is a file all the same."""
        if text in self.known:
            return text
        if text == self.unset:
            return None
        try:
            return self.otherwise(text)
        except argparse.ArgumentTypeError as error:
            words = " or ".join(filter(None, (*self.known, self.unset)))
            raise argparse.ArgumentTypeError(f"{error}, or write {words}") from error


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
        help="threads for one series (default: all of nprocs, shared out where several series run "
        "side by side; one as a job of a cluster)",
    )
    add_setting(group, "random_seed", help=f"of {seed_of} (default: %(default)d)")
    group.add_argument(
        "--config-file", type=existing_file, metavar="FILE",
        help="TOML with options (long names without the dashes); the command line overrides it",
    )  # fmt: skip
    group.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    group.add_argument("-q", "--quiet", dest="verbose", action="store_const", const=-1, default=0,
                       help="say nothing but problems")  # fmt: skip
    group.add_argument("--print-completion", action=PrintCompletion)
    group.add_argument("--version", action="version", version=f"eddymotion {version}")


def settings_from(options: argparse.Namespace) -> Settings:
    """Collect the options into the settings of a run."""
    values = {name: value for name, value in vars(options).items() if name in SETTINGS}
    values["ignore"] = tuple(options.ignore)
    values["nprocs"] = min(options.nprocs, options.omp_nthreads or options.nprocs)
    settings = Settings(**values)
    refuse_unused_space_options(settings)
    refuse_unusable_registration(settings)
    refuse_contradictions(settings)
    return settings


def refuse_contradictions(settings: Settings) -> None:
    """Refuse what cannot go together before anything is read.

    Raises
    ------
    EddymotionError
        If the model is unknown, or options contradict each other.
    """
    from eddymotion.models import serves_joint

    if {"sform", "qform"} <= set(settings.ignore):
        raise EddymotionError("--ignore sform qform leaves no affine; ignore one of the two")
    linear = settings.model == Settings.model or serves_joint(settings.model)
    if settings.estimator == "joint" and not linear:
        raise EddymotionError(
            f"--estimator joint needs a model that is linear in the signal, and {settings.model} "
            "is not; write --estimator lovo, or --model gp"
        )
    engine = settings.registration, settings.registration_settings
    chosen = engine != (Settings.registration, Settings.registration_settings)
    loop = settings.estimator == "lovo" or not linear or chosen
    if loop and settings.eddy_current not in ("auto", "none"):
        raise EddymotionError(
            f"--eddy-current {settings.eddy_current}: fields are estimated by --estimator joint "
            "alone; leave one of them out"
        )
    if loop and settings.within_volume not in ("auto", "none"):
        raise EddymotionError(
            f"--within-volume {settings.within_volume}: motion within volumes is followed by "
            "--estimator joint alone; leave one of them out"
        )
    if settings.eddy_fields and (loop or settings.eddy_current == "none"):
        raise EddymotionError(
            "--eddy-fields: no fields are estimated with "
            + ("the leave-one-out loop (--estimator lovo)" if loop else "--eddy-current none")
            + "; leave one of them out"
        )  # fmt: skip


def refuse_unused_space_options(settings: Settings) -> None:
    """Raise if something is said about an output space that is not given or not sought."""
    given = {
        name: f"--{name.replace('_', '-')}"
        for name in SETTINGS
        if name.startswith("output_") and getattr(settings, name) != getattr(Settings, name)
    }
    space = given.pop("output_space", None)
    if given and space is None:
        (first, *_) = given.values()
        raise EddymotionError(f"{first} was given, but no --output-space; add it, T1w or an image")
    of_image = [given[name] for name in OF_IMAGE if name in given]
    if of_image and settings.output_space == "T1w":
        raise EddymotionError(
            f"--output-space T1w has each participant's own {OF_IMAGE_WORDS[of_image[0]]} from "
            f"--anat-derivatives; leave {of_image[0]} out, or give one image as --output-space"
        )
    unused = [given[name] for name in SOUGHT if name in given]
    if settings.output_space_transform == "none" and unused:
        raise EddymotionError(
            f"--output-space-transform none registers nothing; leave {unused[-1]} out"
        )


def refuse_t1w(settings: Settings, why_not: str) -> None:
    """Raise if a participant's T1w is asked for where there is no participant."""
    if settings.output_space == "T1w":
        raise EddymotionError(
            f"--output-space T1w: {why_not}; give the image itself, --output-space FILE"
        )


OF_IMAGE_WORDS = {
    "--output-space-mask": "brain mask",
    "--output-space-white-matter": "white matter",
}
"""Option → what it gives of the image."""

OF_IMAGE = ("output_space_mask", "output_space_white_matter")
"""Settings that say something of one image alone."""

SOUGHT = ("output_space_contrast", *OF_IMAGE)
"""Settings that are of use where something is registered."""


def refuse_unusable_registration(settings: Settings) -> None:
    """Refuse a registration that cannot be used before anything is read.

    Raises
    ------
    EddymotionError
        If it is unknown or not installed, its settings are wrong, or the estimator has no use for
        it.
    """
    chosen = (settings.registration, settings.registration_settings)
    if chosen == (Settings.registration, Settings.registration_settings):
        return
    from eddymotion.registration.registry import chosen_registrar

    chosen_registrar(*chosen)
    if settings.estimator == "joint":
        raise EddymotionError(
            "--estimator joint aligns all volumes at once and takes no registration, but "
            f"{settings.registration or 'its settings'} was chosen; write --estimator lovo, or "
            "leave --registration and --registration-settings out"
        )


def existing_file(text: str) -> Path:
    """Convert to the path of a file that exists."""
    if not os.path.isfile(text):  # False, too, for names that no file can have
        raise argparse.ArgumentTypeError(absence(Path(text)))
    return Path(text)


def word_or_number(words: Sequence[str], least: int) -> Callable[[str], str]:
    """Make what takes one of some words, or a whole number from `least` on."""

    def converted(text: str) -> str:
        expected = f"{', '.join(words)}, or a whole number from {least} on"
        return text if text in words else str(_number(text, int, least, expected))

    return converted


def positive(text: str) -> int:
    """Convert to a whole number above zero."""
    return _number(text, int, 1, "a whole number above zero")


def not_negative_integer(text: str) -> int:
    """Convert to a whole number from zero on."""
    return _number(text, int, 0, "a whole number from zero on")


def not_negative(text: str) -> float:
    """Convert to a number from zero on."""
    return _number(text, float, 0, "a number from zero on")


def above_zero(text: str) -> float:
    """Convert to a number above zero."""
    value = not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, expected a number above zero")
    return value


NUMBERS: Mapping[Any, Any] = {
    (float, None): above_zero,
    (float, 0): not_negative,
    (int, 0): not_negative_integer,
    (int, 1): positive,
}
"""Type and least value → what converts to it."""


def _number(text: str, kind: Any, least: float, expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not value >= least or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{shown(text)} given, expected {expected}")
    return value

# SPDX-License-Identifier: Apache-2.0
"""Options that contradict each other, refused before anything is read."""

from __future__ import annotations

import argparse

from eddymotion.cli.parser import option_of
from eddymotion.errors import EddymotionError
from eddymotion.pipeline.settings import JOINT_ONLY, SETTINGS, Settings

OUTPUT_SPACE_MAPS = {
    "output_space_mask": "brain mask",
    "output_space_white_matter": "white matter",
}
"""Settings that belong to one image of the output space → what they are."""

REGISTRATION_ONLY = ("output_space_contrast", *OUTPUT_SPACE_MAPS)
"""Settings without effect where the series is not registered to the output space."""

NO_FIELDS = "--eddy-fields: no fields are estimated with {}; leave one of them out"


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
            "--estimator joint needs a model that is linear in the signal, which "
            f"{settings.model} is not; use --estimator lovo, or --model gp"
        )
    if settings.estimator == "lovo" or not linear or _chooses_registration(settings):
        _refuse_beyond_loop(settings)
    elif settings.eddy_fields and settings.eddy_current == "none":
        raise EddymotionError(NO_FIELDS.format("--eddy-current none"))


def _refuse_beyond_loop(settings: Settings) -> None:
    """Refuse what the leave-one-out loop does not estimate."""
    for name in settings.joint_only:
        raise EddymotionError(
            f"{option_of(name)} {getattr(settings, name)}: {JOINT_ONLY[name]} by --estimator "
            "joint only; leave one of them out"
        )
    if settings.eddy_fields:
        raise EddymotionError(NO_FIELDS.format("the leave-one-out loop (--estimator lovo)"))


def _chooses_registration(settings: Settings) -> bool:
    own = Settings.registration, Settings.registration_settings
    return (settings.registration, settings.registration_settings) != own


def refuse_unused_space_options(settings: Settings) -> None:
    """Raise if an option of the output space is given, but has no effect."""
    given = [name for name in SETTINGS if getattr(settings, name) != getattr(Settings, name)]
    of_space = [name for name in given if name.startswith("output_") and name != "output_space"]
    if of_space and settings.output_space is None:
        raise EddymotionError(
            f"{option_of(of_space[0])} has no effect without --output-space; add --output-space "
            "T1w or an image"
        )
    maps = [name for name in OUTPUT_SPACE_MAPS if name in of_space]
    if maps and settings.output_space == "T1w":
        raise EddymotionError(
            f"--output-space T1w takes the {OUTPUT_SPACE_MAPS[maps[0]]} of each participant "
            f"from --anat-derivatives; leave {option_of(maps[0])} out, or give one image as "
            "--output-space"
        )
    unused = [name for name in REGISTRATION_ONLY if name in of_space]
    if settings.output_space_transform == "none" and unused:
        raise EddymotionError(
            f"--output-space-transform none does not register; leave {option_of(unused[-1])} out"
        )


def refuse_joining_one(settings: Settings) -> None:
    """Raise if a single series is to be joined with others, or kept apart from them."""
    for name in ("separate_all_dwis", "distortion_group_merge"):
        if getattr(settings, name) != getattr(Settings, name):
            raise EddymotionError(
                f"{option_of(name)}: a single series has no other runs; name those after it, or "
                "leave the option out"
            )


def refuse_t1w(settings: Settings, why_not: str) -> None:
    """Raise if a participant's T1w is asked for where there is no participant."""
    if settings.output_space == "T1w":
        raise EddymotionError(
            f"--output-space T1w: {why_not}; give the image itself, --output-space FILE"
        )


def refuse_unusable_registration(settings: Settings) -> None:
    """Refuse a registration that cannot be used before anything is read.

    Raises
    ------
    EddymotionError
        If it is unknown or not installed, its settings are wrong, or the estimator has no use for
        it.
    """
    if not _chooses_registration(settings):
        return
    from eddymotion.registration.registry import chosen_registrar

    chosen_registrar(settings.registration, settings.registration_settings)
    if settings.estimator == "joint":
        raise EddymotionError(
            "--estimator joint aligns all volumes at once and uses no registration backend, but "
            f"{settings.registration or 'its settings'} was given; use --estimator lovo, or "
            "leave --registration and --registration-settings out"
        )


def refuse_contradicting_run_options(options: argparse.Namespace) -> None:
    """Raise if options of the BIDS-App contradict each other."""
    if options.separate_all_dwis and options.distortion_group_merge != "none":
        raise EddymotionError(
            "--separate-all-dwis keeps each run in its own frame, --distortion-group-merge "
            "needs a common one; leave one of them out"
        )
    if options.anat_derivatives is not None and options.output_space != "T1w":
        raise EddymotionError(
            "--anat-derivatives has no effect without --output-space T1w; add that, or leave "
            "--anat-derivatives out"
        )

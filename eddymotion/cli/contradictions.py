# SPDX-License-Identifier: Apache-2.0
"""Settings that contradict each other, refused before anything is read."""

from __future__ import annotations

from eddymotion.errors import EddymotionError
from eddymotion.pipeline.settings import JOINT_ONLY, SETTINGS, Settings

OF_IMAGE_WORDS = {
    "--output-space-mask": "brain mask",
    "--output-space-white-matter": "white matter",
}
"""Option → what it gives of the image."""

OF_IMAGE = ("output_space_mask", "output_space_white_matter")
"""Settings that say something of one image alone."""

NO_FIELDS = "--eddy-fields: no fields are estimated with {}; leave one of them out"

SOUGHT = ("output_space_contrast", *OF_IMAGE)
"""Settings that are of use where something is registered."""


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
            f"{_option(name)} {getattr(settings, name)}: {JOINT_ONLY[name]} by --estimator "
            "joint only; leave one of them out"
        )
    if settings.eddy_fields:
        raise EddymotionError(NO_FIELDS.format("the leave-one-out loop (--estimator lovo)"))


def _chooses_registration(settings: Settings) -> bool:
    own = Settings.registration, Settings.registration_settings
    return (settings.registration, settings.registration_settings) != own


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def refuse_unused_space_options(settings: Settings) -> None:
    """Raise if something is said about an output space that is not given or not sought."""
    given = {
        name: _option(name)
        for name in SETTINGS
        if name.startswith("output_") and getattr(settings, name) != getattr(Settings, name)
    }
    space = given.pop("output_space", None)
    if given and space is None:
        (first, *_) = given.values()
        raise EddymotionError(
            f"{first} has no effect without --output-space; add --output-space T1w or an image"
        )
    of_image = [given[name] for name in OF_IMAGE if name in given]
    if of_image and settings.output_space == "T1w":
        raise EddymotionError(
            f"--output-space T1w takes the {OF_IMAGE_WORDS[of_image[0]]} of each participant "
            f"from --anat-derivatives; leave {of_image[0]} out, or give one image as "
            "--output-space"
        )
    unused = [given[name] for name in SOUGHT if name in given]
    if settings.output_space_transform == "none" and unused:
        raise EddymotionError(
            f"--output-space-transform none does not register; leave {unused[-1]} out"
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

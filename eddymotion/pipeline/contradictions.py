# SPDX-License-Identifier: Apache-2.0
"""Settings that exclude or need each other.

The rules are about what is given: settings that differ from their default, name → value. Messages
use the names of the options of the commands; a workflow's settings have the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eddymotion.errors import EddymotionError
from eddymotion.wording import option_of

JOINT_ONLY = {
    "eddy_current": "fields are estimated",
    "within_volume": "motion within volumes is followed",
}
"""Settings of the joint estimator alone → what it does then."""

OUTPUT_SPACE_MAPS = {
    "output_space_mask": "brain mask",
    "output_space_white_matter": "white matter",
}
"""Settings that belong to one image of the output space → what they are."""

REGISTRATION_ONLY = ("output_space_contrast", *OUTPUT_SPACE_MAPS)
"""Settings without effect where the series is not registered to the output space."""

NO_FIELDS = "--eddy-fields: no fields are estimated with {}; leave one of them out"


def refuse_contradictions(given: Mapping[str, Any]) -> None:
    """Refuse settings that cannot go together.

    Raises
    ------
    EddymotionError
        If there are such settings, or there is no model or registration engine of that name.
    """
    if {"sform", "qform"} <= set(given.get("ignore", ())):
        raise EddymotionError("--ignore sform qform leaves no affine; ignore one of the two")
    if "separate_all_dwis" in given and "distortion_group_merge" in given:
        raise EddymotionError(
            "--separate-all-dwis keeps each run in its own frame, --distortion-group-merge "
            "needs a common one; leave one of them out"
        )
    _refuse_unused_space_settings(given)
    if asks_for_loop := _what_asks_for_loop(given):
        refuse_beyond_loop(given, asks_for_loop)
    elif "eddy_fields" in given and given.get("eddy_current") == "none":
        raise EddymotionError(NO_FIELDS.format("--eddy-current none"))


def _what_asks_for_loop(given: Mapping[str, Any]) -> str:
    """Return the setting for which only the leave-one-out loop will do; empty without one."""
    estimator, model = given.get("estimator"), given.get("model")
    if model is not None:
        from eddymotion.models import serves_joint

        if not serves_joint(model):
            if estimator == "joint":
                raise EddymotionError(
                    "--estimator joint needs a model that is linear in the signal, which "
                    f"{model} is not; use --estimator lovo, or --model gp"
                )
            return f"--model {model}"
    if "registration" in given:
        from eddymotion.registration.registry import refuse_unknown

        refuse_unknown(given["registration"])
    chosen = [name for name in ("registration", "registration_settings") if name in given]
    if chosen and estimator == "joint":
        raise EddymotionError(
            "--estimator joint aligns all volumes at once and uses no registration backend, but "
            f"{given.get('registration', 'its settings')} was given; use --estimator lovo, or "
            "leave --registration and --registration-settings out"
        )
    if chosen:
        return f"{option_of(chosen[0])} {given[chosen[0]]}"
    return "--estimator lovo" if estimator == "lovo" else ""


def refuse_beyond_loop(given: Mapping[str, Any], asks_for_loop: str) -> None:
    """Refuse what the leave-one-out loop does not estimate, where something asks for the loop."""
    for name, what in JOINT_ONLY.items():
        if given.get(name, "none") != "none":
            raise EddymotionError(
                f"{option_of(name)} {given[name]}: {what} by --estimator joint only, but "
                f"{asks_for_loop} asks for the leave-one-out loop; leave one of them out"
            )
    if "eddy_fields" in given:
        raise EddymotionError(NO_FIELDS.format(f"the leave-one-out loop ({asks_for_loop})"))


def refuse_joining_one(given: Mapping[str, Any], *, has_b0s: bool = False) -> None:
    """Refuse to join a single series with others, or to keep it apart where there is none."""
    for name in ("separate_all_dwis", "distortion_group_merge"):
        if name in given and not (name == "separate_all_dwis" and has_b0s):
            raise EddymotionError(
                f"{option_of(name)}: a single series has no other runs; name those after it, or "
                "leave the option out"
            )


def refuse_t1w(given: Mapping[str, Any], why_not: str) -> None:
    """Refuse a participant's T1w as output space where there is no participant."""
    if given.get("output_space") == "T1w":
        raise EddymotionError(
            f"--output-space T1w: {why_not}; give the image itself, --output-space FILE"
        )


def _refuse_unused_space_settings(given: Mapping[str, Any]) -> None:
    """Refuse a setting of the output space that has no effect."""
    of_space = [name for name in given if name.startswith("output_") and name != "output_space"]
    if of_space and "output_space" not in given:
        raise EddymotionError(
            f"{option_of(of_space[0])} has no effect without --output-space; add --output-space "
            "T1w or an image"
        )
    maps = [name for name in OUTPUT_SPACE_MAPS if name in of_space]
    if maps and given["output_space"] == "T1w":
        raise EddymotionError(
            f"--output-space T1w takes the {OUTPUT_SPACE_MAPS[maps[0]]} of each participant "
            f"from --anat-derivatives; leave {option_of(maps[0])} out, or give one image as "
            "--output-space"
        )
    unused = [name for name in REGISTRATION_ONLY if name in of_space]
    if given.get("output_space_transform") == "none" and unused:
        raise EddymotionError(
            f"--output-space-transform none does not register; leave {option_of(unused[-1])} out"
        )

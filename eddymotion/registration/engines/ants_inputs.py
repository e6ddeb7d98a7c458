# SPDX-License-Identifier: Apache-2.0
"""The inputs of Nipype's ``ants.Registration``: checked by it, completed by a preset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eddymotion.errors import EddymotionError
from eddymotion.registration.engines.external import nipype_interface
from eddymotion.wording import shown, why

PER_STAGE = (
    "transforms", "transform_parameters", "metric", "metric_weight", "radius_or_number_of_bins",
    "sampling_strategy", "sampling_percentage", "number_of_iterations", "convergence_threshold",
    "convergence_window_size", "shrink_factors", "smoothing_sigmas", "sigma_units",
    "use_histogram_matching", "use_estimate_learning_rate_once", "restrict_deformation",
)  # fmt: skip
"""Lists with an entry for each stage."""

OF_TUPLES = ("transform_parameters", "interpolation_parameters")
"""Inputs whose values are tuples."""

OURS = (
    "fixed_image", "moving_image", "fixed_image_mask", "moving_image_mask", "fixed_image_masks",
    "moving_image_masks", "initial_moving_transform", "initial_moving_transform_com",
    "invert_initial_moving_transform", "output_transform_prefix", "output_warped_image",
    "output_inverse_warped_image", "write_composite_transform", "collapse_output_transforms",
    "initialize_transforms_per_stage", "save_state", "restore_state", "dimension", "random_seed",
    "num_threads", "verbose", "environ", "args",
)  # fmt: skip
"""What is set for each pair, whatever a file says."""


def completed(settings: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """Complete settings by the preset's stages of the same transforms.

    Raises
    ------
    EddymotionError
        If a list has not one entry for each stage, or a stage not as many levels in all lists.
    """
    if "transforms" not in settings:
        stages = {**preset, **settings}
    else:
        stages = {**{key: preset[key] for key in preset if key not in PER_STAGE}, **settings}
        for key in PER_STAGE:
            if key not in settings and key in preset:
                known = dict(zip(preset["transforms"], preset[key], strict=True))
                stages[key] = [known.get(name) for name in settings["transforms"]]
    _check_entries(stages)
    _check_pyramids(stages)
    return stages


def _check_entries(stages: dict[str, Any]) -> None:
    """Refuse lists that have not one entry for each stage."""
    n_stages = len(stages["transforms"])
    for key in PER_STAGE:
        values = stages.get(key)
        if not isinstance(values, list):
            continue
        one_for_all = key.startswith("convergence") and len(values) == 1
        if len(values) != n_stages and not one_for_all:
            raise EddymotionError(
                f"registration ants: {key!r} has {len(values)} entries for the {n_stages} stages "
                f"{', '.join(stages['transforms'])}; give one per stage"
            )
        missing = [n for n, v in zip(stages["transforms"], values, strict=False) if v is None]
        if missing and not key.startswith("sampling"):
            raise EddymotionError(
                f"registration ants: the preset has no stage {missing[0]!r}; give {key!r}, too"
            )


def _check_pyramids(stages: dict[str, Any]) -> None:
    """Refuse stages whose levels are not as many in all three lists: ANTs would crash."""
    keys = ("number_of_iterations", "shrink_factors", "smoothing_sigmas")
    for stage, *levels in zip(stages["transforms"], *(stages[key] for key in keys), strict=True):
        lengths = [len(values) for values in levels]
        if len(set(lengths)) > 1:
            raise EddymotionError(
                f"registration ants: stage {shown(stage)} has "
                + ", ".join(f"{n} {key}" for n, key in zip(lengths, keys, strict=True))
                + "; give one each for every level"
            )


def interface_with(inputs: dict[str, Any]) -> Any:
    """Return Nipype's interface with some inputs set."""
    interface = nipype_interface("ants")
    assign(interface, inputs)
    return interface


def assign(interface: Any, inputs: dict[str, Any]) -> None:
    """Set inputs of an interface; what Nipype refuses is an :class:`EddymotionError`."""
    from traits.api import TraitError

    for key, value in inputs.items():
        try:
            setattr(interface.inputs, key, _tupled(value) if key in OF_TUPLES else value)
        except (TraitError, TypeError, ValueError) as error:
            raise EddymotionError(
                f"registration ants: {key!r} cannot be {shown(value)} ({why(error)})"
            ) from error


def _tupled(value: Any) -> Any:
    """JSON has no tuples, which Nipype needs in some places."""
    if isinstance(value, list):
        return [tuple(item) if isinstance(item, list) else item for item in value]
    return value


def input_names() -> Iterable[str]:
    """Return the names of Nipype's inputs, without those that only describe parts of others."""
    names = interface_with({}).inputs.copyable_trait_names()
    return [name for name in names if not name.endswith("_trait")]

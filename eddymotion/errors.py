# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can act on."""


class EddymotionError(ValueError):
    """Input or settings that cannot work.

    The message is one line that tells what was given, what was expected and what to do.
    Commands print it without a traceback.
    """


class EngineError(EddymotionError):
    """Another program crashed, or left its result out: the call itself may be right."""

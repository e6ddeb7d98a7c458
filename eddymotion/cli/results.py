# SPDX-License-Identifier: Apache-2.0
"""What commands print of their results, and the prefix with which names of outputs begin."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from eddymotion.cli.screen import is_terminal, wrapped
from eddymotion.errors import EddymotionError

RESULT = {"is_result": True}
"""As ``extra`` of a line of the log: written to the standard output, which has results alone."""


def refuse_folder(prefix: Path) -> None:
    """Raise if a prefix says where outputs go, but not how their names begin."""
    if not prefix.name or prefix.is_dir():
        raise EddymotionError(f"-o {prefix}: is a folder; add a file prefix: {prefix / 'result'}")


def tell(text: str) -> None:
    """Write a result to the standard output; on a terminal no word is broken."""
    print(wrapped(text) if is_terminal(sys.stdout) else text, flush=True)


def named_values(rows: Sequence[tuple[str, str]]) -> str:
    """Write names and their values, one a line, in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def print_written(paths: Iterable[Path]) -> None:
    """List the files that were written, below what was printed before."""
    print("\n" + "\n".join(f"written: {path}" for path in paths))

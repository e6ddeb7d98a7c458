# SPDX-License-Identifier: Apache-2.0
"""``python -m eddymotion``: the same as ``eddymotion``."""

from eddymotion.cli.participant import main

if __name__ == "__main__":
    raise SystemExit(main())

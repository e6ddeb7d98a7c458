# SPDX-License-Identifier: Apache-2.0
"""Series of a moving head with known truth.

The names are loaded when first used (they are listed in ``__init__.pyi``).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# SPDX-License-Identifier: Apache-2.0
"""Registration engines of others, behind the interface of the package."""

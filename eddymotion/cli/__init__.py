# SPDX-License-Identifier: Apache-2.0
"""Commands: arguments → one frozen settings object → steps."""

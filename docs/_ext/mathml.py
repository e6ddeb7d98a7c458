# SPDX-License-Identifier: Apache-2.0
"""Equations as MathML, which browsers draw themselves: no script from elsewhere."""

from docutils.nodes import SkipNode
from latex2mathml.converter import convert


def inline(translator, node):
    """Write an equation within a line."""
    translator.body.append(convert(node.astext()))
    raise SkipNode


def block(translator, node):
    """Write an equation on its own."""
    translator.body.append(convert(node.astext(), display="block"))
    raise SkipNode


def setup(app):
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}

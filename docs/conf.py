# SPDX-License-Identifier: Apache-2.0
"""How the site is built: ``make docs``."""

import os
import sys
import warnings
from importlib.metadata import version as version_of
from pathlib import Path

os.environ.setdefault("NO_ET", "1")  # Nipype and Pydra ask for newer versions otherwise
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "eddymotion"
author = "the eddymotion developers"
copyright = author
release = version_of("eddymotion")
version = release.partition("+")[0]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "mathml",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "matplotlib.sphinxext.plot_directive",
    "from_code",
    "outside_pages",
]
exclude_patterns = ["_build", "drawings", "gallery", "README.md"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "eddymotion"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_nav_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}

myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 4

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings tell types, with shapes and units
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

plot_formats = ["svg"]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_include_source = False

copybutton_prompt_text = "$ "

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": "/plot_",
    "abort_on_example_error": True,
    "min_reported_time": 60,
    "show_memory": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "within_subsection_order": "FileNameSortKey",
}
suppress_warnings = ["config.cache"]
warnings.filterwarnings("ignore", "Unknown section (Inputs|Outputs)")  # from_code keeps them

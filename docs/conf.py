"""Sphinx settings: `make docs` builds the pages into docs/_build."""

import vitjax

project = "vitjax"
author = "The vitjax authors"
release = vitjax.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
myst_heading_anchors = 3
nb_execution_mode = "off"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]  # links between the pages that GitHub shows, out of this folder

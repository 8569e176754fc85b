"""The documentation site: pages of docs/, notebooks that run when the site is built, and reference pages made from the library."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import channelscope  # noqa: E402

project = "channelscope"
author = "the authors of channelscope"
copyright = "the authors of channelscope, MIT license"
version = release = channelscope.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_design", "reference", "plain_docstrings"]
exclude_patterns = ["_ext", "**/.ipynb_checkpoints", "**/runs"]
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]  # the names of axes in jaxtyping shapes are no references
nitpicky = False
default_role = "py:obj"

html_theme = "furo"
html_title = "channelscope"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
html_extra_path = ["report.png"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3

nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"undoc-members": False, "exclude-members": "__init__, __new__"}
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = True
napoleon_use_ivar = True
napoleon_preprocess_types = False

"""How the documentation is built: `make docs`, or `python -m sphinx docs out/docs`."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout is documented, not another installation

project = "sparsify"
author = "the authors of sparsify"
project_copyright = author
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # [words](page.md#a-heading) leads to headings of up to this level

default_role = "code"  # `name` in a docstring is a name, as in Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Shapes", "params_style")]

# Types of other projects, short names of ours, and types that are nobody's business: shown without a link.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!sparsify\.).*"),
    (r"py:class", r"sparsify\.(converters\.(tokenizers|hub)|cpu|fftconv|plan\.coefficients)\..*"),
]
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = "sparsify"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2563c9", "color-brand-content": "#2563c9"},
    "dark_css_variables": {"color-brand-primary": "#79aaff", "color-brand-content": "#79aaff"},
}


def setup(app):
    """Results are made by verbs, not by readers: show their fields, not how to call their constructors."""
    app.connect(
        "autodoc-process-signature",
        lambda _app, what, name, *_: ("", None) if what == "class" and name.startswith("sparsify.report.") else None,
    )

"""How Sphinx makes the site of these pages (``make docs``). They are Markdown, read by MyST, and are read in the repository as well."""

from importlib import metadata

project = "shardnet"
author = "the shardnet contributors"
version = release = metadata.version("shardnet")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
nitpicky = True

# The anchors that links between the pages name are those of a repository's own view: two levels of headings and their subheadings.
myst_heading_anchors = 3

html_theme = "furo"
html_title = "shardnet"
# Nothing is asked of any other host than the site's own.
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sphinx = False

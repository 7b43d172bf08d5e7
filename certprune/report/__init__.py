"""One HTML file that shows a run: figures against sparsity, tables, and what became of each image.

    rows of results.json -> numbers as text (tables) , SVG (figures), PNG (pictures) -> template.html -> one file without any outside part
"""
from __future__ import annotations

from certprune.report.page import write_report
from certprune.report.pictures import Images

__all__ = ["Images", "write_report"]

"""The report of a comparison: pictures as PNG and SVG, and one HTML page that needs nothing else.

Importing it needs matplotlib and jinja2: ``pip install 'finetune-kit[report]'``.
"""

from finetune_kit.report.page import write_report

__all__ = ["write_report"]

"""report.html from the data of report.json: one self-contained page. Imports nothing but the standard library."""

from onnxpress.exporter.page.page import render_report

__all__ = ["render_report"]

"""Reports: the trained SAE beside its twins, as tables, on the console, and as one HTML file."""

from __future__ import annotations

from saebench_core.report.certificates import CertificateRow, certificate_rows
from saebench_core.report.console import console_text, show
from saebench_core.report.html import render_html, write_html
from saebench_core.report.tables import Comparison, Entry, ScoreRow, Verdicts, comparisons, tidy

__all__ = [
    "CertificateRow",
    "Comparison",
    "Entry",
    "ScoreRow",
    "Verdicts",
    "certificate_rows",
    "comparisons",
    "console_text",
    "render_html",
    "show",
    "tidy",
    "write_html",
]

"""Reports: the trained SAE beside its twins, as tables, on the console, and as one HTML file."""

from __future__ import annotations

from saebench_core.report.certificates import CertificateRow, certificate_rows
from saebench_core.report.console import console_text, show
from saebench_core.report.drift import drift_charts
from saebench_core.report.frames import long_frame, score_frame, score_lines, tidy, wide_frame
from saebench_core.report.html import render_html, write_html
from saebench_core.report.picture import chart_picture
from saebench_core.report.rating import SCALE, Blind, blinded, key_of, render_sheet, sheet_digest
from saebench_core.report.tables import Comparison, Entry, ScoreRow, Verdicts, comparisons, is_trained

__all__ = [
    "SCALE",
    "Blind",
    "CertificateRow",
    "Comparison",
    "Entry",
    "ScoreRow",
    "Verdicts",
    "blinded",
    "certificate_rows",
    "chart_picture",
    "comparisons",
    "console_text",
    "drift_charts",
    "is_trained",
    "key_of",
    "long_frame",
    "render_html",
    "render_sheet",
    "score_frame",
    "score_lines",
    "sheet_digest",
    "show",
    "tidy",
    "wide_frame",
    "write_html",
]

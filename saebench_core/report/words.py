"""How numbers and flags read, on the console and in HTML alike."""

from __future__ import annotations

from typing import Final

from saebench_core.report.tables import Entry, ScoreRow

__all__ = ["FLAGS", "VERDICTS", "entry_notes", "entry_text", "flag_notes", "l0_text", "learned_text", "number", "plain"]

FLAGS: Final = {
    "budget_unmatched": "this SAE was trained on more rows than its references: what they miss may be budget",
    "budget_unknown": "nothing says on how many rows this SAE was trained; `tokens` of its entry can",
    "repeated_rows": "the training split has fewer rows than the budget, so rows came more than once",
    "missed_l0": "the realised L0 misses its target by more than 2 %, so the comparison is not at equal sparsity",
    "not_converged": "explained variance was still rising when training ended: a longer training may change the score",
    "collapsed": "the SAE collapsed (its latents stay off, or carry nothing); it is left out of means",
}

VERDICTS: Final = {
    "above": "the trained SAE beats every twin",
    "equivalent": "the trained SAE is within the margin of its best twin",
    "inconclusive": "too few seeds, or too much spread, to tell",
    "below": "the trained SAE is worse than its best twin",
}


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as people read it: three decimals near 1, three significant digits elsewhere."""
    if value is None:
        return "–"  # noqa: RUF001 - an en dash, for "no number"
    if value != 0 and not 10**-digits <= abs(value) < 1000:
        return f"{value:.{digits - 1}e}" if abs(value) >= 1e6 or abs(value) < 10**-digits else f"{value:.0f}"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.1f}"


def l0_text(value: float | None) -> str:
    """Return a target L0; that of a loaded SAE is not known before it is measured."""
    return "L0 not measured" if value is None else f"L0 {value:g}"


def entry_text(entry: Entry) -> str:
    """Return mean and spread, or what stands in place of a number."""
    if entry.mean is None:
        if entry.collapsed:
            return "collapsed"
        if entry.reason:
            return "n/a"
        return "failed" if entry.failed else "–"  # noqa: RUF001
    return number(entry.mean) if entry.sd is None else f"{number(entry.mean)} ± {number(entry.sd)}"


def entry_notes(entry: Entry, seeds: int) -> list[str]:
    """Return what a reader must know beside the number."""
    notes = []
    if entry.values and not entry.valid_null:
        notes.append("not a null for this score")
    if entry.values and entry.n < seeds:
        notes.append(f"n={entry.n} of {seeds} seeds")
    for word, left_out in (("collapsed", entry.collapsed), ("failed", entry.failed), ("older version", entry.outdated)):
        if left_out:
            notes.append(f"{word}: seed {', '.join(map(str, left_out))}")
    if entry.reason:
        notes.append(entry.reason)
    return notes


def flag_notes(entry: Entry, seeds: int) -> list[str]:
    """Return the flags of the cells behind an entry; collapsed ones are left out and told by `entry_notes`."""
    return [f"{flag} ({count} of {seeds})" for flag, count in (entry.flags or {}).items() if flag != "collapsed"]


def learned_text(row: ScoreRow) -> str:
    """Return the share that learning earned in percent."""
    return "–" if row.learned is None else f"{100 * row.learned:.0f} %"  # noqa: RUF001


def plain(text: str) -> str:
    """Return text without our own signs beyond ASCII, for logs and pipes."""
    return text.replace("±", "+-").replace("–", "-")  # noqa: RUF001

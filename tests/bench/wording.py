# SPDX-License-Identifier: MIT
"""Figures as words, for the terminal, the Markdown tables and the plots."""

from modes import CLIENT, MODES, SERVER

NOTHING = "–"
MISSING = "FAILED"


def number(value):
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rate(value, unit):
    return f"{value / 1e9:.2f}" if unit == "bytes/s" else number(value)


def unit(text):
    return "GB/s" if text == "bytes/s" else text


def latency(us):
    if us is None:
        return NOTHING
    for name, scale in (("µs", 1), ("ms", 1e3), ("s", 1e6)):
        if us < 1000 * scale or name == "s":
            value = us / scale
            return f"{value:.0f} {name}" if value >= 100 else f"{value:.3g} {name}"


def percent(share):
    return NOTHING if share is None else f"{100 * share:.1f} %"


def ratio(found):
    return f"{found['of_medians']:.2f}x" if found else NOTHING


def ratio_with_rounds(found):
    return f"{found['of_medians']:.2f} ({found['lowest']:.2f}–{found['highest']:.2f})" if found else NOTHING


def rate_of(record, name):
    entry = record["modes"].get(name)
    if entry is None:
        return ""
    if "not_applicable" in entry:
        return "n/a"
    if "failed" in entry or "rate" not in entry:
        return MISSING
    return rate(entry["rate"]["median"], record["unit"])


def latency_of(record, name, percentile):
    return latency(record["modes"].get(name, {}).get("latency_us", {}).get(percentile))


def upgraded(entry):
    """Streams, as each end counts them, over all the rounds."""
    counts = entry.get("library", {}).get("upgraded", {})
    return f"{counts.get(CLIENT, NOTHING)}/{counts.get(SERVER, NOTHING)}" if counts else NOTHING


def modes_of(records):
    return [name for name in MODES if any(name in record["modes"] for record in records)]


def table(head, rows):
    """Markdown; the first column is text, the others are figures."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]

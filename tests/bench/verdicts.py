# SPDX-License-Identifier: MIT
"""What the figures of a cell cannot be believed for, and which cells lose. Pure: summarized records in, sentences out."""

from modes import CLIENT, MODES, SERVER

LOSING_BELOW = 0.97
RATE_KEPT = 0.98
MOSTLY = 0.5  # of the bytes


def problems_of(record):
    """Each makes the suite fail: the cell was not measured, or something else was measured than its name says."""
    by_text = {}
    for name, entry in record["modes"].items():
        for text in problems_of_mode(record, MODES[name], entry):
            by_text.setdefault(text, []).append(name)
    return [{"cell": record["name"], "modes": names, "text": text} for text, names in by_text.items()]


def problems_of_mode(record, mode, entry):
    if "not_applicable" in entry:
        return
    if "failed" in entry:
        yield f"not measured: {entry['failed']}"
        return
    if not entry["runs"]:
        yield "not measured: there was no run"
        return
    if entry["errors"]:
        yield f"{entry['errors']} errors"
    yield from problems_of_library(record, mode, entry)


def problems_of_library(record, mode, entry):
    ends = entry["statistics"]
    for side in (CLIENT, SERVER):
        end = ends[side]
        if mode.preloads(side) and end is None:
            yield f"FALSE GREEN: the {side} wrote no statistics, so the library was not at work in it"
        elif end is not None and end["gate_found_open"]:
            yield f"the {side} found its guard open {end['gate_found_open']} times"
    yield from problems_of_upgrades(record, mode, entry)
    guards = entry["library"]["guards"]
    if mode.name == "guard-off" and guards not in ([], ["off"]):
        yield f"FALSE GREEN: guard {', '.join(guards)} was in force"


def problems_of_upgrades(record, mode, entry):
    ends = {side: end for side, end in entry["statistics"].items() if end is not None}
    if not mode.upgrades:
        if sum(end["upgraded"] for end in ends.values()):
            yield "FALSE RED: streams were upgraded, which must not be in this mode"
        return
    if not record["upgrade_expected"]:
        return
    for side, end in ends.items():
        if end["upgraded"] == 0:
            yield f"FALSE GREEN: the {side} upgraded no stream ({plain_reasons(end)})"
    if any(end["upgraded"] == 0 for end in ends.values()):
        return
    empty = sum(1 for run in entry["runs"] if run["statistics"] is None or run["statistics"]["upgraded"] == 0)
    if empty:
        yield f"FALSE GREEN: no stream was upgraded in {empty} of {len(entry['runs'])} runs"


def plain_reasons(statistics):
    return ", ".join(f"{reason}: {count}" for reason, count in statistics["plain"].items()) or "no reason given"


def notes_of(record):
    """What a reader must know to read the figures; no failure."""
    found = []
    for name, entry in record["modes"].items():
        if not entry["runs"] or "library" not in entry:
            continue
        found += [f"{record['name']} [{name}]: {text}" for text in notes_of_ring(record, MODES[name], entry)]
        kept = [run["details"]["share_of_rate_kept"] for run in entry["runs"] if "share_of_rate_kept" in run["details"]]
        if kept and min(kept) < RATE_KEPT:
            found.append(f"{record['name']} [{name}]: {100 * min(kept):.0f} % of the rate asked for was reached in the worst round")
    return found


def notes_of_ring(record, mode, entry):
    share = entry["library"]["ring_share"]
    if not mode.upgrades or not record["upgrade_expected"] or share is None or share >= MOSTLY:
        return
    reasons = "; ".join(f"{side}: {plain_reasons(end)}" for side, end in entry["statistics"].items() if end)
    yield f"only {100 * share:.0f} % of the bytes went over the ring ({reasons})"


def losing_of(record):
    """Every preloaded mode that is slower than TCP. With what its operations cost: that is less at the mercy of other load."""
    return [
        {"cell": record["name"], "mode": name, **ratio, "cpu_to_tcp": cpu_to_tcp(record, name)}
        for name, ratio in record["ratios"].items()
        if MODES[name].preloaded and ratio["of_medians"] < LOSING_BELOW
    ]


def cpu_to_tcp(record, name):
    for key in ("cpu_s_per_100k", "cpu_s_per_gb"):
        mine, tcp = (record["modes"][mode]["costs"][key] for mode in (name, "tcp"))
        if mine and tcp:
            return mine / tcp
    return None

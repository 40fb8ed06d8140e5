#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The coverage table in README.md, from interpose.def: what becomes of a stream in every call of libc that concerns descriptors.

coverage.py           fails when the table is not what interpose.def says
coverage.py --write   makes it so
"""
import dataclasses
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
BEGIN, END = "<!-- coverage: made by coverage.py -->", "<!-- end of coverage -->"
MEANING = {
    "handled": "The library does it, or its part of it.",
    "revokes": "Needs the real socket: the stream goes back to TCP first.",
    "forgets": "Only a number changes its meaning: what the table knew of it is void.",
    "passes": "Not ours; it does the right thing on a stream without us, because:",
    "private": "Inside of libc (GLIBC_PRIVATE): cannot be interposed, and need not be, because:",
}
GROUPS = {"data": "moving bytes", "wait": "waiting", "life": "descriptors", "option": "options", "process": "processes", "forget": "numbers"}


@dataclasses.dataclass
class Calls:
    """interpose.def: name → class, and what the table says besides."""

    classes: dict
    groups: dict  # HOOK and ALIAS: the names we export
    reasons: dict  # PASS and PRIVATE

    def drop(self, name):
        """Without one name, as if it had never been written down."""
        keep = lambda d: {k: v for k, v in d.items() if k != name}
        return Calls(keep(self.classes), keep(self.groups), keep(self.reasons))


def parse(text: str) -> Calls:
    text = re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
    calls = Calls({}, {}, {})

    def add(name, of_class):
        if name in calls.classes:
            raise ValueError(f"{name} is listed twice")
        if of_class not in MEANING:
            raise ValueError(f"{name} is of an unknown class: {of_class}")
        calls.classes[name] = of_class

    for name, group, of_class in re.findall(r"^HOOK\((\w+), (\w+), (\w+)\)", text, re.MULTILINE):
        add(name, of_class)
        calls.groups[name] = group
    for name, target in re.findall(r"^ALIAS\((\w+), (\w+)\)", text, re.MULTILINE):
        add(name, calls.classes[target])
        calls.groups[name] = calls.groups[target]
    for kind, reason, names in re.findall(r'^(PASS|PRIVATE)\("([^"]+)",([^)]*)\)', text, re.MULTILINE):
        for name in names.replace(",", " ").split():
            add(name, {"PASS": "passes", "PRIVATE": "private"}[kind])
            calls.reasons[name] = reason
    # Nothing may have escaped the expressions above: a missing comma would otherwise drop an entry silently.
    entries = len(re.findall(r"^(?:HOOK|ALIAS|PASS|PRIVATE)\(", text, re.MULTILINE))
    understood = len(re.findall(r'^(?:HOOK\(\w+, \w+, \w+\)|ALIAS\(\w+, \w+\)|(?:PASS|PRIVATE)\("[^"]+",[^)]*\))$', text, re.MULTILINE))
    if entries != understood:
        raise ValueError(f"{entries - understood} entries are not of the form that coverage.py reads")
    return calls


def load() -> Calls:
    return parse((HERE / "interpose.def").read_text(encoding="utf-8"))


def table(calls: Calls) -> str:
    lines = []
    for of_class, meaning in MEANING.items():
        names = [n for n, c in calls.classes.items() if c == of_class]
        lines += [f"**{of_class}** ({len(names)}). {meaning}", "", "| why | calls |", "|---|---|"]
        rows = {}
        for name in names:
            rows.setdefault(calls.reasons.get(name) or GROUPS[calls.groups[name]], []).append(name)
        lines += [f"| {why} | {' '.join(f'`{n}`' for n in members)} |" for why, members in rows.items()]
        lines.append("")
    return "\n".join(lines)


def updated(readme: str, calls: Calls) -> str:
    before, found, rest = readme.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"README.md has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{table(calls)}\n{END}{after}"


def main():
    path = HERE / "README.md"
    old = path.read_text(encoding="utf-8")
    new = updated(old, load())
    if old == new:
        return 0
    if "--write" in sys.argv[1:]:
        path.write_text(new, encoding="utf-8")
        return 0
    print("preload/README.md is not what interpose.def says; run preload/coverage.py --write", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

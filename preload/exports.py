#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the version script of the library from interpose.def: what is hooked is exported, nothing else."""
import re
import sys

with open(sys.argv[1], encoding="utf-8") as source:
    names = re.findall(r"^(?:HOOK|ALIAS)\((\w+),", source.read(), re.MULTILINE)
print("{\n  global:")
for name in names:
    print(f"    {name};")
print("  local: *;\n};")

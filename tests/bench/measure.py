# SPDX-License-Identifier: MIT
"""What the kernel and the library say about processes: CPU time, memory, descriptors, statistics of MPKLINK_STATS."""

import json
import os
import re
from collections import Counter
from pathlib import Path

from processes import BenchError, descendants

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
COUNTS = (
    "upgraded", "revoked", "ring_tx_bytes", "ring_rx_bytes", "tcp_tx_bytes", "tcp_rx_bytes", "bells", "sleeps", "spin_hits", "gates",
    "gate_found_open",
)  # fmt: skip


# ---- processes ------------------------------------------------------------------------------------


def tree(pid):
    return [pid, *descendants(pid)]


def cpu_seconds(pids):
    """User and system time so far, all threads, also those that have ended."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * TICK_S


def memory_bytes(pids):
    """Proportional set size: what processes share counts once in their sum. And the page tables, which it leaves out."""
    found = Counter()
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
        found["pss"] += kilobytes(rollup, "Pss")
        found["pss_shmem"] += kilobytes(rollup, "Pss_Shmem")
        found["page_tables"] += kilobytes(status, "VmPTE")
    return {key: 1024 * value for key, value in found.items()}


def kilobytes(text, key):
    return int(re.search(rf"^{key}:\s*(\d+) kB", text, re.M)[1])


def shmem_bytes():
    """Of the whole system, mapped or not."""
    return 1024 * kilobytes(Path("/proc/meminfo").read_text(), "Shmem")


def descriptors(pids):
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def listens(port):
    """Looks into /proc: a trial connection would be one more stream to count."""
    tables = [Path(name) for name in ("/proc/net/tcp", "/proc/net/tcp6")]  # a JVM listens on IPv6, mapped
    for line in "".join(table.read_text() for table in tables if table.exists()).splitlines():
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return True
    return False


# ---- statistics of the library --------------------------------------------------------------------


def make_stats_file(path):
    """nginx's workers run as another user when the suite is started by root, and append to the same file."""
    path.touch()
    path.chmod(0o666)


def read_statistics(path):
    """The sums over the processes that ended; None when none has written a line."""
    return add_statistics(path.read_text(errors="replace").splitlines()) if path.exists() else None


def add_statistics(lines):
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            raise BenchError(f"a process wrote statistics that are not JSON: {line[:200]}") from None
    if not entries:
        return None
    found = {key: sum(entry.get(key, 0) for entry in entries) for key in COUNTS}
    found["processes"] = len(entries)
    found["plain"] = dict(sum((Counter(entry.get("plain", {})) for entry in entries), Counter()))
    found["guards"] = sorted({entry.get("guard", "?") for entry in entries if entry.get("upgraded", 0)})
    return found


def merge_statistics(many):
    """The sum of several such sums."""
    many = [one for one in many if one is not None]
    if not many:
        return None
    found = {key: sum(one[key] for one in many) for key in (*COUNTS, "processes")}
    found["plain"] = dict(sum((Counter(one["plain"]) for one in many), Counter()))
    found["guards"] = sorted({guard for one in many for guard in one["guards"]})
    return found


def ring_share(statistics):
    """Of the bytes; None when there were none."""
    ring = statistics["ring_tx_bytes"] + statistics["ring_rx_bytes"]
    everything = ring + statistics["tcp_tx_bytes"] + statistics["tcp_rx_bytes"]
    return ring / everything if everything else None

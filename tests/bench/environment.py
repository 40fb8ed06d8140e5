# SPDX-License-Identifier: MIT
"""The machine, its state during the run, and the versions of everything that ran."""

import os
import re
import resource
import subprocess
import time
from pathlib import Path

from modes import plain_environment, user_settings
from programs import find_program

VERSIONS = {
    "nginx": (["-v"], r"nginx/(\S+)"),
    "wrk": (["-v"], r"wrk (?:debian/)?(\S+)"),
    "redis-server": (["--version"], r"v=(\S+)"),
    "redis-benchmark": (["--version"], r"redis-benchmark (\S+)"),
    "iperf3": (["--version"], r"iperf (\S+)"),
    "h2load": (["--version"], r"nghttp2/(\S+)"),
    "gnuplot": (["--version"], r"gnuplot (.+)"),
}


def first_match(path, pattern):
    text = read(path)
    match = re.search(pattern, text, re.M) if text else None
    return match[1] if match else None


def read(path):
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def output_of(command, cwd=None):
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, env=plain_environment(), cwd=cwd)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout + result.stderr if result.returncode in (0, 1) else None  # wrk -v ends with 1


def versions(root, build):
    found = {}
    for name, (options, pattern) in VERSIONS.items():
        program = find_program(name)
        match = re.search(pattern, output_of([program, *options]) or "") if program else None
        found[name] = match[1] if match else "not installed" if program is None else "unknown"
    match = re.search(r"mpklink (\S+)", output_of([build / "tools" / "mpklink", "--version"]) or "")
    found["mpklink"] = match[1] if match else "unknown"
    found["grpc++"] = (output_of(["pkg-config", "--modversion", "grpc++"]) or "not installed").strip()
    commit = output_of(["git", "rev-parse", "HEAD"], root)
    found["commit"] = commit.strip() if commit else "unknown"
    found["dirty"] = bool(output_of(["git", "status", "--porcelain"], root)) if commit else None
    return found


def mitigations():
    folder = Path("/sys/devices/system/cpu/vulnerabilities")
    return {path.name: read(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def machine():
    flags = (first_match("/proc/cpuinfo", r"^flags\s*:(.*)$") or "").split()
    return {
        "cpu": first_match("/proc/cpuinfo", r"^model name\s*:\s*(.*)$") or "unknown CPU",
        "usable_cpus": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release,
        "hypervisor": "hypervisor" in flags,
        "protection_keys": "ospke" in flags,  # the CPU has them (pku) and the kernel switched them on
        "mitigations": mitigations(),
        "tcp_congestion_control": read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "transparent_hugepage": read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "max_descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def raise_descriptors(wanted):
    """For us and all we start. A sentence when that is not to be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((max(soft, wanted), max(hard, wanted)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
        except (OSError, ValueError):  # only root may go above the hard limit, and not everywhere
            continue
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft >= wanted:
        return None
    return f"a process may have {soft} descriptors here (RLIMIT_NOFILE), not {wanted}: some connections will not be upgraded, or not made"


def cpu_ticks():
    """user nice system idle iowait irq softirq steal, of all CPUs."""
    return [int(n) for n in read("/proc/stat").splitlines()[0].split()[1:9]]


class Watch:
    """The state of the machine from here to `stop`."""

    def __init__(self):
        self._ticks, self._start, self._load = cpu_ticks(), time.time(), os.getloadavg()

    def stop(self):
        ticks = [now - before for now, before in zip(cpu_ticks(), self._ticks)]
        total = sum(ticks) or 1
        return {
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(self._start)),
            "seconds": round(time.time() - self._start, 1),
            "steal_percent": round(100 * ticks[7] / total, 2),
            "idle_percent": round(100 * ticks[3] / total, 2),
            "load_before": [round(x, 2) for x in self._load],
            "load_after": [round(x, 2) for x in os.getloadavg()],
        }


def describe(root, build, watch):
    return {"machine": machine(), "versions": versions(root, build), "run": watch.stop(), "settings": user_settings()}

# SPDX-License-Identifier: MIT
"""The columns of every table: which ends are preloaded, and with which settings."""

import os
from dataclasses import dataclass

CLIENT, SERVER = "client", "server"
# Not the user's to set here: the suite decides which end is preloaded and where the statistics go. The others mean our scripts.
NOT_INHERITED = ("MPKLINK_STATS", "MPKLINK_DISABLE", "MPKLINK_LIBRARY", "MPKLINK_BUILD", "MPKLINK_SO", "MPKLINK_PRELOAD_", "MPKLINK_TEST_")


@dataclass(frozen=True)
class Mode:
    name: str
    preloaded: tuple = ()  # ends
    unix: bool = False
    settings: tuple = ()  # (variable, value)

    def preloads(self, side):
        return side in self.preloaded

    @property
    def upgrades(self):
        """Whether streams are to be upgraded: both ends are there, and at work."""
        return len(self.preloaded) == 2 and ("MPKLINK_DISABLE", "1") not in self.settings


BOTH = (CLIENT, SERVER)
MODES = {
    mode.name: mode
    for mode in (
        Mode("tcp"),
        Mode("unix", unix=True),
        Mode("mpklink", BOTH),
        Mode("guard-off", BOTH, settings=(("MPKLINK_GUARD", "off"),)),
        Mode("off", BOTH, settings=(("MPKLINK_DISABLE", "1"),)),
        Mode("one-end", (SERVER,)),
    )
}
ALL = tuple(MODES)
BOTH_AND_ONE_END = ("tcp", "mpklink", "one-end")


def plain_environment():
    return {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith("MPKLINK_")}


def user_settings():
    """MPKLINK_* of the caller's environment: they hold for every preloaded end."""
    return {k: v for k, v in os.environ.items() if k.startswith("MPKLINK_") and not k.startswith(NOT_INHERITED)}


def environment(mode, side, library, stats_file):
    env = plain_environment()
    if mode.preloads(side):
        env.update(user_settings())
        env.update(mode.settings)
        env.update(LD_PRELOAD=str(library), MPKLINK_STATS=str(stats_file))
    return env

# SPDX-License-Identifier: MIT
"""What an adapter offers to conformance.py."""

import dataclasses


@dataclasses.dataclass
class Outcome:
    status: str  # pass, fail, skip, hang (longer than the limit), crash (the process ended), missing
    detail: str = ""


class Suite:
    name = ""
    rings_expected = True  # with rings allowed, at least one stream has to be upgraded
    tiny = "64B"  # MPKLINK_RING_KIB in the setting tiny
    quick: list | None = []  # what --quick runs: patterns, None for everything, [] for nothing

    def prepare(self, cache):
        """Installs or builds what is missing; `cache` is kept between runs."""
        raise NotImplementedError

    def run(self, sandbox, quick, limit, without=()):
        """{test id: Outcome} of all tests but `without`; a test gets `limit` seconds."""
        raise NotImplementedError

    def run_alone(self, sandbox, test_id, limit):
        """The outcome of one test, with no other around it."""
        raise NotImplementedError

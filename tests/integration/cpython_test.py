# SPDX-License-Identifier: MIT
"""CPython's own network tests with the library under them (Debian: libpython3.11-testsuite). Both ends live in one process."""

import subprocess

import pytest

from harness import PYTHON, SERVER, Combo

# Of test_socket the classes about TCP; it has hundreds of others.
SOCKET_CLASSES = (
    "BasicTCPTest TCPTimeoutTest NonBlockingTCPTests SendfileUsingSendfileTest FileObjectClassTestCase TCPCloserTest"
    " RecvmsgTCPTest SendmsgTCPTest RecvmsgIntoTCPTest InterruptedRecvTimeoutTest NetworkConnectionAttributesTest"
).split()

MODULES = {
    "test_socket": [x for name in SOCKET_CLASSES for x in ("-k", name)],
    "test_epoll": [],
    "test_poll": [],
    "test_select": [],
    "test_selectors": [],
    "test_socketserver": [],
    "test_httplib": [],
    "test_httpservers": [],
    "test_ftplib": [],
}


@pytest.mark.slow
@pytest.mark.beyond
@pytest.mark.no_ring
@pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=lambda c: c.value)
@pytest.mark.parametrize("module", MODULES)
def test_module(bench, module):
    if subprocess.run([PYTHON, "-c", f"import test.{module}"], capture_output=True, timeout=30).returncode != 0:
        pytest.skip("libpython3.11-testsuite is not installed")
    argv = [PYTHON, "-m", "unittest", *MODULES[module], f"test.{module}"]
    proc = bench.start(argv, SERVER, settings={"WARMUP": 0})
    assert proc.wait(120) == 0, proc.output()
    assert "OK" in proc.stderr().splitlines()[-1], proc.output()
    bench.assert_gates()

# SPDX-License-Identifier: MIT
"""A full ring in an epoll set that is never quiet: other streams' news must not hide that there is room again (found by the soak)."""

import subprocess

import pytest

from harness import CLIENT, PYTHON, SCRIPTS, SERVER


def start(bench, side, *arguments):
    return bench.start([PYTHON, SCRIPTS / "busy_set.py", *arguments], side, name=arguments[0], stdin=subprocess.PIPE)


@pytest.mark.parametrize("what", ["forked", "full"])
def test_room_is_seen_among_other_news(bench, what):
    """forked: a child asks for what is in the ring back, over TCP, which has room at once. full: both ends write first; TCP's buffers hold that."""
    server = start(bench, SERVER, "server")
    chat = start(bench, CLIENT, "chat", server.port())
    chat.wait_line("^CHATS$")
    bench.succeed(start(bench, CLIENT, what, server.port()))
    chat.stdin.close()
    bench.succeed(chat)
    server.stdin.close()
    server.finish()
    bench.assert_ring(streams=2, min_bytes=10_000)

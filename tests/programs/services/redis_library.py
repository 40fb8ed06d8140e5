# SPDX-License-Identifier: MIT
"""redis_library.py PORT SIZE…: random values through python3-redis, alone and in a pipeline; what was set is what is got."""

import os
import sys

import redis


def main():
    port, sizes = int(sys.argv[1]), [int(a) for a in sys.argv[2:]]
    client = redis.Redis(port=port)
    for number, size in enumerate(sizes):
        value = os.urandom(size)
        assert client.set(f"one-{number}", value)
        assert client.get(f"one-{number}") == value, f"{size} bytes"
    values = [os.urandom(1000) for _ in range(100)]
    pipeline = client.pipeline(transaction=False)
    for number, value in enumerate(values):
        pipeline.set(f"many-{number}", value)
    for number in range(len(values)):
        pipeline.get(f"many-{number}")
    assert pipeline.execute()[len(values) :] == values
    print("checked")


main()

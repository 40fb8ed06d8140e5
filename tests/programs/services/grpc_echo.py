# SPDX-License-Identifier: MIT
"""grpc_echo.py server | client [--seconds S] PORT SIZE…: Python's end of tests/bench/echo.proto; C++'s is tests/bench/grpc_call.cc.

The message has one field of bytes, so it is put together here: no generated code is needed. A client checks that every payload comes back.
"""

import argparse
import concurrent.futures
import json
import os
import signal
import sys
import time

import grpc

METHOD = "/bench.Echo/Unary"
LENGTHS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


def message(payload):
    """EchoMessage { bytes payload = 1; }; proto3 leaves out what is empty."""
    if not payload:
        return b""
    length, prefix = len(payload), bytearray(b"\x0a")
    while length > 127:
        prefix.append(length & 127 | 128)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + payload


def serve():
    class Echo(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request) if details.method == METHOD else None

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), handlers=[Echo()], options=LENGTHS)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"PORT {port}", flush=True)
    signal.sigwait([signal.SIGTERM])
    server.stop(1).wait()


def measure(unary, size, seconds):
    request = message(os.urandom(size))
    for _ in range(100):
        unary(request, timeout=30)
    took, begin = [], time.perf_counter()
    end = begin + seconds
    while (start := time.perf_counter()) < end:
        unary(request, timeout=30)
        took.append(time.perf_counter() - start)
    elapsed = time.perf_counter() - begin
    took.sort()
    at = lambda share: round(1e9 * took[min(len(took) - 1, int(share * len(took)))])
    latency = {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": at(1)}
    print(json.dumps({
        "kind": "grpc", "operations": len(took), "seconds": elapsed, "operations_per_second": len(took) / elapsed, "latency_ns": latency, "errors": 0,
    }))  # fmt: skip


def call(seconds, port, sizes):
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=LENGTHS) as channel:
        unary = channel.unary_unary(METHOD)
        if seconds:
            measure(unary, sizes[0], seconds)
            return
        for size in sizes:
            request = message(os.urandom(size))
            assert unary(request, timeout=30) == request, f"{size} bytes did not come back"
        print("checked")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("server", "client"))
    parser.add_argument("numbers", nargs="*", type=int, help="of a client: the port, then sizes")
    parser.add_argument("--seconds", type=float, help="calls of the first size for so long, and a line of JSON as `traffic` prints it")
    arguments = parser.parse_intermixed_args()
    if arguments.role == "server":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # before there are threads
        serve()
    else:
        port, *sizes = arguments.numbers
        call(arguments.seconds, port, sizes)


main()

# SPDX-License-Identifier: MIT
"""client.py LIBRARY [--ca FILE] URL ITEM…: asks for one item after the other over one kept connection, by requests, httpx, aiohttp or http.client.

An item is /NAME (GET; prints "status size sha256") or +SIZE (POST of so many random bytes, which must come back; prints "status size echo").
With --seconds S: the first item, again and again for so long; prints a line of JSON as tests/bench's `traffic` does.
"""

import argparse
import asyncio
import hashlib
import http.client
import json
import os
import ssl
import time
import urllib.parse


class Sync:
    """What a library needs to do: `fetch(method, path, body)` gives (status, body)."""

    async def close(self):
        pass


class Requests(Sync):
    def __init__(self, url, ca):
        import requests

        self.url, self.session = url, requests.Session()
        self.session.verify = ca or True

    async def fetch(self, method, path, body):
        response = self.session.request(method, self.url + path, data=body, timeout=30)
        return response.status_code, response.content


class Httpx(Sync):
    def __init__(self, url, ca):
        import httpx

        self.url, self.client = url, httpx.Client(verify=ca or False, timeout=30)

    async def fetch(self, method, path, body):
        response = self.client.request(method, self.url + path, content=body)
        return response.status_code, response.content


class Stdlib(Sync):
    def __init__(self, url, ca):
        at = urllib.parse.urlsplit(url)
        self.base = at.path
        if at.scheme == "https":
            self.connection = http.client.HTTPSConnection(at.hostname, at.port, timeout=30, context=ssl.create_default_context(cafile=ca))
        else:
            self.connection = http.client.HTTPConnection(at.hostname, at.port, timeout=30)

    async def fetch(self, method, path, body):
        self.connection.request(method, self.base + path, body)
        response = self.connection.getresponse()
        return response.status, response.read()


class Aiohttp:
    def __init__(self, url, ca):
        import aiohttp

        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca) if ca else None)
        self.url, self.session = url, aiohttp.ClientSession(connector=connector)

    async def fetch(self, method, path, body):
        async with self.session.request(method, self.url + path, data=body) as response:
            return response.status, await response.read()

    async def close(self):
        await self.session.close()


LIBRARIES = {"requests": Requests, "httpx": Httpx, "aiohttp": Aiohttp, "stdlib": Stdlib}


async def one(client, item):
    if not item.startswith("+"):
        status, got = await client.fetch("GET", item, None)
        return f"{status} {len(got)} {hashlib.sha256(got).hexdigest()}"
    body = os.urandom(int(item[1:]))
    status, got = await client.fetch("POST", "/echo", body)
    assert got == body, f"{item}: {len(got)} bytes came back, and not the same"
    return f"{status} {len(got)} echo"


async def measure(client, path, seconds):
    """One call after the other; the first second of a long run, and a tenth of any, is not counted."""
    took = []
    begin = time.perf_counter()
    warm, end = begin + min(1, seconds / 10), begin + seconds
    while (start := time.perf_counter()) < end:
        status, _ = await client.fetch("GET", path, None)
        assert status == 200, f"status {status}"
        if start >= warm:
            took.append(time.perf_counter() - start)
    took.sort()
    at = lambda share: round(1e9 * took[min(len(took) - 1, int(share * len(took)))])
    latency = {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": at(1)}
    counted = end - warm
    print(json.dumps({
        "kind": "fetch", "operations": len(took), "seconds": counted, "operations_per_second": len(took) / counted, "latency_ns": latency, "errors": 0,
    }))  # fmt: skip


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("url")
    parser.add_argument("items", nargs="+")
    parser.add_argument("--ca")
    parser.add_argument("--seconds", type=float)
    arguments = parser.parse_args()
    client = LIBRARIES[arguments.library](arguments.url.rstrip("/"), arguments.ca)
    if arguments.seconds:
        await measure(client, arguments.items[0], arguments.seconds)
    else:
        for item in arguments.items:
            print(await one(client, item))
    await client.close()


asyncio.run(main())

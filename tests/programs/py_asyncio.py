# SPDX-License-Identifier: MIT
"""py_asyncio.py server | client PORT CONNECTIONS BYTES | both 0 CONNECTIONS BYTES: asyncio echo, checksummed, in random pieces."""

import asyncio
import hashlib
import random
import signal
import sys


async def echo(reader, writer):
    while data := await reader.read(random.randrange(1, 100_000)):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def ask(number, port, size):
    rng = random.Random(number)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i in range(50):  # one small exchange at a time first
        small = rng.randbytes(rng.randrange(1, 200))
        writer.write(small)
        assert await reader.readexactly(len(small)) == small
    data = rng.randbytes(size)

    async def send():
        offset = 0
        while offset < size:
            piece = rng.choice([1, 10, 1000, 20_000, 60_000])
            writer.write(data[offset : offset + piece])
            offset += piece
            await writer.drain()
            if rng.random() < 0.1:
                await asyncio.sleep(0)
        writer.write_eof()

    sending = asyncio.create_task(send())
    got = await reader.read(-1)
    await sending
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest(), f"connection {number}: {len(got)} of {size} bytes"
    writer.close()
    await writer.wait_closed()


async def ask_all(port, connections, size):
    await asyncio.gather(*(ask(i, port, size) for i in range(connections)))
    print("checked", flush=True)


async def main():
    role = sys.argv[1]
    if role == "client":
        await ask_all(*map(int, sys.argv[2:5]))
        return
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(f"PORT {port}", flush=True)
    if role == "both":
        await ask_all(port, int(sys.argv[3]), int(sys.argv[4]))
        server.close()
        return
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


asyncio.run(main())

# SPDX-License-Identifier: MIT
"""The service of the tests as a WSGI and as an ASGI application: GET /NAME is a file of the folder SERVICE_ROOT, POST gives the body back."""

import os
import pathlib

FILES = {path.name: path.read_bytes() for path in pathlib.Path(os.environ["SERVICE_ROOT"]).iterdir() if path.is_file()}


def answer(method, path, body):
    """(status, body)"""
    if method == "POST":
        return 200, body
    found = FILES.get(path.lstrip("/"))
    return (404, b"") if found is None else (200, found)


def wsgi(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    status, body = answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["wsgi.input"].read(length))
    start_response("200 OK" if status == 200 else "404 Not Found", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    status, body = answer(scope["method"], scope["path"], b"".join(parts))
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})

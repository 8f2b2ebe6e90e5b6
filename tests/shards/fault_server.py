"""An HTTP server on localhost that serves a folder, with the faults that a test asks for."""

import functools
import re
import socket
import ssl
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class Script:
    """What the server does. Each entry of `faults[file]` spoils one request for the file; later requests succeed."""

    folder: Path
    faults: dict = field(default_factory=dict)
    ranges: bool = True
    login: str = ""  # the Authorization header that requests must have
    query: str = ""  # the query that requests must have
    moved_to: str = ""  # URL of a set to which all requests are redirected
    log: list = field(default_factory=list)  # (file, first byte requested)
    sent: int = 0  # bytes
    released: threading.Event = field(default_factory=threading.Event)  # ends stalls

    def starts(self, file):
        """Return the first byte of each request for a file."""
        return [start for name, start in self.log if name == file]


@contextmanager
def serving(folder, certificate=None, **settings):
    """Yield (URL, Script) of a server for the folder. A PEM file of a key and its certificate makes it HTTPS."""
    script = Script(folder, **settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, script))
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http{'s' * bool(certificate)}://127.0.0.1:{server.server_port}/data/set", script
    finally:
        script.released.set()
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, script, *args):
        self.script = script
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def do_GET(self):
        script, parts = self.script, urlsplit(self.path)
        name = parts.path.rpartition("/")[2]
        range_header = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(range_header[1]) if range_header else 0
        script.log.append((name, start))
        self.close_connection = True
        if self.headers.get("Authorization", "") != script.login or parts.query != script.query:
            return self.answer(401)
        if script.moved_to:
            return self.answer(302, {"Location": f"{script.moved_to}/{name}"})
        fault = script.faults[name].pop(0) if script.faults.get(name) else None
        path = script.folder / name
        if isinstance(fault, int) or not path.is_file():
            return self.answer(fault or 404)
        data = path.read_bytes()
        if fault == "wrong":
            data = bytes(byte ^ 1 for byte in data)
        if range_header and script.ranges:
            if start >= len(data):
                return self.answer(416)
            first = start + 1 if fault == "other range" else start
            headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
            return self.body(206, data[first:], headers, fault)
        return self.body(200, data, {}, fault)

    def answer(self, status, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def body(self, status, data, headers, fault):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault == "endless":
            self.end_headers()
            return self.endless()
        self.send_header("Content-Length", str(len(data) // 2 if fault == "short" else len(data)))
        self.end_headers()
        is_complete = fault in (None, "wrong", "other range")
        self.write(data if is_complete else data[: len(data) // 2])
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)  # close sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            time.sleep(0.05)  # let what was sent arrive
            self.connection.close()
        elif fault == "stall":
            self.script.released.wait(30)
        elif fault == "trickle":
            for byte in data[len(data) // 2 :]:
                if self.script.released.wait(0.02):
                    break
                self.write(bytes([byte]))

    def endless(self):
        for _ in range(1 << 10):
            self.write(b" " * (1 << 20))

    def write(self, data):
        try:
            self.wfile.write(data)
            self.script.sent += len(data)
        except OSError:  # the reader left
            pass

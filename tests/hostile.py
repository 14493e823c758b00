"""Hostile clients of `trecvit serve`, in a process of their own: `python tests/hostile.py KIND URL PICTURE`.

It runs until it is killed. A line with the number of attempts so far is printed after each round.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

HELLO = '{"type":"hello","model":"classes","policy":"all"}'
PAUSE_S = 0.05
MANY = 10_000


def frame(width: int, height: int, payload: bytes) -> bytes:
    """A JPEG frame whose header states this size."""
    return struct.pack("<4sBBHIQHH", b"TRV1", 1, 1, 0, 0, 0, width, height) + payload


def jpeg_head(width: int, height: int) -> bytes:
    """The head of a JPEG that states this size, without a pixel."""
    start = b"\xff\xd8\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width)
    return start + bytes.fromhex("03012200021101031101") + bytes.fromhex("ffda000c03010002110311003f00")


def session(url: str, *messages: str | bytes) -> None:
    """Send these messages in a session and wait until the server closes it."""
    with contextlib.suppress(OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
        address = url.replace("http", "ws", 1) + "v1/stream"
        with connect(address, subprotocols=["trecvit.v1"], compression=None, proxy=None) as bad:  # type: ignore[list-item]
            for message in (HELLO, *messages):
                bad.send(message)
            while True:
                bad.recv(10)


def sessions(url: str, *messages: str | bytes) -> None:
    """Open such sessions one after another."""
    number = 0
    while True:
        session(url, *messages)
        number += 1
        print(number, flush=True)
        time.sleep(PAUSE_S)


def open_socket(place: tuple[str, int]) -> socket.socket:
    """Start to connect, without waiting."""
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(place)
    return client


def connections(place: tuple[str, int]) -> None:
    """Open 10,000 connections, at once as far as the limit of open files permits, and hold them."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    held: list[socket.socket] = []
    for _ in range(MANY):
        if len(held) == most - 50:
            held.pop(0).close()
        held.append(open_socket(place))
    print(MANY, flush=True)
    time.sleep(60)


def slow_heads(place: tuple[str, int]) -> None:
    """Hold 600 connections with a request's head that goes on byte by byte, and open each again when it is cut off."""
    head = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
    held: list[socket.socket | None] = [None] * 600
    started = [False] * len(held)
    number = 0
    while True:
        for index, client in enumerate(held):
            if client is None:
                held[index] = open_socket(place)
                number += 1
                continue
            try:
                client.send(b"x" if started[index] else head)
                started[index] = True
            except BlockingIOError:
                continue
            except OSError:
                client.close()
                held[index], started[index] = None, False
        print(number, flush=True)
        time.sleep(PAUSE_S)


def main(kind: str, url: str, picture: str) -> None:
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    place = host, int(port)
    content = Path(picture).read_bytes()
    kinds: dict[str, Callable[[], None]] = {
        "connections": lambda: connections(place),
        "slow heads": lambda: slow_heads(place),
        "truncated": lambda: sessions(url, frame(1400, 1400, content[: len(content) // 2])),
        "stated 100 megapixels": lambda: sessions(url, frame(10_000, 10_000, content)),
        "hidden 100 megapixels": lambda: sessions(url, frame(1400, 1400, jpeg_head(10_000, 10_000))),
        "flood": lambda: sessions(url, *['{"type":"ack","frame":0}'] * 2000),
    }
    kinds[kind]()


if __name__ == "__main__":
    main(*sys.argv[1:])

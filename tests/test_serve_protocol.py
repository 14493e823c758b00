"""Messages of the protocol `trecvit.v1`, from bytes and text and back."""

from __future__ import annotations

import contextlib
import io
import json
import struct

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trecvit.serve.frames import decode_frame
from trecvit.serve.protocol import (
    HEADER_BYTES,
    JPEG,
    RGB8,
    Ack,
    Add,
    Failure,
    FrameHeader,
    Hello,
    PointResult,
    ProtocolError,
    Ready,
    Remove,
    Reset,
    Result,
    TopClass,
    parse_client,
    parse_frame,
    parse_server,
    to_text,
)

MESSAGES = [
    Hello("motions", "all", "0" * 32),
    Hello("motions"),
    Add("a hand", 1.5, 2),
    Remove(3),
    Reset(),
    Ack(2**32 - 1),
]
RESULT = Result(
    frame=7, after=6, capture_us=123, queue_ms=0.5, step_ms=1.25, batch=2, dropped=1, seen=8,
    top=(TopClass("moving left", 0.75),), points=(PointResult(0, "a", 1.0, 2.5, True, 0.5),),
)  # fmt: skip
READY = Ready("ab", "cd", ("x",), (64, 48), 4, 1000, 0, None, 0)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_clients_message_is_read_as_it_was_written(message):
    assert parse_client(to_text(message)) == message


@pytest.mark.parametrize("message", [RESULT, READY, Failure("points", "a", "b")], ids=["result", "ready", "error"])
def test_the_servers_message_is_read_as_it_was_written(message):
    assert parse_server(to_text(message)) == message
    later = json.dumps({**json.loads(to_text(message)), "of_a_later_version": 1})
    assert parse_server(later) == message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "JSON"),
        ("[1]", "a JSON object"),
        ("{", "JSON"),
        ("[" * 4000, "JSON"),
        ('{"type":"hello"}', "no model"),
        ('{"type":"hello","model":""}', "1 to 200 characters"),
        ('{"type":"hello","model":7}', "1 to 200 characters"),
        ('{"type":"hello","model":"m","policy":"some"}', "latest or all"),
        ('{"type":"hello","model":"m","policy":["all"]}', "latest or all"),
        ('{"type":"hello","model":"m","resume":"../../etc/passwd"}', "hexadecimal"),
        ('{"type":"hello","model":"m","pollicy":"all"}', "the field 'pollicy'"),
        ('{"type":"add","ref":"a","x":NaN,"y":1}', "JSON"),
        ('{"type":"add","ref":"a","x":1e999,"y":1}', "a number"),
        ('{"type":"add","ref":"a","x":true,"y":1}', "a number"),
        ('{"type":"add","ref":"a","x":"1","y":1}', "a number"),
        ('{"type":"add","ref":"%s","x":1,"y":1}' % ("a" * 65), "1 to 64 characters"),
        ('{"type":"remove","id":-1}', "a whole number"),
        ('{"type":"remove","id":1.0}', "a whole number"),
        ('{"type":"ack","frame":4294967296}', "32 bits"),
        ('{"type":"ack","frame":%s}' % ("9" * 4000), "32 bits"),
        ('{"type":"quit"}', "got 'quit'"),
        ('{"type":["hello"]}', "type hello"),
        ('{"type":"reset","x":"' + "a" * 5000 + '"}', "at most 4096 characters"),
    ],
)
def test_what_is_no_clients_message_is_refused(text, words):
    with pytest.raises(ProtocolError) as caught:
        parse_client(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


@settings(max_examples=40, deadline=None)
@given(st.text() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_a_message_or_refused(text):
    for parse in (parse_client, parse_server):
        with contextlib.suppress(ProtocolError):
            parse(text)


def test_a_frames_header_is_24_little_endian_bytes():
    header = FrameHeader(RGB8, 258, 2**40, 3, 2)
    assert header.pack() == struct.pack("<4sBBHIQHH", b"TRV1", 1, 2, 0, 258, 2**40, 3, 2)
    assert HEADER_BYTES == 24
    read, payload = parse_frame(header.pack() + bytes(range(18)), max_pixels=6)
    assert read == header
    assert bytes(payload) == bytes(range(18))
    assert decode_frame(read, payload)[1, 2].tolist() == [15, 16, 17]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "0 bytes"),
        (FrameHeader(RGB8, 0, 0, 1, 1).pack(), "24 bytes"),
        (b"TRV2" + FrameHeader(RGB8, 0, 0, 1, 1).pack()[4:] + b"abc", "TRV2"),
        (FrameHeader(7, 0, 0, 1, 1).pack() + b"abc", "codec 7"),
        (FrameHeader(RGB8, 0, 0, 1, 1).pack() + b"abcd", "3 bytes of RGB"),
        (FrameHeader(RGB8, 0, 0, 0, 1).pack() + b"abc", "0 x 1"),
        (FrameHeader(JPEG, 0, 0, 10_000, 10_000).pack() + b"abc", "10000 x 10000"),
        (struct.pack("<4sBBHIQHH", b"TRV1", 1, 2, 1, 0, 0, 1, 1) + b"abc", "flags 1"),
        (struct.pack("<4sBBHIQHH", b"TRV1", 2, 2, 0, 0, 0, 1, 1) + b"abc", "type 2"),
    ],
)
def test_what_is_no_frame_is_refused(message, words):
    with pytest.raises(ProtocolError) as caught:
        parse_frame(message, max_pixels=2_100_000)
    assert words in str(caught.value)


def jpeg(width: int, height: int, **options: object) -> bytes:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_decoded_as_rgb(mode):
    file = io.BytesIO()
    PIL.Image.new(mode, (8, 6), 200 if mode == "L" else "white" if mode == "RGB" else (0, 0, 0, 0)).save(file, "JPEG")
    image = decode_frame(FrameHeader(JPEG, 0, 0, 8, 6), memoryview(file.getvalue()))
    assert image.shape == (6, 8, 3)
    assert abs(int(image.mean()) - (200 if mode == "L" else 255)) < 3


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (jpeg(8, 6)[:-30], "cannot be decoded"),
        (jpeg(8, 6)[:100], "cannot be decoded"),
        (jpeg(9, 6), "9 x 6"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "cannot be decoded"),
        (jpeg(8, 6, progressive=True) + b"\xff\xda" * 100, "scans"),
    ],
    ids=["truncated", "headless", "another size", "a PNG", "many scans"],
)
def test_a_payload_that_is_not_the_headers_picture_is_refused(payload, words):
    with pytest.raises(ProtocolError, match=words):
        decode_frame(FrameHeader(JPEG, 0, 0, 8, 6), memoryview(payload))


def test_a_hundred_megapixels_are_refused_by_the_header_of_the_jpeg(monkeypatch):
    """The frame's own header may lie; the picture's is read before a pixel is."""
    content = bytearray(jpeg(8, 6))
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", 10_000, 10_000)
    monkeypatch.setattr(PIL.Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(ProtocolError):
        decode_frame(FrameHeader(JPEG, 0, 0, 8, 6), memoryview(bytes(content)))

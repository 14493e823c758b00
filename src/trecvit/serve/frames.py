"""Decoding of clients' frames, whose sizes are checked before any pixel is decoded."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from trecvit.serve.protocol import JPEG, FrameHeader, ProtocolError
from trecvit.video.frames import Image

# Each scan of a progressive JPEG is a pass over all pixels; encoders write about 10.
_MAX_SCANS = 64
_START_OF_SCAN = b"\xff\xda"  # in pixel data, 0xff is followed by 0


def decode_frame(header: FrameHeader, payload: memoryview) -> Image:
    """Decode a frame to `[H, W, 3]` uint8.

    Raises:
        ProtocolError: The payload is not a whole picture of the header's size.
    """
    if header.codec != JPEG:
        return np.frombuffer(payload, np.uint8).reshape(header.height, header.width, 3)
    if bytes(payload).count(_START_OF_SCAN) > _MAX_SCANS:
        raise ProtocolError("jpeg", f"a JPEG of at most {_MAX_SCANS} scans", "more")
    try:
        with PIL.Image.open(io.BytesIO(payload), formats=("JPEG",)) as picture:
            if picture.size != (header.width, header.height):
                size = f"{picture.size[0]} x {picture.size[1]}"
                raise ProtocolError("jpeg", f"a JPEG of {header.width} x {header.height}", size)
            return np.asarray(picture.convert("RGB"))
    except ProtocolError:
        raise
    except Exception as exc:  # Pillow's decoders raise many kinds for damaged data
        raise ProtocolError("jpeg", "a whole JPEG picture", "one that cannot be decoded") from exc

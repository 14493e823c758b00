"""Order of a file's frames, as its time stamps prove it, and exact seeks to a frame."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import PictureType

from trecvit.errors import VideoError
from trecvit.video.container import Container


class Order(NamedTuple):
    """Time stamps of the first N frames, in presentation order.

    Attributes:
        pts: `[N]`, strictly rising.
        key_pts: Those of frames flagged as key frames by the container.
        end_pts: Time stamp of the end of the last frame, if the file states its duration.
        is_whole: Whether these are all frames of the video.
    """

    pts: npt.NDArray[np.int64]
    key_pts: npt.NDArray[np.int64]
    end_pts: int
    is_whole: bool


class Landing(NamedTuple):
    """The result of a seek.

    Attributes:
        pictures: The target picture and its successors.
        keys_hold: Whether decoding could start at the container's nearest key frame.
    """

    pictures: Iterator[av.VideoFrame]
    keys_hold: bool


def presentation_order(container: Container, enough: Callable[[npt.NDArray[np.int64]], bool]) -> Order | None:
    """Read the order of the frames from the packets, without decoding.

    Args:
        container: Untouched; its position afterwards is undefined.
        enough: Decides on the time stamps so far whether to stop.

    Returns:
        None where the file does not prove the order: missing or duplicate time stamps, an unreadable part, or a
        container or codec whose packets are not frames.
    """
    if not (container.has_order and container.timed):
        return None
    pts, keys, last_dts, end_pts, is_whole = array("q"), array("q"), None, 0, True
    for packet in container.packets():
        if packet.pts is None or packet.dts is None or packet.is_corrupt or packet.pts < packet.dts:
            return None
        if last_dts is not None and packet.dts <= last_dts:
            return None
        last_dts = packet.dts
        # Edit lists contain packets that are decoded but not shown.
        if packet.is_discard:
            continue
        pts.append(packet.pts)
        end_pts = max(end_pts, packet.pts + (packet.duration or 0))
        if packet.is_keyframe:
            keys.append(packet.pts)
        # Later packets are shown after their decoding time, so the order is final up to this time.
        if len(pts) % 256 == 0:
            stamps = np.array(pts, dtype=np.int64)
            if enough(np.sort(stamps[stamps <= packet.dts])):
                is_whole = False
                break
    ordered = np.unique(np.array(pts, dtype=np.int64))
    if container.is_damaged or len(ordered) != len(pts) or len(ordered) == 0:
        return None
    return Order(ordered, np.sort(np.array(keys, dtype=np.int64)), end_pts, is_whole)


def land(container: Container, order: Order, pts: int) -> Landing | None:
    """Seek to exactly one picture, decoding from a true key frame.

    Containers flag false key frames: MPEG-4 with a flag on every frame, H.264 with intra refresh. Decoders start there
    with wrong pictures and without an error. So a seek counts only if it passes an intra-coded picture that the decoder
    flags as a key frame too; else it starts further back, at most at the start of the video.

    Returns:
        None if the picture cannot be reached: then the video must be read from its start.
    """
    keys = order.key_pts[: np.searchsorted(order.key_pts, pts, side="right")]
    back, seek_to = 1, pts
    while True:
        try:
            pictures = container.pictures_from(seek_to)
        except VideoError:
            return None
        is_first, first_is_key, has_key = True, False, False
        for picture in pictures:
            if picture.pts is None:
                return None
            if picture.pts > pts:
                break
            is_key = bool(picture.key_frame) and picture.pict_type == PictureType.I
            first_is_key, is_first = (is_key, False) if is_first else (first_is_key, False)
            has_key |= is_key
            # Undecodable packets on the way may be damaged, or may lack their reference frames.
            if picture.pts == pts and has_key and not container.is_damaged:
                return Landing(chain([picture], pictures), first_is_key and seek_to == pts)
        if back >= len(keys):
            return None
        container.forget_damage()
        back = min(4 * back, len(keys))
        seek_to = int(keys[-back])

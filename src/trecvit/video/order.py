"""Where every frame of a file is: the order that its time stamps prove, and how to get to one frame by a seek."""

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
    """Time stamps of the frames from the first on, in presentation order.

    Attributes:
        pts: `[N]`, strictly rising.
        key_pts: Those of the frames that the container calls key frames.
        end_pts: Time stamp at which the last is over, if the file states how long it is shown.
        is_whole: Whether these are all frames of the video.
    """

    pts: npt.NDArray[np.int64]
    key_pts: npt.NDArray[np.int64]
    end_pts: int
    is_whole: bool


class Landing(NamedTuple):
    """Where a seek ended.

    Attributes:
        pictures: From the wanted one on.
        keys_hold: Whether decoding could begin at the container's nearest key frame.
    """

    pictures: Iterator[av.VideoFrame]
    keys_hold: bool


def presentation_order(container: Container, enough: Callable[[npt.NDArray[np.int64]], bool]) -> Order | None:
    """Learns from the packets, without decoding any, where every frame is.

    Args:
        container: Untouched; it is at an unknown place afterwards.
        enough: Given the time stamps of the frames so far, says whether no more are needed.

    Returns:
        None where the file does not prove it: no time stamps, doubled ones, an unreadable place, or a container or
        codec in which packets are not frames.
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
        # An edit list has packets decoded that are not shown.
        if packet.is_discard:
            continue
        pts.append(packet.pts)
        end_pts = max(end_pts, packet.pts + (packet.duration or 0))
        if packet.is_keyframe:
            keys.append(packet.pts)
        # Whatever follows is shown after its decoding time, so up to that time the order is final.
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
    """Seeks to exactly one picture, and decodes from as far back as a right picture needs.

    Containers call frames key frames that are none: MPEG-4 with every frame so flagged, H.264 that refreshes a part of
    the picture at a time. What a decoder makes of these is wrong without a word. So a landing counts only if an intra
    coded picture that the decoder too calls a key frame lies on the way; else it goes further back, at most to the
    start of the video.

    Returns:
        None if the picture cannot be reached so: then the video is to be read from its start.
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
            # Packets that could not be decoded on the way may be damaged, or may lack what they refer to.
            if picture.pts == pts and has_key and not container.is_damaged:
                return Landing(chain([picture], pictures), first_is_key and seek_to == pts)
        if back >= len(keys):
            return None
        container.forget_damage()
        back = min(4 * back, len(keys))
        seek_to = int(keys[-back])

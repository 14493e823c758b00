"""Frames by index in files with false key-frame flags."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
from video_fixtures import (
    CODECS,
    H264_B,
    MPEG4,
    VP9,
    Codec,
    calls_of,
    code_of,
    make_video,
)

from trecvit.video.decode import (
    length_and_rate,
    probe,
    read_frames,
    read_frames_at,
)


def flagged(path: Path, codec: Codec, *, key: bool | None) -> Path:
    """A moving texture in a file that calls all frames key frames, or none; None keeps the true flags."""
    texture = np.random.default_rng(0).integers(0, 255, (110, 190, 3), dtype=np.uint8)
    texture = np.array(PIL.Image.fromarray(texture[:55, :95]).resize((190, 110)))
    path = path.with_name(path.name + codec.suffix)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec.name, rate=25, options=dict(codec.options))
        stream.width, stream.height, stream.pix_fmt = 128, 64, codec.pixel_format
        for index in range(41):
            window = np.ascontiguousarray(texture[index : index + 64, index : index + 128]) if index < 40 else None
            picture = None if window is None else av.VideoFrame.from_ndarray(window, format="rgb24")
            for packet in stream.encode(picture):
                if key is not None:
                    packet.is_keyframe = key
                container.mux(packet)
    return path


_X264 = {"preset": "veryfast"}


FLAGGED = {
    "mpeg4-mp4": MPEG4._replace(suffix=".mp4"),
    "mpeg4-avi": MPEG4,
    "mpeg4-mkv": MPEG4._replace(suffix=".mkv"),
    "mpeg4-b-mp4": Codec(".mp4", "mpeg4", options={"q": "4", "g": "16", "bf": "2"}),
    "h264-b": H264_B,
    "h264-open": Codec(".mp4", "libx264", options=_X264 | {"x264-params": "open-gop=1:keyint=12:min-keyint=12:ref=4"}),
    "h264-refresh-5": Codec(".mp4", "libx264", options=_X264 | {"x264-params": "intra-refresh=1:keyint=5:bframes=0"}),
    "h264-refresh": Codec(".mkv", "libx264", options=_X264 | {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
    "hevc": CODECS["hevc"],
    "vp9": VP9,
    "ffv1-mp4": Codec(".mp4", "ffv1", "yuv420p", {"g": "10"}),
    "ffv1-mkv": Codec(".mkv", "ffv1", "yuv420p", {"g": "10"}),
    "av1": Codec(".mp4", "libsvtav1", options={"preset": "13", "g": "12", "svtav1-params": "lp=1"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, True, False], ids=["true flags", "all key", "none key"])
@pytest.mark.parametrize("name", FLAGGED)
def test_every_frame_by_index_is_the_frame_of_the_sequence(tmp_path: Path, name: str, key: bool | None) -> None:
    path = flagged(tmp_path / "flagged", FLAGGED[name], key=key)
    whole = np.stack([frame.image for frame in read_frames(path)])
    assert len(whole) == 40
    for indices in ([5], [13, 14], [3, 17, 31, 39]):
        images, _ = read_frames_at(path, indices)
        assert np.array_equal(images, whole[indices])
    for start in (1, 14, 33):
        assert np.array_equal(np.stack([frame.image for frame in read_frames(path, start_frame=start)]), whole[start:])


def test_flags_that_do_not_hold_cost_one_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = flagged(tmp_path / "flagged", FLAGGED["mpeg4-mp4"], key=True)
    seeks = calls_of(monkeypatch, "pictures_from")
    read_frames_at(path, range(15, 40))
    assert len(seeks) <= 4


def test_av1_is_sought_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a", FLAGGED["av1"], num_frames=40)
    assert probe(path).codec == "av1"
    decoded = calls_of(monkeypatch, "_decode")
    assert length_and_rate(path) == (40, 25.0)
    assert not decoded
    assert code_of(next(read_frames(path, start_frame=37)).image) == 37
    assert len(decoded) < 20

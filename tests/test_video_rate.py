"""Frame rates: stated ones are checked against time stamps, missing ones are measured."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_fixtures import CODECS, H264, MPEGTS, RAW_H264, VP8, VP9, Codec, make_video, painted

from trecvit.config import Preprocessing
from trecvit.video.decode import length_and_rate, probe
from trecvit.video.rate import believable_rate, measured_rate

_MS = Fraction(1, 1000)
# Time stamps of a browser's MediaRecorder at 24 frames per second.
_JITTER_MS = np.cumsum([0, 50, 34, 33, 33, 42, 67, 33, 42, 50, 16, 42, 58, 34, 42, 50, 33, 42, 33, 50, 42, 42, 34, 50])


def without_default_duration(path: Path) -> Path:
    """Remove the frame rate of a Matroska track by turning its element into a void one of equal length."""
    content = bytearray(path.read_bytes())
    start = content.find(b"\x23\xe3\x83")
    assert start > 0, "the writer has put a DefaultDuration there"
    length = 4 + (content[start + 3] & 0x7F)
    content[start : start + length] = bytes([0xEC, 0x80 | (length - 2), *bytes(length - 2)])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("stamps", "rate"),
    [
        ([], None),
        ([7], None),
        ([7, 7, 7], None),
        ([0, 40, 80, 120], 25),
        ([120, 0, 80, 40], 25),
        ([0, 33, 67, 100], 30),
        ([0, 40, 40, 80], 25),
        ([0, 40, 80, 3_600_000, 3_600_040], 25),  # a splice is not a frame of an hour
        ([0, 30_000, 60_000], Fraction(1, 30)),  # a time lapse is
        ([0, 40, 80, 880, 920, 960], Fraction(5, Fraction(960, 1000))),  # a frame that is held is
    ],
)
def test_a_rate_is_measured_over_all_steps_that_are_no_pauses(stamps, rate):
    assert measured_rate(stamps, _MS) == rate


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (None, 25),
        (Fraction(0), 25),
        (Fraction(60_000), 25),  # the clock of raw DV
        (Fraction(50), 25),  # fields
        (Fraction(25), 25),
        (Fraction(25_000, 1001), Fraction(25_000, 1001)),  # confirmed, and exact
        (Fraction(1), 25),
    ],
)
def test_a_stated_rate_must_be_confirmed(stated, expected):
    assert believable_rate(stated, [0, 40, 80, 120, 160], _MS) == expected


def test_a_burst_is_no_rate():
    assert measured_rate([0, 6, 13, 20], Fraction(1, 1_000_000)) > 100_000
    assert believable_rate(None, [0, 6, 13, 20], Fraction(1, 1_000_000)) is None
    assert believable_rate(Fraction(25), [0, 6, 13, 20], Fraction(1, 1_000_000)) == 25


@pytest.mark.parametrize("codec", [RAW_H264, Codec(".hevc", "libx265", options=CODECS["hevc"].options)])
@pytest.mark.parametrize("fps", [25, 50])
def test_a_raw_stream_has_the_rate_of_its_codec(tmp_path, codec, fps):
    path = make_video(tmp_path / "a", codec, num_frames=20, fps=fps)
    assert probe(path).average_fps == fps
    assert length_and_rate(path) == (20, float(fps))


@pytest.mark.slow
@pytest.mark.parametrize("codec", [H264, VP8, VP9, MPEGTS], ids=["mp4", "vp8", "vp9", "ts"])
def test_the_first_frames_do_not_decide_for_a_whole_file(tmp_path, codec):
    """A camera in the dark at 10 frames per second, then 300 frames at 30."""
    times_ms = [100 * index for index in range(70)] + [7000 + round(index * 1000 / 30) for index in range(300)]
    path = make_video(tmp_path / "a", codec, num_frames=370, size_px=(32, 32), times_ms=times_ms, fps=60)
    num_frames, rate = length_and_rate(path)
    assert (num_frames, rate) == (370, pytest.approx(370 / 17, rel=0.02))
    if codec in (H264, VP9):  # frames can be counted without decoding
        assert probe(path).rate_fps == rate


@pytest.mark.parametrize(("stated", "expected"), [(None, None), (Fraction(30), 30), (Fraction(90_000), None)])
def test_without_time_stamps_only_a_rate_of_a_camera_is_believed(stated, expected):
    assert believable_rate(stated, [], _MS) == expected


@pytest.mark.parametrize("codec", [VP8, VP9, VP9._replace(suffix=".mkv")], ids=["vp8", "vp9", "mkv"])
def test_a_webm_without_a_stated_rate_has_that_of_its_time_stamps(tmp_path, codec):
    path = without_default_duration(make_video(tmp_path / "a", codec, num_frames=24, times_ms=_JITTER_MS.tolist()))
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate is None
    info, (num_frames, rate) = probe(path), length_and_rate(path)
    assert num_frames == 24
    assert rate == float(info.average_fps) == pytest.approx(24, rel=0.02)
    assert Preprocessing(frame_rate_fps=6).stride_for(rate) == 4


def test_an_avi_that_counts_fields_has_the_rate_of_its_frames(tmp_path):
    path = tmp_path / "fields.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=50, options={"bf": "0", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 50)
        for index in range(40):
            picture = av.VideoFrame.from_ndarray(painted(index), format="rgb24")
            picture.pts, picture.time_base = 2 * index, Fraction(1, 50)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 50
    assert length_and_rate(path) == (40, pytest.approx(25, rel=0.03))
    assert float(probe(path).average_fps) == pytest.approx(25, rel=0.03)


@pytest.mark.parametrize(
    ("codec", "size_px"),
    [
        (Codec(".dv", "dvvideo"), (720, 576)),
        (Codec(".ogv", "libvpx"), (128, 64)),
        (MPEGTS, (128, 64)),
        (Codec(".flv", "flv"), (128, 64)),
        (Codec(".asf", "wmv2"), (128, 64)),
    ],
    ids=["dv", "ogv", "ts", "flv", "asf"],
)
def test_containers_of_every_kind_have_their_frame_rate(tmp_path, codec, size_px):
    path = make_video(tmp_path / "a", codec, num_frames=20, size_px=size_px)
    assert probe(path).average_fps == 25
    assert length_and_rate(path) == (20, 25.0)

"""Clips as people have them: of any frame rate, listed from anywhere, some of them broken."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mp_hooks.discriminator.data import FlowSettings, clip_flow
from mp_hooks.discriminator.shards import gather
from mp_hooks.video import video_info, write_video


class Still(torch.nn.Module):
    """An estimator that sees no motion."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.zeros_like(first[:, :2])


def write_at(path: Path, times: list[int]) -> list[int]:
    """A clip of noise whose frames are shown at these milliseconds; returns the times."""
    generator = np.random.default_rng(0)
    pages = [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in times]
    if path.suffix == ".gif":
        first, *rest = map(Image.fromarray, pages)
        shown = [after - before for before, after in pairwise([*times, times[-1] + 5000])]
        first.save(path, save_all=True, append_images=rest, duration=shown)
        return times
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time, page in zip(times, pages, strict=True):
            frame = av.VideoFrame.from_ndarray(page, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return times


FAST, SLOW = [40 * i for i in range(12)], [840 + 400 * i for i in range(12)]
RATES = {
    "constant.mp4": [125 * i for i in range(16)],
    "twelve a second.mkv": [round(1000 * i / 12) for i in range(24)],  # milliseconds, so not quite even
    "variable.mp4": FAST + SLOW,
    "variable.mkv": FAST + SLOW,
    "pause.mp4": [125 * i for i in range(8)] + [2940 + 125 * i for i in range(8)],
    "jitter.mp4": [33 * i + i % 2 * 8 for i in range(40)],
    "held.gif": [120 * i for i in range(8)],  # its last page for five seconds
}


@pytest.mark.parametrize("name", RATES)
def test_pairs_lie_apart_in_time_as_they_do_in_steps(tmp_path: Path, name: str) -> None:
    times = write_at(tmp_path / name, RATES[name])
    settings = FlowSettings(flow_size=32, stored_size=32, pairs_per_clip=1000)
    _, pairs, facts = clip_flow(tmp_path / name, Still(), settings)
    steps = [(times[j] - times[i]) / 1000 / facts.step for i, j in pairs]
    assert {round(step) for step in steps} == {1, 2, 3}
    assert max(abs(step / round(step) - 1) for step in steps) < 0.11
    if "variable" not in name:
        assert facts.step == pytest.approx(0.125, abs=0.05)
        assert max(j for _, j in pairs) > 0.75 * len(times), "what follows a gap is used too"


def test_without_time_stamps_the_rate_is_taken_as_constant(tmp_path: Path) -> None:
    """As H.264 in an avi is."""
    path = tmp_path / "clip.avi"
    write_video(path, torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), 16)
    assert video_info(path).times == pytest.approx([number / 16 for number in range(8)])


def test_a_list_may_name_videos_that_lie_elsewhere(tmp_path: Path) -> None:
    """Sources and groups are those of their own folders; what cannot be read is named and left out."""
    for place in ("lists", "data/real", "data/fake", "more/talk"):
        (tmp_path / place).mkdir(parents=True)
    rows = ["path\tmodel_or_source\tprompt", "fake/1.mp4\tmodelA\tcat", "fake/2.mp4\tmodelA2\tcat"]
    (tmp_path / "data/INDEX.tsv").write_text("\n".join(rows) + "\n")
    for name in ("data/real/1.mp4", "data/fake/1.mp4", "data/fake/2.mp4", "more/talk/1.mp4"):
        write_at(tmp_path / name, [125 * i for i in range(4)])
    (tmp_path / "data/real/2.mp4").write_bytes(b"not a video")
    real, fake = tmp_path / "lists/real.txt", tmp_path / "lists/fake.txt"
    real.write_bytes(f"\ufeff../data/real/1.mp4\r\n../data/real/2.mp4\r\n{tmp_path}/more/talk/1.mp4\r\n".encode())
    fake.write_text("../data/fake/1.mp4\n../data/fake/2.mp4\n")
    settings = FlowSettings(flow_size=32, stored_size=32, pairs_per_clip=1)
    with pytest.warns(UserWarning, match=r"1 videos of .*real.txt are left out: cannot read .*real/2.mp4"):
        data = gather(real, fake, tmp_path / "cache", "pyramid", settings)
    assert [(clip.real, clip.source) for clip in data.clips] == [
        (True, "real"),
        (True, "talk"),
        (False, "modelA"),
        (False, "modelA"),
    ]
    assert data.clips[2].group == data.clips[3].group
    assert data.clips[0].group != data.clips[1].group

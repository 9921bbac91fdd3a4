"""Reading and writing clips: decord reads, PyAV writes H.264, Pillow does both for gifs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of itself: number of frames, frames a second on average, size in pixels.

    times: seconds at which each frame is shown, from the first one; by the average where there are no time stamps.
    """

    frames: int
    fps: float
    height: int
    width: int
    times: tuple[float, ...]


def find_videos(folder: str | Path) -> list[Path]:
    """Every clip below `folder`, by suffix (`SUFFIXES`), sorted; an error when there is none.

    Hidden files are not clips: one may be the half-written file of a run that was killed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MotionPromptError(f"no folder {folder}; pass a folder of videos ({', '.join(SUFFIXES)})")
    try:
        videos = sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file()
        )
    except OSError as error:
        raise MotionPromptError(f"cannot read {folder}: {error.strerror}; check its permissions") from error
    if not videos:
        raise MotionPromptError(f"no video in {folder}; it must hold files ending in {', '.join(SUFFIXES)}")
    return videos


def video_info(path: str | Path) -> VideoInfo:
    """Frames, rate and size of a clip. Raises MotionPromptError on a file that is not a readable video."""
    if _is_gif(path):
        frames, seconds = _read_gif(path)
        count, (height, width) = len(frames), frames.shape[1:3]
        fps, stamps = count / sum(seconds), np.cumsum([0.0, *seconds[:-1]])
    else:
        with _reader(path) as reader:
            count, (height, width) = len(reader), reader[0].shape[:2]
            fps, stamps = float(reader.get_avg_fps()), reader.get_frame_timestamp(range(count))[:, 0]
    return VideoInfo(count, fps, height, width, _times(stamps, fps))


def read_frames(
    path: str | Path, indices: Sequence[int] | None = None, size: int | tuple[int, int] | None = None
) -> Tensor:
    """Frames of a clip as uint8 [t, 3, h, w], RGB, 0..255; all of them unless `indices` picks some, in that order.

    `size` is (height, width), or one number for a square: the largest centred region of that shape is cut
    out, then resized with antialiasing. Raises MotionPromptError on an unreadable file or a missing index.
    """
    if _is_gif(path):
        frames = _read_gif(path)[0]
        frames = frames[_valid(path, indices, len(frames))]
    else:
        with _reader(path) as reader:
            frames = reader.get_batch(_valid(path, indices, len(reader))).asnumpy()
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    return video if size is None else _crop_and_resize(video, (size, size) if isinstance(size, int) else size)


def as_frames(video: Tensor) -> Tensor:
    """A clip [3, t, h, w] in [-1, 1] as uint8 frames [t, 3, h, w]."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).byte().transpose(0, 1).contiguous()


def write_video(path: str | Path, frames: Tensor, fps: float, lossless: bool = False) -> None:
    """Write uint8 frames [t, 3, h, w] as a looping gif (suffix .gif) or as H.264 (any other suffix), atomically.

    H.264 needs even sides: an odd one has its last row or column repeated. x264 is lossy; equal frames are equal bytes.
    `lossless` keeps frames up to the rounding of the colour space, which few players show.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise MotionPromptError(f"a video is uint8 [t, 3, h, w], not {frames.dtype} {list(frames.shape)}")
    array = frames.permute(0, 2, 3, 1).cpu().numpy()
    with replacing(path) as temporary:
        if _is_gif(path):
            _write_gif(temporary, array, fps)
        else:
            _write_h264(temporary, array, fps, lossless)


def _is_gif(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".gif"


def _times(stamps: np.ndarray, fps: float) -> tuple[float, ...]:
    """Seconds from the first frame; by `fps` where the stamps do not rise (H.264 in an avi has none, for one)."""
    rising = (np.diff(stamps) > 0).all()
    return tuple((stamps - stamps[0] if rising else np.arange(len(stamps)) / fps).tolist())


def _valid(path: str | Path, indices: Sequence[int] | None, count: int) -> list[int]:
    indices = range(count) if indices is None else indices
    if not all(0 <= i < count for i in indices):
        raise MotionPromptError(f"{path} has {count} frames; frames {list(indices)} were asked for")
    return list(indices)


@contextmanager
def _reader(path: str | Path) -> Iterator[Any]:
    """A decord.VideoReader; whatever decord raises while it is in use becomes one clear sentence."""
    try:
        import decord
    except ImportError as error:
        raise MotionPromptError(
            "reading videos needs decord: pip install decord (on a Mac: pip install eva-decord)"
        ) from error
    if not Path(path).is_file():
        raise MotionPromptError(f"no video {path}; check the path")
    try:
        yield decord.VideoReader(str(path), num_threads=1)
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError) as error:
        raise MotionPromptError(f"cannot read {path} as a video; re-encode or remove it") from error


def _read_gif(path: str | Path) -> tuple[np.ndarray, list[float]]:
    """Frames [t, h, w, 3] and the seconds each is shown; decord loses frames of gifs with partial updates."""
    from PIL import Image, ImageSequence

    if not Path(path).is_file():
        raise MotionPromptError(f"no video {path}; check the path")
    try:
        with Image.open(path) as image:
            pages = [
                (np.asarray(page.convert("RGB")), page.info.get("duration", 0) / 1000)
                for page in ImageSequence.Iterator(image)
            ]
        seconds = [shown for _, shown in pages]
        return np.stack([page for page, _ in pages]), seconds if any(seconds) else [0.1] * len(pages)
    except Exception as error:  # Pillow raises many kinds; each means that the file is broken
        raise MotionPromptError(f"cannot read {path} as a gif; re-encode or remove it") from error


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    from PIL import Image

    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)


def _write_h264(path: Path, frames: np.ndarray, fps: float, lossless: bool) -> None:
    try:
        import av
    except ImportError as error:
        raise MotionPromptError("writing videos needs PyAV: pip install av") from error
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.height, stream.width = frames.shape[1:3]
            stream.thread_count = 1  # several race, and equal frames come out as other bytes
            stream.pix_fmt, stream.options = ("yuv444p", {"qp": "0"}) if lossless else ("yuv420p", {"crf": "16"})
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        raise MotionPromptError(f"cannot write this video: {error}; use a name ending in .mp4") from error


def _crop_and_resize(video: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = video.shape[-2:]
    scale = min(height / size[0], width / size[1])
    rows, columns = (min(full, max(1, round(scale * side))) for full, side in zip((height, width), size, strict=True))
    top, left = (height - rows) // 2, (width - columns) // 2
    video = video[..., top : top + rows, left : left + columns].float()
    return F.interpolate(video, size, mode="bilinear", antialias=True).round_().clamp_(0, 255).to(torch.uint8)

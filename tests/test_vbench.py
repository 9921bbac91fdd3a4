"""VBench's definitions: against an independent computation, and against VBench's own functions where it is installed.

pip install --no-deps vbench easydict (it pins a torch of its own) is enough for the latter.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from mp_hooks.errors import MotionPromptError
from mp_hooks.lab.metrics import Measurer, Settings, dynamic_degree, temporal_flickering
from mp_hooks.lab.metrics.features import CLIP, DINO, consistency, load_clip, load_dino
from mp_hooks.lab.metrics.temporal import NeighbouringFlow, at_vbench_rate
from mp_hooks.lab.metrics.vbench import measure_with_vbench, prompt_of
from mp_hooks.lab.mini.clips import draw, sample_scenes
from mp_hooks.video import as_frames, read_frames, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ordinary lossy mp4 files, one of them wider than high."""
    folder = tmp_path_factory.mktemp("videos")
    scenes = sample_scenes(3, torch.Generator().manual_seed(0), fault_share=0.0)
    clips = [as_frames(clip) for clip in draw(scenes)]
    clips[1] = torch.cat([clips[1], clips[2]], dim=3)[:3]
    for number, clip in enumerate(clips):
        write_video(folder / f"a clip-{number}.mp4", clip, 8)
    return sorted(folder.iterdir())


def vbench(module: str) -> types.ModuleType:
    """A module of VBench; `clip`, which it imports and its formulas do not use, may be missing."""
    pytest.importorskip("vbench", reason="VBench is not installed")
    try:
        importlib.import_module("clip")
    except ImportError:
        sys.modules["clip"] = types.ModuleType("clip")
    try:
        return importlib.import_module(f"vbench.{module}")
    except ImportError as error:
        pytest.skip(f"VBench's {module} needs another package: {error}")


def test_flickering_is_the_formula_on_frames_as_opencv_reads_them(videos: list[Path]) -> None:
    cv2 = pytest.importorskip("cv2")
    for path in videos:
        capture, frames = cv2.VideoCapture(str(path)), []
        while (read := capture.read())[0]:
            frames.append(read[1].astype(float))
        expected = 1 - np.mean([np.abs(a - b).mean() for a, b in itertools.pairwise(frames)]) / 255
        assert temporal_flickering(read_frames(path)) == pytest.approx(expected, abs=1e-6)


def test_flickering_is_vbenchs_own(videos: list[Path]) -> None:
    theirs = vbench("temporal_flickering")
    for path in videos:
        assert temporal_flickering(read_frames(path)) == pytest.approx(theirs.cal_score(str(path)), abs=1e-6)


def test_dynamic_degree_is_vbenchs_own_rule_given_the_flow() -> None:
    theirs = vbench("dynamic_degree").DynamicDegree
    generator, outcomes = torch.Generator().manual_seed(0), set()
    for _ in range(200):
        frames = int(torch.randint(2, 20, (), generator=generator))
        speed = 2.5 * torch.rand(frames - 1, 1, 1, 1, generator=generator)
        flow = speed * torch.randn(frames - 1, 2, 64, 72, generator=generator)
        measure = theirs.__new__(theirs)  # without its RAFT
        measure.set_params(torch.zeros(1, 3, 64, 72), frames)
        expected = measure.check_move([measure.get_score(torch.zeros(1, 3, 64, 72), field[None]) for field in flow])
        assert dynamic_degree(NeighbouringFlow(flow, -flow)) == expected
        outcomes.add(expected)
    assert outcomes == {True, False}


def test_frames_are_sampled_as_vbench_does() -> None:
    theirs = vbench("dynamic_degree").DynamicDegree
    frames = torch.arange(50)
    for fps in (5, 8, 10, 12, 20, 23.976, 30, 60):
        expected = theirs.extract_frame(None, list(frames), max(1, round(fps / 8)))
        assert at_vbench_rate(frames, fps).tolist() == [int(frame) for frame in expected]


def random_weights(tmp_path: Path, kind: str) -> Path:
    """A file of untrained weights of DINO's or CLIP's image encoder, large enough to tell frames apart."""
    torch.manual_seed(0)
    if kind == "dino":
        timm = pytest.importorskip("timm")
        state = timm.create_model(DINO, num_classes=0).state_dict()
    else:
        open_clip = pytest.importorskip("open_clip")
        state = {"visual." + key: value for key, value in open_clip.create_model(CLIP).visual.state_dict().items()}
    state = {key: value * 5 if value.ndim > 1 else value for key, value in state.items()}
    torch.save(state, tmp_path / f"{kind}.pth")
    return tmp_path / f"{kind}.pth"


def test_subject_consistency_is_vbenchs_own_given_the_network(videos: list[Path], tmp_path: Path) -> None:
    encode = load_dino(random_weights(tmp_path, "dino"))
    frames = read_frames(videos[1])
    ours = consistency(encode(frames))
    assert 0 < ours < 0.999
    assert consistency(encode(frames[:1].repeat(3, 1, 1, 1))) == pytest.approx(1)
    subject_consistency = vbench("subject_consistency").subject_consistency
    _, rows = subject_consistency(encode.network, [str(videos[1])], "cpu", read_frame=False)
    assert ours == pytest.approx(rows[0]["video_results"], abs=1e-5)


def test_background_consistency_is_vbenchs_own_given_the_network(videos: list[Path], tmp_path: Path) -> None:
    encode = load_clip(random_weights(tmp_path, "clip"))
    ours = consistency(encode(read_frames(videos[1])))
    assert 0 < ours < 0.999
    clip_model = types.SimpleNamespace(encode_image=encode.network)
    with torch.no_grad():
        _, rows = vbench("background_consistency").background_consistency(
            clip_model, None, [str(videos[1])], "cpu", read_frame=False
        )
    assert ours == pytest.approx(rows[0]["video_results"], abs=1e-5)


def test_negative_similarity_counts_as_none() -> None:
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert consistency(features) == pytest.approx((0 + 0 + 1 + 0) / 4)


def test_a_measure_without_weights_is_missing_and_says_why(videos: list[Path]) -> None:
    measurer = Measurer(Settings())
    assert set(measurer.missing) & set(measurer(videos[0])) == set()
    assert "--dino FILE" in measurer.missing["subject_consistency"]
    assert "--vbench-python" in measurer.missing["motion_smoothness"]
    with pytest.raises(MotionPromptError, match="no weights at nowhere"):
        Measurer(Settings(clip="nowhere"))


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(MotionPromptError, match="does not hold the weights of DINO"):
        load_dino(tmp_path / "other.pth")


def test_vbench_runs_in_a_process_of_its_own(videos: list[Path]) -> None:
    pytest.importorskip("vbench", reason="VBench is not installed")
    named = {f"group/{path.stem}": path for path in videos}
    values, missing = measure_with_vbench(sys.executable, named, ["temporal_flickering", "no_such_dimension"])
    for name, path in named.items():
        assert values["temporal_flickering"][name] == pytest.approx(temporal_flickering(read_frames(path)), abs=1e-6)
    assert list(missing) == ["no_such_dimension"]


def test_vbench_that_cannot_be_started_is_told(videos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MotionPromptError, match="cannot start"):
        measure_with_vbench(tmp_path / "nowhere", {"a": videos[0]}, ["temporal_flickering"])
    assert prompt_of(Path("a cat runs-4.mp4")) == "a cat runs"

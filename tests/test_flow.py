"""Flow estimators on motion that is known, their gradients, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mp_hooks.cli.main import main
from mp_hooks.errors import MotionPromptError
from mp_hooks.flow import draw_flow, flow_names, load_flow, pyramid, warp
from mp_hooks.lab.experiments.flow_benchmark import (
    KINDS,
    KnownPair,
    farneback,
    known_pair,
    known_pairs,
    measure,
    random_motion,
)

SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = {"raft_small": SHARED / "weights/raft-small.pth", "raft_large": SHARED / "weights/raft-sintel.pth"}


@pytest.fixture(scope="module")
def pairs() -> list[KnownPair]:
    folder = SHARED / "data/real"
    if not folder.is_dir():
        pytest.skip("real clips are not at hand in ../shared/data/real")
    return known_pairs(folder, 6)


def weights(name: str) -> Path:
    if not WEIGHTS[name].is_file():
        pytest.skip(f"weights of {name} are not at hand in ../shared/weights")
    return WEIGHTS[name]


def texture(size: int = 64, batch: int = 1, seed: int = 0) -> Tensor:
    """Smooth random frames [b, 3, s, s] in [-1, 1]."""
    noise = torch.randn(batch, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(-2, 2) / 2


def test_known_pairs_are_what_they_say() -> None:
    """Warping the second frame back by the stated flow gives the first."""
    source = texture(160)
    for kind in KINDS:
        motion = random_motion(kind, 128, 8, torch.Generator().manual_seed(1))
        pair = known_pair(source, 128, kind, motion)
        assert 0.1 < pair.flow.norm(dim=1)[0][pair.valid].max() <= 8.01
        difference = (warp(pair.second, pair.flow, "bicubic") - pair.first).abs()[0, :, pair.valid]
        unmoved = (pair.second - pair.first).abs()[0, :, pair.valid]
        assert difference.mean() < 0.1 * unmoved.mean()


def test_pyramid_is_no_worse_than_farneback(pairs: list[KnownPair]) -> None:
    ours = measure(load_flow("pyramid"), pairs).error
    theirs = measure(farneback(), pairs, differentiable=False).error
    assert ours["all"] < theirs["all"]


@pytest.mark.parametrize(("name", "bound"), [("raft_small", 0.8), ("raft_large", 0.4)])
def test_original_raft_weights_are_loaded_right(name: str, bound: float, pairs: list[KnownPair]) -> None:
    assert measure(load_flow(name, weights(name)), pairs, differentiable=False).error["all"] < bound


def test_both_namings_are_the_same_network(tmp_path: Path) -> None:
    from torchvision.models.optical_flow import raft_small

    original = load_flow("raft_small", weights("raft_small"))
    state = original.net.state_dict()
    assert state.keys() == raft_small().state_dict().keys()
    torch.save(state, tmp_path / "torchvision.pth")
    renamed = load_flow("raft_small", tmp_path / "torchvision.pth")
    frames = texture(128), texture(128, seed=1)
    assert torch.equal(original(*frames), renamed(*frames))


def test_raft_below_its_least_size_scales_back() -> None:
    estimator = load_flow("raft_small", weights("raft_small"))
    first = texture(64)
    second = warp(first, torch.tensor([-2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 64, 64))  # content moves right by 2
    flow = estimator(first, second)[..., 12:-12, 12:-12]
    assert flow.isfinite().all()
    assert flow[:, 0].mean() == pytest.approx(2.0, abs=0.5)


@pytest.mark.parametrize("size", [16, 64, 97])
def test_pyramid_finds_a_shift_at_any_size(size: int) -> None:
    first = texture(256)[..., :size, :size]
    second = texture(256)[..., 1 : size + 1, :size]  # what lay at y now lies at y - 1
    flow = load_flow("pyramid")(first, second)
    assert flow.shape == (1, 2, size, size)
    inner = flow[..., size // 4 : -size // 4, size // 4 : -size // 4]
    assert inner[:, 1].mean() == pytest.approx(-1.0, abs=0.15)
    assert inner[:, 0].abs().mean() < 0.15


def test_a_batch_is_its_pairs_one_by_one() -> None:
    estimator = load_flow("pyramid")
    first, second = texture(64, 3), texture(64, 3, seed=1)
    together = estimator(first, second)
    apart = torch.cat([estimator(first[i : i + 1], second[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-2, atol=1e-2)  # convolutions round differently by batch


def test_gradient_is_that_of_finite_differences() -> None:
    """Along a random direction of each frame, in float64."""
    torch.manual_seed(0)
    estimator = load_flow("pyramid").double()
    frames = [texture(32, seed=seed).double().requires_grad_() for seed in (0, 1)]
    weight = torch.randn(1, 2, 32, 32, dtype=torch.float64)
    gradients = torch.autograd.grad((estimator(*frames) * weight).sum(), frames)
    for number, gradient in enumerate(gradients):
        direction = torch.randn_like(frames[number])
        ends = []
        for sign in (1, -1):
            moved = [frame.detach() for frame in frames]
            moved[number] = moved[number] + sign * 1e-6 * direction
            ends.append((estimator(*moved) * weight).sum())
        numeric = (ends[0] - ends[1]) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-3)


def test_every_derivative_of_a_linearisation_is_that_of_finite_differences() -> None:
    """Of both images and of the flow, on a grid of two sides; some of it leaves the frame."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    flow = torch.randn(2, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pyramid._Linearisation.apply, (x, y, flow, pyramid._Level(flow)))


class Launches(TorchDispatchMode):
    """Counts what a GPU would be asked to compute."""

    computed = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        view = any(value.alias_info and not value.alias_info.is_write for value in function._schema.returns)
        self.computed += not view and function._overloadpacket.__name__ not in ("_unsafe_view", "new_empty")
        return function(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    """Notes what CPU and GPU would wait for each other at: numbers read back, or copied from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__
        if name in ("tensor", "as_tensor", "new_tensor", "item", "tolist", "nonzero", "cpu", "to", "__bool__"):
            self.calls.append(name)
        return function(*args, **(kwargs or {}))


def test_pyramid_waits_for_nothing_and_takes_few_operations() -> None:
    """Forward and backward of an update's flow, and warping by it, on a device that computes nothing."""
    estimator = load_flow("pyramid")
    frames = [torch.empty(1, 3, 128, 128, device="meta", requires_grad=True) for _ in range(2)]
    for _ in range(2):  # the second time what a size of frames shares is known
        with Launches() as launches, Waits() as waits:
            flow = estimator.estimate(*frames)  # without the door's autocast, which knows no such device
            torch.autograd.grad(warp(frames[1], flow).sum(), frames)
        assert not waits.calls
    assert launches.computed < 2400


def test_what_a_size_of_frames_shares_serves_any_mode_and_type() -> None:
    estimator = load_flow("pyramid")
    first, second = texture(32).requires_grad_(), texture(32, seed=1)
    with torch.inference_mode():
        expected = estimator(first, second)
    flow = estimator(first, second)
    assert torch.equal(flow, expected)
    assert torch.autograd.grad(flow.sum(), first)[0].any()
    torch.testing.assert_close(estimator(first.double(), second.double()), flow.double(), rtol=1e-3, atol=1e-3)
    assert estimator(first[..., :24], second[..., :24]).shape == (1, 2, 32, 24)


@pytest.mark.parametrize("second", [torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
def test_frames_without_texture_have_finite_flow_and_gradient(second: Tensor) -> None:
    first = torch.zeros(1, 3, 32, 32, requires_grad=True)
    flow = load_flow("pyramid")(first, second)
    flow.square().sum().backward()
    assert flow.isfinite().all()
    assert first.grad.isfinite().all()


def test_identical_frames_do_not_move() -> None:
    frame = texture(64)
    assert load_flow("pyramid")(frame, frame).abs().max() < 1e-4


def test_half_precision_and_autocast_are_left_at_the_door() -> None:
    estimator = load_flow("pyramid")
    first, second = texture(32).bfloat16(), texture(32, seed=1).bfloat16()
    expected = estimator(first.float(), second.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(estimator(first, second), expected)


def test_drawing_tells_directions_apart_and_rest_is_white() -> None:
    flow = torch.zeros(3, 2, 4, 4)
    flow[1, 0], flow[2, 0] = 1, -1
    rest, right, left = draw_flow(flow)[:, :, 0, 0].tolist()
    assert min(rest) > 250
    assert right != left


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("psychic", None, "pyramid, raft_large, raft_small"),
        ("raft_small", b"not weights", "weights"),
        ("pyramid", b"anything", "no weights"),
    ],
)
def test_wrong_names_and_weights_are_one_sentence(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MotionPromptError, match=message) as caught:
        load_flow(name, path if content is not None else None)
    assert "\n" not in str(caught.value)


def test_weights_of_the_other_network_are_refused() -> None:
    with pytest.raises(MotionPromptError):
        load_flow("raft_large", weights("raft_small"))


def test_missing_weights_are_one_sentence() -> None:
    with pytest.raises(MotionPromptError, match=r"nowhere\.pth"):
        load_flow("raft_small", "nowhere.pth")


def test_wrong_shapes_are_one_sentence() -> None:
    with pytest.raises(MotionPromptError, match="two equal batches"):
        load_flow("pyramid")(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 16))


def test_every_estimator_is_known_by_name() -> None:
    assert flow_names() == ["pyramid", "raft_large", "raft_small"]


def test_bench_prints_a_row_a_method(pairs: list[KnownPair], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flow", "bench", "--videos", str(SHARED / "data/real"), "--pairs", "1", "--size", "64"]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]}
    assert rows == {"pyramid", "Farneback"}


def test_bench_without_videos_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flow", "bench", "--videos", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_warping_by_a_flow_that_is_no_place_is_finite_and_so_is_its_gradient(mode: str, value: float) -> None:
    """Unguarded, the backward pass of torch's grid_sample ends the process at NaN."""
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    flow = torch.zeros(1, 2, 16, 16)
    flow[..., 3:9, 4:12] = value
    flow.requires_grad_()
    warped = warp(image, flow, mode)
    assert warped.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(warped.square().sum(), (image, flow)))

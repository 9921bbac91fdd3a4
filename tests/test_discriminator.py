"""The discriminator: what it computes, what it learns from, what it refuses."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from textures import make_video
from torch import Tensor

from mp_hooks.cli.main import main
from mp_hooks.discriminator import DiscriminatorConfig, FlowDiscriminator, default_discriminator
from mp_hooks.discriminator.data import Clip, ClipFacts, FlowData, find_clips, folds_by_source, split_by_video
from mp_hooks.discriminator.evaluation import (
    Gain,
    _low,
    ascent,
    auc,
    balance,
    calibrate,
    direction,
    gain,
    rigidity,
    score,
    score_by_source,
    step_along,
    usefulness,
)
from mp_hooks.discriminator.evaluation import logits_of as discriminator_logits
from mp_hooks.discriminator.model import log_slope
from mp_hooks.discriminator.train import Training, TrainingConfig, fit, flip, turn_and_zoom
from mp_hooks.errors import MotionPromptError
from mp_hooks.flow import load_flow, warp
from mp_hooks.guidance.objective import total_variation
from mp_hooks.lab.experiments import views
from mp_hooks.lab.mini.model import DISCRIMINATOR
from mp_hooks.video import write_video

TINY = DiscriminatorConfig(image_size=32, width=32, depth=1, heads=2)


def field(size: int, turns: float = 1.0) -> Tensor:
    """A smooth field whose vectors, as fractions of the side, are the same at every size: [1, 2, s, s] in pixels."""
    axis = (torch.arange(size) + 0.5) / size * 2 * torch.pi * turns
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    return torch.stack([y.sin(), x.cos()]).unsqueeze(0) * 0.05 * size


@pytest.fixture(params=[{}, {"slope": True}, {"slope": True, "backbone": "conv"}], ids=["ViT", "slope", "convolutions"])
def discriminator(request: pytest.FixtureRequest) -> FlowDiscriminator:
    torch.manual_seed(0)
    return FlowDiscriminator(replace(TINY, **request.param)).eval()


def test_the_same_motion_at_two_sizes_is_rated_alike(discriminator: FlowDiscriminator) -> None:
    small, large, other = discriminator(field(64)), discriminator(field(256)), discriminator(field(64, turns=3))
    assert (small - large).abs() < 0.05 * (small - other).abs()


@pytest.mark.parametrize("normalise", ["magnitude", "fixed"])
def test_only_fixed_normalisation_sees_how_far_things_move(normalise: str) -> None:
    torch.manual_seed(0)
    discriminator = FlowDiscriminator(replace(TINY, normalise=normalise)).eval()
    flow = field(64)
    difference = (discriminator(flow) - discriminator(3 * flow)).abs().item()
    assert difference < 1e-3 if normalise == "magnitude" else difference > 1e-3


def test_gradient_reaches_the_flow_and_is_finite_at_rest(discriminator: FlowDiscriminator) -> None:
    for flow in (field(64), torch.zeros(1, 2, 64, 64)):
        flow = flow.requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(flow).sum(), flow)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_slope_is_that_of_the_field_over_the_frame() -> None:
    """Of x = 3 u, y = 4 u along either axis, u from 0 to 1 over the side, it is 5."""
    for axis in (2, 3):
        place = torch.linspace(0, 1, 33)[:32].view([1, 1, 32, 1] if axis == 2 else [1, 1, 1, 32])
        field = (torch.tensor([3.0, 4.0]).view(1, 2, 1, 1) * place).expand(1, 2, 32, 32)
        slope = log_slope(field).exp().narrow(axis, 0, 31)  # past the last pixel there is none
        torch.testing.assert_close(slope, torch.full_like(slope, 5.0), rtol=0.01, atol=0)


def test_saved_and_loaded_discriminators_agree(discriminator: FlowDiscriminator, tmp_path: Path) -> None:
    discriminator.save_pretrained(tmp_path)
    loaded = FlowDiscriminator.from_pretrained(tmp_path)
    assert loaded.config == discriminator.config
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():  # as the weights of one require a gradient and those of the other do not
        assert torch.equal(loaded(field(64)), discriminator(field(64)))


def broken(folder: Path, how: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if how == "no configuration":
        config.unlink()
    elif how == "foreign configuration":
        config.write_text('{"architectures": ["Bert"]}')
    elif how == "not JSON":
        config.write_text("{")
    elif how == "no weights":
        weights.unlink()
    elif how == "pickle":
        weights.unlink()
        torch.save({}, folder / "model.pt")
    elif how == "pickle in disguise":
        torch.save({}, weights)
    elif how == "wrong shapes":
        config.write_text(json.dumps({**json.loads(config.read_text()), "width": 64}))


@pytest.mark.parametrize(
    "how",
    [
        "no configuration",
        "foreign configuration",
        "not JSON",
        "no weights",
        "pickle",
        "pickle in disguise",
        "wrong shapes",
    ],
)
def test_what_is_no_discriminator_is_refused_in_one_sentence(
    discriminator: FlowDiscriminator, tmp_path: Path, how: str
) -> None:
    discriminator.save_pretrained(tmp_path)
    broken(tmp_path, how)
    with pytest.raises(MotionPromptError) as caught:
        FlowDiscriminator.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_packaged_discriminator_is_small_and_not_saturated() -> None:
    folder = default_discriminator()
    assert (folder / "model.safetensors").stat().st_size <= 2_000_000
    assert "licence" in (folder / "README.md").read_text()
    discriminator = FlowDiscriminator.from_pretrained(folder)
    noise = torch.randn(8, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    flow = torch.cat([field(64), noise]).requires_grad_()
    logits = discriminator(flow)
    (gradient,) = torch.autograd.grad(logits.sum(), flow)
    assert ((logits.sigmoid() > 0.02) & (logits.sigmoid() < 0.98)).all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_the_packaged_discriminator_is_there_at_once() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        FlowDiscriminator.from_pretrained(default_discriminator())
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.3


def test_the_packaged_gradient_is_that_of_finite_differences_and_leads_upwards() -> None:
    discriminator = FlowDiscriminator.from_pretrained(default_discriminator()).double()
    generator = torch.Generator().manual_seed(0)
    rough = torch.nn.functional.interpolate(torch.randn(8, 2, 12, 12, generator=generator), (64, 64), mode="bicubic")
    flow = (field(64) + 0.5 * rough).double()
    logits, gradient = ascent(discriminator, flow)
    direction = torch.randn(flow.shape, generator=generator, dtype=torch.double)
    step = 1e-6
    ahead, behind = (discriminator(flow + sign * step * direction) for sign in (1, -1))
    slope = (ahead - behind) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(dim=(1, 2, 3)), slope.detach(), rtol=1e-5, atol=1e-7)
    assert (discriminator(flow + step_along(gradient, flow, 0.01)) > logits).all()


def test_mirrored_fields_are_those_of_mirrored_videos() -> None:
    flow = torch.arange(8.0).view(1, 2, 2, 2).expand(64, 2, 2, 2)
    mirrored = {tuple(one.flatten().tolist()) for one in flip(flow)}
    x, y = flow[0]
    expected = {
        tuple(torch.stack([sx * x.flip(dims), sy * y.flip(dims)]).flatten().tolist())
        for sx, sy, dims in ((1, 1, ()), (-1, 1, (1,)), (1, -1, (0,)), (-1, -1, (0, 1)))
    }
    assert mirrored == expected


def test_turned_and_enlarged_fields_are_those_of_turned_and_enlarged_videos() -> None:
    """Rotation about the middle and growth from it look the same however the video is turned or enlarged; a shift
    grows with the picture and turns with it."""
    torch.manual_seed(0)
    axis = torch.arange(32) - 15.5
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    inner = (..., slice(4, -4), slice(4, -4))
    for field in (torch.stack([-y, x]), torch.stack([x, y])):
        moved = turn_and_zoom(field.expand(16, 2, 32, 32), degrees=40, zoom=1.5)
        torch.testing.assert_close(moved[inner], field.expand_as(moved)[inner], atol=0.02, rtol=0.02)
    shift = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(64, 2, 8, 8)
    lengths = turn_and_zoom(shift, degrees=0, zoom=1.5).norm(dim=1)
    assert 1 <= lengths.min() < 1.1 < 1.4 < lengths.max() <= 1.5
    angles = torch.atan2(*turn_and_zoom(shift, degrees=30, zoom=1)[:, :, 0, 0].flip(1).unbind(1)).rad2deg()
    assert -30 <= angles.min() < -20 < 20 < angles.max() <= 30


def test_flow_of_mirrored_frames_is_the_mirrored_flow() -> None:
    """The sign that `flip` changes is the one the estimator's flow has."""
    noise = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    first = torch.nn.functional.interpolate(noise, (48, 48), mode="bicubic") / 2
    second = warp(first, torch.full((1, 2, 48, 48), 1.0))
    estimator = load_flow("pyramid")
    straight, mirrored = estimator(first, second), estimator(first.flip(3), second.flip(3))
    inner = slice(12, -12)
    assert straight[:, 0, inner, inner].mean() == pytest.approx(-float(mirrored[:, 0, inner, inner].mean()), rel=0.05)


def sure_data() -> tuple[FlowData, FlowDiscriminator]:
    """96 fields and a discriminator that is right about three in four, and far too sure of all."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    discriminator = FlowDiscriminator(TINY).eval().requires_grad_(False)
    flow = torch.cat([field(32, turns) for turns in torch.linspace(0.5, 3, 96).tolist()])
    flow = (flow + 0.3 * torch.randn(flow.shape, generator=generator)).half()
    logits = discriminator_logits(discriminator, flow)
    discriminator.head[-1].bias -= logits.median()
    discriminator.head[-1].weight *= 30 / logits.std()
    discriminator.head[-1].bias *= 30 / logits.std()
    order = logits.argsort(descending=True)  # the first half becomes the real clips', but for every fourth
    order[:48:4], order[48::4] = order[48::4].clone(), order[:48:4].clone()
    return FlowData(
        flow[order], torch.arange(24).repeat_interleave(4), clips(), [ClipFacts(8, 32, 32, 0.125, 1)] * 24
    ), discriminator


def test_calibration_brings_the_gradient_back_and_keeps_the_order() -> None:
    data, discriminator = sure_data()
    before, logits = usefulness(discriminator, data), discriminator_logits(discriminator, data.flow)
    temperature = calibrate(discriminator, data)
    assert temperature > 2
    torch.testing.assert_close(
        discriminator_logits(discriminator, data.flow), logits / temperature, rtol=1e-3, atol=1e-3
    )
    after = usefulness(discriminator, data)
    assert after.phi_05 > before.phi_05
    assert after.gradient > before.gradient


def test_gain_is_over_the_floor_on_the_same_clips() -> None:
    data, _ = sure_data()
    truth = data.real + 0.01 * torch.arange(96)
    assert gain([(truth, truth, data)]) == Gain(0, 0, 0)
    blind = torch.zeros(96)
    found = gain([(truth, blind, data), (blind, blind, data)])
    assert found.mean == pytest.approx((auc(truth, data.real) - 0.5) / 2)
    assert found.low <= found.mean <= found.high


def test_more_fields_of_a_clip_do_not_narrow_the_interval() -> None:
    """Fields that say the same count as the one clip they are of, as many as they may be."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(24).repeat_interleave(torch.randint(1, 9, (24,), generator=generator))
    data = FlowData(torch.zeros(len(owner), 2, 1, 1), owner, clips(), [])
    each = torch.randn(24, generator=generator) + torch.tensor([1.0] * 12 + [0.0] * 12)
    found = score(each[owner], data)
    one = score(each, FlowData(torch.zeros(24, 2, 1, 1), torch.arange(24), clips(), []))
    assert (found.clip_auc, found.clip_low, found.clip_high) == (one.auc, one.low, one.high)
    assert 0.15 < one.high - one.low < 0.6
    assert found.high - found.low > 0.8 * (one.high - one.low)


def test_rigid_parts_are_told_from_a_bend_of_the_same_variation() -> None:
    place = torch.linspace(-1, 1, 64).view(1, 1, 1, 64)
    parts, bend = (values.expand(1, 2, 64, 64) * 3 for values in (place.sign(), place))
    torch.testing.assert_close(total_variation(parts), total_variation(bend))
    assert rigidity(parts) > rigidity(bend) + 1
    torch.testing.assert_close(rigidity(3 * parts), rigidity(parts), rtol=1e-2, atol=0)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    scores, real = torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auc(scores, real) == (1 + 0.5 + 1 + 1) / 4


def clips(count: int = 12) -> list[Clip]:
    return [
        Clip(f"{kind}{number}.mp4", kind == "real", f"{kind} source {number % 3}", f"{kind} group {number // 2}", "mp4")
        for kind in ("real", "fake")
        for number in range(count)
    ]


def test_splits_share_no_group() -> None:
    all_clips = clips()
    train, held_out = split_by_video(all_clips)
    assert sorted(train + held_out) == list(range(len(all_clips)))
    assert not {all_clips[i].group for i in train} & {all_clips[i].group for i in held_out}


def test_folds_hold_every_source_out_once_with_some_of_the_other_class() -> None:
    all_clips = clips()
    folds = folds_by_source(all_clips)
    assert len(folds) == 3, "as many as there are sources of a class"
    assert sorted(i for _, held_out in folds for i in held_out) == list(range(len(all_clips)))
    for train, held_out in folds:
        assert sorted(train + held_out) == list(range(len(all_clips)))
        assert not {all_clips[i].source for i in train} & {all_clips[i].source for i in held_out}
        assert {all_clips[i].real for i in held_out} == {True, False}
    with pytest.raises(MotionPromptError, match="two real and two generated"):
        folds_by_source([clip for clip in all_clips if clip.source != "real source 0"][:8] + all_clips[12:13])


def test_corrupted_clips_are_trained_on_with_their_originals_and_never_held_out() -> None:
    plain = clips()
    corrupted = [replace(clip, real=False, corrupted=True) for clip in plain if clip.real]
    stranger = replace(corrupted[0], path="elsewhere.mp4")
    all_clips = [*plain, *corrupted, stranger]
    for train, held_out in [split_by_video(all_clips), *folds_by_source(all_clips)]:
        assert not any(all_clips[i].corrupted for i in held_out)
        seen = {all_clips[i].path for i in train if all_clips[i].real}
        assert {all_clips[i].path for i in train if all_clips[i].corrupted} == seen | {"elsewhere.mp4"}
    assert split_by_video(all_clips)[1] == split_by_video(plain)[1], "they do not move the split"


def by_source_data(sizes: dict[str, int]) -> FlowData:
    """Four fields of each clip, so many clips of each source, which is real where its name says so."""
    found = [
        Clip(f"{name}{n}.mp4", name.startswith("real"), name, f"{name}{n}", "mp4")
        for name, count in sizes.items()
        for n in range(count)
    ]
    owner = torch.arange(len(found)).repeat_interleave(4)
    return FlowData(
        torch.zeros(len(owner), 2, 8, 8).half(), owner, found, [ClipFacts(8, 64, 64, 0.125, 1)] * len(found)
    )


def test_sources_are_scored_worst_first_and_within_their_fold() -> None:
    data = by_source_data({"real a": 2, "real b": 2, "easy": 2, "hard": 2})
    level = {"real a": 1.0, "real b": 3.0, "easy": 0.0, "hard": 2.0}
    logits = torch.tensor([level[data.clips[i].source] for i in data.clip.tolist()])
    found = score_by_source([(logits, data)])
    assert found.auc == 0.75
    assert list(found.generators.items()) == [("hard", (0.5, 2)), ("easy", (1.0, 2))]
    assert list(found.collections.items()) == [("real a", (0.5, 2)), ("real b", (1.0, 2))]
    assert found.low < 0.6, "whole sources are drawn"
    assert found.high == 1
    other_scale = [(logits, data.of_clips([0, 1, 4, 5])), (logits + 100, data.of_clips([2, 3, 6, 7]))]
    other_scale = [(values[torch.isin(data.clip, part.clip)], part) for values, part in other_scale]
    assert score_by_source(other_scale).auc == 1, "logits of two folds are not compared"
    better = found.over(score_by_source([(torch.zeros_like(logits), data)]))
    assert better.mean == 0.25


def test_balance_is_between_classes_and_tempered_between_sources() -> None:
    data = by_source_data({"real a": 1, "real b": 4, "c": 9})
    weights = balance(data)
    total = {
        name: sum(weights[data.clip == i].sum().item() for i, c in enumerate(data.clips) if c.source == name)
        for name in ("real a", "real b", "c")
    }
    assert weights.mean().item() == pytest.approx(1)
    assert total["real a"] + total["real b"] == pytest.approx(total["c"])
    assert total["real b"] == pytest.approx(2 * total["real a"])


def test_direction_names_what_the_gradient_asks_for() -> None:
    """Discriminators that ask for one thing only: less motion, another direction, a smoother field."""

    class Asks(torch.nn.Module):
        def __init__(self, wish: str) -> None:
            super().__init__()
            self.wish = wish

        def forward(self, flow: Tensor) -> Tensor:
            if self.wish == "shrink":
                return -flow.square().sum(dim=(1, 2, 3))
            if self.wish == "turn":
                return -((flow[:, 0] - 9).square() + (flow[:, 1] + 9).square()).sum(dim=(1, 2))
            return -(flow - _low(flow.detach(), 4)).square().sum(dim=(1, 2, 3))

    data = by_source_data({"real a": 1, "fake": 3})
    data.flow = torch.randn(len(data.flow), 2, 32, 32, generator=torch.Generator().manual_seed(0))
    shrink, smooth = (direction(Asks(wish), data) for wish in ("shrink", "smooth"))  # type: ignore[arg-type]
    assert shrink.shrink > 0.99
    assert shrink.turn < 0.1
    assert smooth.smooth > 0.99
    assert smooth.turn < 0.1
    assert shrink.together > 0.99
    assert 0 < smooth.rises[0.01] < smooth.rises[0.1]
    data.flow = torch.full_like(data.flow, 3.0)  # to be turned from (3, 3) towards (9, -9)
    assert direction(Asks("turn"), data).turn > 0.7  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(10):
        make_video(root / "real" / f"{number}.mp4", jitter=False, seed=number)
        make_video(root / "fake" / "model" / f"{number}.mp4", jitter=True, seed=100 + number)
    return root


def arguments(videos: Path, out: Path, epochs: int) -> list[str]:
    folders = ["--real", str(videos / "real"), "--fake", str(videos / "fake"), "--out", str(out)]
    return [
        "discriminator",
        "train",
        *folders,
        "--flow-size",
        "64",
        "--image-size",
        "32",
        "--pairs",
        "4",
        "--epochs",
        str(epochs),
    ]


def test_training_from_the_command_line_learns_and_resumes(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "discriminator"
    assert main(arguments(videos, out, epochs=2)) == 0
    steps = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert main(arguments(videos, out, epochs=2)) == 2, "a finished folder is not overwritten"
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments(videos, out, epochs=6), "--resume"]) == 0
    output = capsys.readouterr().out
    assert "Epoch 2:" in output
    assert "Epoch 1:" not in output, "resumed, not begun again"
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3 * steps
    report = json.loads((out / "report.json").read_text())
    assert report["by_video"]["auc"] > 0.9
    assert f"{report['by_video']['auc']:.3f}" in output
    assert (out / "README.md").is_file()
    evaluate = ["discriminator", "eval", str(out), "--real", str(videos / "real"), "--fake", str(videos / "fake")]
    assert main([*evaluate, "--pairs", "4", "--held-out", "--calibrated", str(tmp_path / "calibrated")]) == 0
    output = capsys.readouterr().out
    assert f"AUC {report['by_video']['auc']:.3f}" in output, "the clips the training held out"
    assert f"{report['gain_by_video']['mean']:+.3f}" in output
    assert "at temperature 1.0" in output, "training has calibrated it already"
    assert FlowDiscriminator.from_pretrained(tmp_path / "calibrated").config.flow_size == 64


def test_clips_of_many_kinds_are_learned_from_and_what_is_none_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = [("a.mp4", 64, 64, 8, 8), ("b.gif", 48, 80, 10, 12), ("c.avi", 96, 54, 30, 24), ("d.mov", 64, 64, 60, 30)]
    for folder in ("real", "fake"):
        for name, height, width, rate, frames in [*kinds, ("e.mkv", 64, 64, 24, 12), ("f.MP4", 32, 200, 25, 12)]:
            source = torch.rand(3, height // 8 + 2, width // 8 + 8, generator=generator)
            large = torch.nn.functional.interpolate(source[None], scale_factor=8, mode="bicubic")[0].clamp(0, 1)
            clip = torch.stack([large[:, :height, t : t + width] for t in range(frames)])
            (tmp_path / folder).mkdir(exist_ok=True)
            write_video(tmp_path / folder / name, (clip * 255).byte(), rate)
        (tmp_path / folder / "broken.mp4").write_bytes(b"no video")
    folders = [f"--{name}={tmp_path / folder}" for name, folder in (("real", "real"), ("fake", "fake"))]
    sizes = ["--flow-size", "32", "--image-size", "16", "--backbone", "conv", "--width", "8", "--epochs", "1"]
    command = ["discriminator", "train", *folders, "--out", str(tmp_path / "out"), *sizes]

    def extracted() -> list[tuple[str, str]]:
        """(class, clips) of every line that tells the rate of an extraction."""
        output = capsys.readouterr().out
        return re.findall(r"(\w+): \d+ flow fields of (\d) clips in \d+ s: [\d.]+ fields a second", output)

    with pytest.warns(UserWarning, match=r"broken\.mp4"):
        assert main(command) == 0
    told = extracted()
    assert [name for name, _ in told] == ["real", "generated"]
    assert all(int(clips) >= 5 for _, clips in told)
    (tmp_path / "out/flow/generated/flow-00000.tar").unlink()  # as if it was killed there
    with pytest.warns(UserWarning, match=r"broken\.mp4"):
        assert main([*command, "--resume"]) == 0
    assert extracted() == told[1:], "and no flow twice"


def test_an_interrupted_training_ends_where_an_unbroken_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    flow = torch.randn(96, 2, 32, 32, generator=generator).half()
    facts = [ClipFacts(8.0, 32, 32, 0.125, 1.0)] * 24
    data = FlowData(flow, torch.arange(24).repeat_interleave(4), clips(), facts)
    train, held_out = split_by_video(data.clips)
    config = TrainingConfig(epochs=3, batch=32)
    unbroken = fit(data, train, held_out, TINY, config, tmp_path / "unbroken")

    start = Training.on_train_epoch_start

    def killed(self: Training) -> None:
        if self.current_epoch == 2:
            raise RuntimeError("killed")
        start(self)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Training, "on_train_epoch_start", killed)
        fit(data, train, held_out, TINY, config, tmp_path / "broken")
    resumed = fit(data, train, held_out, TINY, config, tmp_path / "broken")
    for name, value in unbroken.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_early_stopping_returns_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs are rated by a part of the training clips, and the held-out ones are never looked at."""
    areas = iter([0.6, 0.8, 0.7, 0.7, 0.9])
    fields, states = [], []

    def watched(model: FlowDiscriminator, flow: Tensor) -> Tensor:
        fields.append(len(flow))
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return discriminator_logits(model, flow)

    monkeypatch.setattr("mp_hooks.discriminator.train.logits_of", watched)
    monkeypatch.setattr("mp_hooks.discriminator.train.auc", lambda *_: next(areas))
    data, _ = sure_data()
    train, held_out = split_by_video(data.clips)
    model = fit(data, train, held_out, TINY, TrainingConfig(epochs=9, batch=32, patience=2))
    assert len(states) == 4, "two epochs after the best"
    assert fields[0] == 4 * len(split_by_video([data.clips[i] for i in train])[1])
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[1][name]), name


def test_sources_not_trained_on_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        make_video(tmp_path / f"real/{'ab'[number % 2]}/{number}.mp4", jitter=False, seed=number)
        make_video(tmp_path / f"fake/{'cd'[number % 2]}/{number}.mp4", jitter=True, seed=100 + number)
    folders = ["--real", str(tmp_path / "real"), "--fake", str(tmp_path / "fake"), "--out", str(tmp_path / "out")]
    sizes = ["--flow-size", "64", "--image-size", "32", "--pairs", "4", "--epochs", "30"]
    sizes += [
        "--slope",
        "--noise",
        "0",
        "--backbone",
        "conv",
        "--width",
        "16",
        "--learning-rate",
        "0.003",
        "--corrupted",
        str(tmp_path / "real"),
    ]
    assert main(["discriminator", "cross", *folders, *sizes]) == 0
    assert (tmp_path / "out/cross.md").read_text() in capsys.readouterr().out
    table = json.loads((tmp_path / "out/cross.json").read_text())
    assert {name: clips for name, (_, clips) in table["discriminator"]["generators"].items()} == {"c": 3, "d": 3}
    assert table["discriminator"]["auc"] > 0.9
    assert set(table) == {"discriminator", "regression on mean flow and TV", "rigidity"}


def test_views_of_the_same_clips_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        make_video(tmp_path / f"real/{'ab'[number % 2]}/{number}.mp4", jitter=False, seed=number)
        make_video(tmp_path / f"fake/{'cd'[number % 2]}/{number}.mp4", jitter=True, seed=100 + number)
    folders = ["--real", str(tmp_path / "real"), "--fake", str(tmp_path / "fake"), "--out", str(tmp_path / "out")]
    command = [*folders, "--flow-size", "32", "--epochs", "12"]
    assert views.main([*command, "--case", "plain", "--case", "blurred/plain:plain", "--family", "[cd]"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "][1:]
    assert [row[:2] for row in rows] == [
        ["plain", "plain"],
        ["plain, these alone", "plain"],
        ["blurred/plain", "plain"],
        ["blurred/plain, these alone", "plain"],
    ]
    areas = [float(row[2].split()[0]) for row in rows]
    assert areas[0] > 0.9
    assert areas[2] < areas[0], "it learned what is blurred"
    assert views.main([*command, "--case", "shaken"]) == 2
    assert "blurred" in capsys.readouterr().err
    assert views.main([*command, "--case", "taesd"]) == 2
    assert "--taesd FILE" in capsys.readouterr().err


def test_a_cropped_view_does_not_see_a_logo_at_the_edge() -> None:
    first = torch.rand(1, 3, 80, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    second = first.roll(2, dims=3)
    marked = [frames.clone() for frames in (first, second)]
    for frames in marked:
        frames[..., :7, 70:] = 1
    for name, same in (("plain", False), ("cropped", True)):
        estimator = views.view(name)
        assert torch.equal(estimator(*marked), estimator(first, second)) == same
        assert estimator(first, second).shape == (1, 2, 64, 64)


def test_a_reconstructed_view_takes_weights_and_nothing_else(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    net, frames = AutoencoderTiny(), torch.rand(1, 3, 40, 40) * 2 - 1
    save_file(net.state_dict(), tmp_path / "taesd.safetensors")
    estimator = views.view("taesd", taesd=tmp_path / "taesd.safetensors")
    with torch.no_grad():
        seen = net.eval()(views.resized(frames)).sample.clamp(-1, 1)
        torch.testing.assert_close(estimator.see(frames), seen, atol=0.01, rtol=0)  # which rounds its latents
    (tmp_path / "other.safetensors").write_bytes(b"no weights")
    save_file({"weight": torch.zeros(1)}, tmp_path / "of_another.safetensors")
    for wrong in (None, tmp_path / "missing", tmp_path / "other.safetensors", tmp_path / "of_another.safetensors"):
        with pytest.raises(MotionPromptError, match="--taesd FILE"):
            views.view("taesd", taesd=wrong)


def test_aligned_views_have_the_same_clips_under_the_same_numbers() -> None:
    one, other = by_source_data({"real a": 2, "fake b": 2}), by_source_data({"real a": 2, "fake b": 2})
    other.clips = other.clips[::-1]
    left_out = other.clips[0]
    other = FlowData(other.flow[other.clip > 0], other.clip[other.clip > 0] - 1, other.clips[1:], other.facts[1:])
    for data in views.aligned([one, other]):
        assert [clip.path for clip in data.clips] == [clip.path for clip in one.clips if clip != left_out]
        assert data.clip.unique().tolist() == list(range(len(data.clips)))


def test_evaluation_tells_sources_faults_and_what_the_gradient_asks_for(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["discriminator", "eval", "default", "--fake", str(videos / "fake"), "--pairs", "2"]
    assert main([*command, "--real", str(videos / "real"), "--drawing", str(tmp_path / "steps.png")]) == 0
    output = capsys.readouterr().out
    before, after = map(float, re.search(r"steps.png: (\S+) to (\S+)", output).groups())
    assert after > before
    assert Image.open(tmp_path / "steps.png").size == (128, 3 * 128), "one source, three rows"
    assert "model: " in output.partition("by generator, worst first:")[2]
    assert re.search(r"warp: \d+ of 10", output)
    assert "of the gradient on generated flow" in output
    shards = str(tmp_path / "shards")
    assert main(["flow", "extract", "--videos", str(videos / "real"), "--out", shards, "--pairs", "2"]) == 0
    assert main([*command, "--real", shards]) == 0
    assert "give --real a folder of videos" in capsys.readouterr().out


@pytest.mark.usefixtures("small_packaged")
@pytest.mark.slow
def test_what_it_sees_of_drawn_faults(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    assert main(["discriminator", "eval", str(DISCRIMINATOR), "--drawn", "8"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"AUC per clip, clean against faulty: [01]\.\d\d; samples: [01]\.\d\d", printed)
    assert "rank correlation of the logit with morphing, samples" in printed
    assert printed.count("AUC in z0_hat at step") == 8


@pytest.mark.parametrize("given", [[], ["--real", "somewhere"]])
def test_evaluation_needs_something_to_look_at(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discriminator", "eval", "default", *given]) == 2
    assert "--real and --fake" in capsys.readouterr().err


def test_preference_among_pairs_counts_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["path\tmodel_or_source\tpair_id\tpair_role"]
    for number in range(3):
        for role in ("baseline", "ours"):
            make_video(tmp_path / f"fake/{number}-{role}.mp4", jitter=role == "baseline", seed=number)
            rows.append(f"fake/{number}-{role}.mp4\tmodel\t{number}\t{role}")
    make_video(tmp_path / "fake/alone.mp4", jitter=True, seed=9)
    (tmp_path / "INDEX.tsv").write_text("\n".join(rows) + "\n")
    command = ["discriminator", "pairs", "default", "--videos", str(tmp_path / "fake"), "--pairs", "4"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("smoother flow" in line and "3 of 3: 1.00 [0.44, 1.00]" in line for line in lines)
    assert any(line.startswith("model, discriminator") for line in lines)
    (tmp_path / "INDEX.tsv").unlink()
    assert main(command) == 2
    assert "pair_id" in capsys.readouterr().err


def test_a_name_that_is_no_folder_is_taken_from_the_hub(
    discriminator: FlowDiscriminator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    discriminator.save_pretrained(tmp_path)
    asked = []

    def given(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", given)
    assert FlowDiscriminator.from_pretrained("someone/discriminator").config == discriminator.config
    assert asked == [("someone/discriminator", ["config.json", "model.safetensors"])], "no code, no pickle"

    def missing(name: str, allow_patterns: list[str]) -> str:
        raise OSError("404\nnot found")

    monkeypatch.setattr(hub, "snapshot_download", missing)
    with pytest.raises(MotionPromptError) as caught:
        FlowDiscriminator.from_pretrained("someone/discriminator")
    assert "\n" not in str(caught.value)


def test_confounds_are_tabled_before_and_after(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--real", str(videos / "real"), "--fake", str(videos / "fake"), "--out", str(tmp_path)]
    assert main(["discriminator", "confounds", *folders, "--flow-size", "32", "--pairs", "2", "--epochs", "1"]) == 0
    assert (tmp_path / "confounds.md").read_text() in capsys.readouterr().out
    tables = json.loads((tmp_path / "confounds.json").read_text())
    for rows in tables.values():
        assert all(set(cells) == {"native", "equalised"} for cells in rows.values())


@pytest.mark.parametrize("fault", ["missing", "empty", "unreadable", "excluded"])
def test_unusable_folders_are_one_sentence(
    videos: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, extra = tmp_path / "fake", []
    if fault != "missing":
        fake.mkdir()
    if fault == "unreadable":
        (fake / "broken.mp4").write_bytes(b"not a video")
    if fault == "excluded":
        make_video(fake / "a.mp4", jitter=True, seed=0)
        extra = ["--exclude", "*.mp4"]
    command = [
        "discriminator",
        "train",
        "--real",
        str(videos / "real"),
        "--fake",
        str(fake),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--pairs", "1", "--flow-size", "32", *extra]) == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("videocrafter2_fifo", "videocrafter"),
        ("opensora_v1.0_gif", "opensora"),
        ("video_ldm", "video_ldm"),
        ("lavie_gif", "lavie"),
        ("t2v-turbo", "t2v-turbo"),
        ("Panda-70M (gif)", "Panda-70M"),
        ("Frieren page (VGGSound)", "VGGSound"),
        ("EOR-VOS (DAVIS 2016)", "DAVIS"),
        ("7", "7"),
    ],
)
def test_versions_variants_and_pages_are_of_one_source(name: str, source: str, tmp_path: Path) -> None:
    (tmp_path / "INDEX.tsv").write_text(f"path\tmodel_or_source\n1.mp4\t{name}\n")
    (tmp_path / "1.mp4").touch()
    assert [clip.source for clip in find_clips(tmp_path, True)] == [source]


def test_index_gives_sources_groups_and_leaves_gif_twins_out(tmp_path: Path) -> None:
    rows = [
        "path\tmodel_or_source\tprompt\tpair_id\tformat_twin\tsrc_format",
        "fake/a/1.mp4\tmodelA\tcat\t\t\tmp4",
        "fake/a/1g.mp4\tmodelA\tcat\t\tfake/a/1.mp4\tgif",
        "fake/b/2.mp4\tmodelB2\tcat\t\t\tmp4",
        "fake/b/3.mp4\tmodelB2\tdog\t\t\tmp4",
        "real/4.mp4\treal\t\t\t\tmp4",
    ]
    (tmp_path / "INDEX.tsv").write_text("\n".join(rows) + "\n")
    for row in rows[1:]:
        path = tmp_path / row.split("\t")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = {
        Path(clip.path).name: clip
        for folder in ("real", "fake")
        for clip in find_clips(tmp_path / folder, folder == "real")
    }
    assert set(found) == {"1.mp4", "2.mp4", "3.mp4", "4.mp4"}
    assert found["1.mp4"].group == found["2.mp4"].group != found["3.mp4"].group
    assert found["3.mp4"].source == "modelB"

"""Hosts whose VAE needs too much memory: pairs decoded in a square, few latent frames with a gradient. -s prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from mp_hooks import backbones
from mp_hooks.backbones.base import Adapter
from mp_hooks.guidance import MotionPrompt, Run, Step
from mp_hooks.guidance.memory import checkpointed
from mp_hooks.guidance.method import view_of
from mp_hooks.guidance.schedule import Pairs, draw_pairs
from mp_hooks.lab.cost import hosts
from mp_hooks.lab.cost.counting import Meter
from mp_hooks.testing.diffusers import CogVideoXCase, DiffusersCase, LTXCase, WanCase

CASES = {"wan": WanCase, "cogvideox": CogVideoXCase, "ltx": LTXCase}
LATENTS = {"wan": (4, 5, 8, 8), "cogvideox": (4, 5, 8, 8), "ltx": (8, 9, 8, 8)}  # c t h w
LATE = {"wan": (12, 15), "cogvideox": (10, 13), "ltx": (31, 34)}  # a pair that earlier latents precede


@contextmanager
def opened(name: str) -> Iterator[tuple[DiffusersCase, Adapter, Tensor]]:
    """The tiny host `name`, and latents [2, c, t, h, w] to decode."""
    case = CASES[name]()
    with case.open() as pipe:
        for part in (pipe.vae, pipe.transformer, pipe.text_encoder):
            part.requires_grad_(False)
        adapter = backbones.adapter_for(pipe)
        adapter.arguments = dict(case.settings)
        latents = torch.randn(2, *LATENTS[name], generator=torch.Generator().manual_seed(0))
        yield case, adapter, latents


def slope(
    adapter: Adapter, latents: Tensor, frames: tuple[int, ...], of: Sequence[int] = (0, 1)
) -> tuple[Tensor, Tensor]:
    """The frames, and the gradient with respect to the latents of a number made `of` two of them."""
    latents = latents.clone().requires_grad_()
    decoded = adapter.decode(latents, frames)[:, :, list(of)]
    (gradient,) = torch.autograd.grad(decoded.sin().square().sum(), latents)
    return decoded.detach(), gradient


@pytest.mark.parametrize("view", [4, 8, 100])
def test_every_place_of_a_view_is_as_likely(view: int) -> None:
    latents = torch.arange(8 * 12.0).view(1, 1, 1, 8, 12)
    pairs = draw_pairs(9, 4000, 1, 3, torch.Generator().manual_seed(0), view=True)
    squares = [view_of(latents, view, place) for place in pairs.crops.tolist()]
    side = min(view, 8)
    assert all(square.shape == (1, 1, 1, side, side) for square in squares)
    _, numbers = torch.tensor([square.min() for square in squares]).unique(return_counts=True)
    places = (8 - side + 1) * (12 - side + 1)
    assert len(numbers) == places
    assert numbers.max() < 1.6 * 4000 / places
    assert numbers.min() > 0.5 * 4000 / places


def test_without_a_view_pairs_are_what_they_were() -> None:
    """Three draws, whatever a host with a view draws besides."""
    generator, again = (torch.Generator().manual_seed(0) for _ in range(2))
    pairs = draw_pairs(9, 3, 1, 3, generator)
    intervals = torch.randint(1, 4, (3,), generator=again)
    first = (torch.rand(3, generator=again) * (9 - intervals)).long()
    assert torch.equal(pairs.frames, torch.stack([first, first + intervals], 1))
    assert torch.equal(pairs.crops, torch.rand(3, generator=again).view(3, 1).expand(3, 2))
    assert torch.equal(generator.get_state(), again.get_state())


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_latents_before_the_pairs_own_change_it_and_have_no_gradient(name: str) -> None:
    """And its own have the exact one."""
    with opened(name) as (case, adapter, latents):
        adapter.host.vae.double()
        frames, latents = LATE[name], latents.double()
        decoded, gradient = slope(adapter, latents, frames)
        with torch.no_grad():
            everything = case.own_decode(adapter.host, latents)
        torch.testing.assert_close(decoded, everything[:, :, list(frames)], rtol=1e-4, atol=1e-5)
        moved = gradient.abs().amax((0, 1, 3, 4)) > 0
        assert moved.tolist() == [False, False, False, True, True]
        adapter.host.vae.enable_slicing()
        sliced = slope(adapter, latents, frames)[1]
        torch.testing.assert_close(sliced, gradient)
        adapter.host.vae.disable_slicing()
        _, exact = slope(adapter, latents, (0, *frames), of=(1, 2))  # all have a gradient: the first frame needs them
        torch.testing.assert_close(exact[:, :, moved], gradient[:, :, moved])
        assert (exact[:, :, ~moved].abs().amax((0, 1, 3, 4)) > 0).all()


def test_an_even_number_of_latent_frames_has_other_chunks() -> None:
    """CogVideoX decodes four latent frames to sixteen frames, eight a chunk: frame 7 lies in the first."""
    with opened("cogvideox") as (_, adapter, latents):
        for frames, moved in ((7, 8), [True] * 4), ((8, 10), [False, False, True, True]), ((4, 7), [True, True]):
            _, gradient = slope(adapter, latents[:, :, :4], frames)
            assert (gradient.abs().amax((0, 1, 3, 4)) > 0).tolist()[: len(moved)] == moved


def test_a_window_holds_the_frames_asked_for() -> None:
    """LTX: frames of a window are those of the whole clip, but for what lies beyond the window."""
    with opened("ltx") as (case, adapter, latents), torch.no_grad():
        everything = case.own_decode(adapter.host, latents)
        for frames in (0, 1), (31, 34), (62, 64):
            decoded = adapter.decode(latents, frames)
            nearest = [
                int((everything - one[:, :, None]).square().mean((0, 1, 3, 4)).argmin()) for one in decoded.unbind(2)
            ]
            assert tuple(nearest) == frames


@pytest.mark.parametrize("name", ["cogvideox", "ltx"])
def test_decoder_blocks_computed_again_give_the_same_gradient(name: str) -> None:
    with opened(name) as (_, adapter, latents):
        blocks = adapter.blocks()
        inside = {id(part) for part in adapter.vae().decoder.modules()}
        assert any(id(block) in inside for block in blocks["other"])
        decoded, gradient = slope(adapter, latents, LATE[name])
        with checkpointed(blocks, "all"):
            again, same = slope(adapter, latents, LATE[name])
        assert torch.equal(again, decoded)
        torch.testing.assert_close(same, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


class Seen(Exception):
    pass


class Prices(Run):
    """At the first guided step: cosines of the tokens' gradient to that of the whole clip decoded and then cut."""

    def conditioning(self, step: Step) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            for _ in range(3):
                pairs = draw_pairs(step.frames, 1, 1, 3, generator, view=True)
                exact = self.slope(step, pairs, space=False, time=False)
                for name, cuts in APPROXIMATIONS.items():
                    cosine = torch.cosine_similarity(self.slope(step, pairs, *cuts), exact)
                    self.method.found.setdefault(name, []).extend(cosine.tolist())
        raise Seen

    def slope(self, step: Step, pairs: Pairs, space: bool, time: bool) -> Tensor:
        """The motion terms' gradient [b, n d], as guidance has it but for what is False: there the whole is decoded."""
        (place,), (pair,) = pairs.crops.tolist(), pairs.frames.tolist()

        def pixels(clean: Tensor, _pairs: Pairs) -> tuple[Tensor, Tensor]:
            size, side = clean.shape[-1], clean.shape[-1] // 2
            latents = view_of(clean, side, place) if space else clean
            wanted = pair if time else range(step.frames)
            frames = self.host.decode(latents, wanted).transpose(1, 2)
            if not space:
                scale = frames.shape[-1] // size
                top, left = (int(part * (size - side + 1)) * scale for part in place)
                frames = frames[..., top : top + side * scale, left : left + side * scale]
            first, second = (frames[:, [list(wanted).index(frame)]] for frame in pair)
            return first, second

        self.optimizer.pixels = pixels
        tokens = self.tokens.detach().requires_grad_()
        return self.optimizer.gradient(step, tokens, pairs, 1.0)[1].flatten(1)


APPROXIMATIONS = {"square": (True, False), "few latent frames": (False, True), "both": (True, True)}


class Priced(MotionPrompt):
    run_type = Prices

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.found: dict[str, list[float]] = {}


def listen_less(vae: torch.nn.Module, past: float) -> None:
    """Weigh earlier latent frames by `past` in each causal convolution: 0 as inflated from an image's VAE, 1 at random.

    Wan's VAE was trained from the first (Wan, arXiv 2503.20314, 4.1).
    """
    for part in vae.decoder.modules():
        if isinstance(part, torch.nn.Conv3d) and part.kernel_size[0] == 3:
            part.weight.data[:, :, :2] *= past


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "past"),
    [
        *(("wan", {"num_frames": 17, "height": 64, "width": 64}, past) for past in (0.0, 0.1, 0.3, 1.0)),
        ("cogvideox", {"num_frames": 17, "height": 64, "width": 64}, 1.0),
        ("ltx", {"num_frames": 65, "height": 256, "width": 256}, 1.0),
    ],
)
def test_the_gradient_agrees_with_that_of_the_whole_clip(name: str, size: dict[str, int], past: float) -> None:
    """Squares of half the side, of random networks, which are less local than trained ones."""
    case = CASES[name](**size)
    method = Priced(case.config)
    with case.open() as pipe:
        listen_less(pipe.vae, past)
        with backbones.attached(pipe, method), pytest.raises(Seen), torch.no_grad():
            case.sample(pipe, case.prompts, seed=7)
    for approximation, cosines in method.found.items():
        print(f"\n{name}, past {past}, {approximation}: cosine {median(cosines):.3f}, least {min(cosines):.3f}", end="")
    if past == 0:
        assert min(method.found["few latent frames"]) > 0.999
    if name == "cogvideox":
        assert all(median(cosines) > 0.3 for cosines in method.found.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pair"), [("wan", (2, 5)), ("cogvideox", (7, 10)), ("ltx", (39, 42))])
def test_a_pair_of_the_published_size_keeps_little(name: str, pair: tuple[int, int]) -> None:
    """The dearest pairs: two latent frames, two chunks of which the first holds three, six in a window of LTX."""
    with hosts.FULL_SIZE[f"diffusers-{name}"]() as full:
        adapter = backbones.adapter_for(full.host)
        adapter.arguments = full.arguments

        def kept(side: int, frames: Sequence[int], policy: str) -> float:
            """GiB."""
            with full.mode, checkpointed(adapter.blocks(), policy), Meter() as meter:
                clean = view_of(torch.empty(full.latents), side, (0.5, 0.5)).requires_grad_()
                decoded = adapter.decode(clean, frames)
                return meter.alive.total() / 2**30 if decoded.requires_grad else 0.0

        whole = kept(1000, (*pair, 0, *([full.frames - 1] if name == "ltx" else [])), "none")
        plain, again = (kept(adapter.view, pair, policy) for policy in ("none", "all"))
    print(f"\n{name}: {whole:.1f} GiB, {plain:.1f} in a view, {again:.1f} with checkpointing", end="")
    assert again < 8

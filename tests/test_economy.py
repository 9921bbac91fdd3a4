"""What makes guidance cheaper changes what it computes by rounding alone, or by as much as it says."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from upstreams import needs

from mp_hooks import backbones
from mp_hooks.backbones import base
from mp_hooks.backbones.diffusers.pipeline import DiffusersPipeline
from mp_hooks.config import MotionPromptConfig
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import MotionPrompt, Run, Step, memory
from mp_hooks.guidance.contract import Anchor
from mp_hooks.guidance.decoder import TinyDecoder
from mp_hooks.guidance.memory import MARGIN, SUB_CLIP, choose
from mp_hooks.guidance.method import TokenOptimizer
from mp_hooks.guidance.schedule import Pairs, dearest_pair
from mp_hooks.guidance.trace import read_trace
from mp_hooks.testing import HostCase, tiny

diffusers = pytest.importorskip("diffusers")

CASES = {
    "videocrafter2": {},
    "dynamicrafter": {},
    "lavie": {},
    "animatediff": {"pictures": 2},
    "diffusers-animatediff": {},
    "diffusers-wan": {},
    "diffusers-cogvideox": {},
    "diffusers-ltx": {},
}

UNETS = pytest.mark.parametrize(
    "case", [pytest.param(name, marks=needs(name)) for name in list(CASES)[:5]], indirect=True
)

# of a clip, and of a sub-clip of two latent frames
FRAMES = {"diffusers-wan": (9, 5), "diffusers-cogvideox": (9, 5), "diffusers-ltx": (17, 9)}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=needs(name)) for name in CASES])
def case(request: pytest.FixtureRequest) -> Iterator[tuple[HostCase, Any]]:
    """A tiny host of the real code, open."""
    case = tiny(request.param, **CASES[request.param])
    with case.open() as host:
        yield case, host


class Look(Run):
    """Stops at the first guided step, having looked at it."""

    def conditioning(self, step: Step) -> Tensor:
        self.method.look(self, step)
        raise Seen


class Seen(Exception):
    pass


class Looking(MotionPrompt):
    run_type = Look


def at_a_guided_step(case: HostCase, host: Any, config: MotionPromptConfig, look: Any) -> None:
    """Call look(run, step) in the first guided step, everything in place."""
    method = Looking(config)
    method.look = look
    with backbones.attached(host, method), pytest.raises(Seen):
        case.sample(host, case.prompts, seed=7)


def gradient(run: Run, step: Step) -> Tensor:
    """Of one update, with respect to the tokens."""
    pairs = Pairs(torch.tensor([[0, 1]]), torch.zeros(1, 2))
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        tokens = run.tokens.detach().requires_grad_()
        return run.optimizer.gradient(step, tokens, pairs, 1.0)[1]


@UNETS
def test_lean_attention_is_the_hosts_own(case: tuple[HostCase, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and gradient of the host's own attention, in float64, and no matrix is made."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def look(run: Run, step: Step) -> None:
        found["clean"] = run.host.predict_clean(step, step.conditioning), gradient(run, step)

    fused = nn.functional.scaled_dot_product_attention
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[0].shape[-2])
        return fused(*args, **kwargs)

    config = replace(case[0].config, checkpointing="none")
    with case[0].in_float64(case[1]):
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
        at_a_guided_step(*case, config, look)
        lean, number = found["clean"], len(calls)
        calls.clear()
        monkeypatch.setattr(type(backbones.adapter_for(case[1])), "attention", base.Adapter.attention)
        at_a_guided_step(*case, config, look)
    if case[0].name in ("animatediff", "diffusers-animatediff"):
        assert len(calls) == number  # today's diffusers has it
    else:
        assert number > len(calls)
    for ours, theirs in zip(lean, found["clean"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


@UNETS
def test_checkpointing_changes_memory_and_nothing_else(case: tuple[HostCase, Any]) -> None:
    gradients, kept = {}, {}

    def look(run: Run, step: Step) -> None:
        size = 0

        def note(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            gradients[policy] = gradient(run, step)
        kept[policy] = size

    for policy in ("none", "attention", "all"):
        at_a_guided_step(*case, replace(case[0].config, checkpointing=policy), look)
    for policy in ("attention", "all"):
        torch.testing.assert_close(gradients[policy], gradients["none"], rtol=1e-4, atol=1e-7)
    assert kept["all"] < kept["attention"] < kept["none"]


@pytest.mark.parametrize(("free", "expected"), [(2**40, "none"), (0, "all")])
def test_checkpointing_goes_by_the_free_memory(
    case: tuple[HostCase, Any], free: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _device: free)
    chosen: list[str] = []

    def look(run: Run, step: Step) -> None:
        chosen.append(run.method.economy.policy(run.host, step, lambda: pytest.fail("it is chosen already")))

    at_a_guided_step(*case, case[0].config, look)
    assert chosen == [expected]


def test_the_cheapest_policy_that_fits_is_chosen() -> None:
    """Blocks of four and of two sigmoids, each of which keeps its output."""
    attention, other = ([nn.Sequential(*[nn.Sigmoid() for _ in range(n)]) for _ in range(2)] for n in (4, 2))
    x = torch.zeros(1000, requires_grad=True)
    size = x.nbytes

    def chosen(free: float) -> str:
        forward = nn.Sequential(*attention, *other)
        return choose(lambda: forward(x).sum(), {"attention": attention, "other": other}, [], lambda: round(free))

    assert chosen(MARGIN * 12 * size + 1) == "none"
    assert chosen(MARGIN * 12 * size - 9) == "attention"
    assert chosen(MARGIN * 10 * size + 1) == "attention"  # two blocks' inputs, one of them again, the other blocks
    assert chosen(MARGIN * 10 * size - 9) == "all"
    assert chosen(0) == SUB_CLIP


def test_what_is_free_is_asked_once_offloaded_weights_have_come() -> None:
    """Rehearsing brings whole models to the device, where they stay for the guided step."""
    moments: list[str] = []
    block, x = nn.Sigmoid(), torch.zeros(1000, requires_grad=True)

    def forward() -> None:
        moments.append("rehearsed")
        block(x).sum()

    choose(forward, {"attention": [block], "other": []}, [], lambda: moments.append("asked") or 2**40)
    assert moments == ["rehearsed", "asked"]


def test_the_dearest_pair_lies_in_most_latent_frames() -> None:
    def of(factor: int, frames: int) -> list[int]:
        return dearest_pair(frames, 3, lambda number: -(-(number - 1) // factor) + 1).tolist()

    assert of(1, 16) == [12, 15]
    assert of(4, 17) == [12, 15]  # frame 12 ends the fourth latent frame; 13 to 16 are the fifth
    assert of(4, 2) == [0, 1]


@pytest.mark.parametrize("case", [pytest.param("animatediff", marks=needs("animatediff"))], indirect=True)
def test_attention_in_time_fits_the_kernels_grid(case: tuple[HostCase, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's kernels take 65,535 heads: places and heads, 65,536 in two clips of 512x512, must be kept apart."""
    fused, heads = nn.functional.scaled_dot_product_attention, []

    def noted(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        heads.append(query.shape[1])
        return fused(query, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", noted)
    own = {
        layer.heads
        for layer in case[1].unet.modules()
        if type(layer).__name__ in ("CrossAttention", "VersatileAttention")
    }
    at_a_guided_step(*case, case[0].config, lambda run, step: run.host.predict_clean(step, step.conditioning))
    assert heads and max(heads) <= max(own)


def test_a_sub_clip_is_the_clip_in_its_frames(case: tuple[HostCase, Any]) -> None:
    """All frames as a sub-clip are the step itself; fewer keep their latents, and gradient reaches the tokens."""

    def look(run: Run, step: Step) -> None:
        whole = run.host.sub_clip(step, range(step.latents.shape[2]))
        clean = run.host.predict_clean(step, step.conditioning)
        torch.testing.assert_close(run.host.predict_clean(whole, step.conditioning), clean)
        part = run.host.sub_clip(step, range(1, 3))
        assert torch.equal(part.latents, step.latents[:, :, 1:3])
        assert run.host.predict_clean(part, step.conditioning).shape == part.latents.shape
        assert gradient(run, part).flatten(1).norm(dim=1).min() > 0
        # and the clip is what it was
        torch.testing.assert_close(run.host.predict_clean(step, step.conditioning), clean)

    at_a_guided_step(*case, case[0].config, look)


def test_what_a_step_came_to_holds_its_prediction(case: tuple[HostCase, Any]) -> None:
    def look(run: Run, step: Step) -> None:
        with torch.random.fork_rng(devices=[]):
            result = run.host.step_with(step, step.conditioning)
        clean = run.host.predict_clean(step, step.conditioning)
        torch.testing.assert_close(run.host.clean_in(step, result), clean)

    at_a_guided_step(*case, case[0].config, look)


def test_a_sub_clips_branches_without_tokens_are_the_clips(case: tuple[HostCase, Any]) -> None:
    """They are computed once, for the whole clip, and serve the step too."""
    frames: list[int] = []

    def look(run: Run, step: Step) -> None:
        def note(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            latents = given[0] if given else None
            if isinstance(run.host, DiffusersPipeline):
                arguments = run.host.bound(*given, **named).arguments
                latents = run.host.unpack(arguments[run.host.latents_argument], arguments)
            frames.append(latents.shape[2])

        host = run.host.host
        denoiser = host.model.diffusion_model if hasattr(host, "model") else getattr(host, run.host.denoiser)
        noted = denoiser.register_forward_pre_hook(note, with_kwargs=True)
        part = run.host.sub_clip(step, range(1, 3))
        for _ in range(2):
            run.host.predict_clean(part, step.conditioning)
        run.host.step_with(step, step.conditioning)
        noted.remove()
        assert sorted(frames) == [2, 2, step.latents.shape[2], step.latents.shape[2]]

    at_a_guided_step(*case, replace(case[0].config, checkpointing="none"), look)  # "auto" would have computed some


def test_an_anchor_takes_of_a_part_what_changes() -> None:
    anchor = Anchor(torch.tensor([5.0]))
    alone = torch.tensor([2.0], requires_grad=True)
    placed = anchor(alone)
    placed.sum().backward()
    assert placed.item() == 5 and alone.grad.item() == 1
    assert anchor(torch.tensor([2.5])).item() == 5.5


def test_a_sub_clip_is_put_where_the_step_before_predicted_the_clip(case: tuple[HostCase, Any]) -> None:
    predicted: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []

    class NotingRun(Run):
        def step(self, step: Step, original: Callable[[], Any]) -> Any:
            result = super().step(step, original)
            predicted.append(self.host.clean_in(step, result))
            return result

    class NotingOptimizer(TokenOptimizer):
        def looked_at(self, step: Step) -> tuple[Step, int]:
            part, first = super().looked_at(step)
            assert (part.anchor is None) == (step.index == 0)  # the step from pure noise has none before it
            if part.anchor is not None:
                placed = part.anchor(torch.zeros_like(part.latents))
                place = self.host.latent_frames(first + 1) - 1
                seen.append((placed, predicted[-1][:, :, place : place + part.latents.shape[2]]))
            return part, first

    method = MotionPrompt(replace(case[0].config, subclip=2, iterations=1, checkpointing="none"))
    method.run_type, method.optimizer_type = NotingRun, NotingOptimizer
    with backbones.attached(case[1], method):
        case[0].sample(case[1], case[0].prompts, seed=7)
    assert seen
    for placed, expected in seen:
        torch.testing.assert_close(placed, expected)


def test_a_subclip_guides_the_whole_clip(case: tuple[HostCase, Any], tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    config = replace(case[0].config, subclip=2, iterations=1, trace=str(trace))
    torch.manual_seed(7)
    vanilla = case[0].sample(case[1], case[0].prompts, seed=7)
    with backbones.motionprompt(case[1], config):
        guided = case[0].sample(case[1], case[0].prompts, seed=7)
    assert ((guided - vanilla).abs() > 0).float().mean() > 0.99
    pairs = [pair for record in read_trace(trace) if record["event"] == "iteration" for pair in record["pairs"]]
    frames, part = FRAMES.get(case[0].name, (4, 2))
    assert all(0 <= first < second < frames and second - first < part for first, second in pairs)
    assert any(second >= part for _, second in pairs), "the clip's beginning alone"


def test_animatediffs_excerpt_keeps_its_places_in_time() -> None:
    """Motion modules add a position to each frame: shifted clips of equal frames tell whether it is the right one."""
    case = tiny("diffusers-animatediff")

    def look(run: Run, step: Step) -> None:
        rows = torch.zeros(1, 4, 32)
        (module,) = [
            part for part in run.host.host.unet.modules() if type(part).__name__ == "SinusoidalPositionalEmbedding"
        ][:1]
        run.host._first = 1
        torch.testing.assert_close(module(rows[:, :2]), module.pe[:, 1:3])
        run.host._first = 0
        torch.testing.assert_close(module(rows), module.pe[:, :4])

    with case.open() as host:
        at_a_guided_step(case, host, case.config, look)


def test_a_host_whose_latents_the_tiny_decoder_does_not_know_decodes_itself(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny
    from safetensors.torch import save_file

    save_file(AutoencoderTiny().state_dict(), tmp_path / "taesd.safetensors")
    case = tiny("diffusers-ltx")
    with case.open() as host:
        with backbones.motionprompt(host, case.config):
            expected = case.sample(host, case.prompts, seed=7)
        config = replace(case.config, decoder=str(tmp_path / "taesd.safetensors"))
        with pytest.warns(UserWarning, match="its own decoder is taken"), backbones.motionprompt(host, config):
            assert torch.equal(case.sample(host, case.prompts, seed=7), expected)


def test_a_tiny_decoder_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny
    from safetensors.torch import save_file

    save_file(AutoencoderTiny().state_dict(), tmp_path / "taesd.safetensors")
    decoder = TinyDecoder(tmp_path / "taesd.safetensors")
    frames = decoder(torch.zeros(2, 4, 5, 8, 8), [1, 4])
    assert frames.shape == (2, 3, 2, 64, 64)
    with pytest.raises(MotionPromptError, match="taesd cannot be had from the hub"):
        TinyDecoder("taesd")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(MotionPromptError, match="TAESD"):
        TinyDecoder(tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", ["diffusers-wan", "diffusers-cogvideox", "diffusers-animatediff"])
def test_nothing_of_a_decode_without_memory_is_kept(name: str) -> None:
    """The host's own step, which follows, needs the room: on a card of 24 GB Wan's did not have it."""
    decoded: list[weakref.ref[Tensor]] = []

    def fails(_: Any, given: tuple[Tensor, ...]) -> None:
        decoded.append(weakref.ref(given[0]))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    class Watched(Run):
        def step(self, step: Step, original: Callable[[], Any]) -> Any:
            def alone() -> Any:
                assert all(values() is None for values in decoded)
                assert not any(values is not None for values in getattr(host.vae, "_feat_map", []))
                return original()

            return super().step(step, alone)

    class WatchedMotionPrompt(MotionPrompt):
        run_type = Watched

    case = tiny(name)
    with case.open() as host:
        method = WatchedMotionPrompt(replace(case.config, start=0.25, stop=0.5))
        with (
            backbones.attached(host, method),
            host.vae.decoder.conv_out.register_forward_pre_hook(fails),
            pytest.warns(UserWarning, match="out of memory"),
        ):
            case.sample(host, case.prompts[:1], seed=0)
    assert decoded

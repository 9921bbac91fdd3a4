"""The lines of the check, each run in a process of its own.

python -m mp_hooks.lab.gpu.lines LINE DEVICE FILE
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks import patching
from mp_hooks.backbones import motionprompt
from mp_hooks.compat import swapped
from mp_hooks.config import MotionPromptConfig, load_config
from mp_hooks.flow import load_flow
from mp_hooks.guidance.trace import read_trace
from mp_hooks.lab.cost.hosts import DTYPES, Weights, full_size, sampling
from mp_hooks.lab.cost.timing import Price, Subject, Timed, timed, windowed
from mp_hooks.lab.gpu.check import Check
from mp_hooks.testing import CASES, HostCase, tiny
from mp_hooks.testing.case import MissingPackage
from mp_hooks.testing.diffusers import DiffusersCase

SKIPPED = 2  # updates of a sampling that may be
GIB = 2**30


@dataclass(frozen=True)
class Line:
    """what: it tries, for the table. limit: seconds on a GPU."""

    what: str
    limit: int
    run: Callable[[Check], None]


# --- hosts


def case_of(check: Check, name: str) -> HostCase:
    """The tiny host of that name, to be opened on the line's device; MissingPackage without its code."""
    if name in patching.names() and not patching.is_present(patching.default_checkout(patching.load(name))):
        raise MissingPackage(f"its code is not in third_party; get it with: mp-patch {name}")
    case = tiny(name)
    case.device = check.device
    return case


@contextmanager
def host(check: Check, name: str, clips: int = 1, **options: Any) -> Iterator[Subject]:
    """The host in its own precision, at its real size on random weights, or tiny; `options` are of the former."""
    case, dtype = case_of(check, name), DTYPES[name]
    if check.tiny:
        with case.open() as model:
            yield Subject(model.to(dtype), sampling(case, model, clips))
    else:
        options |= {"clips": clips} if clips > 1 else {}
        with full_size(name, weights=Weights(False, check.device, dtype), **options) as full:
            yield Subject(full.host, full.sample)


@contextmanager
def without(package: str) -> Iterator[None]:
    """The package cannot be imported inside."""
    known = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}
    sys.modules.update(dict.fromkeys([package, *known]))  # type: ignore[arg-type]  # None: there is none
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(known)


# --- what guidance costs a host


def configurations(*wanted: str) -> dict[str, MotionPromptConfig]:
    """Those of the exact algorithm by their checkpointing, and the presets; `fast` with a decoder of random weights."""
    from diffusers import AutoencoderTiny
    from safetensors.torch import save_file

    found = {}
    for name in wanted:
        if name == "fast":
            decoder = Path(tempfile.mkdtemp()) / "decoder.safetensors"
            save_file(AutoencoderTiny().state_dict(), decoder)
            found[name] = load_config(preset=name, decoder=str(decoder), seed=0)
        elif name == "balanced":
            found[name] = load_config(preset=name, seed=0)
        else:
            found[f"exact, {name}"] = MotionPromptConfig(checkpointing=name, seed=0)
    return found


EVERY = ("none", "attention", "all", "auto", "balanced", "fast")


def prices(
    check: Check,
    name: str,
    subject: Subject,
    configs: Mapping[str, MotionPromptConfig],
    what: str = "",
    steps: int = 10,
    guided: int = 2,
) -> None:
    """A row for each configuration: seconds and peak bytes, guided over plain; each must be guided as asked."""
    if check.tiny:
        steps, guided = 5, 1
    timed(subject, 2, check.device, windowed(MotionPromptConfig(iterations=1), 2, 1))  # kernels are loaded at first use
    plain = timed(subject, steps, check.device)
    for label, config in configs.items():
        with check.part(f"{name}{what}, {label}"):
            price = Price(plain, timed(subject, steps, check.device, windowed(config, steps, guided)))
            row(check, name, f"{label}{what}", price)
            guided_right(check, f"{name}{what}, {label}", price.guided, guided)


def row(check: Check, name: str, what: str, price: Price) -> None:
    """What a guided sampling took, beside a plain one."""
    check.row(
        **{
            "host": name,
            "guidance": what,
            "precision": str(DTYPES[name]).removeprefix("torch."),
            "plain step, s": rounded(price.plain_step),
            "guided step, s": rounded(price.guided_step),
            "guided/plain step": rounded(price.guided_step / price.plain_step),
            "guided/plain run": rounded(price.run(50, 11) / price.run(50, 0)),  # the paper's
            "plain peak, GiB": rounded(price.plain.peak / GIB),
            "guided peak, GiB": rounded(price.guided.peak / GIB),
            "updates": price.guided.updates,
            "skipped": price.guided.skipped,
            "against running out": "; ".join(price.guided.tightened),
            "warnings": "; ".join(price.guided.said),
        }
    )


def guided_right(check: Check, what: str, found: Timed, steps: int) -> None:
    """Every step that was to be guided was, by gradients that point somewhere, and the latents are numbers."""
    check.expect(found.guided == steps and not found.unguided, f"{what}: {found.guided} steps guided of {steps}")
    check.expect(found.finite, f"{what}: latents are not finite")
    check.expect(all(0 < norm < math.inf for norm in found.gradient), f"{what}: a gradient is 0 or not finite")
    check.expect(found.skipped <= SKIPPED, f"{what}: {found.skipped} updates skipped")


def rounded(value: float) -> float | None:
    """To four digits; None for what is not a number."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


# --- the lines


def hosts(check: Check) -> None:
    """Off is vanilla bit for bit and noise is untouched, on is another clip, on every tiny host in every precision."""
    for name in CASES:
        with check.part(name):
            case = case_of(check, name)
            dtypes = [torch.float32]
            if isinstance(case, DiffusersCase):
                dtypes += [torch.bfloat16] if check.tiny else [torch.float16, torch.bfloat16]  # slow on a CPU
            for dtype in dtypes:
                what = f"{name}, {str(dtype).removeprefix('torch.')}"
                with check.part(what), case.open() as model:
                    conforms(check, what, case, model.to(dtype))


def conforms(check: Check, what: str, case: HostCase, model: Any) -> None:
    """One tiny host in one precision."""

    def sample() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(7)
        with torch.no_grad():
            latents = case.sample(model, case.prompts, seed=7)
        states = [torch.get_rng_state()]
        if check.device == "cuda":
            states.append(torch.cuda.get_rng_state())
        return latents, states

    try:
        plain, noise = sample()
    except RuntimeError as error:
        check.skip(f"{what}: the host itself does not sample so: {str(error).splitlines()[0]}")
        return
    with tempfile.TemporaryDirectory() as folder:
        trace = str(Path(folder) / "trace.jsonl")
        with motionprompt(model, replace(case.config, trace=trace)):
            on, noise_on = sample()
        iterations = [record for record in read_trace(trace) if record["event"] == "iteration"]
    off, _ = sample()
    moved = [(norm, one) for found in iterations for norm, one in zip(found["gradient"], found["updated"], strict=True)]
    norms, skipped = [norm for norm, one in moved if one], sum(not one for _, one in moved)
    check.row(**{"host": what, "updates": len(norms), "skipped": skipped, "least gradient": min(norms, default=None)})
    check.expect(bool(plain.isfinite().all() and on.isfinite().all()), f"{what}: latents are not finite")
    check.expect(torch.equal(off, plain), f"{what}: off is not vanilla")
    check.expect(not torch.equal(on, plain), f"{what}: guidance changes nothing")
    check.expect(all(map(torch.equal, noise_on, noise)), f"{what}: a generator was touched")
    check.expect(bool(norms) and all(0 < norm < math.inf for norm in norms), f"{what}: a gradient is 0 or not finite")
    check.expect(skipped <= SKIPPED, f"{what}: {skipped} updates skipped")


# what is attended: batch, heads, queries, keys, width of a head
SHAPES = {
    "VideoCrafter2 320x512, space": (torch.float32, 16, 5, 2560, 2560, 64),
    "VideoCrafter2 320x512, time": (torch.float32, 2560, 5, 16, 16, 64),
    "VideoCrafter2 320x512, text": (torch.float32, 16, 5, 2560, 77, 64),
    "DynamiCrafter 576x1024, space": (torch.float16, 16, 5, 9216, 9216, 64),
    "LaVie 320x512, space": (torch.float16, 16, 8, 2560, 2560, 40),
    "AnimateDiff 512x512, space": (torch.float16, 16, 8, 4096, 4096, 40),
    "AnimateDiff 512x512, time": (torch.float16, 4096, 8, 16, 16, 40),
    "AnimateDiff scripts, two clips, time": (torch.float32, 2 * 4096, 8, 16, 16, 40),
    "Wan 480x832, 81 frames": (torch.bfloat16, 1, 12, 32760, 32760, 128),
    "CogVideoX 480x720, 49 frames": (torch.bfloat16, 1, 30, 17776, 17776, 64),
    "LTX 512x704, 161 frames": (torch.bfloat16, 1, 32, 7392, 7392, 64),
}


def attention(check: Check) -> None:
    """Forward and backward of the attention kernels at the hosts' shapes."""
    kernels: dict[str, Callable[..., Tensor]] = {"torch": F.scaled_dot_product_attention}
    if xformers_works(check):
        kernels["xformers"] = _xformers_attention
    for shape, (dtype, batch, heads, queries, keys, width) in SHAPES.items():
        if check.tiny:
            batch, heads, queries, keys = (min(size, 32) for size in (batch, heads, queries, keys))
        for kernel, attend in kernels.items():
            with check.part(f"{shape}, {kernel}"):
                q, k, v = (
                    torch.randn(batch, heads, length, width, device=check.device, dtype=dtype, requires_grad=True)
                    for length in (queries, keys, keys)
                )
                finite, seconds = True, []
                for _ in range(3):
                    began = time.perf_counter()
                    gradients = torch.autograd.grad(attend(q, k, v).float().sum(), (q, k, v))
                    finite = all(bool(gradient.isfinite().all()) for gradient in gradients)  # waits for the device
                    seconds.append(time.perf_counter() - began)
                check.row(**{"attention": shape, "kernel": kernel, "both passes, ms": rounded(1e3 * min(seconds))})
                check.expect(finite, f"{shape}, {kernel}: a gradient is not finite")


def xformers_works(check: Check) -> bool:
    """Whether xformers is there with kernels for this torch and device; why not is noted as skipped."""
    if importlib.util.find_spec("xformers") is None:
        check.skip("xformers: it is not installed")
        return False
    try:
        _xformers_attention(*torch.zeros(3, 1, 1, 16, 16, device=check.device, dtype=torch.float16))
    except (ImportError, NotImplementedError, RuntimeError) as error:
        check.skip(f"xformers: it has no kernel here: {str(error).splitlines()[0]}")
        return False
    return True


def _xformers_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    import xformers.ops

    q, k, v = (value.transpose(1, 2) for value in (q, k, v))
    return xformers.ops.memory_efficient_attention(q, k, v).transpose(1, 2)


def videocrafter2(check: Check) -> None:
    """320x512 in float32, as the host runs; with xformers and without."""
    name = "videocrafter2"
    with without("xformers"), host(check, name) as subject:
        prices(check, name, subject, configurations(*EVERY))
    if xformers_works(check):
        with host(check, name) as subject:
            prices(check, name, subject, configurations("auto", "fast"), " with xformers")


def dynamicrafter(check: Check) -> None:
    """320x512 under autocast, as the host runs; its gradients beside those of updates in float32."""
    name, steps = "dynamicrafter", 5 if check.tiny else 10
    with host(check, name, version="512") as subject:

        def under_autocast(steps: int) -> Tensor:
            with torch.autocast(check.device):
                return subject.sample(steps)

        cast = Subject(subject.host, under_autocast)
        for place in range(0, steps, steps // 5):
            with check.part(f"{name}, step {place}"):
                config = MotionPromptConfig(start=place / steps, stop=(place + 1) / steps, iterations=1, seed=0)
                found, first = {}, {}
                for precision in ("host", "float32"):
                    with gradients() as noted:
                        found[precision] = timed(cast, steps, check.device, replace(config, precision=precision))
                    first[precision] = noted[0].flatten()
                cosine = torch.cosine_similarity(first["host"], first["float32"], dim=0)
                check.row(
                    **{
                        "guided step": f"{place} of {steps}",
                        "cosine to float32": rounded(float(cosine)),
                        "skipped": found["host"].skipped,
                        "skipped in float32": found["float32"].skipped,
                        "peak, GiB": rounded(found["host"].peak / GIB),
                    }
                )
                guided_right(check, f"{name}, step {place}", found["host"], 1)
        prices(check, name, cast, configurations("auto"))


@contextmanager
def gradients() -> Iterator[list[Tensor]]:
    """The tokens' gradients of the updates inside, as autograd returns them; their scale is the loss's."""
    noted: list[Tensor] = []
    original = torch.autograd.grad

    def grad(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        noted.append(result[0].detach().double().cpu())
        return result

    with swapped(torch.autograd, "grad", grad):
        yield noted


def lavie(check: Check) -> None:
    """320x512 in float16, as the host runs."""
    with host(check, "lavie") as subject:
        prices(check, "lavie", subject, configurations("none", "all", "auto", "balanced", "fast"))


def animatediff(check: Check) -> None:
    """512x512: diffusers' pipeline in float16, and the scripts' in float32 on two clips at once."""
    with check.part("diffusers-animatediff"), host(check, "diffusers-animatediff") as subject:
        prices(check, "diffusers-animatediff", subject, configurations("none", "auto", "balanced", "fast"))
    with check.part("animatediff"), host(check, "animatediff", clips=2) as subject:
        prices(check, "animatediff", subject, configurations("auto", "fast"), " of two clips")


def transformers(check: Check) -> None:
    """Wan's 1.3B and CogVideoX's 2B in bfloat16: 9 frames, then the default length."""
    for name in ("diffusers-wan", "diffusers-cogvideox"):
        with check.part(name), host(check, name) as subject:
            short = Subject(subject.host, partial(subject.sample, num_frames=9))
            prices(check, name, short, configurations("auto"), " of 9 frames", steps=5, guided=1)
            prices(check, name, subject, configurations("auto"), " of the default length", steps=5, guided=1)


def small_card(check: Check) -> None:
    """The same in 24 GB of memory, and Wan with offloading and with weights kept in float8."""
    if not check.tiny:
        memory = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 24e9 / memory))
    few = {"steps": 5, "guided": 1}
    with check.part("diffusers-cogvideox"), host(check, "diffusers-cogvideox") as subject:
        prices(check, "diffusers-cogvideox", subject, configurations("auto"), " in 24 GB", **few)
    with check.part("diffusers-wan"), host(check, "diffusers-wan") as subject:
        prices(check, "diffusers-wan", subject, configurations("auto"), " in 24 GB", **few)
        short = Subject(subject.host, partial(subject.sample, num_frames=9))
        with check.part("offload"):
            if check.tiny:
                raise MissingPackage("there is no device to offload from")
            subject.host.enable_model_cpu_offload()
            prices(check, "diffusers-wan", short, configurations("auto"), " of 9 frames, offloaded", **few)
            subject.host.remove_all_hooks()
            subject.host.to(check.device)
        with check.part("float8"):
            subject.host.transformer.enable_layerwise_casting(torch.float8_e4m3fn, DTYPES["diffusers-wan"])
            prices(check, "diffusers-wan", short, configurations("auto"), " of 9 frames, in float8", **few)


def profile(check: Check) -> None:
    """Where the time of a guided step with one update goes, and what the flow alone launches."""
    from torch.profiler import ProfilerActivity

    kinds = [ProfilerActivity.CPU] if check.tiny else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    measure = "self_cpu_time_total" if check.tiny else "self_device_time_total"
    config = windowed(MotionPromptConfig(checkpointing="none", iterations=1, seed=0), 1, 1)
    estimator = load_flow(device=check.device)
    frames = [torch.randn(1, 3, 128, 128, device=check.device, requires_grad=True) for _ in range(2)]

    def step() -> None:
        timed(subject, 1, check.device, config)

    def flow() -> None:
        torch.autograd.grad(estimator(*frames).sum(), frames)

    with host(check, "diffusers-animatediff") as subject:
        for name, compute in {"a guided step": step, "the flow": flow}.items():
            compute()
            with torch.profiler.profile(activities=kinds) as found:
                compute()
            events = [event for event in found.key_averages() if getattr(event, measure) > 0]
            launches = sum(event.count for event in events)
            total = sum(getattr(event, measure) for event in events)
            check.row(**{"of": name, "operation": "all", "calls": launches, "ms": rounded(total / 1e3), "part": 1.0})
            for event in sorted(events, key=lambda event: -getattr(event, measure))[:15]:
                time_of = getattr(event, measure)
                cells = {"calls": event.count, "ms": rounded(time_of / 1e3), "part": rounded(time_of / total)}
                check.row(**{"of": name, "operation": event.key[:80], **cells})


LINES = {
    "hosts": Line("every tiny host in float32, float16 and bfloat16", 180, hosts),
    "attention": Line("backward of attention at the hosts' shapes", 60, attention),
    "videocrafter2": Line("VideoCrafter2 320x512, float32", 240, videocrafter2),
    "dynamicrafter": Line("DynamiCrafter 512 under autocast", 150, dynamicrafter),
    "lavie": Line("LaVie 320x512, float16", 150, lavie),
    "animatediff": Line("AnimateDiff 512x512, diffusers and scripts", 200, animatediff),
    "transformers": Line("Wan 1.3B and CogVideoX 2B, bfloat16", 240, transformers),
    "small-card": Line("the same in 24 GB, offloaded, in float8", 240, small_card),
    "profile": Line("profile of a guided step and of the flow", 100, profile),
}


if __name__ == "__main__":
    line, device, file = sys.argv[1:]
    check = Check(Path(file), device)
    with check.part(line):
        LINES[line].run(check)
    print(json.dumps({"failures": check.failures, "skipped": check.skipped}))

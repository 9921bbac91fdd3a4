"""Training of the mini model: autoencoder, latents, then text encoder and UNet; every stage can be resumed.

`python -m mp_hooks.lab.mini.train --out DIR` leaves in DIR: config.json, vae.pt, prior.pt, unet.pt (checkpoints),
latents-N (one file a worker), log.csv and model/ (the pipeline, renewed while training goes on).
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from mp_hooks.errors import exits_cleanly
from mp_hooks.files import replacing
from mp_hooks.lab.mini.clips import DIRECTIONS, Scenes, captions, draw, sample_scenes
from mp_hooks.lab.mini.model import FORM, Form, build_pipeline, load_pipeline
from mp_hooks.runs import claim

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline, AutoencoderKL

CHUNK = 50  # clips drawn and encoded at once
CHECKPOINT_SECONDS = 120
EXPORT_SECONDS = 600


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one run; minutes are wall-clock time, sizes are per worker and step."""

    seed: int = 0
    workers: int = 2  # processes of one thread each: on busy cores faster than one process of two threads
    vae_minutes: float = 10.0
    vae_clips: int = 1200
    vae_batch: int = 8
    vae_rate: float = 2e-3
    kl_weight: float = 1e-4
    clips: int = 12_000
    minutes: float = 60.0
    batch: int = 12
    rate: float = 1e-3
    ema: float = 0.998
    prompt_dropout: float = 0.1
    prior_minutes: float = 3.0
    form: Form = FORM
    device: str = "cpu"  # bfloat16 on "cuda", where one worker does all, and clips are drawn
    start: str | None = None  # folder of a pipeline, whose weights are begun with where their shapes fit


@dataclass
class Loop:
    """One stage's optimisation, shared by the workers: gradients averaged, time kept by worker 0, checkpoints by it.

    Weights are updated in float32. `loss` runs in `dtype`: with bfloat16 on copies of them, which an H100 does 1.14
    times as fast as autocast.
    """

    name: str
    modules: nn.ModuleDict
    minutes: float
    rate: float
    ema_decay: float
    out: Path
    rank: int
    workers: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.modules.to(self.device)
        self.computed = self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        if self.dtype != torch.float32:
            self.parameters = [p.detach().clone().requires_grad_() for p in self.computed]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=self.rate, weight_decay=1e-3, betas=(0.9, 0.99), fused=True
        )
        self.ema = [p.detach().clone() for p in self.parameters]
        self.step, self.elapsed = 0, 0.0
        self.checkpoint = self.out / f"{self.name}.pt"
        if self.checkpoint.is_file():
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self._copy(state["parameters"], self.parameters)
            self._copy(self.parameters, self.computed)
            self.optimiser.load_state_dict(state["optimiser"])
            self.ema, self.step, self.elapsed = state["ema"], state["step"], state["elapsed"]

    def save(self) -> None:
        with replacing(self.checkpoint) as path:
            torch.save(
                {
                    "parameters": self.parameters,
                    "optimiser": self.optimiser.state_dict(),
                    "ema": self.ema,
                    "step": self.step,
                    "elapsed": self.elapsed,
                },
                path,
            )

    def averaged(self) -> nn.ModuleDict:
        """A copy of the modules in float32 with the moving average of the weights."""
        modules = copy.deepcopy(self.modules).float()
        self._copy(self.ema, [p for p in modules.parameters() if p.requires_grad])
        return modules.eval()

    def run(self, loss: Callable[[torch.Generator], Tensor], export: Callable[[Loop], None] | None = None) -> None:
        """Step until the time is over. loss draws its batch from the generator it is given, of the device."""
        if not self.minutes:
            return
        generator = torch.Generator(self.device).manual_seed(1_000_003 * (self.step + 1) + self.rank)
        self.modules.to(self.dtype)
        started, budget, fraction = time.monotonic() - self.elapsed, 60 * self.minutes, self.elapsed / 60 / self.minutes
        saved = exported = logged = time.monotonic()
        losses: list[Tensor] = []
        compute = partial(self._compute, loss, generator)
        if self.device == "cuda":
            compute = self._captured(compute, generator)
        bar = tqdm(total=round(budget), initial=round(self.elapsed), unit="s", desc=self.name, disable=self.rank > 0)
        while fraction < 1:
            rate = self.rate * min(1.0, (self.step + 1) / 100) * max(0.02, min(1.0, 2 * (1 - fraction)))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            losses.append(compute())  # read when it is told: an accelerator need not wait
            fraction = self._share_gradients(fraction)
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
            self.step += 1
            if self.rank > 0:
                continue
            now = time.monotonic()
            bar.update(round(now - started) - bar.n)
            self.elapsed = now - started
            if now - logged > 30:
                self._log(losses, rate)
                bar.set_postfix(step=self.step, loss=f"{torch.stack(losses).mean():.4f}")
                losses, logged = [], now
            if now - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = now
            if export and now - exported > EXPORT_SECONDS:
                export(self)
                exported = now
        bar.close()
        self.modules.float()
        self._copy(self.parameters, self.computed)
        if self.rank == 0:
            self.save()

    def _compute(self, loss: Callable[[torch.Generator], Tensor], generator: torch.Generator) -> Tensor:
        """The loss of a batch, and its gradient in the parameters."""
        for parameter in self.computed:
            parameter.grad = None
        self._copy(self.parameters, self.computed)
        value = loss(generator)
        value.backward()
        if self.computed is not self.parameters:
            for parameter, computed in zip(self.parameters, self.computed, strict=True):
                parameter.grad = computed.grad.float()
        return value.detach()

    @staticmethod
    @torch.no_grad()
    def _copy(values: list[Tensor], parameters: list[nn.Parameter]) -> None:
        if values is not parameters:
            torch._foreach_copy_(parameters, values)

    def _captured(self, compute: Callable[[], Tensor], generator: torch.Generator) -> Callable[[], Tensor]:
        """The same as one CUDA graph: launching a small network's thousands of kernels takes longer than their work."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            value = compute()

        def replay() -> Tensor:
            graph.replay()
            return value.clone()

        return replay

    def _share_gradients(self, fraction: float) -> float:
        """Average gradients over the workers; returns worker 0's share of the time used, the same in all of them."""
        share = self.elapsed / 60 / self.minutes if self.rank == 0 else 0.0
        if self.workers == 1:
            return share
        grads = [p.grad for p in self.parameters]
        flat = torch.cat([*(g.flatten() for g in grads), torch.tensor([share * self.workers])])
        dist.all_reduce(flat)
        flat /= self.workers
        start = 0
        for grad in grads:
            grad.copy_(flat[start : start + grad.numel()].view_as(grad))
            start += grad.numel()
        return float(flat[-1])

    def _log(self, losses: list[Tensor], rate: float) -> None:
        path = self.out / "log.csv"
        fresh = not path.is_file()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["stage", "step", "seconds", "loss", "rate"])
            mean = torch.stack(losses).mean()
            writer.writerow([self.name, self.step, round(self.elapsed), f"{mean:.5f}", f"{rate:.2e}"])


def train_vae(vae: AutoencoderKL, config: TrainingConfig, out: Path, rank: int) -> nn.Module:
    """Train the autoencoder on single frames with squared error and a small KL term; returns the averaged one."""
    loop = _loop("vae", nn.ModuleDict({"vae": vae}), config.vae_minutes, config.vae_rate, config, out, rank)
    if loop.elapsed < 60 * config.vae_minutes:
        generator = torch.Generator().manual_seed(config.seed + 1000 + rank)
        frames = []
        for _ in tqdm(range(config.vae_clips // CHUNK), desc="frames", disable=rank > 0):
            frames.append(_drawn(generator, config)[1].transpose(1, 2).flatten(0, 1).half())
        pool = torch.cat(frames)

        def loss(generator: torch.Generator) -> Tensor:
            device = pool.device
            batch = pool[torch.randint(len(pool), (config.vae_batch,), generator=generator, device=device)].float()
            posterior = vae.encode(batch.to(vae.dtype)).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator, device=device)
            decoded = vae.decode((mean + (0.5 * logvar).exp() * noise).to(vae.dtype)).sample
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
            return functional.mse_loss(decoded.float(), batch) + config.kl_weight * kl

        loop.run(loss)
    if config.workers > 1:
        dist.barrier()
        loop = _loop("vae", loop.modules, 1, 0, config, out, rank)  # worker 0's average, everywhere
    return loop.averaged()["vae"]


def encode_latents(vae: AutoencoderKL, pipe: AnimateDiffPipeline, config: TrainingConfig, out: Path, rank: int) -> dict:
    """Draw this worker's share of the training clips and encode it once.

    Returns latents [n, c, t, h, w] half, ids [n, l], and the kind [n], which numbers colours x directions.
    """
    path = out / f"latents-{rank}.safetensors"
    if path.is_file():
        return load_file(path)
    generator = torch.Generator().manual_seed(config.seed + 2000 + rank)
    latents, words, kinds = [], [], []
    for _ in tqdm(range(config.clips // config.workers // CHUNK), desc="latents", disable=rank > 0):
        scenes, video = _drawn(generator, config)
        words += captions(scenes)
        kinds.append(scenes.colour * len(DIRECTIONS) + scenes.direction)
        with torch.no_grad():
            mean = vae.encode(video.transpose(1, 2).flatten(0, 1)).latent_dist.mean
        latents.append(mean.unflatten(0, (CHUNK, -1)).transpose(1, 2).half().cpu())
    data = {"latents": torch.cat(latents).contiguous(), "ids": token_ids(pipe, words).int(), "kind": torch.cat(kinds)}
    with replacing(path) as temporary:
        save_file(data, temporary)
    return data


def token_ids(pipe: AnimateDiffPipeline, words: list[str]) -> Tensor:
    """Token ids [n, length], padded as the pipeline pads them."""
    tokenizer = pipe.tokenizer
    return tokenizer(
        words, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def fold_normalisation(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Make each latent channel zero-mean and unit-variance by rescaling the 1x1 convolutions around the latents.

    mean and deviation are [c], of the latents as encoded before the call; reconstructions do not change.
    """
    c = len(mean)
    with torch.no_grad():
        vae.quant_conv.weight[:c] /= deviation[:, None, None, None]
        vae.quant_conv.bias[:c] = (vae.quant_conv.bias[:c] - mean) / deviation
        vae.quant_conv.bias[c:] -= 2 * deviation.log()
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
        vae.post_quant_conv.weight *= deviation[None, :, None, None]


def train_prior(pipe: AnimateDiffPipeline, data: dict, config: TrainingConfig, out: Path, rank: int) -> None:
    """Teach text encoder and UNet what a caption means before anything is seen: at pure noise, the mean of its clips.

    The direction shows only together with place and time. Trained on noisy clips from the start, the text path serves
    colour and shape, which are easy, and is then closed to the direction for good (measured: docs/mini.md).
    """
    latents, kind, ids = (data[name].to(config.device) for name in ("latents", "kind", "ids"))
    latents, frames = latents.float(), latents.shape[2]
    means = torch.stack([latents[kind == number].mean(0) for number in range(int(kind.max()) + 1)])
    modules = nn.ModuleDict({"unet": pipe.unet.train(), "text_encoder": pipe.text_encoder.train()})
    loop = _loop("prior", modules, config.prior_minutes, config.rate, config, out, rank)

    def loss(generator: torch.Generator) -> Tensor:
        device = latents.device
        index = torch.randint(len(ids), (config.batch,), generator=generator, device=device)
        noise = torch.randn(len(index), *latents.shape[1:], generator=generator, device=device)
        time_steps = torch.full((len(index),), len(pipe.scheduler.alphas_cumprod) - 1, device=device)
        text = pipe.text_encoder(ids[index].long())[0]
        predicted = pipe.unet(noise.to(text.dtype), time_steps, text.repeat_interleave(frames, dim=0)).sample
        return functional.mse_loss(predicted.float(), -means[kind[index]])  # the velocity where nothing but noise is

    loop.run(loss)


def train_unet(pipe: AnimateDiffPipeline, data: dict, config: TrainingConfig, out: Path, rank: int) -> Loop:
    """Train text encoder and UNet to predict the velocity (arXiv 2202.00512, appendix D) on `data`.

    The noise error all but ignores high noise, where the direction of motion is decided; the velocity's does not.
    """
    unet, text_encoder = pipe.unet.train(), pipe.text_encoder.train()
    alphas, latents, ids, empty = (
        part.to(config.device)
        for part in (pipe.scheduler.alphas_cumprod, data["latents"], data["ids"], token_ids(pipe, [""]))
    )
    frames = latents.shape[2]
    modules = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    loop = _loop("unet", modules, config.minutes, config.rate, config, out, rank)

    def loss(generator: torch.Generator) -> Tensor:
        b, drawn = config.batch, {"generator": generator, "device": latents.device}
        index = torch.randint(len(latents), (b,), **drawn)
        clean = latents[index].float()
        dropped = torch.rand(b, 1, **drawn) < config.prompt_dropout
        time_steps = torch.randint(len(alphas), (2, b), **drawn).amax(0)  # high noise more often
        noise = torch.randn(clean.shape, **drawn)
        alpha = alphas[time_steps].view(b, 1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        text = text_encoder(torch.where(dropped, empty, ids[index].long()))[0]
        predicted = unet(noisy.to(text.dtype), time_steps, text.repeat_interleave(frames, dim=0)).sample
        return functional.mse_loss(predicted.float(), velocity)

    loop.run(loss, export=lambda current: export(pipe, current, out))
    return loop


def begin_with(pipe: AnimateDiffPipeline, other: AnimateDiffPipeline) -> None:
    """Take the weights of another pipeline; what has another shape, and words that it does not know, begin anew."""
    for name in ("vae", "unet"):
        own, given = getattr(pipe, name).state_dict(), getattr(other, name).state_dict()
        fitting = {key: part for key, part in given.items() if key in own and own[key].shape == part.shape}
        getattr(pipe, name).load_state_dict({**own, **fitting})
    state, name = other.text_encoder.state_dict(), "embeddings.token_embedding.weight"
    (name,) = (key for key in state if key.endswith(name))
    rows = pipe.text_encoder.state_dict()[name].clone()
    known, theirs = pipe.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    for word in known.keys() & theirs.keys():
        rows[known[word]] = state[name][theirs[word]]
    pipe.text_encoder.load_state_dict({**state, name: rows})


def export(pipe: AnimateDiffPipeline, loop: Loop, out: Path) -> None:
    """Save the pipeline with averaged weights, in half precision except the small text encoder, to out/model."""
    averaged = loop.averaged()
    parts = dict(pipe.components)
    parts["unet"], parts["vae"] = averaged["unet"].half(), copy.deepcopy(pipe.vae).half()
    parts["text_encoder"] = averaged["text_encoder"]
    fresh, final = out / ".model", out / "model"
    shutil.rmtree(fresh, ignore_errors=True)
    type(pipe)(**parts).save_pretrained(fresh, safe_serialization=True)
    for path in fresh.rglob("*.safetensors"):
        path.chmod(0o644)
    to_older_transformers(fresh)
    for path in fresh.rglob("config.json"):  # diffusers writes the folder a part was loaded from
        kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
        path.write_text(json.dumps(kept, indent=2) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)


def to_older_transformers(folder: Path) -> None:
    """Rewrite what transformers 5 saves in its own manner as every version reads it: CLIP's names and tokenizer."""
    from tokenizers import Tokenizer

    weights = folder / "text_encoder" / "model.safetensors"
    saved = load(weights.read_bytes())  # not mapped: the file is written anew
    named = {"text_model." + name.removeprefix("text_model."): part for name, part in saved.items()}
    save_file(named, weights, metadata={"format": "pt"})
    whole = folder / "tokenizer" / "tokenizer.json"
    if whole.is_file():
        Tokenizer.from_file(str(whole)).model.save(str(whole.parent))
        whole.unlink()


def work(rank: int, config: TrainingConfig, out: Path, port: int) -> None:
    """All stages, in one worker."""
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    # FlashAttention fills a tile of 128 with 16 frames: 1.24 times as long a step (H100); cuDNN fails at some shapes
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    if config.workers > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=config.workers)
    torch.manual_seed(config.seed)  # the same initial weights in every worker
    pipe = build_pipeline(config.form)
    if config.start:
        begin_with(pipe, load_pipeline(config.start))
    pipe.vae = train_vae(pipe.vae, config, out, rank)
    pipe.vae.requires_grad_(False)
    data = encode_latents(pipe.vae, pipe, config, out, rank)
    moments = _moments(data["latents"], config)
    fold_normalisation(pipe.vae, *(part.to(config.device) for part in moments))
    mean, deviation = (part.view(1, -1, 1, 1, 1) for part in moments)
    data["latents"] = ((data["latents"].float() - mean) / deviation).half()
    train_prior(pipe, data, config, out, rank)
    loop = train_unet(pipe, data, config, out, rank)
    if rank == 0:
        export(pipe, loop, out)
    if config.workers > 1:
        dist.destroy_process_group()


def _loop(
    name: str, modules: nn.ModuleDict, minutes: float, rate: float, config: TrainingConfig, out: Path, rank: int
) -> Loop:
    dtype = torch.bfloat16 if config.device == "cuda" else torch.float32
    return Loop(name, modules, minutes, rate, config.ema, out, rank, config.workers, config.device, dtype)


def _drawn(generator: torch.Generator, config: TrainingConfig) -> tuple[Scenes, Tensor]:
    """CHUNK random scenes of the training set, and their clips on the device."""
    scenes = sample_scenes(CHUNK, generator, frames=config.form.frames)
    return scenes, draw(scenes.to(config.device), config.form.size)


def _moments(latents: Tensor, config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent channel over all workers' clips."""
    values = latents.float().transpose(0, 1).flatten(1)
    sums = torch.stack([values.mean(1), values.square().mean(1)]) / config.workers
    if config.workers > 1:
        dist.all_reduce(sums)
    return sums[0], (sums[1] - sums[0].square()).sqrt()


def train(config: TrainingConfig, out: Path, resume: bool) -> Path:
    """Begin a training, or with `resume` go on with the one in `out`; returns the folder of the finished pipeline.

    Raises MotionPromptError where `out` holds a run with other settings, or without `resume` anything at all.
    """
    claim(out / "config.json", asdict(config), begun=None if resume else False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(work, (config, out, port), nprocs=config.workers)
    return out / "model"


def parser() -> argparse.ArgumentParser:
    """The command's options; every other setting is in TrainingConfig."""
    result = argparse.ArgumentParser(prog="python -m mp_hooks.lab.mini.train", description=__doc__)
    result.add_argument("--out", type=Path, required=True, help="folder of the run")
    result.add_argument("--resume", action="store_true", help="go on with the run in --out")
    result.add_argument("--start", metavar="FOLDER", help="begin with the weights of this pipeline, where they fit")
    result.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: needs --workers 1")
    numbers = ("minutes", "vae_minutes", "prior_minutes", "clips", "workers", "batch", "vae_batch", "seed", "rate")
    for name in (*numbers, "vae_rate"):
        default = getattr(TrainingConfig, name)
        result.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    return result


@exits_cleanly
def main(arguments: Iterable[str] | None = None) -> int:
    args = vars(parser().parse_args(arguments))
    out, resume = args.pop("out"), args.pop("resume")
    print(f"trained: {train(TrainingConfig(**args), out, resume)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

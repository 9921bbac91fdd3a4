"""Training a flow discriminator with Lightning: -[log phi(real) + log(1 - phi(fake))], about 20 epochs."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler, TensorDataset

from mp_hooks.discriminator.card import write_card
from mp_hooks.discriminator.data import (
    FlowData,
    FlowSettings,
    split_by_video,
)
from mp_hooks.discriminator.evaluation import (
    auc,
    balance,
    calibrate,
    gain,
    logits_of,
    right_by,
    score,
    trivial_floor,
    usefulness,
)
from mp_hooks.discriminator.model import DiscriminatorConfig, FlowDiscriminator
from mp_hooks.discriminator.shards import gather
from mp_hooks.files import replacing
from mp_hooks.processes import processes
from mp_hooks.runs import claim

FLOW_FOLDER, SETTINGS_FILE, REPORT_FILE = "flow", "train.json", "report.json"
CHECKPOINT = Path("checkpoints") / "last.ckpt"
WARM_UP = 0.1  # share of the steps over which the learning rate rises


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation; epochs after the paper, the rest our own choice by measurement (docs/discriminator.md)."""

    epochs: int = 20
    batch: int = 64
    learning_rate: float = 1e-3  # the highest: it rises to this, then falls to 0
    weight_decay: float = 0.05
    label_smoothing: float = 0.1  # phi aims at 0.1 and 0.9: a discriminator that is sure gives guidance no gradient
    noise: float = 0.1  # of a field's RMS, added while training
    turn: float = 0.0  # fields are turned by up to this many degrees either way
    zoom: float = 1.0  # and enlarged by up to this factor
    patience: int | None = None  # epochs without a better AUC on a fifth of the training clips, after which to stop
    precision: str = "32-true"  # Lightning's name: "bf16-mixed" and "16-mixed" for GPUs
    seed: int = 0


class Training(pl.LightningModule):
    """The discriminator with its loss, augmentation and schedule.

    Every epoch's order and every step's augmentation has its own seed, so that a resumed run does what an unbroken one
    does.
    """

    def __init__(self, model: FlowDiscriminator, config: TrainingConfig, train: FlowData, held_out: FlowData) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.examples = TensorDataset(train.flow, train.real, balance(train))
        self.held_out = held_out
        self.best: dict = {"auc": -1.0, "epoch": 0, "weights": {}}  # kept when there is patience to respect

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.examples, max(1, self.config.batch // self.trainer.world_size), sampler=EpochOrder(self))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        torch.manual_seed(self.config.seed + self.global_step * self.trainer.world_size + self.global_rank)
        flow, real, weight = batch
        flow = turn_and_zoom(flip(flow.float()), self.config.turn, self.config.zoom)
        logits = self.model(add_noise(flow, self.config.noise)).float()
        smoothed = real + self.config.label_smoothing * (1 - 2 * real)
        loss = F.binary_cross_entropy_with_logits(logits, smoothed, weight)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        logits = logits_of(self.model, self.held_out.flow.to(self.device)).cpu()
        area = auc(logits, self.held_out.real)
        self.log("held_out_auc", area, prog_bar=True)
        if self.config.patience and area > self.best["auc"]:
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.best = {"auc": area, "epoch": self.current_epoch, "weights": weights}
        if self.config.patience and self.current_epoch - self.best["epoch"] >= self.config.patience:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.best = checkpoint["best"]

    def configure_optimizers(self) -> dict:
        optimiser = torch.optim.AdamW(
            self.model.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        steps = self.trainer.estimated_stepping_batches

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / (WARM_UP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))

        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": LambdaLR(optimiser, rate), "interval": "step"}}


class EpochOrder(Sampler[int]):
    """A random order of the examples that depends on the seed and the epoch alone; processes take turns at it."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __iter__(self) -> Iterator[int]:
        trainer, count = self.training.trainer, len(self.training.examples)
        generator = torch.Generator().manual_seed(self.training.config.seed + self.training.current_epoch)
        order = torch.randperm(count, generator=generator).tolist()
        order += order[: len(self) * trainer.world_size - count]  # equal shares
        return iter(order[trainer.global_rank :: trainer.world_size])

    def __len__(self) -> int:
        return math.ceil(len(self.training.examples) / self.training.trainer.world_size)


def flip(flow: Tensor) -> Tensor:
    """Mirror each field of [b, 2, h, w] left-right and up-down with probability 1/2 each; the mirrored
    component changes sign, as the motion of the mirrored video does."""
    for component, axis in ((0, 3), (1, 2)):
        sign = torch.ones(2, 1, 1, device=flow.device)
        sign[component] = -1
        chosen = torch.rand(len(flow), 1, 1, 1, device=flow.device) < 0.5
        flow = torch.where(chosen, flow.flip(axis) * sign, flow)
    return flow


def turn_and_zoom(flow: Tensor, degrees: float, zoom: float) -> Tensor:
    """Turn each field of [b, 2, h, w] by up to `degrees` either way and enlarge it by 1 to `zoom`, and by what leaves
    no empty corner; the vectors turn and grow with it, as the motion of the turned and enlarged video does."""
    if degrees == 0 and zoom == 1:
        return flow
    angle = torch.deg2rad((2 * torch.rand(len(flow), device=flow.device) - 1) * degrees)
    factor = 1 + torch.rand_like(angle) * (zoom - 1)
    factor = factor * (angle.cos().abs() + angle.sin().abs())
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    sampled = F.pad(turn.transpose(1, 2) / factor[:, None, None], (0, 1))
    places = F.affine_grid(sampled, list(flow.shape), align_corners=False)
    moved = F.grid_sample(flow, places, padding_mode="border", align_corners=False)
    return torch.einsum("bij,bjhw->bihw", turn * factor[:, None, None], moved)


def add_noise(flow: Tensor, amount: float) -> Tensor:
    """Gaussian noise of 0 to `amount` times each field's RMS, the share drawn per field [b, 2, h, w]."""
    rms = flow.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return flow + torch.rand_like(rms) * amount * rms * torch.randn_like(flow)


def fit(
    data: FlowData,
    train: Sequence[int],
    held_out: Sequence[int],
    config: DiscriminatorConfig,
    training: TrainingConfig,
    folder: Path | None = None,
    pretrained: bool | str | Path = False,
) -> FlowDiscriminator:
    """Train on the clips `train` of `data`; returns the discriminator of the last epoch, in eval mode.

    With a `folder`, each epoch leaves a checkpoint there, from which the next call continues, and curves for
    TensorBoard where that is installed. The held-out clips are only watched: no epoch is chosen by them. With
    `patience`, a fifth of the training clips is watched in their place, and the best epoch by these is returned.
    Several `processes` train one discriminator.
    """
    watched = held_out
    if training.patience:
        mine, others = split_by_video([data.clips[i] for i in train], training.seed)
        train, watched = [train[i] for i in mine], [train[i] for i in others]
    examples = data.of_clips(train)
    with quiet_lightning():
        pl.seed_everything(training.seed, verbose=False)
        config = replace(config, scale=_rms(examples.flow[examples.real == 1]))
        module = Training(FlowDiscriminator(config, pretrained), training, examples, data.of_clips(watched))
        callbacks: list[pl.Callback] = [TQDMProgressBar(leave=folder is not None)]
        if folder is not None:
            path = folder / CHECKPOINT
            callbacks.append(ModelCheckpoint(path.parent, filename=path.stem, enable_version_counter=False))
        launched = processes()
        trainer = pl.Trainer(
            max_epochs=training.epochs,
            precision=training.precision,  # type: ignore[arg-type]
            accelerator="auto",
            devices=launched.local_world,
            num_nodes=launched.world // launched.local_world,
            strategy="ddp" if launched.world > 1 else "auto",
            use_distributed_sampler=False,  # EpochOrder is one
            logger=_tensorboard(folder),
            callbacks=callbacks,
            enable_checkpointing=folder is not None,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        checkpoint = folder / CHECKPOINT if folder is not None and (folder / CHECKPOINT).is_file() else None
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    if training.patience:
        module.model.load_state_dict(module.best["weights"])
    return module.model.cpu().float().eval().requires_grad_(False)


def train(
    real: str | Path,
    fake: str | Path,
    out: str | Path,
    config: DiscriminatorConfig,
    settings: FlowSettings,
    training: TrainingConfig,
    *,
    exclude: Sequence[str] = (),
    flow_weights: str | Path | None = None,
    pretrained: bool | str | Path = False,
    corrupted: str | Path | None = None,
    resume: bool = False,
) -> dict:
    """Train a discriminator from two folders of videos, or of their flow, into `out`; returns the report.

    `corrupted`: real videos with faults to be put in, as further generated ones, or the flow of such.
    Writes config.json and model.safetensors (the discriminator), README.md (its card), report.json, train.json
    (settings, versions), the flow and the checkpoints. Raises MotionPromptError for folders that cannot be used.
    """
    out = Path(out)
    run = {
        "discriminator": asdict(config),
        "flow": asdict(settings),
        "training": asdict(training),
        "exclude": list(exclude),
        "pretrained": str(pretrained),
        "corrupted": str(corrupted),
    }
    writes = processes().rank == 0
    if writes:
        claim(out / SETTINGS_FILE, run, begun=resume, may_change=["training.epochs"])
    data = gather(real, fake, out / FLOW_FOLDER, config.flow, settings, exclude, flow_weights, corrupted)
    train_clips, held_out_clips = split_by_video(data.clips, training.seed)
    model = fit(data, train_clips, held_out_clips, config, training, out, pretrained)
    seen, held_out = data.of_clips(train_clips), data.of_clips(held_out_clips)
    before = usefulness(model, held_out)
    temperature = calibrate(model, held_out)
    logits, floor = logits_of(model, held_out.flow), trivial_floor(seen, held_out)
    report = {
        "clips": {"train": len(train_clips), "held_out": len(held_out_clips)},
        "by_video": asdict(score(logits, held_out)),
        "by_video_floor": asdict(score(floor, held_out)),
        "by_video_scale_free_floor": asdict(score(trivial_floor(seen, held_out, scale_free=True), held_out)),
        "gain_by_video": asdict(gain([(logits, floor, held_out)])),
        "right_by_source": right_by([clip.source for clip in data.clips], logits, held_out),
        "uncalibrated": asdict(before),
        "temperature": temperature,
        "usefulness": asdict(usefulness(model, held_out)),
    }
    if writes:
        model.save_pretrained(out)
        with replacing(out / REPORT_FILE) as path:
            path.write_text(json.dumps(report, indent=2) + "\n")
        write_card(out, model.config, data, report)
    return report


def _tensorboard(folder: Path | None) -> TensorBoardLogger | bool:
    """A logger into folder/tensorboard, or False where there is no folder or no TensorBoard."""
    if folder is None:
        return False
    try:
        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError:
        return False


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice (workers, checkpoints, devices), none of which is for the user here."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _rms(flow: Tensor) -> float:
    """RMS of flow [n, 2, s, s] as a fraction of the frame's side."""
    return (flow.float().square().mean().sqrt() / flow.shape[-1]).item()

"""Training a flow discriminator with Lightning: -[log phi(real) + log(1 - phi(fake))], about 20 epochs."""

from __future__ import annotations

import json
import logging
import math
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler, TensorDataset
from tqdm import tqdm

from mp_hooks import __version__
from mp_hooks.discriminator.card import write_card
from mp_hooks.discriminator.data import (
    FlowData,
    FlowSettings,
    cached_flow,
    find_clips,
    split_by_video,
    splits_by_source,
)
from mp_hooks.discriminator.evaluation import (
    Score,
    auc,
    class_weights,
    judge,
    right_by,
    score,
    trivial_floor,
    usefulness,
)
from mp_hooks.discriminator.model import DiscriminatorConfig, FlowDiscriminator
from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing
from mp_hooks.flow import load_flow

FLOW_FILE, SETTINGS_FILE, REPORT_FILE = "flow.safetensors", "train.json", "report.json"
CHECKPOINT = Path("checkpoints") / "last.ckpt"
WARM_UP = 0.1  # share of the steps over which the learning rate rises


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation; epochs after the paper, the rest our own choice by measurement (docs/discriminator.md)."""

    epochs: int = 20
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1  # phi aims at 0.1 and 0.9: a judge that is sure gives guidance no gradient
    noise: float = 0.1  # of a field's RMS, added while training
    seed: int = 0


class Training(pl.LightningModule):
    """The judge with its loss, augmentation and schedule.

    Every epoch's order and every step's augmentation has its own seed, so that a resumed run does what an unbroken one
    does.
    """

    def __init__(self, model: FlowDiscriminator, config: TrainingConfig, train: FlowData, held_out: FlowData) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.examples = TensorDataset(train.flow, train.real, class_weights(train.real))
        self.held_out = held_out

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.examples, self.config.batch, sampler=EpochOrder(self))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        torch.manual_seed(self.config.seed + self.global_step)
        flow, real, weight = batch
        logits = self.model(add_noise(flip(flow.float()), self.config.noise))
        smoothed = real + self.config.label_smoothing * (1 - 2 * real)
        loss = F.binary_cross_entropy_with_logits(logits, smoothed, weight)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        logits = judge(self.model, self.held_out.flow.to(self.device)).cpu()
        self.log("held_out_auc", auc(logits, self.held_out.real), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimiser = torch.optim.AdamW(
            self.model.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        steps = self.trainer.estimated_stepping_batches

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / (WARM_UP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))

        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": LambdaLR(optimiser, rate), "interval": "step"}}


class EpochOrder(Sampler[int]):
    """A random order of the examples that depends on the seed and the epoch alone."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.training.config.seed + self.training.current_epoch)
        return iter(torch.randperm(len(self), generator=generator).tolist())

    def __len__(self) -> int:
        return len(self.training.examples)


def flip(flow: Tensor) -> Tensor:
    """Mirror each field of [b, 2, h, w] left-right and up-down with probability 1/2 each; the mirrored
    component changes sign, as the motion of the mirrored video does."""
    for component, axis in ((0, 3), (1, 2)):
        sign = torch.ones(2, 1, 1, device=flow.device)
        sign[component] = -1
        chosen = torch.rand(len(flow), 1, 1, 1, device=flow.device) < 0.5
        flow = torch.where(chosen, flow.flip(axis) * sign, flow)
    return flow


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
    """Train on the clips `train` of `data`; returns the judge of the last epoch, in eval mode.

    With a `folder`, each epoch leaves a checkpoint there, from which the next call continues. The held-out clips are
    only watched: no epoch is chosen by them.
    """
    examples = data.of_clips(train)
    with quiet_lightning():
        pl.seed_everything(training.seed, verbose=False)
        config = replace(config, scale=_rms(examples.flow[examples.real == 1]))
        module = Training(FlowDiscriminator(config, pretrained), training, examples, data.of_clips(held_out))
        callbacks: list[pl.Callback] = [TQDMProgressBar(leave=folder is not None)]
        if folder is not None:
            path = folder / CHECKPOINT
            callbacks.append(ModelCheckpoint(path.parent, filename=path.stem, enable_version_counter=False))
        trainer = pl.Trainer(
            max_epochs=training.epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=folder is not None,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        checkpoint = folder / CHECKPOINT if folder is not None and (folder / CHECKPOINT).is_file() else None
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
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
    by_source: bool = False,
    resume: bool = False,
) -> dict:
    """Train a judge from two folders of videos into `out`; returns the report.

    Writes config.json and model.safetensors (the judge), README.md (its card), report.json, train.json
    (settings, versions), the flow and the checkpoints. `by_source` also trains once for each generated source
    left out and reports the AUC on it. Raises MotionPromptError for folders that cannot be used.
    """
    out = Path(out)
    run = {
        "discriminator": asdict(config),
        "flow": asdict(settings),
        "training": asdict(training),
        "exclude": list(exclude),
        "pretrained": str(pretrained),
    }
    _claim(out, run, resume)
    clips = find_clips(real, fake, exclude)
    if by_source and not any(splits_by_source(clips)):
        raise MotionPromptError("a split by source needs two real and two generated sources; leave --by-source out")
    data = cached_flow(out / FLOW_FILE, clips, load_flow(config.flow, flow_weights), settings)
    train_clips, held_out_clips = split_by_video(data.clips, training.seed)
    model = fit(data, train_clips, held_out_clips, config, training, out, pretrained)
    model.save_pretrained(out)
    held_out = data.of_clips(held_out_clips)
    logits = judge(model, held_out.flow)
    report = {
        "clips": {"train": len(train_clips), "held_out": len(held_out_clips)},
        "by_video": asdict(score(logits, held_out)),
        "by_video_floor": asdict(score(trivial_floor(data.of_clips(train_clips), held_out), held_out)),
        "by_video_scale_free_floor": asdict(
            score(trivial_floor(data.of_clips(train_clips), held_out, scale_free=True), held_out)
        ),
        "right_by_source": right_by([clip.source for clip in data.clips], logits, held_out),
        "usefulness": asdict(usefulness(model, held_out)),
    }
    if by_source:
        report["by_source"], report["by_source_floor"] = {}, {}
        for name, judged, floor in leave_sources_out(data, config, training, pretrained):
            report["by_source"][name], report["by_source_floor"][name] = asdict(judged), asdict(floor)
    with replacing(out / REPORT_FILE) as path:
        path.write_text(json.dumps(report, indent=2) + "\n")
    write_card(out, model.config, data, report)
    return report


def leave_sources_out(
    data: FlowData, config: DiscriminatorConfig, training: TrainingConfig, pretrained: bool | str | Path = False
) -> Iterator[tuple[str, Score, Score]]:
    """(source, score of a judge, score of the trivial floor) for each generated source left out in turn."""
    for name, train_clips, held_out_clips in splits_by_source(data.clips):
        tqdm.write(f"training without {name}")
        model = fit(data, train_clips, held_out_clips, config, training, pretrained=pretrained)
        held_out = data.of_clips(held_out_clips)
        floor = trivial_floor(data.of_clips(train_clips), held_out)
        yield name, score(judge(model, held_out.flow), held_out), score(floor, held_out)


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


def _claim(out: Path, run: dict, resume: bool) -> None:
    """Make `out` this run's own: fresh, or begun with the same settings and now resumed."""
    path = out / SETTINGS_FILE
    if resume:
        if not path.is_file():
            raise MotionPromptError(f"nothing to resume in {out}: {SETTINGS_FILE} is missing; leave --resume out")
        before = json.loads(path.read_text())
        changed = [
            f"{part}.{name}" if isinstance(value, dict) else part
            for part, value in run.items()
            for name in (value if isinstance(value, dict) else [part])
            if (before.get(part, {}).get(name) != value[name] if isinstance(value, dict) else before.get(part) != value)
        ]
        changed = [name for name in changed if name != "training.epochs"]
        if changed:
            raise MotionPromptError(
                f"{out} was begun with other settings ({', '.join(changed)}); resume with the same, "
                "or train into an empty folder"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MotionPromptError(f"{out} is not an empty folder; pass --resume to continue the run in it, or another")
    versions = {"mp_hooks": __version__, "torch": torch.__version__, "pytorch_lightning": pl.__version__}
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps({**run, "versions": {**versions, "python": platform.python_version()}}, indent=2)
        )


def _rms(flow: Tensor) -> float:
    """RMS of flow [n, 2, s, s] as a fraction of the frame's side."""
    return (flow.float().square().mean().sqrt() / flow.shape[-1]).item()

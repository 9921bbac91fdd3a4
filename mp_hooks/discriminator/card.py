"""The model card a discriminator carries: what it saw, how well it does, what it must not be trusted with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mp_hooks.discriminator.data import Clip, FlowData
from mp_hooks.discriminator.model import DiscriminatorConfig
from mp_hooks.files import replacing

CARD_FILE = "README.md"


def write_card(folder: Path, config: DiscriminatorConfig, data: FlowData, report: dict) -> None:
    """Write README.md beside a discriminator, from its configuration, data and report."""
    useful = report["usefulness"]
    with replacing(folder / CARD_FILE) as path:
        path.write_text(
            f"""# Flow discriminator

Says how much an optical-flow field looks like that of real video: phi = sigmoid(logit). It serves
MotionPrompt guidance; it is not a detector of generated video.

- Backbone `{config.backbone}`, input {config.image_size}x{config.image_size}, flow normalisation `{config.normalise}`\
{", the logarithm of its slope too" if config.slope else ""}.
- Flow by `{config.flow}` between square frames of {config.flow_size} pixels, pairs 1 to {config.max_interval} frames
  apart at about {config.frame_rate:g} frames a second. Flow of another estimator or rate is unfamiliar to it.

## Data
{report["clips"]["train"]} clips in training, {report["clips"]["held_out"]} held out (whole groups of clips sharing a
prompt, pair or twin). Every clip was cut to its centre square, brought to a common size and rate, freed of black
borders and of pairs without motion.

| class | source | clips | licence |
|---|---|---|---|
{_sources(data)}
Where a licence allows research only, or is not stated, the discriminator trained on the clips is for research.

## Held-out results
AUC with its 95 % interval, bootstrapped over clips. "Regression" is a logistic regression on two trivial numbers, mean
flow and total variation; "scale-free" leaves it only their ratio, since a discriminator of `magnitude`
normalisation does not see how far things move. The sources held out are those trained on: `motionprompt discriminator
cross` tells how a discriminator trained like this does on others.

| split | AUC per flow field | AUC per clip | balanced accuracy |
|---|---|---|---|
| by video | {_score(report["by_video"])} |
| by video, regression | {_score(report["by_video_floor"])} |
| by video, scale-free regression | {_score(report["by_video_scale_free_floor"])} |

Against the regression on both numbers: held out by video {_gain(report["gain_by_video"])}.

The logits were divided by {report["temperature"]:.2f}, the temperature of least cross-entropy on the held-out clips:

| on held-out generated flow | before | after |
|---|---|---|
| median of phi [5 %, 95 %] | {_phi(report["uncalibrated"])} | {_phi(useful)} |
| median norm of the gradient of log(1 - phi), by the flow in units of its RMS | \
{report["uncalibrated"]["gradient"]:.2g} | {useful["gradient"]:.2g} |

## Limits
Few clips, and most real ones from one collection: content and camera work of that collection are part of what it
learned. Generated clips come from the sources above only. It looks at motion between two frames, not appearance, and
fields, not clips. A high phi does not mean that a video is real or good.
"""
        )


def _sources(data: FlowData) -> str:
    counts = Counter((_kind(clip), clip.source, clip.licence) for clip in data.clips)
    return "".join(
        f"| {kind} | {source} | {count} | {licence} |\n" for (kind, source, licence), count in sorted(counts.items())
    )


def _kind(clip: Clip) -> str:
    return "corrupted" if clip.corrupted else "real" if clip.real else "generated"


def _gain(gain: dict) -> str:
    return f"AUC {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def _phi(useful: dict) -> str:
    return f"{useful['phi_50']:.2f} [{useful['phi_05']:.2f}, {useful['phi_95']:.2f}]"


def _score(score: dict) -> str:
    return (
        f"{score['auc']:.3f} [{score['low']:.3f}, {score['high']:.3f}] | "
        f"{score['clip_auc']:.3f} [{score['clip_low']:.3f}, {score['clip_high']:.3f}] | {score['accuracy']:.3f}"
    )

"""Draws the README's clips: python scripts/teaser.py [OUT.webp]. The embedded mini model on the CPU, five minutes.

Of 12 prompts the three whose plain clips look least real to the discriminator, and the median one: chosen before
anything is guided.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mp_hooks import motionprompt
from mp_hooks.discriminator import FlowDiscriminator
from mp_hooks.files import replacing
from mp_hooks.flow import load_flow
from mp_hooks.lab import mini
from mp_hooks.lab.experiments.paired import Experiment
from mp_hooks.lab.metrics import clip_logits, neighbouring_flow, temporal_flickering
from mp_hooks.lab.mini.model import DISCRIMINATOR
from mp_hooks.lab.report.pictures import side_by_side
from mp_hooks.video import as_frames

OUT = Path(__file__).parents[1] / "docs/teaser.webp"
PROMPTS, WORST = 12, 3
ENLARGED = 2  # times the clips' 128 pixels
GAP, HEAD, FOOT = 28, 40, 104  # between pairs, above and below, in pixels
SLOWER = 2  # than the clips are


def main(out: Path) -> None:
    """Sample, choose, guide, draw."""
    experiment = Experiment(
        model=str(mini.PACKAGED),
        seed=0,
        prompts=PROMPTS,
        seeds=1,
        flow="pyramid",
        flow_weights=None,
        guidance=mini.guidance(),
    )
    prompts, _, seeds = zip(*experiment.clips(), strict=True)
    pipe = mini.load_pipeline()
    plain = [as_frames(video) for video in mini.sample(prompts, seeds, pipe=pipe)]
    estimator, discriminator = load_flow("pyramid"), FlowDiscriminator.from_pretrained(DISCRIMINATOR)

    def logits(clips: Sequence[Tensor]) -> list[float]:
        videos = torch.stack(list(clips)).transpose(1, 2).float() / 127.5 - 1
        return clip_logits(videos, discriminator, estimator).tolist()

    plausible = logits(plain)
    in_order = sorted(range(PROMPTS), key=lambda clip: plausible[clip])
    chosen = [*in_order[:WORST], in_order[PROMPTS // 2]]
    with motionprompt(pipe, mini.guidance()):
        videos = mini.sample([prompts[clip] for clip in chosen], [seeds[clip] for clip in chosen], pipe=pipe)
    pairs = []
    for clip, video in zip(chosen, videos, strict=True):
        both = [plain[clip], as_frames(video)]
        pairs.append(side_by_side(both, [neighbouring_flow(frames, estimator) for frames in both]))
        flickering = " -> ".join(f"{temporal_flickering(frames):.4f}" for frames in both)
        print(f"{prompts[clip]}: flickering {flickering}, logit {' -> '.join(f'{x:+.2f}' for x in logits(both))}")
    first, *rest = [draw(frames, [prompts[clip] for clip in chosen]) for frames in zip(*pairs, strict=True)]
    with replacing(out) as path:
        first.save(
            path,
            save_all=True,
            append_images=rest,
            duration=round(SLOWER * 1000 / mini.FRAME_RATE),
            loop=0,
            quality=80,
            method=6,
        )
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {first.width}x{first.height}")


def draw(pairs: Sequence[Tensor], prompts: Sequence[str]) -> Image.Image:
    """One frame: pairs in a row, uint8 [3, h, w] each, with `plain` and `guided` above and the prompt below."""
    height, width = (ENLARGED * side for side in pairs[0].shape[1:])
    picture = Image.new("RGB", (len(pairs) * (width + GAP) - GAP, HEAD + height + FOOT), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(23)
    for number, (pair, prompt) in enumerate(zip(pairs, prompts, strict=True)):
        left = number * (width + GAP)
        image = Image.fromarray(pair.permute(1, 2, 0).numpy())
        picture.paste(image.resize((width, height), Image.Resampling.BILINEAR), (left, HEAD))
        for at, label in ((0.25, "plain"), (0.75, "guided")):
            pen.text((left + at * width, HEAD / 2), label, "black", font, anchor="mm")
        words = textwrap.fill(prompt, 32)
        pen.multiline_text((left + width / 2, HEAD + height + FOOT / 2), words, "#555555", font, "mm", align="center")
    return picture


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)

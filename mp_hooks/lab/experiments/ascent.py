"""What a discriminator asks for, drawn: generated flow before and after steps along the gradient of its logit."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mp_hooks.discriminator.data import FlowData
from mp_hooks.discriminator.evaluation import ascent, step_along
from mp_hooks.discriminator.model import FlowDiscriminator
from mp_hooks.files import replacing
from mp_hooks.flow.drawing import draw_flow

COLUMNS, STEPS, SHARE, SIDE = 6, 10, 0.03, 128


def draw_ascent(model: FlowDiscriminator, data: FlowData, path: Path) -> list[tuple[float, float]]:
    """Generated fields of up to six sources: before, after ten steps of 3 % of their RMS, and the change.

    Writes the picture, three rows, colours scaled to the field before, and in the last to the change itself; returns
    the logits before and after.
    """
    first: dict[str, int] = {}
    for place, number in enumerate(data.clip.tolist()):
        if not data.clips[number].real:
            first.setdefault(data.clips[number].source, place)
    places = list(first.values())
    before = data.flow[places[:: max(1, len(places) // COLUMNS)][:COLUMNS]].float()
    after, logits = before, []
    for _ in range(STEPS):
        values, gradient = ascent(model, after)
        logits.append(values)
        after = after + step_along(gradient, before, SHARE)
    logits.append(ascent(model, after)[0])
    change = after - before
    rows = [_row(fields, scale) for fields, scale in ((before, before), (after, before), (change, change))]
    with replacing(path) as temporary:
        Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(temporary, format="PNG")
    return list(zip(logits[0].tolist(), logits[-1].tolist(), strict=True))


def _row(fields: Tensor, scale: Tensor) -> Tensor:
    """Fields [b, 2, s, s] side by side in colour, uint8 [3, SIDE, b * SIDE], full colour at the longest of `scale`."""
    pictures = [
        draw_flow(field[None], own.norm(dim=0).max().item())[0] for field, own in zip(fields, scale, strict=True)
    ]
    large = F.interpolate(torch.stack(pictures).float(), (SIDE, SIDE), mode="bilinear").round().byte()
    return torch.cat(list(large), dim=2)

"""Procedurally drawn, captioned clips: one moving shape on a background, with or without temporal faults.

A `Scenes` holds every random decision of a batch of clips, so drawing and captioning are pure functions of it and the
same scene can be drawn with its faults or without them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

FRAMES = 8
SIZE = 64
FRAME_RATE = 8  # frames a second at which clips are shown and measured

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.10),
    "yellow": (0.92, 0.82, 0.10),
    "green": (0.15, 0.75, 0.20),
    "cyan": (0.10, 0.80, 0.85),
    "blue": (0.15, 0.28, 0.95),
    "purple": (0.70, 0.15, 0.85),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS: dict[str, tuple[int, int]] = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
SPEEDS: dict[str, tuple[float, float]] = {"slow": (1.4, 2.0), "fast": (2.6, 3.4)}  # pixels per frame
BACKGROUNDS = ("plain", "dark", "gradient", "textured")
BACKGROUND_SHARES = (0.15, 0.15, 0.20, 0.50)
FAULTS = {"jitter": "shaky", "flicker": "flickering", "pop": "glitchy"}  # the fault and the word that may name it
STEADY = "steady"  # the word that may name a clip without faults
TOKEN_WORD = "authentic"

FAULT_SHARE = 0.45
FAULT_WORD_SHARE = 0.6
STEADY_WORD_SHARE = 0.5
TOKEN_WORD_SHARE = 0.3
PAN_SHARE = 0.4  # of the textured backgrounds
WAVES = 2  # sinusoids that make up a textured background

_TEMPLATE_WORDS = ("a", "an", "moving", "on", "background", "camera", "pans")
VOCABULARY: tuple[str, ...] = (
    TOKEN_WORD,
    STEADY,
    *FAULTS.values(),
    *SPEEDS,
    *COLOURS,
    *SHAPES,
    *DIRECTIONS,
    *BACKGROUNDS,
    *_TEMPLATE_WORDS,
)


@dataclass
class Scenes:
    """All random decisions of n clips of t frames; lengths in pixels, brightness in [0, 1], images y down.

    Integer tensors [n]: colour, shape, direction, speed, background (indices into the tables above) and pan (-1 left,
    0, 1 right). The faults are offsets from the ideal clip: `shake` [n, t, 2] pixels, `gain` [n, t] brightness factor,
    `opacity` and `scale` [n, t] of the object; `faults` [n, 3] says which kinds are present. The remaining booleans and
    numbers say which optional words the caption holds.
    """

    colour: Tensor
    shape: Tensor
    direction: Tensor
    speed: Tensor
    background: Tensor
    pan: Tensor
    radius: Tensor
    path: Tensor  # [n, t, 2] ideal centre (x, y)
    tint: Tensor  # [n, 2, 3] the background's two colours
    waves: Tensor  # [n, WAVES, 4] wave vector x, y (radians per pixel), phase, amplitude
    shift: Tensor  # [n, t] movement of the background, pixels
    texture: Tensor  # [n, 4] the object's texture: wave vector x, y, phase, amplitude
    faults: Tensor
    shake: Tensor
    gain: Tensor
    opacity: Tensor
    scale: Tensor
    words: Tensor  # [n, 6] booleans: token word, quality word, speed, background, camera, article

    def __len__(self) -> int:
        return len(self.colour)

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def attributes(self) -> list[tuple[str, str, str]]:
        """(colour, shape, direction) of every clip, in words."""
        colours, directions = list(COLOURS), list(DIRECTIONS)
        return [
            (colours[c], SHAPES[s], directions[d])
            for c, s, d in zip(self.colour.tolist(), self.shape.tolist(), self.direction.tolist(), strict=True)
        ]

    def without_faults(self) -> Scenes:
        """The same scenes as they would be drawn without jitter, flicker and popping."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        parts["faults"] = torch.zeros_like(self.faults)
        parts["shake"] = torch.zeros_like(self.shake)
        for name in ("gain", "opacity", "scale"):
            parts[name] = torch.ones_like(parts[name])
        return Scenes(**parts)


def is_held_out(colour: Tensor, shape: Tensor, direction: Tensor) -> Tensor:
    """Whether a combination is kept from training: 12 of the 96; every word still occurs in the other 84."""
    return (colour + 2 * shape + 3 * direction) % 8 == 0


def sample_scenes(
    n: int,
    generator: torch.Generator,
    fault_share: float = FAULT_SHARE,
    held_out: bool | None = False,
    frames: int = FRAMES,
    size: int = SIZE,
) -> Scenes:
    """Draw n random scenes. held_out: False = training combinations only, True = the held-out ones, None = all."""

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    def chance(share: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) < share

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    grid = torch.cartesian_prod(torch.arange(len(COLOURS)), torch.arange(len(SHAPES)), torch.arange(len(DIRECTIONS)))
    if held_out is not None:
        grid = grid[is_held_out(*grid.unbind(1)) == held_out]
    colour, shape, direction = grid[integers(len(grid), n)].unbind(1)

    speed = integers(len(SPEEDS), n)
    ranges = torch.tensor(list(SPEEDS.values()))[speed]
    pace = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * uniform(n)
    radius = uniform(n, low=8.0, high=10.5)
    step = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)[direction] * pace[:, None]
    time = torch.arange(frames) - (frames - 1) / 2
    # Across its motion the object lies anywhere inside the picture; along it, it starts near the side it comes from.
    # Without that the direction would hardly change a clip's mean, and a small model would not learn the word.
    margin = 1.3 * radius[:, None]
    across = margin + (size - 1 - 2 * margin) * uniform(n, 2)
    start = margin + uniform(n, 2, high=6.0)
    middle = torch.where(step > 0, start, size - 1 - start) + step * (frames - 1) / 2
    path = torch.where(step == 0, across, middle)[:, None] + step[:, None] * time[None, :, None]

    background = torch.multinomial(torch.tensor(BACKGROUND_SHARES), n, replacement=True, generator=generator)
    dark = (background == BACKGROUNDS.index("dark"))[:, None, None]
    level = uniform(n, 2, 1, low=0.30, high=0.80)
    hue = uniform(n, 2, 3, low=-0.04, high=0.04)
    tint = torch.where(dark, 0.04 + 0.12 * (level - 0.3), level) + torch.where(dark, 0.3 * hue, hue)
    textured = background == BACKGROUNDS.index("textured")
    angle, length = uniform(n, WAVES, high=math.pi), uniform(n, WAVES, low=16.0, high=28.0)
    waves = torch.stack(
        [
            2 * math.pi / length * angle.cos(),
            2 * math.pi / length * angle.sin(),
            uniform(n, WAVES, high=2 * math.pi),
            uniform(n, WAVES, low=0.06, high=0.14) * textured[:, None],
        ],
        dim=-1,
    )
    pan = torch.where(textured & chance(PAN_SHARE, n), 2 * integers(2, n) - 1, torch.zeros(n, dtype=torch.long))
    # The camera panning right moves the background left.
    shift = -(pan * uniform(n, low=1.0, high=2.0))[:, None] * time

    angle, length = uniform(n, high=math.pi), uniform(n, low=8.0, high=13.0)
    texture = torch.stack(
        [
            2 * math.pi / length * angle.cos(),
            2 * math.pi / length * angle.sin(),
            uniform(n, high=2 * math.pi),
            0.28 * chance(0.8, n),
        ],
        dim=-1,
    )

    faulty = chance(fault_share, n)
    first = integers(len(FAULTS), n)
    faults = (torch.nn.functional.one_hot(first, len(FAULTS)).bool() | chance(0.2, n, len(FAULTS))) & faulty[:, None]
    jitter, flicker, pop = faults.unbind(1)
    noise = torch.randn(n, frames, 2, generator=generator).clamp(-2, 2)
    shake = noise * (uniform(n, low=1.2, high=2.4) * jitter)[:, None, None]
    gain = 1 + uniform(n, frames, low=-1, high=1) * (uniform(n, low=0.2, high=0.4) * flicker)[:, None]
    popped = torch.zeros(n, frames, dtype=torch.bool)
    popped[torch.arange(n), 1 + integers(frames - 2, n)] = True
    popped = (popped | chance(0.08, n, frames)) & pop[:, None]
    vanish = chance(0.5, n)[:, None]
    opacity = torch.where(popped & vanish, uniform(n, frames, high=0.3), torch.ones(n, frames))
    scale = torch.where(popped & ~vanish, 1 + (2 * integers(2, n, frames) - 1) * 0.35, torch.ones(n, frames))

    quality = torch.where(faulty, chance(FAULT_WORD_SHARE, n), chance(STEADY_WORD_SHARE, n))
    words = torch.stack(
        [chance(TOKEN_WORD_SHARE, n), quality, chance(0.7, n), chance(0.7, n), chance(0.8, n), chance(0.5, n)], dim=1
    )
    return Scenes(
        colour=colour,
        shape=shape,
        direction=direction,
        speed=speed,
        background=background,
        pan=pan,
        radius=radius,
        path=path,
        tint=tint,
        waves=waves,
        shift=shift,
        texture=texture,
        faults=faults,
        shake=shake,
        gain=gain,
        opacity=opacity,
        scale=scale,
        words=words,
    )


def shape_distance(x: Tensor, y: Tensor, shape: Tensor, radius: Tensor) -> Tensor:
    """Signed distance (pixels, negative inside) to the shape of the area of a circle of `radius`, centred at 0."""
    ax, ay = x.abs(), y.abs()
    side = radius * math.sqrt(math.pi) / 2
    inner = radius * math.sqrt(math.pi / (3 * math.sqrt(3)))
    arm = radius * 1.166
    distances = (
        (x.square() + y.square()).sqrt() - radius,
        torch.maximum(ax, ay) - side,
        torch.maximum(y - inner, ax * (math.sqrt(3) / 2) - y / 2 - inner),
        torch.minimum(torch.maximum(ax - arm, ay - 0.35 * arm), torch.maximum(ax - 0.35 * arm, ay - arm)),
    )
    result = distances[0]
    for index in range(1, len(SHAPES)):
        result = torch.where(shape == index, distances[index], result)
    return result


def draw(scenes: Scenes, size: int = SIZE) -> Tensor:
    """Draw the scenes, anti-aliased: videos [n, 3, t, size, size] in [-1, 1]."""
    n, t = scenes.gain.shape
    axis = torch.arange(size, dtype=torch.float32)
    x, y = axis[None, None, None, :], axis[None, None, :, None]  # against [n, t, h, w]

    phase = scenes.waves.unbind(-1)
    moved = x - scenes.shift[:, :, None, None]
    relief = torch.zeros(n, t, size, size)
    lively = scenes.waves[:, 0, 3] != 0
    for k in range(WAVES):
        wx, wy, offset, amplitude = (part[lively, k, None, None, None] for part in phase)
        relief[lively] += amplitude * torch.sin(wx * moved[lively] + wy * y + offset)
    gradient = (scenes.background == BACKGROUNDS.index("gradient"))[:, None, None, None]
    blend = torch.where(gradient, ((x + y) / (2 * size - 2)).expand(n, t, size, size), torch.zeros(()))
    low, high = scenes.tint[:, 0, :, None, None, None], scenes.tint[:, 1, :, None, None, None]
    ground = low + (high - low) * blend[:, None] + relief[:, None]

    centre = scenes.path + scenes.shake
    dx, dy = x - centre[:, :, 0, None, None], y - centre[:, :, 1, None, None]
    radius = (scenes.radius[:, None] * scenes.scale)[:, :, None, None]
    distance = shape_distance(dx, dy, scenes.shape[:, None, None, None], radius)
    alpha = ((0.5 - distance).clamp(0, 1) * scenes.opacity[:, :, None, None])[:, None]
    wx, wy, offset, amplitude = (part[:, None, None, None] for part in scenes.texture.unbind(-1))
    # The texture lives in the object's own frame, so it moves with it.
    light = 0.9 + amplitude * torch.sin(wx * dx + wy * dy + offset)
    colour = torch.tensor(list(COLOURS.values()))[scenes.colour][:, :, None, None, None]
    picture = ground + alpha * (colour * light[:, None] - ground)
    return (picture * scenes.gain[:, None, :, None, None]).clamp(0, 1) * 2 - 1


def captions(scenes: Scenes) -> list[str]:
    """One caption a clip. Colour, shape and direction are always named, everything else only sometimes."""
    colours, directions, speeds, fault_words = list(COLOURS), list(DIRECTIONS), list(SPEEDS), list(FAULTS.values())
    result = []
    for i in range(len(scenes)):
        token, quality, speed, ground, camera, article = scenes.words[i].tolist()
        words = [TOKEN_WORD] if token else []
        named = [word for word, present in zip(fault_words, scenes.faults[i].tolist(), strict=True) if present]
        words += (named[:1] or [STEADY]) if quality else []
        words += [speeds[scenes.speed[i]]] if speed else []
        words += [colours[scenes.colour[i]], SHAPES[scenes.shape[i]], "moving", directions[scenes.direction[i]]]
        words += ["on", "a", BACKGROUNDS[scenes.background[i]], "background"] if ground else []
        words += ["camera", "pans", "right" if scenes.pan[i] > 0 else "left"] if camera and scenes.pan[i] else []
        words = [*(["an" if words[0][0] in "aeiou" else "a"] if article else []), *words]
        result.append(" ".join(words))
    return result


def clean_clips(n: int, seed: int, held_out: bool | None = None) -> tuple[Tensor, list[str]]:
    """n clips without faults [n, 3, t, h, w] in [-1, 1] and their captions: the real class of the discriminator."""
    scenes = sample_scenes(n, torch.Generator().manual_seed(seed), fault_share=0.0, held_out=held_out)
    return draw(scenes), captions(scenes)

"""Procedurally drawn, captioned clips of a world full of flow, with or without temporal faults, and their true flow.

A textured shape moves, turns, bends and comes nearer or goes, in front of a textured background that a moving camera
sees, and behind a bar that stands before it. Everything carries texture, so that flow is defined everywhere.

A `Scenes` holds every random decision of a batch of clips, so drawing and captioning are pure functions of it and the
same scene can be drawn with its faults or without them. Lengths are pixels of a frame of `SIDE` and times frames of a
clip of `SPAN`, whatever the size drawn: a clip of twice as many of both shows the same scene more finely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

SIDE, SPAN = 64, 8  # scenes are told in pixels of frames of this side, and in frames of clips this long
SIZE, FRAMES = 128, 16  # of the clips drawn
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
BACKGROUNDS: dict[str, tuple[float, float]] = {  # each wave's amplitude
    "plain": (0.04, 0.07),
    "dark": (0.04, 0.07),
    "gradient": (0.05, 0.09),
    "textured": (0.08, 0.14),
}
# The fault and the word that may name it: the object shakes, the light flickers, surfaces are warped anew in each
# frame, their texture changes under them, the object's texture slides over it.
FAULTS = {"jitter": "shaky", "flicker": "flickering", "morph": "melting", "boil": "boiling", "slide": "sliding"}
BENDING = ("morph", "boil", "slide")  # those that show in the flow of two frames
STEADY = "steady"  # the word that may name a clip without faults
TOKEN_WORD = "authentic"

FAULT_SHARE = 0.45
FAULT_WORD_SHARE = 0.6
STEADY_WORD_SHARE = 0.5
TOKEN_WORD_SHARE = 0.3
PAN_SHARE = 0.5
TURN_SHARE, NEARING_SHARE, BEND_SHARE, BAR_SHARE, CAMERA_SHARE = 0.6, 0.4, 0.3, 0.3, 0.5
WAVES = 3  # sinusoids that make up a texture

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
    """All random decisions of n clips of t frames; brightness in [0, 1], angles in radians, images y down.

    Integer tensors [n]: colour, shape, direction, speed, background (indices into the tables above) and pan (-1 left,
    0, 1 right). Textures are waves (wave vector x, y, phase, amplitude). Poses say where a layer is in each frame:
    centre x, y, logarithm of its size, angle. The faults are offsets from the ideal clip; `faults` [n, 5] says which
    kinds are present. `words` says which optional words the caption holds.
    """

    colour: Tensor
    shape: Tensor
    direction: Tensor
    speed: Tensor
    background: Tensor
    pan: Tensor
    radius: Tensor
    pose: Tensor  # [n, t, 4] of the object
    bend: Tensor  # [n, t] of the object: its y moves by bend * x^2
    texture: Tensor  # [n, WAVES, 4] of the object, in its own frame
    tint: Tensor  # [n, 2, 3] the background's two colours
    waves: Tensor  # [n, WAVES, 4] of the background
    camera: Tensor  # [n, t, 4] pose of the background
    bar: Tensor  # [n, 4] the bar in the background's frame: normal x, y, place along it, half its width; 0: none
    faults: Tensor
    shake: Tensor  # [n, t, 2] of the object
    gain: Tensor  # [n, t] of the light
    morph: Tensor  # [n, t, 2, 2] by which object and background are warped, x and y
    folds: Tensor  # [n, 2, 3] waves of that warp, for x and y: wave vector x, y, phase
    boil: Tensor  # [n, t, 2, WAVES] change of the phases of the object's and the background's texture
    slide: Tensor  # [n, t, 2] of the object's texture
    words: Tensor  # [n, 6] booleans: token word, quality word, speed, background, camera, article

    def __len__(self) -> int:
        return len(self.colour)

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Scenes:
        """The scenes on a device, where they are then drawn."""
        return Scenes(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def path(self) -> Tensor:
        """Ideal centre (x, y) of the object in each frame, [n, t, 2]."""
        return self.pose[..., :2]

    def attributes(self) -> list[tuple[str, str, str]]:
        """(colour, shape, direction) of every clip, in words."""
        colours, directions = list(COLOURS), list(DIRECTIONS)
        return [
            (colours[c], SHAPES[s], directions[d])
            for c, s, d in zip(self.colour.tolist(), self.shape.tolist(), self.direction.tolist(), strict=True)
        ]

    def that_bend(self) -> Scenes:
        """Those of the scenes with a fault that shows in the flow of two frames."""
        return self[self.faults[:, [list(FAULTS).index(name) for name in BENDING]].any(1)]

    def without_faults(self) -> Scenes:
        """The same scenes as they would be drawn without faults."""
        offsets = {name: torch.zeros_like(getattr(self, name)) for name in ("shake", "morph", "boil", "slide")}
        return replace(self, faults=torch.zeros_like(self.faults), gain=torch.ones_like(self.gain), **offsets)


def is_held_out(colour: Tensor, shape: Tensor, direction: Tensor) -> Tensor:
    """Whether a combination is kept from training: 12 of the 96; every word still occurs in the other 84."""
    return (colour + 2 * shape + 3 * direction) % 8 == 0


def sample_scenes(
    n: int,
    generator: torch.Generator,
    fault_share: float = FAULT_SHARE,
    held_out: bool | None = False,
    frames: int = FRAMES,
) -> Scenes:
    """Draw n random scenes. held_out: False = training combinations only, True = the held-out ones, None = all."""

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    def chance(share: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) < share

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).clamp(-2, 2)

    def waves(count: int, low: float, high: float, amplitude: Tensor) -> Tensor:
        """Waves in directions well apart, so that the texture has slope every way. amplitude [n, count]."""
        angle = math.pi * (torch.arange(count) / count + uniform(n, count, high=0.6 / count)) + uniform(n, 1, high=7)
        number = 2 * math.pi / uniform(n, count, low=low, high=high)
        phase = uniform(n, count, high=2 * math.pi)
        return torch.stack([number * angle.cos(), number * angle.sin(), phase, amplitude], dim=-1)

    grid = torch.cartesian_prod(torch.arange(len(COLOURS)), torch.arange(len(SHAPES)), torch.arange(len(DIRECTIONS)))
    if held_out is not None:
        grid = grid[is_held_out(*grid.unbind(1)) == held_out]
    colour, shape, direction = grid[integers(len(grid), n)].unbind(1)

    speed = integers(len(SPEEDS), n)
    ranges = torch.tensor(list(SPEEDS.values()))[speed]
    pace = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * uniform(n)
    radius = uniform(n, low=9.0, high=11.5)
    step = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)[direction] * pace[:, None]
    span = SPAN - 1
    time = torch.linspace(-span / 2, span / 2, frames)
    # Across its motion the object lies anywhere inside the picture; along it, it starts near the side it comes from.
    # Without that the direction would hardly change a clip's mean, and a small model would not learn the word.
    margin = 1.25 * radius[:, None]
    across = margin + (SIDE - 1 - 2 * margin) * uniform(n, 2)
    start = margin + uniform(n, 2, high=6.0)
    middle = torch.where(step > 0, start, SIDE - 1 - start) + step * span / 2
    path = torch.where(step == 0, across, middle)[:, None] + step[:, None] * time[None, :, None]
    turning = uniform(n, low=-0.14, high=0.14) * chance(TURN_SHARE, n)
    nearing = uniform(n, low=-0.035, high=0.035) * chance(NEARING_SHARE, n)
    angle = uniform(n, low=-0.25, high=0.25)[:, None] + turning[:, None] * time
    pose = torch.cat([path, (nearing[:, None] * time)[..., None], angle[..., None]], dim=-1)
    bend = (uniform(n, low=-0.004, high=0.004) * chance(BEND_SHARE, n))[:, None] * time
    texture = waves(WAVES, 9.0, 14.0, uniform(n, WAVES, low=0.10, high=0.18))

    background = torch.multinomial(torch.ones(len(BACKGROUNDS)), n, replacement=True, generator=generator)
    dark = (background == list(BACKGROUNDS).index("dark"))[:, None, None]
    level = uniform(n, 2, 1, low=0.35, high=0.75)
    hue = uniform(n, 2, 3, low=-0.04, high=0.04)
    tint = torch.where(dark, 0.12 + 0.12 * (level - 0.3), level) + torch.where(dark, 0.3 * hue, hue)
    least, most = torch.tensor(list(BACKGROUNDS.values()))[background].unbind(1)
    ground = waves(WAVES, 18.0, 34.0, least[:, None] + (most - least)[:, None] * uniform(n, WAVES))
    pan = torch.where(chance(PAN_SHARE, n), 2 * integers(2, n) - 1, torch.zeros(n, dtype=torch.long))
    # The camera panning right moves the background left.
    moving = chance(CAMERA_SHARE, n)
    rates = torch.stack(
        [
            -(pan * uniform(n, low=1.0, high=2.0)),
            uniform(n, low=-0.8, high=0.8) * moving,
            uniform(n, low=-0.012, high=0.012) * moving,
            uniform(n, low=-0.015, high=0.015) * moving,
        ],
        dim=-1,
    )
    camera = rates[:, None] * time[None, :, None]
    camera[..., :2] += (SIDE - 1) / 2
    normals = torch.stack([step[:, 0] != 0, step[:, 1] != 0], dim=-1).float()  # across the object's way
    place = ((path.mean(1) - (SIDE - 1) / 2) * normals).sum(1) + uniform(n, low=-8.0, high=8.0)
    half = uniform(n, low=1.8, high=3.0) * chance(BAR_SHARE, n)
    bar = torch.cat([normals, place[:, None], half[:, None]], dim=1)

    faulty = chance(fault_share, n)
    first = integers(len(FAULTS), n)
    faults = (torch.nn.functional.one_hot(first, len(FAULTS)).bool() | chance(0.2, n, len(FAULTS))) & faulty[:, None]
    jitter, flicker, morphing, boiling, sliding = faults.unbind(1)
    shake = normal(n, frames, 2) * (uniform(n, low=1.2, high=2.4) * jitter)[:, None, None]
    gain = 1 + uniform(n, frames, low=-1, high=1) * (uniform(n, low=0.2, high=0.4) * flicker)[:, None]
    strength = torch.stack([uniform(n, low=1.2, high=2.4), uniform(n, low=0.8, high=1.8) * chance(0.6, n)], dim=-1)
    morph = normal(n, frames, 2, 2) * (strength * morphing[:, None])[:, None, :, None]
    folds = waves(2, 14.0, 22.0, torch.zeros(n, 2))[..., :3]
    surfaces = torch.stack([torch.ones(n), chance(0.6, n).float()], dim=-1)
    boil = normal(n, frames, 2, WAVES).cumsum(1) * (uniform(n, low=0.5, high=0.9) * boiling)[:, None, None, None]
    boil = boil * surfaces[:, None, :, None]
    way = uniform(n, high=2 * math.pi)
    drift = torch.stack([way.cos(), way.sin()], dim=-1) * (uniform(n, low=1.0, high=2.0) * sliding)[:, None]
    slide = drift[:, None] * time[None, :, None]

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
        pose=pose,
        bend=bend,
        texture=texture,
        tint=tint,
        waves=ground,
        camera=camera,
        bar=bar,
        faults=faults,
        shake=shake,
        gain=gain,
        morph=morph,
        folds=folds,
        boil=boil,
        slide=slide,
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
    """Draw the scenes, anti-aliased, on their device: videos [n, 3, t, size, size] in [-1, 1]."""
    places = _places(size, scenes.pose)
    behind = _into(places, scenes.camera)
    ground = behind + _folds(scenes, behind, 1)
    blend = (places.sum(2) / (2 * SIDE - 2))[:, None].expand(-1, 3, *scenes.gain.shape[1:], -1, -1)
    gradient = (scenes.background == list(BACKGROUNDS).index("gradient")).view(-1, 1, 1, 1, 1)
    low, high = (scenes.tint[:, side, :, None, None, None] for side in (0, 1))
    relief = _texture(ground, scenes.waves, scenes.boil[:, :, 1])
    picture = low + (high - low) * torch.where(gradient, blend, 0 * blend) + relief[:, None]

    own = _unbent(_into(places, scenes.pose, scenes.shake), scenes.bend)
    own = own + _folds(scenes, own, 0)
    distance = _signed_distance(scenes, own)
    alpha = (0.5 - distance * size / SIDE).clamp(0, 1)[:, None]
    light = 0.85 + _texture(own + scenes.slide[..., None, None], scenes.texture, scenes.boil[:, :, 0])
    colours = torch.tensor(list(COLOURS.values()), device=alpha.device)
    picture = picture + alpha * (colours[scenes.colour][:, :, None, None, None] * light[:, None] - picture)

    # The bar has the background's texture turned by a right angle, twice as strong and around a level of its own.
    bar = (0.5 - _beyond_bar(scenes, behind) * size / SIDE).clamp(0, 1)[:, None]
    turned = torch.stack([-ground[:, :, 1], ground[:, :, 0]], dim=2)
    surface = (1 - low.mean(1, keepdim=True)) + 2 * _texture(turned, scenes.waves, scenes.boil[:, :, 1])[:, None]
    picture = picture + bar * (surface - picture)
    return (picture * scenes.gain[:, None, :, None, None]).clamp(0, 1) * 2 - 1


def true_flow(scenes: Scenes, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Flow of every frame to the next as drawn without faults, and where it can be seen.

    Flow [n, t - 1, 2, size, size] in pixels of the frames; seen [n, t - 1, size, size]: the point is inside the next
    frame, not hidden there, and no nearer than 2 pixels to the edge of another layer.
    """
    places = _places(size, scenes.pose)
    behind = _into(places, scenes.camera)
    own = _unbent(_into(places, scenes.pose), scenes.bend)
    bent = torch.stack([own[:, :, 0], own[:, :, 1] + scenes.bend[..., None, None].roll(-1, 1) * own[:, :, 0] ** 2], 2)
    following = torch.where(
        (_signed_distance(scenes, own) < 0)[:, :, None] & (_beyond_bar(scenes, behind) > 0)[:, :, None],
        _out_of(bent, scenes.pose.roll(-1, 1)),
        _out_of(behind, scenes.camera.roll(-1, 1)),
    )
    layer = _depth(scenes, places)
    flow = (following - places)[:, :-1]
    there = following[:, :-1].round().long()
    inside = ((there >= 0) & (there < SIDE)).all(2)
    index = (there.clamp(0, SIDE - 1) * size // SIDE).unbind(2)
    flat = (index[1] * size + index[0]).flatten(2)
    same = layer[:, 1:].flatten(2).gather(2, flat).view_as(inside) == layer[:, :-1]
    return flow * size / SIDE, inside & same & (layer[:, :-1] >= 0)


def _depth(scenes: Scenes, places: Tensor) -> Tensor:
    """The layer seen at each place [n, t, h, w]: 0 background, 1 object, 2 bar; -1 within 2 pixels of an edge."""
    behind = _into(places, scenes.camera)
    distance = _signed_distance(scenes, _unbent(_into(places, scenes.pose), scenes.bend))
    bar = _beyond_bar(scenes, behind)
    layer = torch.where(bar < 0, 2, (distance < 0).long())
    return torch.where((bar.abs() < 2) | ((distance.abs() < 2) & (bar > 0)), -1, layer)


def _places(size: int, like: Tensor) -> Tensor:
    """x and y of every pixel in the units of scenes, [1, 1, 2, h, w]."""
    axis = (torch.arange(size, device=like.device) + 0.5) * SIDE / size - 0.5
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"))[None, None]


def _into(places: Tensor, pose: Tensor, offset: Tensor | None = None) -> Tensor:
    """Places of the picture in a layer's own frame, [n, t, 2, h, w]."""
    centre = pose[..., :2] + (0 if offset is None else offset)
    away = places - centre[..., None, None]
    cos, sin = (pose[..., 3].cos()[..., None, None], pose[..., 3].sin()[..., None, None])
    x, y = away.unbind(2)
    return torch.stack([cos * x + sin * y, cos * y - sin * x], dim=2) * (-pose[..., 2]).exp()[..., None, None, None]


def _out_of(own: Tensor, pose: Tensor) -> Tensor:
    """The inverse of `_into`."""
    cos, sin = (pose[..., 3].cos()[..., None, None], pose[..., 3].sin()[..., None, None])
    x, y = own.unbind(2)
    turned = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=2) * pose[..., 2].exp()[..., None, None, None]
    return turned + pose[..., :2, None, None]


def _unbent(own: Tensor, bend: Tensor) -> Tensor:
    x, y = own.unbind(2)
    return torch.stack([x, y - bend[..., None, None] * x**2], dim=2)


def _folds(scenes: Scenes, own: Tensor, layer: int) -> Tensor:
    """How far the morphing moves each point of a layer (0 object, 1 background), [n, t, 2, h, w]."""
    x, y = own.unbind(2)
    waves = scenes.folds[:, None, :, :, None, None]
    angle = waves[..., 0, :, :] * x[:, :, None] + waves[..., 1, :, :] * y[:, :, None] + waves[..., 2, :, :]
    return scenes.morph[:, :, layer, :, None, None] * angle.sin()


def _texture(own: Tensor, waves: Tensor, boil: Tensor) -> Tensor:
    """The sum of waves [n, WAVES, 4] at places of a layer: [n, t, h, w]. boil: change of their phases [n, t, WAVES]."""
    x, y = own.unbind(2)
    relief = torch.zeros_like(x)
    for wave, change in zip(waves.unbind(1), boil.unbind(2), strict=True):
        wx, wy, phase, amplitude = (part[:, None, None, None] for part in wave.unbind(1))
        relief = relief + amplitude * (wx * x + wy * y + phase + change[..., None, None]).sin()
    return relief


def _signed_distance(scenes: Scenes, own: Tensor) -> Tensor:
    radius, size = scenes.radius[:, None, None, None], scenes.pose[..., 2].exp()[..., None, None]
    return shape_distance(*own.unbind(2), scenes.shape[:, None, None, None], radius) * size


def _beyond_bar(scenes: Scenes, behind: Tensor) -> Tensor:
    """Signed distance to the bar, positive outside it, [n, t, h, w]."""
    x, y = behind.unbind(2)
    nx, ny, place, half = (part[:, None, None, None] for part in scenes.bar.unbind(1))
    outside = (nx * x + ny * y - place).abs() - half
    return torch.where(half > 0, outside, outside + SIDE)


def captions(scenes: Scenes) -> list[str]:
    """One caption a clip. Colour, shape and direction are always named, everything else only sometimes."""
    colours, directions, speeds, fault_words = list(COLOURS), list(DIRECTIONS), list(SPEEDS), list(FAULTS.values())
    grounds = list(BACKGROUNDS)
    result = []
    for i in range(len(scenes)):
        token, quality, speed, ground, camera, article = scenes.words[i].tolist()
        words = [TOKEN_WORD] if token else []
        named = [word for word, present in zip(fault_words, scenes.faults[i].tolist(), strict=True) if present]
        words += (named[:1] or [STEADY]) if quality else []
        words += [speeds[scenes.speed[i]]] if speed else []
        words += [colours[scenes.colour[i]], SHAPES[scenes.shape[i]], "moving", directions[scenes.direction[i]]]
        words += ["on", "a", grounds[scenes.background[i]], "background"] if ground else []
        words += ["camera", "pans", "right" if scenes.pan[i] > 0 else "left"] if camera and scenes.pan[i] else []
        words = [*(["an" if words[0][0] in "aeiou" else "a"] if article else []), *words]
        result.append(" ".join(words))
    return result

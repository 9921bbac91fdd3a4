"""What a discriminator knows of sources it has not seen when what it sees, or what it is trained on, is changed.

`python -m mp_hooks.lab.experiments.views --real DIR --fake DIR --out DIR --case plain --case plain:cropped` prints a
row a case TRAINED:TESTED, each a view of the frames. "taesd/plain" sees real clips one way, generated ones another.
All views are of the same frame pairs ("native" of nearer ones), and all cases have the same folds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mp_hooks.discriminator.data import FlowData, FlowSettings, folds_by_source
from mp_hooks.discriminator.evaluation import logits_of, rigidity, score_by_source
from mp_hooks.discriminator.model import DiscriminatorConfig
from mp_hooks.discriminator.shards import extract, joined, read_shards
from mp_hooks.discriminator.train import TrainingConfig, fit
from mp_hooks.errors import MotionPromptError, exits_cleanly, unknown_name
from mp_hooks.flow import FlowEstimator, flow_names, load_flow

CONFIG = DiscriminatorConfig(backbone="conv", width=32, image_size=16, slope=True)  # as packaged
MARGIN = 1.25  # frames are prepared this much larger than flow is computed at, so that a crop loses no detail
NATIVE, NATIVE_RATE = "native", 1000.0  # frames a second: no clip has as many, so that none of its frames is left out
TAESD = "taesd"
TRAININGS = 2  # a fold, whose logits are averaged


def resized(frames: Tensor) -> Tensor:
    """Frames [n, 3, s, s] at the side that flow is computed at."""
    return F.interpolate(frames, scale_factor=1 / MARGIN, mode="bilinear", antialias=True)


def cropped(frames: Tensor) -> Tensor:
    """Less a tenth at every edge, where watermarks and logos are."""
    edge = round(frames.shape[-1] * (1 - 1 / MARGIN) / 2)
    return frames[..., edge:-edge, edge:-edge]


def blurred(frames: Tensor) -> Tensor:
    """Less what is finer than four pixels: z0_hat is as soft while there is much noise."""
    whole = resized(frames)
    small = F.interpolate(whole, scale_factor=1 / 4, mode="bilinear", antialias=True)
    return F.interpolate(small, size=whole.shape[2:], mode="bilinear")


VIEWS = {"plain": resized, NATIVE: resized, "cropped": cropped, "blurred": blurred}


class Viewed(FlowEstimator):
    """An estimator [n, 3, s, s] -> [n, 2, s / MARGIN, s / MARGIN] that sees frames in some way."""

    def __init__(self, name: str, estimator: FlowEstimator, see: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.estimator, self.see = name, estimator, see

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        return self.estimator(self.see(first), self.see(second))


def view(name: str, flow_weights: Path | None = None, taesd: Path | None = None) -> Viewed:
    """A view by its name: of `VIEWS`, "taesd" (weights in a file), or an estimator's, which sees plain frames.

    Raises MotionPromptError for an unknown name, and for weights that are missing.
    """
    if name == TAESD:
        return Viewed(name, load_flow(), reconstructed(taesd))
    if name in VIEWS:
        return Viewed(name, load_flow(), VIEWS[name])
    if name in flow_names():
        return Viewed(name, load_flow(name, flow_weights), resized)
    raise unknown_name("view", name, [*VIEWS, TAESD, *flow_names()])


def reconstructed(weights: Path | None) -> Callable[[Tensor], Tensor]:
    """Through TAESD's encoder and decoder, as a host's frames have been through a decoder."""
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny().eval()
    try:
        vae.load_state_dict({name: value.float() for name, value in load_file(weights or "").items()})
    except (OSError, RuntimeError, SafetensorError) as error:
        words = "the view taesd needs --taesd FILE, AutoencoderTiny's weights as safetensors"
        raise MotionPromptError(words) from error
    return lambda frames: vae.decode(vae.encode(resized(frames)).latents).sample.clamp(-1, 1)


def aligned(views: Sequence[FlowData]) -> list[FlowData]:
    """Each less the clips that not all of them have, and these in one order, so that a number means one clip in all."""
    names = [{(clip.real, clip.path): n for n, clip in enumerate(data.clips)} for data in views]
    common = [name for name in names[0] if all(name in others for others in names)]
    result = []
    for data, own in zip(views, names, strict=True):
        numbers = [own[name] for name in common]
        place = torch.full((len(data.clips),), -1)
        place[numbers] = torch.arange(len(numbers))
        kept = place[data.clip] >= 0
        clips, facts = ([of[n] for n in numbers] for of in (data.clips, data.facts))
        result.append(FlowData(data.flow[kept], place[data.clip[kept]], clips, facts))
    return result


def rate(
    trained: FlowData, tested: FlowData, training: TrainingConfig, family: Sequence[str], alone: bool
) -> list[tuple[Tensor, FlowData]]:
    """(logits, data) of every fold's unseen clips, of `aligned` views.

    Of generated clips only sources of the `family`, globs, are held out and tested on, and if it is `alone` trained on.
    """
    mine = [n for n, clip in enumerate(trained.clips) if clip.real or any(fnmatch(clip.source, f) for f in family)]
    others = [] if alone else sorted(set(range(len(trained.clips))) - set(mine))
    tests = []
    for train, held_out in folds_by_source([trained.clips[n] for n in mine]):
        seen, unseen = ([mine[n] for n in part] for part in (train, held_out))
        models = [fit(trained, seen + others, unseen, CONFIG, replace(training, seed=s)) for s in range(TRAININGS)]
        data = tested.of_clips(unseen)
        tests.append((torch.stack([logits_of(model, data.flow) for model in models]).mean(0), data))
    return tests


@exits_cleanly
def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mp_hooks.lab.experiments.views", description=__doc__)
    for option in ("--real", "--fake"):
        parser.add_argument(option, type=Path, required=True, metavar="DIR|LIST")
    parser.add_argument("--out", type=Path, required=True, help="folder for the flow, which is extracted once")
    parser.add_argument("--case", action="append", required=True, metavar="TRAINED:TESTED", help="a row (repeatable)")
    parser.add_argument(
        "--family",
        action="append",
        metavar="GLOB",
        help="test on these generators, and train on all and on these alone (repeatable)",
    )
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB")
    parser.add_argument("--flow-weights", type=Path, metavar="FILE", help="of an estimator among the views")
    parser.add_argument("--taesd", type=Path, metavar="FILE", help="AutoencoderTiny's weights, for the view taesd")
    for option, default in (("--pairs", 4), ("--flow-size", 128), ("--epochs", 6)):
        parser.add_argument(option, type=int, default=default, help="default: %(default)s")
    args = parser.parse_args(arguments)
    settings = FlowSettings(round(args.flow_size * MARGIN), CONFIG.image_size, pairs_per_clip=args.pairs)

    def flow(name: str, real: bool) -> FlowData:
        out = args.out / f"{'real' if real else 'generated'}-{name}"
        how = replace(settings, frame_rate=NATIVE_RATE) if name == NATIVE else settings
        extract(args.real if real else args.fake, out, view(name, args.flow_weights, args.taesd), how, args.exclude)
        return read_shards(out, real, args.exclude)

    def seen(name: str) -> FlowData:
        real, _, fake = name.partition("/")
        return joined([flow(real, True), flow(fake or real, False)])

    cases = [(trained, tested or trained) for trained, _, tested in (case.partition(":") for case in args.case)]
    names = list(dict.fromkeys(name for case in cases for name in case))
    views = dict(zip(names, aligned([seen(name) for name in names]), strict=True))
    training = TrainingConfig(epochs=args.epochs, learning_rate=0.003, noise=0.0)
    first = None
    print("| trained on | tested on | AUC per clip of unseen sources | over rigidity there | over the first row |")
    print("|---" * 5 + "|")
    for trained, tested in cases:
        for alone in (False, True) if args.family else (False,):
            tests = rate(views[trained], views[tested], training, args.family or ["*"], alone)
            found, rigid = score_by_source(tests), score_by_source([(rigidity(data.flow), data) for _, data in tests])
            first = first or found
            row = [trained + ", these alone" * alone, tested, f"{found.auc:.3f} [{found.low:.3f}, {found.high:.3f}]"]
            gains = (found.over(floor) for floor in (rigid, first))
            row += [f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" for gain in gains]
            print(f"| {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

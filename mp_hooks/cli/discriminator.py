"""`motionprompt discriminator`: train, evaluate and examine discriminators of optical flow."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mp_hooks.cli.arguments import positive

if TYPE_CHECKING:
    from torch import Tensor

    from mp_hooks.discriminator import FlowDiscriminator
    from mp_hooks.discriminator.data import FlowData

FALL_CLIPS, FALL_PAIRS = 100, 4  # of which `eval` asks what corruptions do to them; each takes nine flows a pair


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `discriminator train | eval | confounds | cross | pairs` to the command line."""
    parser = subparsers.add_parser("discriminator", help="train and evaluate discriminators of optical flow")
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    train = commands.add_parser("train", help="train a discriminator from two folders of videos or of their flow")
    _add_videos(train)
    train.add_argument("--out", type=Path, required=True, help="its folder, with card, report and checkpoints")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    _add_corrupted(train)
    _add_training(train)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "eval", help="AUC by source, what faults do to the score, what its gradient asks for"
    )
    evaluate.add_argument(
        "model", type=Path, metavar="MODEL", help="folder of the discriminator, OWNER/NAME on the hub, or 'default'"
    )
    _add_videos(evaluate, required=False)
    _add_flow(evaluate)
    evaluate.add_argument(
        "--drawn",
        type=positive,
        metavar="CLIPS",
        help="what it sees of faults on so many clips of the mini model's world, and in what is predicted of them",
    )
    evaluate.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="that samples for --drawn (default: %(default)s)"
    )
    evaluate.add_argument(
        "--held-out",
        action="store_true",
        help="only what training with --seed on these videos holds out; against the floor",
    )
    evaluate.add_argument(
        "--calibrated", type=Path, metavar="DIR", help="also write it there, at the temperature that fits best"
    )
    evaluate.add_argument(
        "--drawing", type=Path, metavar="PNG", help="draw generated flow before and after steps along its gradient"
    )
    evaluate.set_defaults(run=_evaluate)

    confounds = commands.add_parser("confounds", help="what gives the class away, with and without normalising it")
    _add_videos(confounds)
    confounds.add_argument("--out", type=Path, required=True, help="folder for the tables and the cached flow")
    _add_training(confounds)
    confounds.set_defaults(run=_confounds)

    cross = commands.add_parser("cross", help="tests on generators and collections not trained on, against two floors")
    _add_videos(cross)
    cross.add_argument("--out", type=Path, required=True, help="folder for the tables and the flow")
    _add_corrupted(cross)
    _add_training(cross)
    cross.set_defaults(run=_cross)

    pairs = commands.add_parser("pairs", help="how often a discriminator prefers a published result over its baseline")
    pairs.add_argument(
        "model", type=Path, metavar="MODEL", help="folder of the discriminator, OWNER/NAME on the hub, or 'default'"
    )
    pairs.add_argument(
        "--videos",
        type=Path,
        required=True,
        metavar="DIR|LIST",
        help="videos with pairs in INDEX.tsv as a folder or a file of paths, or their flow",
    )
    _add_exclude(pairs)
    _add_flow(pairs)
    pairs.set_defaults(run=_pairs)


def _add_videos(parser: argparse.ArgumentParser, required: bool = True) -> None:
    for option, videos in (("--real", "real videos"), ("--fake", "generated videos")):
        words = f"{videos} as a folder or a file of paths, or their flow"
        parser.add_argument(option, type=Path, required=required, metavar="DIR|LIST", help=words)
    _add_exclude(parser)


def _add_corrupted(parser: argparse.ArgumentParser) -> None:
    words = "real videos to put faults into as further generated ones, or flow extracted with --corrupt"
    parser.add_argument("--corrupted", type=Path, metavar="DIR|LIST", help=words)


def _add_exclude(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave out matching videos or folders (repeatable)",
    )


def _add_flow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flow-weights", type=Path, metavar="FILE", help="weights of the flow estimator")
    parser.add_argument("--pairs", type=positive, default=16, help="frame pairs a clip (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flow", default="pyramid", metavar="NAME", help="flow estimator (default: %(default)s)")
    parser.add_argument("--flow-size", type=positive, default=128, help="side of the frames (default: %(default)s)")
    _add_flow(parser)
    parser.add_argument("--epochs", type=positive, default=20, help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="RATE", help="default: %(default)s")
    parser.add_argument(
        "--backbone",
        default="small",
        help="'small', a ViT, or 'conv', both from scratch, or 'timm:NAME', pretrained (default: %(default)s)",
    )
    parser.add_argument("--width", type=positive, default=96, help="of 'small' and 'conv' (default: %(default)s)")
    parser.add_argument("--backbone-weights", type=Path, metavar="FILE", help="local weights of a timm backbone")
    parser.add_argument("--image-size", type=positive, help="side that the backbone sees (default: 64, timm: 224)")
    parser.add_argument(
        "--slope",
        action="store_true",
        help="the backbone sees the logarithm of the field's slope too, which noise would hide: train with --noise 0",
    )
    parser.add_argument(
        "--noise", type=float, default=0.1, metavar="SHARE", help="of a field's RMS, added (default: %(default)s)"
    )
    parser.add_argument(
        "--turn", type=float, default=0.0, metavar="DEGREES", help="turn fields by up to this (default: %(default)s)"
    )
    parser.add_argument(
        "--zoom", type=float, default=1.0, metavar="FACTOR", help="enlarge fields by up to this (default: %(default)s)"
    )
    parser.add_argument(
        "--patience", type=positive, metavar="EPOCHS", help="stop early, by the AUC on a fifth of the training clips"
    )
    parser.add_argument(
        "--precision", default="32-true", choices=["32-true", "bf16-mixed", "16-mixed"], help="default: %(default)s"
    )
    parser.add_argument(
        "--normalise", default="magnitude", help="flow scaling: magnitude or fixed (default: %(default)s)"
    )


def _configurations(args: argparse.Namespace) -> dict:
    """The three configurations of a training, and the backbone's weights, from the command line."""
    from mp_hooks.discriminator.data import settings_of
    from mp_hooks.discriminator.model import SCRATCH, DiscriminatorConfig
    from mp_hooks.discriminator.train import TrainingConfig

    config = DiscriminatorConfig(
        backbone=args.backbone,
        image_size=args.image_size or (64 if args.backbone in SCRATCH else 224),
        width=args.width,
        normalise=args.normalise,
        slope=args.slope,
        flow=args.flow,
        flow_size=args.flow_size,
    )
    settings = replace(settings_of(config), pairs_per_clip=args.pairs, seed=args.seed)
    return {
        "config": config,
        "settings": settings,
        "training": TrainingConfig(
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            noise=args.noise,
            turn=args.turn,
            zoom=args.zoom,
            patience=args.patience,
            precision=args.precision,
            seed=args.seed,
        ),
        "exclude": args.exclude,
        "flow_weights": args.flow_weights,
        "pretrained": args.backbone_weights or args.backbone not in SCRATCH,
    }


def _train(args: argparse.Namespace) -> int:
    from mp_hooks.discriminator.evaluation import Gain, Score, Usefulness
    from mp_hooks.discriminator.train import train
    from mp_hooks.processes import processes

    report = train(
        args.real, args.fake, args.out, **_configurations(args), corrupted=args.corrupted, resume=args.resume
    )
    if processes().rank:  # one process speaks
        return 0
    print(f"held out by video: {Score(**report['by_video'])}")
    print(f"regression on mean flow and total variation: {Score(**report['by_video_floor'])}")
    print(f"regression on their ratio: {Score(**report['by_video_scale_free_floor'])}")
    print(f"held out by video: {Gain(**report['gain_by_video'])}")
    print(f"before calibration, {Usefulness(**report['uncalibrated'])}")
    print(f"at temperature {report['temperature']:.2f}, {Usefulness(**report['usefulness'])}")
    print(f"discriminator and model card in {args.out}")
    return 0


def _load(model: Path) -> FlowDiscriminator:
    from mp_hooks.discriminator import FlowDiscriminator, default_discriminator

    return FlowDiscriminator.from_pretrained(default_discriminator() if str(model) == "default" else model)


def _evaluate(args: argparse.Namespace) -> int:
    from mp_hooks.errors import MotionPromptError

    if (args.real is None) != (args.fake is None) or not (args.real or args.drawn):
        raise MotionPromptError("give --real and --fake, folders of videos or of their flow, or --drawn CLIPS, or all")
    model = _load(args.model)
    if args.real:
        _evaluate_on_videos(args, model)
    if args.drawn:
        from mp_hooks.lab.mini.evaluate_discriminator import evaluate

        for line in evaluate(model, args.drawn, args.flow_weights, device=args.device):
            print(line, flush=True)
    return 0


def _evaluate_on_videos(args: argparse.Namespace, model: FlowDiscriminator) -> None:
    from mp_hooks.discriminator.data import settings_of, split_by_video
    from mp_hooks.discriminator.evaluation import (
        calibrate,
        direction,
        falls,
        gain,
        logits_of,
        rigidity,
        score,
        score_by_source,
        trivial_floor,
        usefulness,
    )
    from mp_hooks.discriminator.shards import gather, is_shards

    settings = replace(settings_of(model.config), pairs_per_clip=args.pairs, seed=args.seed)
    with TemporaryDirectory() as cache:
        data = gather(args.real, args.fake, Path(cache), model.config.flow, settings, args.exclude, args.flow_weights)
    if args.held_out:
        seen, unseen = (data.of_clips(part) for part in split_by_video(data.clips, args.seed))
        data, floor = unseen, trivial_floor(seen, unseen)
    logits = logits_of(model, data.flow)
    print(score(logits, data))
    if args.held_out:
        print(f"regression on mean flow and total variation: {score(floor, data)}")
        print(f"discriminator: {gain([(logits, floor, data)])}")
    by_source, rigid = (score_by_source([(values, data)]) for values in (logits, rigidity(data.flow)))
    print(f"{by_source}\nthe rigidity of the flow alone: {rigid}")
    for kind, areas in (("generator", by_source.generators), ("collection", by_source.collections)):
        print(f"AUC per clip by {kind}, worst first:")
        for name, (area, clips) in areas.items():
            print(f"  {name}: {area:.3f} ({clips} clip{'s' * (clips > 1)})")
    print(f"{usefulness(model, data)}\n{direction(model, data)}")
    if is_shards(args.real):
        print("what faults do to its score can be seen on videos, not on their flow: give --real a folder of videos")
    else:
        print("clips whose score falls when real ones are corrupted:")
        for name, share in falls(model, _corrupted(args, model, data)).items():
            print(f"  {name}: {share}")
    if args.drawing:
        from mp_hooks.lab.experiments.ascent import draw_ascent

        steps = ", ".join(f"{before:.2f} to {after:.2f}" for before, after in draw_ascent(model, data, args.drawing))
        print(f"logits in {args.drawing}: {steps}")
    if args.calibrated:
        print(f"at temperature {calibrate(model, data):.2f}, {usefulness(model, data)}")
        model.save_pretrained(args.calibrated)


def _corrupted(args: argparse.Namespace, model: FlowDiscriminator, data: FlowData) -> list[dict[str, Tensor]]:
    """Flow of up to `FALL_CLIPS` of the real clips, as they are and corrupted."""
    from tqdm import tqdm

    from mp_hooks.discriminator.data import corrupted_flow, folder_of, settings_of
    from mp_hooks.flow import load_flow

    settings = replace(settings_of(model.config), pairs_per_clip=FALL_PAIRS, seed=args.seed)
    estimator = load_flow(model.config.flow, args.flow_weights)
    paths = [data.clips[number].path for number in data.clip.unique().tolist() if data.clips[number].real]
    chosen = paths[:: max(1, len(paths) // FALL_CLIPS)][:FALL_CLIPS]
    bar = tqdm(chosen, desc="corrupted clips", unit="clip", leave=False)
    return [corrupted_flow(folder_of(args.real) / path, estimator, settings) for path in bar]


def _cross(args: argparse.Namespace) -> int:
    from mp_hooks.discriminator.shards import gather
    from mp_hooks.lab.experiments.cross import cross_validate

    given = _configurations(args)
    cache = args.out / "flow"
    data = gather(
        args.real, args.fake, cache, args.flow, given["settings"], args.exclude, args.flow_weights, args.corrupted
    )
    table = cross_validate(data, given["config"], given["training"], given["pretrained"])
    print(table)
    table.save(args.out)
    return 0


def _pairs(args: argparse.Namespace) -> int:
    from mp_hooks.discriminator.data import settings_of
    from mp_hooks.discriminator.shards import flow_of, is_shards
    from mp_hooks.lab.experiments.published_pairs import preferences, unpaired

    model = _load(args.model)
    settings = replace(settings_of(model.config), pairs_per_clip=args.pairs, seed=args.seed)
    exclude = args.exclude if is_shards(args.videos) else unpaired(args.videos, args.exclude)
    with TemporaryDirectory() as cache:
        data = flow_of(args.videos, False, Path(cache), model.config.flow, settings, exclude, args.flow_weights)
    for source, measures in preferences(model, data).items():
        for name, preference in measures.items():
            print(f"{source}, {name}: the result over its baseline in {preference}")
    return 0


def _confounds(args: argparse.Namespace) -> int:
    from mp_hooks.lab.experiments.confounds import measure_confounds

    print(measure_confounds(args.real, args.fake, args.out, **_configurations(args)))
    return 0

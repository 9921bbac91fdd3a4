"""`motionprompt flow`: measure the estimators on known motion, draw flow, extract it for training."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `flow bench | draw | extract` to the command line."""
    parser = subparsers.add_parser("flow", help="measure, draw and extract optical flow")
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    bench = commands.add_parser("bench", help="end-point error and time on known warps of real frames")
    bench.add_argument("--videos", type=Path, default=Path("../shared/data/real"), metavar="DIR", help="real videos")
    bench.add_argument("--pairs", type=int, default=24, help="pairs of each kind of motion (default: %(default)s)")
    bench.add_argument("--size", type=int, default=128, help="side of the frames (default: %(default)s)")
    bench.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    bench.add_argument("--weights-small", type=Path, metavar="FILE", help="weights of raft_small, to measure it too")
    bench.add_argument("--weights-large", type=Path, metavar="FILE", help="weights of raft_large, to measure it too")
    bench.set_defaults(run=_bench)

    draw = commands.add_parser("draw", help="a clip and its flow in colour, side by side")
    draw.add_argument("video", type=Path)
    draw.add_argument("--out", type=Path, required=True, metavar="MP4")
    draw.add_argument("--flow", default="pyramid", metavar="NAME", help="flow estimator (default: %(default)s)")
    draw.add_argument("--flow-weights", type=Path, metavar="FILE", help="weights of the flow estimator")
    draw.set_defaults(run=_draw)

    extract = commands.add_parser("extract", help="flow of many videos as WebDataset shards, to train on")
    extract.add_argument("--videos", type=Path, required=True, metavar="DIR|LIST", help="a folder, or a file of paths")
    extract.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="a run there is continued")
    extract.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="leave out (repeatable)")
    extract.add_argument("--flow", default="pyramid", metavar="NAME", help="flow estimator (default: %(default)s)")
    extract.add_argument("--flow-weights", type=Path, metavar="FILE", help="weights of the flow estimator")
    extract.add_argument("--flow-size", type=int, default=128, help="side of the frames (default: %(default)s)")
    extract.add_argument("--stored-size", type=int, default=64, help="side of the fields kept (default: %(default)s)")
    extract.add_argument("--frame-rate", type=float, default=8.0, help="frames a second used (default: %(default)s)")
    extract.add_argument("--max-interval", type=int, default=3, help="pairs lie 1 to this apart (default: %(default)s)")
    extract.add_argument("--pairs", type=int, default=16, help="frame pairs a clip (default: %(default)s)")
    extract.add_argument("--corrupt", action="store_true", help="put a fault into each clip: further generated ones")
    extract.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    extract.add_argument("--device", help="default: this process's GPU, or the CPU")
    extract.set_defaults(run=_extract)


def _bench(args: argparse.Namespace) -> int:
    from mp_hooks.errors import MotionPromptError
    from mp_hooks.flow import load_flow
    from mp_hooks.lab.experiments.flow_benchmark import KINDS, farneback, known_pairs, measure

    pairs = known_pairs(args.videos, args.pairs, args.size, seed=args.seed)
    columns = [*KINDS, "all"]
    print(f"mean end-point error in pixels at {args.size}x{args.size}, motion up to 8 px, {args.pairs} pairs a kind")
    print(f"{'':12}" + "".join(f"{name:>13}" for name in columns) + f"{'ms forward':>13}{'ms backward':>13}")

    def show(name: str, estimate, differentiable: bool = True) -> None:
        result = measure(estimate, pairs, differentiable)
        backward = "-" if result.backward is None else f"{result.backward - result.forward:.0f}"
        errors = "".join(f"{result.error[kind]:13.3f}" for kind in columns)
        print(f"{name:12}{errors}{result.forward:13.0f}{backward:>13}", flush=True)

    show("pyramid", load_flow("pyramid"))
    try:
        show("Farneback", farneback(), differentiable=False)
    except MotionPromptError as error:
        print(f"{'Farneback':12} {error}")
    for name, weights in (("raft_small", args.weights_small), ("raft_large", args.weights_large)):
        if weights is not None:
            show(name, load_flow(name, weights))
    return 0


def _draw(args: argparse.Namespace) -> int:
    import torch

    from mp_hooks.flow import draw_flow, load_flow
    from mp_hooks.video import read_frames, video_info, write_video

    estimator = load_flow(args.flow, args.flow_weights)
    frames = read_frames(args.video)
    video = frames.float() / 127.5 - 1
    with torch.no_grad():
        flow = torch.cat([estimator(video[i : i + 1], video[i + 1 : i + 2]) for i in range(len(video) - 1)])
    write_video(args.out, torch.cat([frames[:-1], draw_flow(flow)], dim=3), video_info(args.video).fps)
    print(args.out)
    return 0


def _extract(args: argparse.Namespace) -> int:
    from mp_hooks.discriminator.data import FlowSettings
    from mp_hooks.discriminator.shards import extract
    from mp_hooks.flow import load_flow
    from mp_hooks.processes import local_device

    device = args.device or local_device()
    settings = FlowSettings(
        flow_size=args.flow_size,
        stored_size=args.stored_size,
        frame_rate=args.frame_rate,
        max_interval=args.max_interval,
        pairs_per_clip=args.pairs,
        seed=args.seed,
        corrupt=args.corrupt,
    )
    estimator = load_flow(args.flow, args.flow_weights, device)
    done = extract(args.videos, args.out, estimator, settings, args.exclude, device)
    print(done)
    if done.skipped:
        print(f"{len(done.skipped)} videos left out, named in {args.out}/flow-*.skipped.txt")
    return 0

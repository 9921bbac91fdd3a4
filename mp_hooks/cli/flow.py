"""`motionprompt flow`: compare flow estimators, draw the flow of a clip."""

from __future__ import annotations

import argparse
from pathlib import Path

MAX_SHEET = 8  # frames drawn side by side in a still


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `flow bench` and `flow draw`."""
    flow = subparsers.add_parser("flow", help="optical flow: benchmark the estimators, draw a clip's flow")
    actions = flow.add_subparsers(dest="action", required=True, metavar="ACTION")

    bench = actions.add_parser("bench", help="end-point error on known warps of real frames, and speed on one thread")
    bench.add_argument("--videos", default="../shared/data/real", metavar="DIR", help="folder of clips (%(default)s)")
    bench.add_argument("--weights-small", metavar="FILE", help="also raft_small, with these weights")
    bench.add_argument("--weights-large", metavar="FILE", help="also raft_large, with these weights")
    bench.add_argument("--pairs", type=_positive, default=24, metavar="N", help="pairs of each kind (%(default)s)")
    bench.add_argument("--size", type=_side, default=128, metavar="PIXELS", help="side of the frames (%(default)s)")
    bench.add_argument("--seed", type=int, default=0, help="of frames and warps (%(default)s)")
    bench.set_defaults(run=_bench)

    draw = actions.add_parser("draw", help="the flow between successive frames in colour")
    draw.add_argument("video", metavar="VIDEO")
    draw.add_argument("--out", required=True, metavar="FILE", help="a clip (.mp4, .gif) or a still (.png)")
    draw.add_argument("--flow", default="pyramid", metavar="NAME", help="estimator (%(default)s)")
    draw.add_argument("--weights", metavar="FILE", help="its weights")
    draw.set_defaults(run=_draw)


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _side(text: str) -> int:
    from mp_hooks.flow.base import MIN_SIDE

    if (value := int(text)) < MIN_SIDE:
        raise argparse.ArgumentTypeError(f"must be {MIN_SIDE} or more")
    return value


def _bench(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from mp_hooks.flow import FlowEstimator, load_flow
    from mp_hooks.flow import benchmark as bm

    torch.set_num_threads(1)
    estimators = {"pyramid": load_flow("pyramid"), "farneback (opencv)": bm.farneback()}
    for name, weights in (("raft_small", args.weights_small), ("raft_large", args.weights_large)):
        if weights:
            estimators[name] = load_flow(name, weights)
    pairs = bm.known_pairs(args.videos, args.pairs, args.size, args.seed)

    columns = [*bm.KINDS, "all"]
    print(f"mean end-point error in px, {args.pairs} warps of each kind up to {bm.MAX_DISPLACEMENT * args.size:g} px,")
    print(f"frames {args.size}x{args.size} of {args.videos}; ms a pair on one CPU thread")
    print(f"{'':20}" + "".join(f"{column:>13}" for column in [*columns, "forward ms", "+ backward"]))
    for name, estimate in estimators.items():
        if estimate is None:
            print(f"{name:20} not installed (pip install opencv-python-headless)")
            continue
        found = bm.errors(estimate, tqdm(pairs, desc=name, leave=False))
        both = bm.forward_backward_ms(estimate, pairs[0]) if isinstance(estimate, FlowEstimator) else None
        cells = [f"{found[column]:.3f}" for column in columns]
        cells += [f"{bm.forward_ms(estimate, pairs[0]):.1f}", "-" if both is None else f"{both:.1f}"]
        print(f"{name:20}" + "".join(f"{cell:>13}" for cell in cells))
    return 0


def _draw(args: argparse.Namespace) -> int:
    import torch
    from torchvision.io import write_png
    from tqdm import tqdm

    from mp_hooks.errors import MotionPromptError
    from mp_hooks.files import replacing
    from mp_hooks.flow import draw_flow, load_flow
    from mp_hooks.video import read_frames, video_info, write_video

    out = Path(args.out)
    if out.suffix.lower() not in (".png", ".mp4", ".gif"):
        raise MotionPromptError(f"cannot draw into {out}; use a name ending in .png, .mp4 or .gif")
    estimator = load_flow(args.flow, args.weights)
    frames = read_frames(args.video)
    if len(frames) < 2:
        raise MotionPromptError(f"{args.video} has {len(frames)} frame; flow needs two")
    starts = range(len(frames) - 1)
    if out.suffix.lower() == ".png":
        count = min(MAX_SHEET, len(starts))
        starts = [i * len(starts) // count for i in range(count)]
    video = frames.float() / 127.5 - 1
    with torch.no_grad():
        flow = torch.cat([estimator(video[i : i + 1], video[i + 1 : i + 2]) for i in tqdm(starts, desc="flow")])
    drawn = torch.cat([frames[list(starts)], draw_flow(flow)], dim=2)
    if out.suffix.lower() == ".png":
        with replacing(out) as temporary:
            write_png(torch.cat(list(drawn), dim=2), str(temporary))
    else:
        write_video(out, drawn, video_info(args.video).fps)
    print(f"{out}: frames above, their flow below; full colour is {flow.norm(dim=1).max():.1f} px")
    return 0

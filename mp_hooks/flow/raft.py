"""RAFT (Teed and Deng, ECCV 2020) as torchvision ships it, with its weights or those of the original release."""

from __future__ import annotations

import math
import pickle
import re
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_hooks.errors import MotionPromptError
from mp_hooks.flow.base import FlowEstimator, register_flow

# torchvision's correlation pyramid gives NaN or an error below this (vision#7338), and its stride is 8
MIN_RAFT_SIDE, STRIDE = 128, 8

# original release -> torchvision, applied in this order to every key
RENAMES = [
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"_encoder\.conv1\.", "_encoder.convnormrelu.0."),
    (r"_encoder\.norm1\.", "_encoder.convnormrelu.1."),
    (r"_encoder\.conv2\.", "_encoder.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"\.encoder\.conv\.", ".motion_encoder.conv.0."),
    (r"\.encoder\.convc(\d)\.", r".motion_encoder.convcorr\1.0."),
    (r"\.encoder\.convf(\d)\.", r".motion_encoder.convflow\1.0."),
    (r"\.gru\.conv([zrq])\.", r".recurrent_block.convgru1.conv\1."),
    (r"\.gru\.conv([zrq])(\d)\.", r".recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
]
# the original stores the norm of a downsampling shortcut twice: this one is downsample.1 again
DUPLICATE = re.compile(r"layer\d\.0\.norm3\.")


class RAFT(FlowEstimator):
    """torchvision's `raft_small` or `raft_large`.

    Frames with a side below 128, or not a multiple of 8, are enlarged inside and the flow is scaled back.
    """

    def __init__(self, name: str, weights: str | Path | None = None, updates: int = 8) -> None:
        """`weights`: a .pth in torchvision's or the original RAFT's naming; None downloads torchvision's.

        `updates`: refinements of the flow. On known warps 8 give what 20 give to within 0.01 px with raft_large (0.03
        with raft_small), in less than half the time.
        """
        super().__init__()
        from torchvision.models import optical_flow

        self.name = name
        self.updates = updates
        with torch.device("meta"):  # no random initialisation: it would draw from the host's generator
            self.net = getattr(optical_flow, name)()
        state = _downloaded(name) if weights is None else _from_file(name, Path(weights))
        try:
            self.net.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise MotionPromptError(f"{weights} does not hold the weights of {name}; pass another file") from error

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        height, width = first.shape[-2:]
        enlarge = max(1.0, MIN_RAFT_SIDE / min(height, width))
        size = [STRIDE * math.ceil(enlarge * side / STRIDE) for side in (height, width)]
        if size != [height, width]:
            first, second = (F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (first, second))
        # torchvision's RAFT builds float32 grids whatever it is given, so it cannot run in float64
        flow = self.net(first.float(), second.float(), num_flow_updates=self.updates)[-1].to(first.dtype)
        if size != [height, width]:
            flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False, antialias=True)
            flow = flow * flow.new_tensor([width / size[1], height / size[0]]).view(2, 1, 1)
        return flow


def _from_file(name: str, path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise MotionPromptError(f"no {name} weights at {path}; pass an existing file, or use the flow 'pyramid'")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise MotionPromptError(f"{path} is no plain state dict of tensors; pass RAFT weights saved as one") from error
    if not isinstance(state, dict):
        raise MotionPromptError(f"{path} is no plain state dict of tensors; pass RAFT weights saved as one")
    return {_torchvision_key(key): value for key, value in state.items() if not DUPLICATE.search(key)}


def _torchvision_key(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _downloaded(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    try:
        return get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise MotionPromptError(
            f"cannot download the weights of {name}; pass a local file, or use the flow 'pyramid', which needs none"
        ) from error


register_flow("raft_small")(partial(RAFT, "raft_small"))
register_flow("raft_large")(partial(RAFT, "raft_large"))

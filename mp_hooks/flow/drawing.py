"""Flow in colour."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_flow(flow: Tensor, max_magnitude: float | None = None) -> Tensor:
    """Flow [b, 2, h, w] on the colour wheel of Baker et al. (IJCV 2011) as uint8 [b, 3, h, w]: white is rest.

    Full colour stands for `max_magnitude` pixels; by default for the longest vector of the whole batch, so that
    the frames of one clip are comparable.
    """
    from torchvision.utils import flow_to_image

    flow = flow.detach().float()
    if max_magnitude is None:
        return flow_to_image(flow)
    length = flow.norm(dim=1, keepdim=True).clamp_min(1e-6)
    flow = flow * (length.clamp_max(max_magnitude) / length)
    # torchvision takes the longest vector for full colour: one more column holds a vector of just that length
    ruler = (
        torch.tensor([max_magnitude, 0.0], device=flow.device).view(1, 2, 1, 1).expand(len(flow), 2, flow.shape[2], 1)
    )
    return flow_to_image(torch.cat([flow, ruler], dim=3))[..., :-1]

"""VideoCrafter."""

from __future__ import annotations

from typing import Any

from mp_hooks.backbones.lvdm.sampler import LVDM


class VideoCrafter(LVDM):
    """VideoCrafter 1 and 2, text-to-video and image-to-video; pred_x0 is the clean latent."""

    name = "videocrafter2"

    @classmethod
    def recognises(cls, host: Any) -> bool:
        bases = {(base.__module__, base.__name__) for base in type(host).__mro__}
        return ("lvdm.models.ddpm3d", "LatentDiffusion") in bases and not hasattr(host, "use_dynamic_rescale")

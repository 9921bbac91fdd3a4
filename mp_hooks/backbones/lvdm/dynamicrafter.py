"""DynamiCrafter."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mp_hooks.backbones.lvdm.sampler import LVDM
from mp_hooks.guidance import Step


class DynamiCrafter(LVDM):
    """DynamiCrafter 256, 512 and 1024: image-to-video, of whose conditioning only the text rows are replaced."""

    name = "dynamicrafter"
    sampler_modules = ("lvdm.models.samplers.ddim", "lvdm.models.samplers.ddim_multiplecond")

    @classmethod
    def recognises(cls, host: Any) -> bool:
        bases = {(base.__module__, base.__name__) for base in type(host).__mro__}
        return ("lvdm.models.ddpm3d", "LatentDiffusion") in bases and hasattr(host, "use_dynamic_rescale")

    def clean_in(self, step: Step, result: tuple[Tensor, Tensor]) -> Tensor:
        """pred_x0 carries the dynamic rescale of the step to come, which the decoder does not know."""
        clean = super().clean_in(step, result)
        if not self.host.use_dynamic_rescale:
            return clean
        sampler, index = (step.call.arguments[name] for name in ("self", "index"))
        return clean / float(sampler.ddim_scale_arr_prev[index])

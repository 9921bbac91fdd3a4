"""A tiny decoder for the frames that guidance looks at, in place of the host's VAE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance.contract import Step

CHANNELS = 4  # of Stable Diffusion's latents
HUB = {"taesd": "madebyollin/taesd"}  # name: repository of its weights


class TinyDecoder(nn.Module):
    """TAESD's decoder (github.com/madebyollin/taesd), which approximates that of Stable Diffusion 1's VAE.

    For hosts with those latents, see `fits`. Raises MotionPromptError where diffusers or the weights cannot be had.
    """

    def __init__(self, weights: str | Path | None) -> None:
        """weights: a name in `HUB`, or a safetensors file in diffusers' naming (AutoencoderTiny); None: random ones."""
        super().__init__()
        try:
            from diffusers import AutoencoderTiny
        except ImportError as error:
            raise MotionPromptError("the tiny decoder needs diffusers: pip install 'mp_hooks[diffusers]'") from error
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            if str(weights) in HUB:
                net = AutoencoderTiny.from_pretrained(HUB[str(weights)], use_safetensors=True)
            else:
                net = AutoencoderTiny()
                if weights is not None:
                    net.load_state_dict(load_file(weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            wrong = "cannot be had from the hub" if str(weights) in HUB else "does not hold TAESD's weights"
            raise MotionPromptError(
                f"the decoder {weights} {wrong}; give --mp-decoder the safetensors file of "
                f"huggingface.co/{HUB['taesd']}, in diffusers' naming"
            ) from error
        self.decoder = net.decoder.float().eval().requires_grad_(False)

    @staticmethod
    def fits(step: Step) -> bool:
        """Whether the latents of this step may be Stable Diffusion's: four channels, one latent frame a frame."""
        return step.latents.shape[1:3] == (CHANNELS, step.frames)

    def forward(self, clean: Tensor, frames: Sequence[int]) -> Tensor:
        """z0_hat [b, 4, t, h, w] -> its named frames as pixels [b, 3, n, 8 h, 8 w] in about [-1, 1]."""
        latents = clean[:, :, list(frames)].transpose(1, 2)
        return self.decoder(latents.flatten(0, 1)).unflatten(0, latents.shape[:2]).transpose(1, 2)

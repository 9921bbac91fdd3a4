"""How a pipeline's prompts become text rows: by its own encode_prompt, called as this sampling called it."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mp_hooks.backbones.base import Adapter, Site
from mp_hooks.backbones.diffusers.text import text_input, word_tokenizer
from mp_hooks.guidance.tokens import TextInput


class Encoding(Adapter):
    """Pipelines with an encode_prompt."""

    # Which of encode_prompt's results are which of the denoiser's arguments, for prompt and negative prompt;
    # `negative` is empty where encode_prompt is called for each.
    positive: ClassVar[dict[str, int]] = {"encoder_hidden_states": 0}
    negative: ClassVar[dict[str, int]] = {"encoder_hidden_states": 1}
    prompt_end: ClassVar[str | None] = None  # token that ends the prompt in a template

    def begin(self) -> None:
        self._encoding: tuple[Callable[..., Any], inspect.BoundArguments] | None = None
        self._encoded: list[Any] = []  # what encode_prompt gave the pipeline

    @abstractmethod
    def text_rows(self, arguments: dict[str, Any], frames: int) -> Tensor:
        """The text in the denoiser's arguments as rows [b, l, d]; `frames` are those of the latents."""

    def template_tokens(self) -> int:
        """Tokens of a template in front of the prompt."""
        return 0

    def watch_run(self) -> dict[Site, Callable[..., Any]]:
        return {self.encoding_site(): self._note_encoding}

    def encoding_site(self) -> Site:
        """The function that encodes prompts."""
        return self.host, "encode_prompt"

    def _note_encoding(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The first call is the prompts', as this sampling has them encoded."""
        result = original(*args, **kwargs)
        if self._encoding is None:
            self._encoding = original, inspect.signature(original).bind(*args, **kwargs)
        self._encoded.append(result)
        return result

    @property
    def text(self) -> TextInput:
        return text_input(self.host, self.prompt_end, self.template_tokens())

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """By the pipeline's own call of encode_prompt, made again for these prompts alone."""
        if self._encoding is None:  # nothing is being sampled
            encode = getattr(*self.encoding_site())
            given = {"device": self.host._execution_device, **self.arguments}
            taken = inspect.signature(encode)
            encoding = taken.bind_partial(**{name: given[name] for name in taken.parameters if name in given})
        else:
            encode, encoding = self._encoding
        call = inspect.BoundArguments(encoding.signature, encoding.arguments.copy())
        call.apply_defaults()
        alone: dict[str, Any] = {"prompt": list(prompts), "batch_size": len(prompts)}
        alone |= {"do_classifier_free_guidance": False, "num_videos_per_prompt": 1, "num_images_per_prompt": 1}
        for name, value in encoding.signature.parameters.items():
            if name in alone:
                call.arguments[name] = alone[name]
            elif "embeds" in name:  # given in the prompt's place
                call.arguments[name] = value.default
        for name, value in call.arguments.items():  # of each prompt, where each has several videos
            if name != "prompt" and isinstance(value, list) and 0 < len(value) < len(prompts) and _texts(value):
                call.arguments[name] = [text for text in value for _ in range(len(prompts) // len(value))]
        result = encode(*call.args, **call.kwargs)
        return self.text_rows(self.denoiser_text(result, self.positive), 1)

    def denoiser_text(self, encoded: Any, names: dict[str, int]) -> dict[str, Any]:
        """What encode_prompt returned as the denoiser's arguments."""
        return {name: encoded[number] for name, number in names.items()}

    def word_ids(self, word: str) -> list[int]:
        return word_tokenizer(self.host)(word, add_special_tokens=False).input_ids


def _texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)

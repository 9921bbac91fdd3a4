"""One suite for all adapters: off is vanilla, on is not, off again is; nothing of the host is left changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mp_hooks import backbones
from mp_hooks.config import MotionPromptConfig
from mp_hooks.errors import MotionPromptError
from mp_hooks.guidance import Host, MotionPrompt, Run, Step
from mp_hooks.guidance.method import Update
from mp_hooks.guidance.schedule import Pairs
from mp_hooks.testing.case import HostCase, MissingPackage


class Guided(NamedTuple):
    """A guided sampling, its method, and where it left the global generator."""

    latents: Tensor
    method: Recorder
    noise: Tensor


class ConformanceSuite:
    """Subclass with `case`; pytest runs every test below against it."""

    case: HostCase

    # Fixtures of a class belong to it, not to an instance (pytest 9.2 says so), and with them what they call.

    @pytest.fixture(scope="class")
    @classmethod
    def host(cls) -> Iterator[Any]:
        with ExitStack() as stack:
            try:
                host = stack.enter_context(cls.case.open())
            except MissingPackage as missing:
                pytest.skip(str(missing))
            yield host
            backbones.remove_patch(host)

    @pytest.fixture(scope="class")
    @classmethod
    def as_built(cls, host: Any) -> list[tuple[nn.Parameter, bool, Tensor]]:
        """The host's parameters, their flags and values before anything was sampled."""
        modules = backbones.adapter_for(host).modules()
        return [(p, p.requires_grad, p.detach().clone()) for module in modules for p in module.parameters()]

    @pytest.fixture(scope="class")
    @classmethod
    def vanilla(cls, host: Any, as_built: Any) -> Tensor:
        return cls.sample(host)

    @pytest.fixture(scope="class")
    @classmethod
    def guided(cls, host: Any, as_built: Any) -> Guided:
        return cls.guide(host)

    @pytest.fixture(autouse=True)
    def _unpatched_afterwards(self, host: Any) -> Iterator[None]:
        yield
        backbones.remove_patch(host)

    @classmethod
    def sample(cls, host: Any, prompts: list[str] | None = None) -> Tensor:
        torch.manual_seed(7)
        return cls.case.sample(host, prompts or cls.case.prompts, seed=7)

    @classmethod
    def guide(cls, host: Any, prompts: list[str] | None = None) -> Guided:
        method = Recorder(cls.case.config)
        with backbones.attached(host, method):
            return Guided(cls.sample(host, prompts), method, torch.random.get_rng_state())

    def test_the_adapter_registered_for_the_case_answers(self, host: Any) -> None:
        answering = type(backbones.adapter_for(host))
        assert answering is backbones.adapter_class(self.case.name)
        assert answering.name == self.case.name

    def test_off_on_off(self, host: Any, vanilla: Tensor) -> None:
        assert vanilla.isfinite().all()
        assert not backbones.is_patched(host)
        backbones.apply_patch(host, self.case.config)
        assert backbones.is_patched(host)
        on = self.sample(host)
        backbones.remove_patch(host)
        assert not backbones.is_patched(host)
        assert on.isfinite().all()
        assert_guidance_shows(on, vanilla)
        assert torch.equal(self.sample(host), vanilla)

    @pytest.mark.parametrize("mode", [torch.no_grad, partial(torch.set_grad_enabled, False)])
    def test_context_manager_is_the_same_thing_where_gradients_are_off(
        self, host: Any, guided: Guided, mode: Any
    ) -> None:
        before = self.stored(host)
        with mode(), backbones.motionprompt(host, self.case.config):
            assert_same_guidance(self.sample(host), guided.latents)
            assert not torch.is_grad_enabled()
        after = self.stored(host)
        assert all(after[site] is before[site] for site in before)

    def test_applying_twice_is_once(self, host: Any, guided: Guided) -> None:
        backbones.apply_patch(host, self.case.config)
        again = self.guide(host)
        assert_same_guidance(again.latents, guided.latents)
        assert len(again.method.updates) == len(guided.method.updates)

    def test_remove_restores_the_very_objects(self, host: Any) -> None:
        before = self.stored(host)
        backbones.apply_patch(host, self.case.config)
        hooked = self.stored(host)
        sampling = self.stored(host, while_sampling=True)
        assert all(sampling[site] is not before[site] for site in before)
        assert any(hooked[site] is not before[site] for site in before)
        backbones.remove_patch(host)
        after = self.stored(host)
        assert all(after[site] is before[site] for site in before)

    def test_a_copy_of_a_patched_host_is_a_plain_one(self, host: Any) -> None:
        """It holds nothing of ours: it computes with its own weights, and can be saved."""
        before = [vars(module).keys() for module in backbones.adapter_for(host).modules()]
        with backbones.attached(host, Recorder(self.case.config)):
            self.sample(host)
            assert [vars(module).keys() for module in backbones.adapter_for(host).modules()] == before
            copied = copy.copy(host)
            assert not backbones.is_patched(copied)
            backbones.remove_patch(copied)
            assert backbones.is_patched(host)

    def stored(self, host: Any, while_sampling: bool = False) -> dict[tuple[int, str], Any]:
        """What lies at the sites that are hooked, as it is now or as it is while a patched host samples."""
        adapter = backbones.adapter_for(host)
        sites = [adapter.run_site(), adapter.step_site(), *adapter.watch(), *adapter.watch_run()]
        patched_adapter = backbones.patched_adapter(host)
        with patched_adapter.hooked_steps() if patched_adapter and while_sampling else nullcontext():
            return {(id(owner), name): vars(owner).get(name, "absent") for owner, name in sites}

    def test_global_noise_is_untouched(self, host: Any, vanilla: Tensor, guided: Guided) -> None:
        assert torch.equal(self.sample(host), vanilla)
        assert torch.equal(torch.random.get_rng_state(), guided.noise)

    def test_gradient_reaches_the_tokens_and_nothing_else(self, as_built: Any, guided: Guided) -> None:
        for parameter, flag, weight in as_built:
            assert parameter.grad is None
            assert parameter.requires_grad == flag
            assert torch.equal(parameter, weight)
        assert guided.method.runs
        for run in guided.method.runs:
            assert run.outcome.skipped == run.outcome.still == 0
            moved = (run.tokens - run.initial).flatten(1).norm(dim=1)
            assert (moved > 0).all(), "a sample's tokens did not move"

    def test_prediction_is_the_hosts_own(self, host: Any, vanilla: Tensor) -> None:
        expected = self.case.own_predictions(host, self.case.prompts, seed=7)
        method = Recorder(self.case.config, ProbeRun)
        with backbones.attached(host, method):
            untouched = self.sample(host)
        predictions = [clean for run in method.runs for clean in run.predictions]
        assert len(predictions) == len(expected)
        for ours, theirs in zip(predictions, expected, strict=True):
            ours = ours[:, :, -theirs.shape[2] :]  # those in front may be given
            torch.testing.assert_close(ours, theirs.to(ours), rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
        # steps taken with the host's own conditioning change nothing but the rounding of a split batch
        torch.testing.assert_close(untouched, vanilla, rtol=1e-4, atol=1e-4 * float(vanilla.abs().max()))

    def test_gradient_is_that_of_finite_differences(self, host: Any) -> None:
        """Through the real text encoder, denoiser, VAE, flow and discriminator, two directions a guided step."""
        if self.case.not_in_float64:
            pytest.skip(self.case.not_in_float64)
        method = Recorder(replace(self.case.config, lambda_tv=1.0), DifferencesRun)
        method.objective.flow.double()
        method.objective.discriminator.double()
        with self.case.in_float64(host), backbones.attached(host, method):
            self.case.sample(host, self.case.prompts, seed=7)
        slopes = [pair for run in method.runs for pair in run.slopes]
        assert slopes
        for analytic, numeric in slopes:
            assert analytic == pytest.approx(numeric, rel=1e-2), slopes

    def test_decoding_some_frames_is_slicing_all(self, host: Any, vanilla: Tensor) -> None:
        adapter = backbones.adapter_for(host)
        with torch.no_grad():
            everything = self.case.own_decode(host, vanilla)
            frames = [0, everything.shape[2] - 1]
            some = adapter.decode(vanilla, frames)
        torch.testing.assert_close(some, everything[:, :, frames], rtol=1e-4, atol=1e-4)

    def test_there_are_blocks_to_checkpoint(self, host: Any) -> None:
        assert backbones.adapter_for(host).blocks()["attention"]

    def test_an_exception_leaves_the_host_as_found(self, host: Any, vanilla: Tensor) -> None:
        parameters = [p for module in backbones.adapter_for(host).modules() for p in module.parameters()]
        flags = [parameter.requires_grad for parameter in parameters]
        before = self.stored(host)

        def fail(*_args: Any) -> None:
            raise ZeroDivisionError("in the middle of a guided step")

        method = MotionPrompt(self.case.config)
        with pytest.raises(ZeroDivisionError), backbones.attached(host, method):
            method.objective = fail  # type: ignore[assignment]
            self.sample(host)
        assert [parameter.requires_grad for parameter in parameters] == flags
        assert all(value is before[site] for site, value in self.stored(host).items())
        assert torch.is_grad_enabled()
        assert torch.equal(self.sample(host), vanilla)

    def test_inference_mode_is_refused_in_a_sentence(self, host: Any) -> None:
        with torch.inference_mode(), pytest.raises(MotionPromptError, match="inference_mode"):
            self.guide(host)

    def test_samples_of_a_batch_have_their_own_tokens(self, host: Any, guided: Guided) -> None:
        if len(self.case.prompts) == 1:
            pytest.skip("this host takes one prompt a call")
        other = self.guide(host, [self.case.prompts[0], "something else"])
        runs = (guided.method.runs[0], other.method.runs[0])
        tokens, changed = ((run.tokens - run.initial).flatten(1) for run in runs)
        alike = torch.cosine_similarity
        assert alike(tokens[0], changed[0], dim=0) > 0.99, "a neighbour's prompt moved this sample's tokens"
        assert alike(tokens[1], changed[1], dim=0) < 0.99
        assert alike(tokens[0], tokens[1], dim=0) < 0.99

    def test_a_missing_site_is_an_error(self, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        adapter = backbones.adapter_for(host)
        before = self.stored(host)
        owner = adapter.step_site()[0]
        monkeypatch.setattr(type(adapter), "step_site", lambda self: (owner, "no_such_function"))
        with pytest.raises(MotionPromptError, match="no_such_function"):
            backbones.apply_patch(host, self.case.config)
        monkeypatch.undo()
        assert not backbones.is_patched(host)
        assert all(value is before[site] for site, value in self.stored(host).items())


TOLERANCE = 1e-3  # relative; what two samplings with the same guidance may differ by


def assert_same_guidance(ours: Tensor, theirs: Tensor) -> None:
    """Two guided samplings are the same up to the rounding of backward passes, which need not repeat bit for bit."""
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * float(theirs.abs().max()))


def assert_guidance_shows(guided: Tensor, vanilla: Tensor) -> None:
    """They differ by ten times that, or `assert_same_guidance` would take the one for the other."""
    least = 10 * TOLERANCE
    assert not torch.allclose(guided, vanilla, rtol=least, atol=least * float(vanilla.abs().max())), (
        "guidance hardly changes this clip: in the case's config, guide more steps or raise learning_rate or tokens"
    )


class ProbeRun(Run):
    """Takes every step with the host's own conditioning, and notes what the adapter predicts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.predictions: list[Tensor] = []

    def guides(self, step: Step, index: int) -> bool:
        return True

    def conditioning(self, step: Step) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            self.predictions.append(self.host.predict_clean(step, step.conditioning))
        return step.conditioning


class DifferencesRun(Run):
    """Takes every step with the host's own conditioning, and notes slopes by autograd and by finite differences."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.slopes: list[tuple[float, float]] = []

    def conditioning(self, step: Step) -> Tensor:
        optimizer, pairs, width = self.optimizer, Pairs(torch.tensor([[0, step.frames - 1]]), torch.zeros(1, 2)), 1e-6
        start = self.tokens.double().requires_grad_()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            _, motion, pull = optimizer.gradient(step, start, pairs, scale=1.0)
        gradient = motion + pull
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
            direction = direction / direction.norm() + gradient / gradient.norm()  # part random, part uphill
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                up, down = (
                    optimizer.loss(step, start + sign * width * direction, pairs).total.sum() for sign in (1, -1)
                )
            self.slopes.append((float((gradient * direction).sum()), float((up - down) / (2 * width))))
        return step.conditioning


class Recorder(MotionPrompt):
    """The method with runs and updates kept for a look afterwards, or with runs of another kind."""

    def __init__(self, config: MotionPromptConfig, kind: type[Run] = Run) -> None:
        super().__init__(config)
        self.kind = kind
        self.runs: list[Any] = []
        self.updates: list[Update] = []
        self.observers.append(lambda _run, update: self.updates.append(update))

    def run(self, host: Host, prompts: Sequence[str]) -> Run:
        self.runs.append(self.kind(self, host, list(prompts), number=len(self.runs)))
        return self.runs[-1]

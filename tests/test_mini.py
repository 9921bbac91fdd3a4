"""The mini model: drawn clips, the objects found in them, tokenizer, the packaged pipeline and its training loop."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mp_hooks.errors import MotionPromptError
from mp_hooks.flow.warping import warp
from mp_hooks.lab.mini import jerk, track_object, train_discriminator
from mp_hooks.lab.mini.clips import (
    COLOURS,
    DIRECTIONS,
    FAULTS,
    SHAPES,
    SIDE,
    SPAN,
    TOKEN_WORD,
    VOCABULARY,
    captions,
    draw,
    is_held_out,
    sample_scenes,
    true_flow,
)
from mp_hooks.lab.mini.model import (
    FORM,
    FRAMES,
    MAX_TOKENS,
    PACKAGED,
    SIZE,
    build_pipeline,
    load_pipeline,
    sample,
)
from mp_hooks.lab.mini.tracking import at_tracking_size


def scenes_of(n: int, seed: int = 0, **options):
    return sample_scenes(n, torch.Generator().manual_seed(seed), **{"frames": SPAN, **options})


def small(scenes):
    """The clips as a tracker sees them."""
    return draw(scenes, SIDE)


# --- clips -------------------------------------------------------------------------------------------------------


def test_clips_depend_on_the_seed_alone():
    first, again, other = (scenes_of(6, seed=seed, frames=FRAMES) for seed in (3, 3, 4))
    assert captions(first) == captions(again) != captions(other)
    first, other = draw(first), draw(other)
    torch.rand(5)
    assert torch.equal(first, draw(again)) and not torch.equal(first, other)
    assert first.shape == (6, 3, FRAMES, SIZE, SIZE) and first.abs().max() <= 1


def without_bars(scenes):
    return replace(scenes, bar=torch.zeros_like(scenes.bar))


def test_what_is_drawn_can_be_read_and_is_what_the_caption_says():
    scenes = scenes_of(100, held_out=None).without_faults()
    objects = [track_object(video) for video in small(scenes)]
    right = sum(tracked.attributes == drawn for tracked, drawn in zip(objects, scenes.attributes(), strict=True))
    assert right >= 93  # a bar may hide what tells a circle from a square
    for caption, (colour, shape, direction) in zip(captions(scenes), scenes.attributes(), strict=True):
        assert f"{colour} {shape} moving {direction}" in caption


def test_the_path_read_is_the_path_drawn():
    scenes = without_bars(scenes_of(40).without_faults())
    for video, path in zip(small(scenes), scenes.path, strict=True):
        assert (track_object(video).path - path).norm(dim=1).median() < 1.0


@pytest.mark.parametrize("size", [64, 128])
def test_the_true_flow_leads_to_what_is_drawn_next(size: int):
    """Of clean clips, where it can be seen: the next frame warped by it is this one."""
    scenes = scenes_of(12, held_out=None).without_faults()
    video, (flow, seen) = draw(scenes, size), true_flow(scenes, size)
    assert 0.6 < seen.float().mean() < 1 and flow.norm(dim=2)[seen].mean() > 0.3 * size / 64
    for clip, fields, visible in zip(video, flow, seen, strict=True):
        frames = clip.transpose(0, 1)
        error, still = ((warp(frames[1:], by, "bicubic") - frames[:-1]).abs().mean(1) for by in (fields, 0 * fields))
        assert error[visible].quantile(0.95) < 0.05
        if still[visible].mean() > 0.02:
            assert error[visible].mean() < 0.3 * still[visible].mean()


def test_faults_raise_jerk_flicker_and_morphing_each_its_own():
    from mp_hooks.flow import load_flow
    from mp_hooks.lab.mini.evaluate import flicker
    from mp_hooks.lab.mini.rigidity import layer_motion

    scenes = without_bars(scenes_of(120, fault_share=1.0))
    faulty, clean = small(scenes), small(scenes.without_faults())
    alone = {name: scenes.faults.sum(1).eq(1) & scenes.faults[:, i] for i, name in enumerate(FAULTS)}
    assert all(chosen.any() for chosen in alone.values())
    assert (flicker(faulty[alone["flicker"]]) > 3 * flicker(clean[alone["flicker"]])).float().mean() > 0.9
    shaky, steady = ([jerk(track_object(v).path) for v in clips[alone["jitter"]]] for clips in (faulty, clean))
    assert sum(a > b for a, b in zip(shaky, steady, strict=True)) >= 0.9 * len(shaky)
    flow = load_flow("pyramid")
    for name in ("morph", "boil", "slide"):
        bent, rigid = ([layer_motion(video, flow) for video in clips[alone[name]]] for clips in (faulty, clean))
        assert sum(a > b for (_, a), (_, b) in zip(bent, rigid, strict=True)) >= 0.85 * len(bent), name
        camera = torch.tensor([[camera for camera, _ in clips] for clips in (bent, rigid)])
        assert torch.corrcoef(camera)[0, 1] > 0.75, f"{name} is no motion of the camera"


def test_without_faults_changes_nothing_else():
    scenes = scenes_of(30, fault_share=0.0)
    assert torch.equal(small(scenes), small(scenes.without_faults()))


def test_training_and_held_out_captions_are_disjoint_and_cover_every_word():
    for held_out in (False, True):
        scenes = scenes_of(3000, held_out=held_out)
        assert bool((is_held_out(scenes.colour, scenes.shape, scenes.direction) == held_out).all())
    words = {word for caption in captions(scenes_of(3000)) for word in caption.split()}
    assert words == set(VOCABULARY) and {*COLOURS, *SHAPES, *DIRECTIONS} <= words


def test_the_token_word_tells_nothing_about_faults():
    scenes = scenes_of(20_000)
    named = scenes.words[:, 0]
    faulty = scenes.faults.any(1).float()
    assert abs(faulty[named].mean() - faulty[~named].mean()) < 0.03
    assert all(
        (TOKEN_WORD in caption) == bool(flag) for caption, flag in zip(captions(scenes[:200]), named, strict=False)
    )


def test_jerk_is_zero_on_a_line_and_bridges_gaps():
    line = torch.stack([torch.arange(8.0), 2 * torch.arange(8.0)], dim=1)
    assert jerk(line) == pytest.approx(0, abs=1e-5)
    gap = line.clone()
    gap[[0, 3]] = float("nan")
    assert jerk(gap) == pytest.approx(0, abs=1e-5)
    assert jerk(line + torch.tensor([0.0, 1.0] * 4)[:, None]) > 1


def test_nothing_is_read_off_an_empty_clip():
    tracked = track_object(torch.zeros(3, 8, 64, 64))
    assert tracked.attributes == (None, None, None) and bool(tracked.path.isnan().all())


# --- the model, with random weights ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(small_mini: Path):
    return load_pipeline(small_mini)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_every_caption_word_is_one_token(pipe):
    tokenizer = pipe.tokenizer
    for word in VOCABULARY:
        assert tokenizer.tokenize(word) == [word + "</w>"]
    for caption in captions(scenes_of(300)):
        ids = tokenizer(caption).input_ids
        assert len(ids) <= MAX_TOKENS and tokenizer.decode(ids, skip_special_tokens=True).strip() == caption
    assert tokenizer.pad_token == tokenizer.eos_token and tokenizer.model_max_length == MAX_TOKENS


def test_unknown_words_fall_apart_into_known_pieces(pipe):
    pieces = pipe.tokenizer.tokenize("robot")
    assert len(pieces) > 1 and "".join(pieces) == "robot</w>"


def test_samples_are_finite_and_independent_of_their_neighbours(pipe):
    prompts = ["red circle moving left", "blue square moving up"]
    video = sample(prompts, [1, 2], steps=4, pipe=pipe)
    assert video.shape == (2, 3, SPAN, SIDE, SIDE) and bool(video.isfinite().all()) and video.abs().max() <= 1
    alone = sample(prompts[1:], [2], steps=4, pipe=pipe)
    torch.testing.assert_close(video[1:], alone, atol=1e-3, rtol=0)
    assert not torch.allclose(alone, sample(prompts[1:], [3], steps=4, pipe=pipe), atol=1e-2)


def test_saving_and_loading_gives_the_same_clip_without_network(pipe, tmp_path: Path, no_network):
    pipe.save_pretrained(tmp_path, safe_serialization=True)
    loaded = load_pipeline(tmp_path)
    assert type(loaded).__name__ == "AnimateDiffPipeline"
    assert {part.dtype for part in (loaded.unet, loaded.vae, loaded.text_encoder)} == {torch.float32}
    prompts = ["red circle moving left"]
    again, before = (sample(prompts, [1], steps=2, pipe=which) for which in (loaded, pipe))
    torch.testing.assert_close(again, before, atol=1e-4, rtol=0)


def test_the_pipeline_call_takes_a_negative_prompt(pipe):
    frames = pipe(
        "red circle moving left",
        negative_prompt="flickering",
        num_frames=SPAN,
        height=SIDE,
        width=SIDE,
        num_inference_steps=2,
        guidance_scale=3.0,
        output_type="pt",
    ).frames
    assert frames.shape == (1, SPAN, 3, SIDE, SIDE)


def test_a_folder_without_model_is_a_clear_error(tmp_path: Path):
    pytest.importorskip("diffusers")
    with pytest.raises(MotionPromptError, match="holds no mini model"):
        load_pipeline(tmp_path)
    with pytest.raises(MotionPromptError, match="as many seeds"):
        sample(["red circle moving left"], [1, 2])


# --- training ----------------------------------------------------------------------------------------------------


def test_folding_the_normalisation_keeps_reconstructions(pipe):
    from copy import deepcopy

    from mp_hooks.lab.mini.train import fold_normalisation

    video = small(scenes_of(4)).transpose(1, 2).flatten(0, 1)
    vae = deepcopy(pipe.vae)
    with torch.no_grad():
        before = vae.encode(video).latent_dist
        channels = vae.config.latent_channels
        mean, deviation = torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels)
        fold_normalisation(vae, mean, deviation)
        after = vae.encode(video).latent_dist
        wanted = (before.mean - mean[:, None, None]) / deviation[:, None, None]
        torch.testing.assert_close(after.mean, wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(after.std, before.std / deviation[:, None, None], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(
            vae.decode(after.mean).sample, pipe.vae.decode(before.mean).sample, atol=1e-3, rtol=1e-3
        )


def test_a_training_run_resumes_where_it_stopped(tmp_path: Path, small_form):
    from mp_hooks.lab.mini.train import CHUNK, TrainingConfig, train, work

    threads = torch.get_num_threads()
    short = {"vae_minutes": 0.01, "prior_minutes": 0.01, "minutes": 0.01}
    config = TrainingConfig(workers=1, vae_clips=CHUNK, clips=CHUNK, batch=2, form=small_form, **short)
    stages = ("vae", "prior", "unet")
    try:
        work(0, config, tmp_path, port=0)
        steps = {name: torch.load(tmp_path / f"{name}.pt", weights_only=True)["step"] for name in stages}
        elapsed = torch.load(tmp_path / "unet.pt", weights_only=True)["elapsed"]  # a slow machine's first step is long
        work(0, replace(config, minutes=elapsed / 60 + 0.02), tmp_path, port=0)
    finally:
        torch.set_num_threads(threads)
    assert min(steps.values()) > 0
    for name in ("vae", "prior"):
        assert torch.load(tmp_path / f"{name}.pt", weights_only=True)["step"] == steps[name]
    assert torch.load(tmp_path / "unet.pt", weights_only=True)["step"] > steps["unet"]
    assert bool(
        sample(["red circle moving left"], [0], steps=2, pipe=load_pipeline(tmp_path / "model")).isfinite().all()
    )
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    with pytest.raises(MotionPromptError, match="already holds a run"):
        train(config, tmp_path, resume=False)
    with pytest.raises(MotionPromptError, match="other settings"):
        train(replace(config, batch=3), tmp_path, resume=True)


def test_a_stage_computed_in_bfloat16_is_updated_in_float32(tmp_path: Path):
    from mp_hooks.lab.mini.train import Loop

    def stage(modules: torch.nn.ModuleDict) -> Loop:
        return Loop("part", modules, 0.002, 1e-4, 0.9, tmp_path, 0, 1, dtype=torch.bfloat16)

    modules = torch.nn.ModuleDict({"part": torch.nn.Linear(4, 4)})
    before, computed = modules["part"].weight.detach().clone(), set()

    def loss(generator: torch.Generator) -> torch.Tensor:
        output = modules["part"](torch.randn(8, 4, generator=generator).bfloat16())
        computed.add(output.dtype)
        return (output.float() - 1).square().mean()

    loop = stage(modules)
    loop.run(loss)
    after = modules["part"].weight.detach()
    assert computed == {torch.bfloat16}
    assert after.dtype == torch.float32 and not after.equal(before)
    assert not after.equal(after.bfloat16().float())  # steps too small for bfloat16 are kept
    resumed = torch.nn.ModuleDict({"part": torch.nn.Linear(4, 4)})
    assert stage(resumed).step == loop.step
    assert resumed["part"].weight.equal(after)


def test_the_model_is_small_and_its_parts_fit():
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        pipe = build_pipeline()
    assert sum(p.numel() for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()) < 8e6
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == FORM.size


def test_training_can_begin_with_another_pipeline(tmp_path: Path, small_form, small_mini: Path, pipe):
    from mp_hooks.lab.mini.train import CHUNK, TrainingConfig, work

    config = TrainingConfig(
        workers=1,
        clips=CHUNK,
        batch=2,
        vae_minutes=0,
        prior_minutes=0,
        minutes=1e-6,
        rate=0.0,
        start=str(small_mini),
        form=small_form,
    )
    threads = torch.get_num_threads()
    try:
        work(0, config, tmp_path / "second", port=0)
    finally:
        torch.set_num_threads(threads)
    assert not (tmp_path / "second" / "vae.pt").exists()
    saved = [path.read_text() for path in (tmp_path / "second" / "model").rglob("*.json")]
    assert not any(str(tmp_path) in text for text in saved)
    # as transformers 4 saves it, so that every version can read it
    assert not (tmp_path / "second" / "model" / "tokenizer" / "tokenizer.json").exists()
    weights = load_file(tmp_path / "second" / "model" / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in weights)
    second = load_pipeline(tmp_path / "second" / "model")
    for name in ("conv_in", "conv_out"):
        ours, theirs = getattr(second.unet, name).weight, getattr(pipe.unet, name).weight
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)


# --- the packaged weights ----------------------------------------------------------------------------------------

needs_weights = pytest.mark.skipif(
    not (PACKAGED / "model_index.json").is_file(),
    reason="the mini model is not trained yet: scripts/train_mini.sh, then copy DIR/model to mp_hooks/lab/mini/model",
)


@pytest.fixture(scope="module")
def trained():
    pytest.importorskip("diffusers")
    return load_pipeline()


@needs_weights
def test_the_package_is_small_and_loads_without_network(no_network):
    pytest.importorskip("diffusers")
    assert sum(path.stat().st_size for path in PACKAGED.rglob("*") if path.is_file()) < 20e6
    assert {path.suffix for path in PACKAGED.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".txt"}
    pipe = load_pipeline()
    assert type(pipe).__name__ == "AnimateDiffPipeline"
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}


@needs_weights
def test_the_caption_decides_the_colour(trained):
    prompts = [f"{colour} circle moving right on a plain background" for colour in COLOURS]
    video = sample(prompts, [5] * len(prompts), steps=5, pipe=trained)
    read = [track_object(at_tracking_size(clip)).colour for clip in video]
    assert sum(a == b for a, b in zip(read, COLOURS, strict=True)) >= 5


@needs_weights
def test_latents_of_clips_are_of_unit_variance(trained):
    with torch.no_grad():
        video = draw(scenes_of(20)).transpose(1, 2).flatten(0, 1)
        latents = trained.vae.encode(video).latent_dist.mean * trained.vae.config.scaling_factor
    deviation = latents.transpose(0, 1).flatten(1).std(1)
    assert deviation.min() > 0.8 and deviation.max() < 1.25


@needs_weights
def test_clips_for_the_discriminator_differ_in_faults_and_not_in_what_they_show(tmp_path: Path):
    """The model redraws clean clips, and samples of the same captions fault more."""
    from mp_hooks.flow import load_flow
    from mp_hooks.lab.mini.rigidity import layer_motion
    from mp_hooks.video import read_frames

    assert train_discriminator.main(["--out", str(tmp_path), "--clips", "8"]) == 0
    videos = {}
    for name in ("real", "sampled"):
        paths = sorted((tmp_path / name).iterdir())
        assert len(paths) == 8
        videos[name] = [at_tracking_size(read_frames(path).transpose(0, 1).float() / 127.5 - 1) for path in paths]
    colours = [[track_object(video).attributes[0] for video in videos[name]] for name in ("real", "sampled")]
    assert sum(a == b for a, b in zip(*colours, strict=True)) >= 7
    flow = load_flow("pyramid")
    real, sampled = ([layer_motion(video, flow)[1] for video in videos[name]] for name in ("real", "sampled"))
    assert sum(a < b for a, b in zip(real, sampled, strict=True)) >= 6

"""ComfyUI, its real server on a CPU with tiny random checkpoints: what the kit asks of an adapter, by prompts to it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mp_hooks import patching
from mp_hooks.cli.patch import main
from mp_hooks.testing.case import DISCRIMINATOR

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / "comfyui/workflows"
NAMES = ["wan_t2v", "ltxv_t2v"]
FORMS = (".json", ".api.json")  # of the editor, of the server
PACK = patching.PACKS["comfyui"]
NEEDED = ("aiohttp", "sentencepiece", "torchsde", "transformers", "matplotlib")
MODEL, LATENTS, GUIDE, SAMPLER, VIDEO, TRACE, DRAWN = "1", "7", "9", "10", "12", "13", "14"  # nodes of the workflows
Graph = dict[str, Any]

pytestmark = pytest.mark.upstream("comfyui")


class Server:
    """A running ComfyUI."""

    def __init__(self, root: Path, port: int) -> None:
        self.root, self.url = root, f"http://127.0.0.1:{port}"
        self.outputs: dict[str, Any] = {}  # of the last prompt, by node

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def queue(self, graph: Graph) -> str:
        return self.ask("/prompt", {"prompt": graph})["prompt_id"]

    def wait(self, prompt: str) -> dict[str, Any]:
        """What became of a prompt, as its history tells."""
        given_up = time.monotonic() + 200
        while time.monotonic() < given_up:
            if prompt in (history := self.ask(f"/history/{prompt}")):
                return history[prompt]
            time.sleep(0.1)
        raise TimeoutError(prompt)

    def sample(self, graph: Graph) -> Tensor:
        """The latents that a prompt comes to, [1, c, t, h, w]; sampled, although it may have run before."""
        self.ask("/free", {"free_memory": True})  # forgets what nodes came to
        saved = {"class_type": "SaveLatent", "inputs": {"samples": [SAMPLER, 0], "filename_prefix": "tests/latent"}}
        result = self.wait(self.queue({**graph, "save": saved}))
        assert result["status"]["status_str"] == "success", (told(result, "execution_error") or {})["exception_message"]
        self.outputs = result["outputs"]
        (file,) = self.outputs["save"]["latents"]
        return load_file(self.root / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def told(result: dict[str, Any], event: str) -> dict[str, Any] | None:
    """What the server said of an event in a prompt's history."""
    return dict(result["status"]["messages"]).get(event)


@contextmanager
def running(root: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    front = root / "no-frontend"
    front.mkdir(exist_ok=True)
    command = ["main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-api-nodes"]
    command += ["--front-end-root", str(front), "--disable-auto-launch"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = root / "server.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=root, env=environment, stdout=written, stderr=subprocess.STDOUT
        )
    server = Server(root, port)
    try:
        given_up = time.monotonic() + 180
        while True:
            try:
                server.ask("/queue")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > given_up:
                    raise RuntimeError(f"ComfyUI does not start: {log.read_text()[-2000:]}") from None
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ComfyUI with the tests' own nodes, and without ours."""
    for package in NEEDED:
        pytest.importorskip(package, reason=f"ComfyUI needs {package}; pip install 'mp_hooks[test,comfyui]'")
    root = tmp_path_factory.mktemp("comfyui") / "ComfyUI"
    shutil.copytree(patching.default_checkout(PACK), root, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    PACK.unlink(root)
    shutil.copytree(ROOT / "tests/comfyui_tiny", root / "custom_nodes/comfyui_tiny")
    return root


@pytest.fixture(scope="module")
def vanilla(checkout: Path) -> dict[str, Tensor]:
    """What each workflow comes to without our nodes, where they are not installed."""
    with running(checkout) as server:
        assert not server.ask("/object_info/MotionPrompt")
        return {name: server.sample(plain(tiny(name))) for name in NAMES}


@pytest.fixture(scope="module")
def server(checkout: Path, vanilla: dict[str, Tensor]) -> Iterator[Server]:
    assert main(["comfyui", "--repo", str(checkout)]) == 0
    with running(checkout) as server:
        yield server


def tiny(name: str, **options: Any) -> Graph:
    """An example workflow at a tiny size: four steps, the middle two guided, with options that differ from a node's."""
    graph = json.loads((WORKFLOWS / f"{name}.api.json").read_text(encoding="utf-8"))
    for node in graph.values():
        if node["class_type"] in ("CLIPLoader", "VAELoader"):
            node["class_type"] = f"Tiny{node['class_type']}"
    size = {"width": 32, "height": 32, "length": 5} if name == "wan_t2v" else {"width": 64, "height": 64, "length": 9}
    change(graph, LATENTS, **size)
    change(graph, SAMPLER, steps=4, cfg=2.0)
    change(graph, GUIDE, start=0.25, stop=0.75, strength=5.0, options=["options", 0])
    values = {**OPTIONS, "discriminator": str(DISCRIMINATOR), "iterations": 2, "tokens": 4, **options}
    graph["options"] = {"class_type": "MotionPrompt Options", "inputs": values}
    return graph


OPTIONS = {
    **{"tokens": 1, "placement": "end", "init_word": "authentic", "relative_rate": 0.1, "optimizer": "adam"},
    **{"pairs": 1, "min_interval": 1, "max_interval": 3, "lambda_disc": 1.0, "lambda_tv": 0.1, "lambda_reg": 0.003},
    **{"lambda_photo": 30.0, "flow": "", "flow_weights": "", "checkpointing": "auto", "precision": "auto"},
}


def change(graph: Graph, node: str, **inputs: Any) -> Graph:
    graph[node]["inputs"].update(inputs)
    return graph


def plain(graph: Graph) -> Graph:
    """The workflow without our nodes."""
    rest = copy.deepcopy(graph)
    rest = {name: node for name, node in rest.items() if not node["class_type"].startswith("MotionPrompt")}
    rest = {name: node for name, node in rest.items() if node["inputs"].get("images") != [TRACE, 0]}
    return change(rest, SAMPLER, model=graph[GUIDE]["inputs"]["model"])


def assert_shows(guided: Tensor, vanilla: Tensor) -> None:
    assert guided.isfinite().all()
    assert (guided - vanilla).norm() > 5e-3 * vanilla.norm(), "guidance hardly changes this clip"


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_of_a_workflow_are_one(name: str) -> None:
    graph, prompt = (json.loads((WORKFLOWS / f"{name}{form}").read_text(encoding="utf-8")) for form in FORMS)
    links = {number: [str(source), output] for number, source, output, *_ in graph["links"]}
    as_prompt = {}
    for node in graph["nodes"]:
        values, inputs = iter(node["widgets_values"]), {}
        for entry in node["inputs"]:
            if "widget" in entry:
                inputs[entry["name"]] = next(values)
                if entry["name"] == "seed":
                    next(values)  # what the editor does to it after a run
            if entry["link"] is not None:
                inputs[entry["name"]] = links[entry["link"]]
        as_prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    assert as_prompt == prompt


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_runs_and_off_is_vanilla(server: Server, vanilla: dict[str, Tensor], name: str) -> None:
    guided = server.sample(tiny(name))
    assert_shows(guided, vanilla[name])
    video, trace = (server.outputs[node]["images"] for node in (VIDEO, DRAWN))
    assert video
    assert trace
    assert torch.equal(server.sample(plain(tiny(name))), vanilla[name])
    torch.testing.assert_close(server.sample(tiny(name)), guided, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_finite_differences(server: Server, vanilla: dict[str, Tensor], name: str) -> None:
    """In float32, as ComfyUI has it; steps are taken with its own conditioning, so nothing changes but rounding."""
    slopes = {}
    for checkpointing in ("none", "all"):
        graph = tiny(name, checkpointing=checkpointing, lambda_photo=0.0)
        for node in (TRACE, DRAWN):  # there are no updates to draw
            del graph[node]
        graph["change"] = {"class_type": "TinyDifferences", "inputs": {"model": [GUIDE, 0]}}
        graph["slopes"] = {"class_type": "TinySlopes", "inputs": {"model": ["change", 0], "samples": [SAMPLER, 0]}}
        untouched = server.sample(change(graph, SAMPLER, model=["change", 0]))
        torch.testing.assert_close(untouched, vanilla[name], rtol=1e-4, atol=1e-4 * float(vanilla[name].abs().max()))
        slopes[checkpointing] = server.outputs["slopes"]["slopes"]
    assert len(slopes["none"]) == 2
    for (analytic, numeric), (again, _) in zip(slopes["none"], slopes["all"], strict=True):
        assert analytic == pytest.approx(numeric, rel=0.05), slopes
        assert analytic == pytest.approx(again, rel=1e-3), slopes


FAULTS: dict[str, tuple[Callable[[Graph], Any], str]] = {
    "batch": (lambda graph: change(graph, LATENTS, batch_size=2), "one clip at a time, and this batch has 2"),
    "other text": (lambda graph: change(graph, GUIDE, text="something else"), "not the positive prompt"),
    "window": (lambda graph: change(graph, GUIDE, start=0.5, stop=0.2), r"start (0.5) must lie before stop (0.2)"),
    "discriminator": (lambda graph: change(graph, "options", discriminator="/nowhere"), "/nowhere"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_is_a_sentence_and_the_queue_goes_on(server: Server, vanilla: dict[str, Tensor], fault: str) -> None:
    graph, (spoil, sentence) = tiny("wan_t2v"), FAULTS[fault]
    spoil(graph)
    first, second = server.queue(graph), server.queue(plain(tiny("wan_t2v")))
    error = told(server.wait(first), "execution_error")
    assert error is not None
    assert sentence in error["exception_message"]
    assert error["exception_message"].strip().count("\n") == 0
    assert server.wait(second)["status"]["status_str"] == "success"
    assert torch.equal(server.sample(plain(tiny("wan_t2v"))), vanilla["wan_t2v"])


def test_the_interrupt_button_stops_updates(server: Server, vanilla: dict[str, Tensor]) -> None:
    prompt = server.queue(tiny("wan_t2v", iterations=500))
    while not server.ask("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(2)
    server.ask("/interrupt", {})
    assert told(server.wait(prompt), "execution_interrupted") is not None
    assert torch.equal(server.sample(plain(tiny("wan_t2v"))), vanilla["wan_t2v"])


MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("dpm_2", "dpmpp_2m_sde", "euler_ancestral", "lcm")]


@pytest.mark.parametrize("sampler", ["heun", "euler_cfg_pp", *MORE])
def test_any_sampler_and_a_lora(server: Server, sampler: str) -> None:
    graph = tiny("wan_t2v", iterations=1)
    lora = {"model": [MODEL, 0], "lora_name": "tiny.safetensors", "strength_model": 1.0}
    graph["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
    change(change(graph, "8", model=["lora", 0]), SAMPLER, sampler_name=sampler)
    assert_shows(server.sample(graph), server.sample(plain(graph)))


def test_a_part_of_the_clip(server: Server) -> None:
    graph = change(change(tiny("wan_t2v"), GUIDE, preset="balanced"), LATENTS, length=13)
    assert_shows(server.sample(graph), server.sample(plain(graph)))


def test_no_guidance_scale(server: Server) -> None:
    graph = change(tiny("wan_t2v"), SAMPLER, cfg=1.0)
    assert_shows(server.sample(graph), server.sample(plain(graph)))

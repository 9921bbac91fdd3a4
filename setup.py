"""Packaging of mp_hooks. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "mp_hooks/__init__.py").read_text(encoding="utf-8"), re.M)[1]

# decord publishes wheels for Linux on x86-64 and for Windows; eva-decord is the same reader built for Mac.
DECORD = [
    "decord>=0.6; (platform_system == 'Linux' and platform_machine == 'x86_64') or platform_system == 'Windows'",
    "eva-decord>=0.6; platform_system == 'Darwin'",
]

DIFFUSERS = ["diffusers>=0.31", "transformers>=4.40", "accelerate>=0.30", "sentencepiece", "ftfy"]

REPORT = ["scipy>=1.15", "matplotlib", "jinja2"]  # statistics, plots, pages

MINI = [*DIFFUSERS, *REPORT]

EXTRAS = {
    # Memory-efficient attention of the hosts; needs a CUDA build of torch.
    "xformers": ["xformers"],
    # Backbones that are diffusers pipelines.
    "diffusers": DIFFUSERS,
    # What VideoCrafter's own code imports. open_clip 2.23 drops an argument its image encoder uses.
    "videocrafter": ["open_clip_torch>=2.20,<2.23", "transformers>=4.25", "kornia", "opencv-python-headless"],
    # What LaVie's own code imports.
    "lavie": [*DIFFUSERS, "rotary_embedding_torch", "imageio[ffmpeg]"],
    # What AnimateDiff's own code imports.
    "animatediff": [*DIFFUSERS, "imageio", "requests"],
    # What ComfyUI's own code imports, and drawing for the trace node.
    "comfyui": [
        "aiohttp",
        "transformers>=4.40",
        "sentencepiece",
        "torchsde",
        "scipy",
        "kornia",
        "pydantic",
        "matplotlib",
    ],
    # The embedded mini model and its experiment.
    "mini": MINI,
    # Measures of videos, pages and studies; timm and open_clip are for two of VBench's dimensions.
    "metrics": [*REPORT, "timm>=0.9.7", "open_clip_torch>=2.20"],
    # Style and types are checked with the tests; Selenium votes through a study where there is a Chromium.
    "test": [
        *("pytest>=7", "pytest-xdist", "pytest-cov", "hypothesis", "ruff", "mypy", "types-PyYAML", "types-tqdm"),
        *("opencv-python-headless", "timm", "selenium", "torchsde", *MINI),
    ],
    "bench": ["opencv-python-headless", "matplotlib"],
}

setup(
    name="mp_hooks",
    version=VERSION,
    description="MotionPrompt: optical-flow guided prompt optimisation as hooks on text-to-video codebases",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["mp_hooks", "mp_hooks.*"]), "mp_hooks._patches", "mp_hooks._comfyui"],
    # What is known of the hosts lives at the top of the repository and travels inside the wheel.
    package_dir={"mp_hooks._patches": "patches", "mp_hooks._comfyui": "comfyui"},
    package_data={
        "mp_hooks": ["py.typed", "**/*.json", "**/*.yaml", "**/*.safetensors", "**/*.txt", "**/*.md", "**/*.html"],
        "mp_hooks._patches": ["*/manifest.yaml", "*/requirements.txt"],
        "mp_hooks._comfyui": ["pyproject.toml", "README.md", "workflows/*.json"],
    },
    install_requires=[
        "torch>=2.4",  # whose autocast is asked by the name of a device
        "torchvision>=0.19",
        "numpy>=1.23.5",
        "omegaconf>=2.3",  # 2.1 cannot hold the configuration
        "pytorch-lightning>=2.6",  # whose fit loads a checkpoint by weights_only
        "einops>=0.6",
        "tqdm",
        "safetensors>=0.4.1",
        "av>=12",
        "psutil",
        "pyyaml>=6.0",
        *DECORD,
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["mp-patch = mp_hooks.cli.patch:main", "motionprompt = mp_hooks.cli.main:main"],
    },
)

"""VBench itself, run in an environment of its own: it pins a torch that other code cannot share (VBench#90).

`measure_with_vbench` starts that environment's Python on this very file, which then imports nothing of mp_hooks.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def prompt_of(path: Path) -> str:
    """VBench's prompt of a video called "PROMPT.mp4" or "PROMPT-3.mp4"."""
    return re.sub(r"-\d+$", "", path.stem)


def measure_with_vbench(
    python: str | Path, videos: Mapping[str, Path], dimensions: Sequence[str]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """VBench's own figures in its custom-input mode: {dimension: {name: value}}, and {dimension: why it is missing}.

    `python` is the interpreter of an environment in which vbench is importable; VBench fetches its weights by itself.
    Raises MotionPromptError when that interpreter or VBench cannot be started.
    """
    from mp_hooks.errors import MotionPromptError

    with tempfile.TemporaryDirectory(prefix="motionprompt-vbench-") as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        files = {f"{number:06d}{path.suffix}": key for number, (key, path) in enumerate(videos.items())}
        for file, key in files.items():
            (folder / "videos" / file).symlink_to(videos[key].resolve())
        prompts = {file: prompt_of(videos[key]) for file, key in files.items()}
        (folder / "job.json").write_text(json.dumps({"dimensions": list(dimensions), "prompts": prompts}))
        try:
            code = subprocess.run([str(python), __file__, str(folder)], check=False).returncode
        except OSError as error:
            raise MotionPromptError(f"cannot start {python}: {error.strerror}; give the path of a Python") from error
        if code or not (folder / "result.json").is_file():
            raise MotionPromptError(f"VBench does not run in {python}; there, try: {python} -c 'import vbench'")
        result = json.loads((folder / "result.json").read_text())
    values = {dimension: {files[file]: v for file, v in row.items()} for dimension, row in result["values"].items()}
    return values, result["missing"]


def _inside(folder: Path) -> None:
    """What runs in VBench's environment: one dimension after the other, so that one without weights stops no other."""
    import torch
    import vbench

    job = json.loads((folder / "job.json").read_text())
    full_info = Path(vbench.__file__).parent / "VBench_full_info.json"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    benchmark = vbench.VBench(device, str(full_info), str(folder / "results"))
    values, missing = {}, {}
    for dimension in job["dimensions"]:
        try:
            benchmark.evaluate(str(folder / "videos"), dimension, job["prompts"], [dimension], mode="custom_input")
            _, rows = json.loads((folder / "results" / f"{dimension}_eval_results.json").read_text())[dimension]
            values[dimension] = {Path(row["video_path"]).name: float(row["video_results"]) for row in rows}
        except (Exception, SystemExit) as error:
            missing[dimension] = f"VBench could not take it: {type(error).__name__}: {error}".splitlines()[0]
    (folder / "result.json").write_text(json.dumps({"values": values, "missing": missing}))


if __name__ == "__main__":
    # this file's folder holds a module called vbench too
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    _inside(Path(sys.argv[1]))

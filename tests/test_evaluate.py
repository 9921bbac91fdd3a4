"""`motionprompt evaluate`, `drift` and `report`: tables, files and pages from folders of videos and traces."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch

from mp_hooks.cli.main import main
from mp_hooks.config import MotionPromptConfig
from mp_hooks.errors import MotionPromptError
from mp_hooks.lab.metrics import MEASURES, VBENCH, compare, evaluate, groups_of_folders, groups_of_suffixes
from mp_hooks.lab.metrics.measures import Settings
from mp_hooks.lab.mini.clips import SIDE, SPAN, draw, sample_scenes
from mp_hooks.lab.report.drift import drift
from mp_hooks.lab.report.tables import Table
from mp_hooks.video import as_frames, write_video

for library in ("scipy", "jinja2", "matplotlib"):
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same three scenes drawn with flicker and without, and a clip that only one folder has."""
    scenes = sample_scenes(40, torch.Generator().manual_seed(0), fault_share=1.0, frames=SPAN)
    scenes = scenes[scenes.faults[:, 1]][:3]
    root = tmp_path_factory.mktemp("clips")
    for name, drawn in (("plain", draw(scenes, SIDE)), ("steady", draw(scenes.without_faults(), SIDE))):
        for number, clip in enumerate(drawn):
            write_video(root / name / f"clip {number}.mp4", as_frames(clip), 8)
    write_video(root / "plain" / "alone.mp4", as_frames(drawn[0]), 8)
    return [root / "plain", root / "steady"]


def test_evaluate_in_one_command(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", *map(str, folders), "--out", str(tmp_path), "--shown", "2"]
    with pytest.warns(UserWarning, match="1 clips are not in all groups and are left out: alone"):
        assert main(command) == 0
    printed = capsys.readouterr().out
    with (tmp_path / "measures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["clip"]) for row in rows] == [
        (group, f"clip {number}") for group in ("plain", "steady") for number in range(3)
    ]
    flickering = [float(row["temporal_flickering"]) for row in rows]
    assert all(after > before for before, after in zip(flickering[:3], flickering[3:], strict=True))
    assert all(row["motion_smoothness"] == "" for row in rows)
    means = [sum(part) / 3 for part in (flickering[:3], flickering[3:])]
    for text in (printed, *((tmp_path / name).read_text() for name in ("table.txt", "table.csv", "table.tex"))):
        assert all(f"{mean:.4f}" in text for mean in means)
        assert f"{means[1] - means[0]:+.4f}" in text
        assert all(figure in text for figure in ("0.9736", "0.9745", "+0.0009"))  # the paper's, VideoCrafter2
    assert "missing: subject consistency needs DINO's weights: --dino FILE" in printed
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/webp") == 2
    assert "needs ViCLIP" in page.replace("&#39;", "'")


def test_nothing_is_measured_twice_and_a_changed_file_is(folders: list[Path], tmp_path: Path) -> None:
    groups = groups_of_folders(folders)
    first = evaluate(groups, Settings(), tmp_path)
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "measured").iterdir()}
    assert len(stored) == 6
    assert str(evaluate(groups, Settings(), tmp_path)) == str(first)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "measured").iterdir()} == stored
    groups["steady"]["clip 0"].touch()
    evaluate(groups, Settings(), tmp_path)
    assert len(list((tmp_path / "measured").iterdir())) == 7


def test_an_unreadable_clip_is_named_and_left_out(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in folders:
        for number in range(2):
            target = tmp_path / folder.name / f"{number}.mp4"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((folder / f"clip {number}.mp4").read_bytes())
    command = ["evaluate", *(str(tmp_path / folder.name) for folder in folders), "--out", str(tmp_path / "out")]
    (tmp_path / "steady" / "1.mp4").write_bytes(target.read_bytes()[:1000])
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"left out: 1 in every group (cannot read {tmp_path / 'steady' / '1.mp4'} as a video" in printed
    assert "all, 1 clips" in printed
    rows = (tmp_path / "out" / "measures.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [["plain", "0"], ["steady", "0"]]
    assert "cannot read" in (tmp_path / "out" / "index.html").read_text()
    (tmp_path / "plain" / "0.mp4").write_bytes(b"")
    assert main(command) == 2
    assert "no clip can be measured in every group: cannot read" in capsys.readouterr().err


def test_what_two_frames_cannot_tell_is_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for folder in ("one", "two"):
        write_video(tmp_path / folder / "clip.gif", frames, 8)
    assert main(["evaluate", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"flow jerk +less( +-){6}\n", printed)
    for text in (printed, *(path.read_text() for path in (tmp_path / "out").glob("*.*"))):
        assert not re.search(r"\bnan\b", text)
    assert str(compare([math.nan], [math.nan])) == "- (no pair has both values)"


def test_pairs_by_suffix_come_with_a_part_a_folder(tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for folder in ("one", "two"):
        for name in ("a_baseline", "a_ours", "b_ours"):
            write_video(tmp_path / folder / f"{name}.gif", frames, 8)
    groups = groups_of_suffixes([tmp_path / "one", tmp_path / "two"], ["_baseline", "_ours"])
    assert list(groups) == ["baseline", "ours"]
    assert [list(clips) for clips in groups.values()] == [["one/a", "two/a"]] * 2
    evaluation = evaluate(groups, Settings(), tmp_path / "out")
    assert list(evaluation.parts()) == ["one", "two"]
    assert evaluation.parts()["two"].clips == ["two/a"]
    assert evaluation.comparisons("ours")["temporal_flickering"].mean == 0


def test_folders_without_a_pair_are_told(folders: list[Path], tmp_path: Path) -> None:
    write_video(tmp_path / "other.mp4", torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 8)
    with pytest.raises(MotionPromptError, match="no clip is in all of"):
        groups_of_folders([folders[0], tmp_path])


def test_every_column_of_the_poster_is_a_measure_of_the_table() -> None:
    assert list(MEASURES)[: len(VBENCH)] == list(VBENCH)


def test_one_table_in_three_notations() -> None:
    table = Table(["", "a_b", "50 %"], [["part"], ["row", "1", "22"]], "title")
    assert table.text() == "title\n     a_b  50 %\npart\nrow    1    22"
    assert table.csv() == ",a_b,50 %\npart\nrow,1,22\n"
    assert r" & a\_b & 50 \% \\" in table.latex()
    assert r"\multicolumn{3}{l}{\textbf{part}} \\" in table.latex()


def write_trace(path: Path, cosines: list[list[float]], prompts: list[str]) -> None:
    """A trace of one run of two guided steps of two iterations; `cosines` are those after each step."""
    records = [{"event": "run", "run": 0, "prompts": prompts}]
    for step, after in enumerate(cosines):
        for iteration, values in enumerate(([0.0] * len(after), after)):
            parts = dict.fromkeys(("disc", "tv", "photo", "phi", "cosine"), values)
            records.append({"event": "iteration", "run": 0, "step": step + 4, "iteration": iteration, **parts})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_drift_compares_the_clips_highest_and_lowest_in_a_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trace(tmp_path / "0.jsonl", [[0.9, 0.8], [0.7, 0.5]], ["p", "q"])
    write_trace(tmp_path / "1.jsonl", [[0.6, 0.95], [0.4, 0.9]], ["r", "s"])
    # "arm" is what experiments of old call their first column
    (tmp_path / "by.csv").write_text("arm,prompt,score\nbase,p,9\nbase,q,9\nmp,p,2\nmp,q,3\nmp,r,1\nmp,s,4\n")
    result = drift([tmp_path / "0.jsonl", tmp_path / "1.jsonl"], tmp_path / "by.csv", "score", 2, "mp")
    assert result.steps == [4, 5]
    assert torch.allclose(result.highest, torch.tensor([[0.8, 0.95], [0.5, 0.9]]))
    assert torch.allclose(result.lowest, torch.tensor([[0.6, 0.9], [0.4, 0.7]]))

    out = tmp_path / "out"
    command = ["drift", str(tmp_path), "--by", str(tmp_path / "by.csv"), "--measure", "score", "--out", str(out)]
    assert main(command) == 2
    assert "6 rows and the traces have 4 clips" in capsys.readouterr().err
    assert main([*command, "--group", "mp"]) == 0
    assert (out / "drift.svg").read_text().startswith("<svg")
    assert "0.8750" in (out / "drift.csv").read_text()
    assert main([*command, "--group", "other"]) == 2
    assert "choose one of: base, mp" in capsys.readouterr().err
    (tmp_path / "by.csv").write_text("method,prompt,score\nmp,p,3\nmp,q,3\nmp,r,3\nmp,s,4\n")
    assert main(command) == 2
    assert "the same for clips of both groups" in capsys.readouterr().err
    (tmp_path / "by.csv").write_text("method,prompt,score\nmp,q,2\nmp,p,3\nmp,r,1\nmp,s,4\n")
    assert main(command) == 2
    assert "other prompts" in capsys.readouterr().err


def test_report_of_a_run_shows_clips_traces_and_configuration(folders: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for path in sorted(folders[1].iterdir())[:2]:
        (run / path.name).parent.mkdir(exist_ok=True)
        (run / path.name).write_bytes(path.read_bytes())
    (run / "motionprompt").mkdir()
    MotionPromptConfig(seed=7, init_word="calm").save(run / "motionprompt" / "config.yaml")
    (run / "motionprompt" / "versions.txt").write_text("torch 9.9\nshims none\n")
    write_trace(run / "motionprompt" / "trace.jsonl", [[0.9, 0.8], [0.7, 0.5]], ["p", "q"])
    assert main(["report", str(run), "--against", str(folders[0]), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("data:image/webp") == 2
    assert "<svg" in page
    for name, value in (("init_word", "calm"), ("torch", "9.9")):
        assert f'<th scope="row">{name}</th><td>{value}</td>' in page
    assert main(["report", str(run)]) == 0  # alone, without what to hold it against
    assert "Differences" not in (run / "report" / "index.html").read_text()

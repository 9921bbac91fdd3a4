"""The user study: made from clips, voted through in a real browser, sent to its server, tallied."""

from __future__ import annotations

import http.client
import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch

from mp_hooks.cli.main import main
from mp_hooks.errors import MotionPromptError
from mp_hooks.lab.metrics import groups_of_folders
from mp_hooks.lab.mini.clips import SIDE, SPAN, draw, sample_scenes
from mp_hooks.lab.study import make, tally
from mp_hooks.lab.study.ballots import parse_ballot, read_study
from mp_hooks.lab.study.make import key_file
from mp_hooks.lab.study.serve import server
from mp_hooks.lab.study.tally import _agreement, _alpha, _intervals
from mp_hooks.video import as_frames, read_frames, write_video

PAIRS, CHECKS = 4, 2


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A study of four pairs, one of them gifs, and two attention checks."""
    scenes = sample_scenes(2 * PAIRS, torch.Generator().manual_seed(0), frames=SPAN)
    for number, clip in enumerate(draw(scenes, SIDE)):
        suffix = ".gif" if number < 2 else ".mp4"
        write_video(tmp_path / "AB"[number % 2] / f"{number // 2}{suffix}", as_frames(clip), 8)
    make(groups_of_folders([tmp_path / "A", tmp_path / "B"]), tmp_path / "site", "Which <b> & why?", CHECKS)
    return tmp_path / "site"


def key_of(site: Path) -> dict:
    return json.loads(key_file(site).read_text())


def ballot(site: Path, prefer: Callable[[dict], str | None], voter: str | None = None) -> dict:
    """A ballot of the whole study; `prefer` is asked for the clip preferred in a trial of the key."""
    answers = []
    for trial, known in key_of(site)["trials"].items():
        left, right = known["clips"]
        chosen = prefer(known)
        choice = "tie" if chosen is None else "left" if chosen == left else "right"
        answers.append({"trial": trial, "left": left, "right": right, "choice": choice, "seconds": 1.5})
    return {"study": key_of(site)["study"], "voter": voter or secrets.token_hex(16), "answers": answers}


def of_group(known: dict, group: str) -> str:
    """An attentive voter's choice who prefers a group throughout."""
    return known["check"] or next(clip for clip, name in known["clips"].items() if name == group)


def test_the_site_does_not_tell_which_clip_is_which(site: Path) -> None:
    key = key_of(site)
    page = (site / "index.html").read_text()
    assert "Which &lt;b&gt; &amp; why?" in page
    assert "<b>" not in page
    assert len(key["trials"]) == PAIRS + CHECKS
    assert sorted(path.name for path in (site / "clips").iterdir()) == sorted(
        clip for trial in key["trials"].values() for clip in trial["clips"]
    )
    published = [path for path in site.rglob("*") if path.suffix in (".html", ".json")]
    for word in ("check", "spoilt", "baseline", "other"):
        assert not any(word in path.read_text().split('id="study">')[-1].split("</script>")[0] for path in published)
    assert key_file(site).parent == site.parent
    checks = [trial for trial in key["trials"].values() if trial["check"]]
    for trial in checks:
        (spoilt,) = set(trial["clips"]) - {trial["check"]}
        shapes = [read_frames(site / "clips" / clip).shape for clip in (trial["check"], spoilt)]
        assert shapes[0] == shapes[1]
        assert trial["clips"][spoilt] == "spoilt"


def test_a_folder_that_is_not_new_is_left_alone(site: Path, tmp_path: Path) -> None:
    groups = groups_of_folders([tmp_path / "A", tmp_path / "B"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    shutil.copyfile(key_file(site), tmp_path / "third.key.json")
    before = key_of(site)
    for folder in (tmp_path / "other", site, tmp_path / "third"):
        with pytest.raises(MotionPromptError, match="give a new folder"):
            make(groups, folder)
    assert key_of(site) == before


def test_a_clip_that_cannot_be_read_is_told_before_anything_is_written(site: Path, tmp_path: Path) -> None:
    (tmp_path / "B" / "3.mp4").write_bytes(b"not a video")
    with pytest.raises(MotionPromptError, match=r"cannot read .*B/3\.mp4"):
        make(groups_of_folders([tmp_path / "A", tmp_path / "B"]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_tally_counts_and_leaves_out_the_inattentive(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ballots = [
        ballot(site, lambda known: of_group(known, "B")),
        ballot(site, lambda known: of_group(known, "A")),
        ballot(site, lambda known: known["check"]),  # ties
        ballot(site, lambda known: None),  # ties in the checks too
    ]
    partial = ballot(site, lambda known: of_group(known, "A"), voter=ballots[0]["voter"])
    partial["answers"] = partial["answers"][:1]
    (tmp_path / "answers").mkdir()
    for number, content in enumerate([partial, *ballots]):
        (tmp_path / "answers" / f"{number}.json").write_text(json.dumps(content))
    result = tally(key_file(site), [tmp_path / "answers"])
    assert result.counts == {"win": PAIRS, "tie": PAIRS, "lose": PAIRS}
    assert (result.voters, result.excluded, result.pairs) == (3, 1, PAIRS)
    assert result.agreement == 0
    assert main(["study", "tally", str(key_file(site)), str(tmp_path / "answers")]) == 0
    assert re.search(r"win +4 +33\.3", capsys.readouterr().out)
    (tmp_path / "answers" / "5.json").write_text(json.dumps({**ballots[0], "study": "other"}))
    with pytest.raises(MotionPromptError, match="another study"):
        tally(key_file(site), [tmp_path / "answers"])


def test_agreement_is_krippendorffs_alpha() -> None:
    """The nominal example of Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, section C: alpha .743."""
    table = {"A": "1 2 3 3 2 1 4 1 2 . . .", "B": "1 2 3 3 2 2 4 1 2 5 . 3"}
    table |= {"C": ". 3 3 3 2 3 4 2 2 5 1 .", "D": "1 2 3 3 2 4 4 1 2 5 1 ."}
    votes = np.array([[-1 if v == "." else int(v) for v in row.split()] for row in table.values()])
    assert _alpha(votes) == pytest.approx(0.743, abs=5e-4)
    assert _agreement(np.array([[0, 1], [0, 2]])) == 0.5


def test_interval_shrinks_with_voters_and_pairs() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for size in (5, 50):
        low, high = _intervals(generator.integers(0, 3, (size, size)), 0)["win"]
        assert low < 1 / 3 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"study": "x"}, "another study"),
        ({"voter": "../../etc/passwd"}, "voter"),
        ({"answers": [{"trial": "x"}]}, "no trial"),
        ({"answers": "all of them"}, "malformed"),
    ],
)
def test_a_malformed_ballot_is_refused(site: Path, change: dict, reason: str) -> None:
    good = ballot(site, lambda known: of_group(known, "B"))
    study = read_study(site)
    assert len(parse_ballot(good, study).choices) == PAIRS + CHECKS
    with pytest.raises(ValueError, match=reason):
        parse_ballot({**good, **change}, study)
    twice = {**good, "answers": [good["answers"][0]] * 2}
    with pytest.raises(ValueError, match="second"):
        parse_ballot(twice, study)
    swapped = {**good, "answers": [{**good["answers"][0], "left": good["answers"][1]["left"]}]}
    with pytest.raises(ValueError, match="other clips"):
        parse_ballot(swapped, study)


@pytest.fixture
def served(site: Path, tmp_path: Path) -> Iterator[int]:
    with server(site, tmp_path / "answers", port=0) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running.server_port
        running.shutdown()


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_server_gives_the_site_and_nothing_else(site: Path, served: int, tmp_path: Path) -> None:
    clip = next((site / "clips").iterdir())
    content = clip.read_bytes()
    assert ask(served, "GET", "/")[1] == (site / "index.html").read_bytes()
    assert ask(served, "GET", f"/clips/{clip.name}") == (200, content)
    assert ask(served, "GET", f"/clips/{clip.name}", Range="bytes=10-19") == (206, content[10:20])
    assert ask(served, "GET", f"/clips/{clip.name}", Range="bytes=10-") == (206, content[10:])
    assert ask(served, "GET", f"/clips/{clip.name}", Range=f"bytes={len(content)}-")[0] == 416
    (site / ".secret").write_text("x")
    for path in ("/clips/", "/.secret", "/../site.key.json", "/%2e%2e/site.key.json", "/clips/../../site.key.json"):
        assert ask(served, "GET", path)[0] == 404
        assert ask(served, "HEAD", path)[0] == 404


def test_the_server_keeps_ballots_and_refuses_the_rest(site: Path, served: int, tmp_path: Path) -> None:
    good = ballot(site, lambda known: of_group(known, "B"))
    body = json.dumps(good).encode()
    json_type = {"Content_Type": "application/json"}
    assert ask(served, "POST", "/answers", body, **json_type)[0] == 204
    assert json.loads((tmp_path / "answers" / f"{good['voter']}.json").read_text()) == good
    assert ask(served, "POST", "/answers", body, Content_Type="text/plain")[0] == 404  # as a foreign page could send
    assert ask(served, "POST", "/elsewhere", body, **json_type)[0] == 404
    assert ask(served, "POST", "/answers", b"[" * 100_000, **json_type)[0] == 400
    assert ask(served, "POST", "/answers", json.dumps({**good, "voter": "../x"}).encode(), **json_type)[0] == 400
    assert ask(served, "POST", "/answers", b"", Content_Length="99999999", **json_type)[0] == 413
    assert len(list((tmp_path / "answers").iterdir())) == 1


@pytest.fixture
def browser(tmp_path: Path) -> Iterator:
    """A headless Chromium of a phone's size."""
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program, driver = next(filter(None, programs), None), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no Chromium with chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for switch in [*switches.split(), "disable-component-update", "disable-sync", f"user-data-dir={tmp_path}/profile"]:
        options.add_argument(f"--{switch}")
    options.add_argument("--window-size=400,800")
    (tmp_path / "downloads").mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


def shown(browser) -> dict[str, str]:
    """The clips on the page, by side."""
    return {side: browser.find_element("id", side).get_attribute("src").split("/")[-1] for side in ("left", "right")}


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def vote_through(browser, site: Path, decide: Callable[[dict], str | None], reload_after: int) -> dict[str, str]:
    """Vote on every trial, by keys and by buttons in turn; returns {trial: choice} as cast."""
    known_by_clips = {frozenset(trial["clips"]): (name, trial) for name, trial in key_of(site)["trials"].items()}
    keys = {"left": "\ue012", "tie": "\ue015", "right": "\ue014"}
    cast: dict[str, str] = {}
    wait_for(browser.find_element("id", "begin").is_displayed)
    browser.find_element("id", "begin").click()
    for number, by_key in zip(range(len(known_by_clips)), cycle([True, False])):
        sides = shown(browser)
        name, trial = known_by_clips[frozenset(sides.values())]
        chosen = decide(trial)
        choice = next((side for side, clip in sides.items() if clip == chosen), "tie")
        cast[name] = choice
        if by_key:
            browser.switch_to.active_element.send_keys(keys[choice])
        else:
            browser.find_element("css selector", f"[data-choice={choice}]").click()
        if number == reload_after:
            before = shown(browser)
            browser.refresh()
            wait_for(lambda: browser.find_element("id", "vote").is_displayed())
            assert shown(browser) == before
            browser.find_element("id", "back").click()  # and the vote before the reload can be taken back
            assert set(shown(browser).values()) == set(sides.values())
            browser.find_element("css selector", f"[data-choice={choice}]").click()
    assert browser.find_element("id", "end").is_displayed()
    return cast


def test_voted_through_in_a_browser_with_the_server(site: Path, served: int, tmp_path: Path, browser) -> None:
    """Win on the even pairs, lose or tie on the others; what the server got is what was cast, and so is the tally."""
    preferred = {"0": "B", "1": "A", "2": "B", "3": None}

    def decide(trial: dict) -> str | None:
        group = preferred[trial["pair"]]
        return trial["check"] or (of_group(trial, group) if group else None)

    browser.get(f"http://127.0.0.1:{served}/")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")  # fits a phone
    cast = vote_through(browser, site, decide, reload_after=2)
    wait_for(lambda: "have been sent" in browser.find_element("id", "sent").text)
    (answers,) = (tmp_path / "answers").iterdir()
    assert {answer["trial"]: answer["choice"] for answer in json.loads(answers.read_text())["answers"]} == cast
    result = tally(key_file(site), [answers])
    assert result.counts == {"win": 2, "tie": 1, "lose": 1}
    assert result.excluded == 0


def test_voted_through_in_a_browser_from_the_disk(site: Path, tmp_path: Path, browser) -> None:
    """Without any server: the videos play, and the answers are downloaded."""
    browser.get((site / "index.html").as_uri())
    cast = vote_through(browser, site, lambda trial: of_group(trial, "B"), reload_after=0)
    browser.find_element("id", "again").click()
    wait_for(lambda: browser.execute_script("return document.getElementById('left').currentTime > 0"))
    browser.find_element("css selector", f"[data-choice={list(cast.values())[-1]}]").click()
    browser.find_element("id", "download").click()
    downloads = tmp_path / "downloads"
    wait_for(lambda: list(downloads.glob("answers-*.json")))
    assert tally(key_file(site), [downloads]).counts == {"win": PAIRS, "tie": 0, "lose": 0}

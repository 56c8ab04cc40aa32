"""The pages of report.py in a real browser: what is drawn, sorts and filters, and looks right."""

import fcntl
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import chromium, marks, opened, scrolls_sideways
from past import write_run

import page
import report
from collection import PastRun
from conftest import REPO

HELD = []  # locks of runs that go on
EVIL = ("</script><script>window.hit = 1</script>", "<img src=x onerror='window.hit = 1'>",
        "<!-- \u2028 -->", "%{x} & <b>$best</b>", "ring")  # fmt: skip


def write(paths: list[Path], output: Path) -> str:
    assert report.main([*map(str, paths), "-o", str(output)]) == 0
    return output.read_text()


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def fifty(tmp_path_factory) -> Path:
    """A folder with 50 runs of 50 epochs."""
    folder = tmp_path_factory.mktemp("fifty") / "runs"
    for number in range(50):
        rate, strength = 0.01 * 1.08**number, number * 7 % 50 / 25
        reached = 0.7 - 0.2 * (math.log10(rate) + 1.2) ** 2 - 0.02 * strength
        write_run(folder, f"run-{number:02d}", reached=reached, epochs=50, images=1000,
                  figures=True, max_lr=rate, aug_strength=strength)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def fifty_page(fifty) -> Path:
    write([fifty], fifty.parent / "report.html")
    return fifty.parent / "report.html"


def test_fifty_runs_of_fifty_epochs_are_quick_and_small(fifty):
    output = fifty.parent / "again.html"
    code = (
        "import resource, report, sys\n"
        "report.main(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        # Not ru_maxrss: that of the process which started us counts there, too.
        "peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
        "print(used.ru_utime + used.ru_stime, peak)"
    )
    command = [sys.executable, "-c", code, fifty, "-o", output]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO)
    seconds, kilobytes = map(float, done.stdout.split()[-2:])
    assert seconds < 10 and kilobytes < 1e6 and output.stat().st_size < 15e6


@pytest.fixture(scope="module")
def shown(browser, fifty_page):
    """That page on a desktop, opened once."""
    with opened(browser, fifty_page) as page_of_fifty:
        yield page_of_fifty


def column(shown, place: int) -> list[str]:
    return shown.locator(f"#leaderboard tbody tr:visible td:nth-child({place})").all_inner_texts()


def test_every_run_is_in_every_chart(shown):
    assert not scrolls_sideways(shown)
    assert [marks(shown, "parameters", number) for number in (1, 2, 3)] == [50] * 3
    assert [marks(shown, "curves", number) for number in range(3)] == [50] * 3
    assert marks(shown, "cost") == marks(shown, "localisation") == 50
    assert shown.locator("#parameters .plot").first.locator(".bars path").count() == 2
    assert shown.locator("#mistakes img").count() == 2


def test_sorting_and_filtering(shown):
    best = column(shown, 1)[0]
    rates = sorted(map(float, column(shown, 4)), reverse=True)
    button = shown.locator("#leaderboard th button", has_text="max_lr")
    button.click()
    assert list(map(float, column(shown, 4))) == rates
    assert button.locator("..").get_attribute("aria-sort") == "descending"
    button.click()
    assert list(map(float, column(shown, 4))) == rates[::-1]
    box = shown.locator("#leaderboard input")
    box.fill("max_lr>0.1 accuracy>=1% finished")
    wanted = sum(0.01 * 1.08**number > 0.1 for number in range(50))
    assert shown.locator("#leaderboard output").inner_text() == f"{wanted} of 50"
    assert len(column(shown, 1)) == wanted
    shown.wait_for_function(
        """wanted => document.querySelectorAll("#parameters .plot")[2].data[0].marker.opacity
            .filter((opacity) => opacity > 0.5).length === wanted""",
        arg=wanted,
    )
    box.fill(best)
    assert column(shown, 1) == [best]
    box.fill("")
    assert len(column(shown, 1)) == 50


def test_a_click_follows_a_run_through_the_charts(shown):
    pinned = """colour => [...document.querySelectorAll(".plot")].filter((plot) =>
        JSON.stringify(plot.data).includes(colour)).length"""
    assert shown.evaluate(pinned, page.LIGHT["pin"]) == 0
    row = shown.locator("#leaderboard tbody tr").nth(7)
    row.click()
    assert "pinned" in row.get_attribute("class")
    assert shown.evaluate(pinned, page.LIGHT["pin"]) >= 8
    row.click()
    assert shown.evaluate(pinned, page.LIGHT["pin"]) == 0
    button = row.locator("button")
    button.focus()
    for pressed in ("true", "false"):  # from the keyboard
        shown.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == pressed


def test_hovering_names_the_run(shown):
    plot = shown.locator("#curves .plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
    label = plot.locator(".hoverlayer text").first
    label.wait_for(state="attached")
    assert re.search(r"run-\d\d.*epoch \d+: [\d.]+% validation", label.text_content())


def test_dark_phone_and_paper(browser, fifty_page):
    drawn = """(colour) => [...document.querySelectorAll(".plot")].every(
        (plot) => plot.layout.font.color === colour)"""
    dark, light = page.DARK["soft"], page.LIGHT["soft"]
    with opened(browser, fifty_page, 390, color_scheme="dark", has_touch=True) as shown:
        assert not scrolls_sideways(shown)
        assert shown.evaluate(drawn, dark)
        shown.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert shown.evaluate(drawn, light)
        shown.evaluate("dispatchEvent(new Event('afterprint'))")
        assert shown.evaluate(drawn, dark)
        shown.emulate_media(color_scheme="light")
        shown.wait_for_function(drawn, arg=light)
        assert not scrolls_sideways(shown)


def one(folder: Path) -> None:
    write_run(folder, "only")


def failed(folder: Path) -> None:
    write_run(folder, "good")
    write_run(folder, "bad", reached=0.9, epochs=2, of=5, state="failed")
    write_run(folder, "none", reached=None, epochs=0, state="failed", about=False)


def all_failed(folder: Path) -> None:
    write_run(folder, "none", reached=None, epochs=0, state="failed", about=False)


def no_metric(folder: Path) -> None:
    write_run(folder, "blind", reached=None)


def not_finite(folder: Path) -> None:
    nan = {"val/loss": math.nan, "val/acc": math.nan, "train/loss": math.inf}
    write_run(folder, "shaken", changed={3: nan})
    write_run(folder, "lost", max_lr=0.5, changed=dict.fromkeys(range(1, 6), nan))


def going_on(folder: Path) -> None:
    lock = open(write_run(folder, "begun", epochs=1, of=9, state=None) / ".lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    HELD.append(lock)
    write_run(folder, "killed", epochs=2, of=9, state=None)


def bare(folder: Path) -> None:
    for number in range(2):
        write_run(folder, f"bare{number}", boxes=False, about=False, predictions=False, seed=number)


def evil(folder: Path) -> None:
    for number, note in enumerate(EVIL):
        write_run(folder, f"r{number}", classes=EVIL, reached=0.3 + number / 20,
                  extra={"note": note, "<b>key": number})  # fmt: skip


def mixed(folder: Path) -> None:
    for number in range(2):
        write_run(folder, f"shapes{number}", max_lr=0.1 + number)
    write_run(folder, "other", reached=0.9, dataset="cifar10", fingerprint="other")


@pytest.mark.parametrize(
    ("build", "there", "absent"),
    [
        (one, ["1 run on shapes", "Grad", "±"], ["What made the difference", "Best of"]),
        (failed, ["3 runs", "2 runs failed", "good"], ["What made the difference"]),
        (all_failed, ["No run has a value of validation accuracy yet"], ["wrong by"]),
        (no_metric, ["No run has a value", "Learning curves"], ["±"]),
        (not_finite, ["shaken", "lost"], ["nan", "Infinity"]),
        (going_on, ["1 run still going on", "1 killed", "1/9"], []),
        (bare, ["has kept no about.json", "2 seeds"], ["Did it look", "gets wrong"]),
        pytest.param(
            evil,
            ["Most confused", "<b>key"],
            [],
            marks=pytest.mark.fault("security: markup in a report"),
        ),
        (
            mixed,
            ["Not all of these runs can be compared", "A: shapes", "B: cifar10"],
            ["other, the best"],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_right_page_of_every_kind_of_run(browser, tmp_path, build, there, absent):
    build(tmp_path / "runs")
    write([tmp_path / "runs"], tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html", 390) as shown:
        text = shown.inner_text("body")
        assert [words for words in there if words not in text] == []
        assert [words for words in absent if words in text] == []
        assert not scrolls_sideways(shown)
        assert shown.evaluate("window.hit") is None
        for group in shown.locator(".plot").all():
            assert group.locator(".main-svg").count()
        if build is evil:
            labels = shown.locator("#classes .yaxislayer-above text").all_text_contents()
            assert "</script><script>window.h…" in labels and "%{x} & <b>$best</b>" in labels


def test_runs_from_elsewhere_make_a_page_too(browser, tmp_path):
    """As W&B gives them: no folder, no predictions."""
    rows = [{"epoch": 1, "val/acc": 0.1}, {"epoch": 2, "val/acc": 0.4}]
    configs = [{"dataset": "shapes", "max_lr": 0.01 * 2**n, "_wandb": {}} for n in range(4)]
    runs = [PastRun(f"r{n}", None, "finished", one, rows, {}) for n, one in enumerate(configs)]
    told = report.make(runs, [], "entity/project", "python report.py --wandb …", "today")
    (tmp_path / "report.html").write_text(told)
    with opened(browser, tmp_path / "report.html") as shown:
        assert marks(shown, "parameters") == 4 and marks(shown, "curves") == 4

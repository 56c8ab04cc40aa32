"""report.py: findings by tables, and the page in a real browser."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from past import CLASSES, write_run

import page
import report
import report_best
import report_certainty
import report_charts
import report_findings as findings
import report_leaderboard
import report_parameters
import report_sections
import report_wandb_text
from cli import Mistake
from collection import PastRun, PastStudy, collect, read_studies
from conftest import assert_mistake, run
from report_findings import Findings


def made(run_id: str = "a", values=(0.5,), state: str = "finished", about=None, **config):
    """A run as W&B gives it: no folder."""
    rows = [{"epoch": i + 1, "val/acc": value} for i, value in enumerate(values)]
    about = {"split_fingerprint": "s", "validation_images": 100} if about is None else about
    return PastRun(run_id, None, state, {"dataset": "shapes", **config}, rows, {}, about)


def write(paths: list[Path], output: Path) -> str:
    assert report.main([*map(str, paths), "-o", str(output)]) == 0
    return output.read_text()


# The shell ----------------------------------------------------------------------------------------


@pytest.mark.fault("security: markup in a report")
def test_text_is_escaped_and_markup_is_not():
    told = page.tag("p", "<b>", page.tag("i", 'a"b'), class_="x", title='"', hidden=None)
    assert told == '<p class="x" title="&quot;">&lt;b&gt;<i>a&quot;b</i></p>'
    assert page.escape("a\x00\ud800b") == "a��b"


@pytest.mark.fault("security: markup in a report")
@pytest.mark.parametrize("text", ["</script>", "<!--", "\u2028", "\ud800", "&amp;"])
def test_json_in_a_script_cannot_end_it(text):
    told = page.embedded({"a": [text]})
    assert told.isascii() and not re.search("[<>&]", told)
    assert json.loads(told) == {"a": [text]}


def test_json_has_null_for_what_is_not_finite():
    assert page.embedded([math.nan, math.inf, 1.5]) == "[null,null,1.5]"


def test_picture_is_inline_and_small(tmp_path):
    from PIL import Image

    Image.effect_noise((900, 900), 90).convert("RGB").save(tmp_path / "big.png")
    told = page.picture(tmp_path / "big.png", "a <picture>")
    assert 'src="data:image/jpeg;base64,' in told and "a &lt;picture&gt;" in told
    assert len(told) < 1.4 * page.PICTURE_BYTES < (tmp_path / "big.png").stat().st_size


def test_a_page_without_charts_has_no_plotly():
    told = page.document("a", page.tag("h1", "a"), [page.Section("b", "c", page.tag("p", "d"))])
    assert len(told) < 60_000


# Findings -----------------------------------------------------------------------------------------


def test_best_first_and_failed_ones_without_a_place():
    runs = [
        made("low", [0.3]),
        made("none", []),
        made("failed", [0.9], "failed"),
        made("nan", [0.6, math.nan]),
    ]
    found = Findings.of(runs)
    assert [one.name for one in found.entries] == ["nan", "low", "failed", "none"]
    assert found.best.value == 0.6 and found.best.epoch == 1
    assert [one.ranked for one in found.entries] == [True, True, False, False]


def test_metric_and_goal_are_the_studys():
    rows = [{"epoch": 1, "val/acc": 0.5, "val/loss": 2.0}, {"epoch": 2, "val/loss": 1.0}]
    runs = [
        PastRun(name, None, "finished", {}, rows[:count], {})
        for name, count in (("a", 1), ("b", 2))
    ]
    study = PastStudy("s", Path("s"), "val/loss", "minimize", frozenset(), {})
    found = Findings.of(runs, [study])
    assert (found.best.name, found.best.value, found.metric) == ("b", 1.0, "val/loss")


def test_runs_on_other_images_are_set_apart():
    other = {"split_fingerprint": "other"}
    runs = [made("a", [0.5]), made("b", [0.9], about=other), made("c", [0.6])]
    found = Findings.of(runs)
    assert found.best.name == "c" and [one.name for one in found.main] == ["c", "a"]
    assert [str(data) for data in found.groups] == ["shapes, split s", "shapes, split other"]


def test_a_run_that_died_before_it_knew_its_split_belongs_to_the_others():
    runs = [made("a", [0.5], seed=0), made("dead", [], "failed", about={}, seed=1)]
    assert len(Findings.of(runs).groups) == 1
    runs.append(made("b", [0.5], about={}, split_seed=1))
    assert len(Findings.of(runs).groups) == 2


def test_names_are_told_apart(tmp_path):
    paths = [write_run(tmp_path / place, "a", epochs=1) for place in ("one", "two")]
    assert findings.names_of(collect(paths)) == ["one/a", "two/a"]
    assert findings.names_of([made("a"), made("a")]) == ["a", "a (2)"]


def test_a_run_from_before_a_field_was_there_has_its_default(tmp_path):
    old, new = (write_run(tmp_path, run_id, epochs=1) for run_id in ("old", "new"))
    values = yaml.safe_load((old / "config.yaml").read_text())
    del values["init"], values["nesterov"]
    (old / "config.yaml").write_text(yaml.safe_dump(values))
    a, b = (run.config for run in collect([old, new]))
    assert findings.differing([a, b]) == []


def test_only_what_differs():
    configs = [{"a": 1, "b": 2, "data_dir": "x"}, {"a": 1, "b": 3, "data_dir": "y", "_wandb": {}}]
    assert findings.differing(configs) == ["b"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.01, 0.02, 0.1, 0.3], "log"),
        ([1e-5, 1e-4, 1e-3], "log"),
        ([0.1, 0.7, 1.2, 1.9], "linear"),
        ([0.0, 0.5, 1.0], "linear"),
        ([0.01, 0.05], "linear"),
        ([64, 128, 256], "category"),
        ([1, 2, 3, 4, 5, 6, 7], "linear"),
        (["sgd", "adamw"], "category"),
        ([True, False], "category"),
        ([0.1, None], "category"),
    ],
)
def test_axis_of_a_parameter(values, kind):
    assert report_parameters.scale("key", values).kind == kind
    assert report_parameters.scale("key", [0.1, 1.9], logarithmic=True).kind == "log"


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("linear", 0.0, 2.0, [0, 0.5, 1, 1.5, 2]),
        ("linear", 0.41, 0.86, [0.5, 0.6, 0.7, 0.8]),
        ("log", 0.01, 1.0, [0.01, 0.03, 0.1, 0.3, 1]),
        ("log", 0.011, 0.019, [0.011, 0.019]),
        ("log", 1e-9, 1.0, [1e-9, 1e-7, 1e-5, 1e-3, 0.1]),
        ("linear", 3.0, 3.0, [3.0]),
    ],
)
def test_round_numbers_on_an_axis(kind, low, high, expected):
    assert report_parameters.ticks(kind, low, high) == pytest.approx(expected)


def test_importance_finds_what_matters_and_says_nothing_of_few():
    import numpy as np

    dice = np.random.default_rng(0)
    runs = []
    for number in range(24):
        rate, other = 10 ** dice.uniform(-2, 0), dice.uniform(0, 2)
        value = 0.6 - 0.2 * (math.log10(rate) + 1) ** 2 + dice.normal(0, 0.005)
        runs.append(made(str(number), [value], max_lr=rate, aug_strength=other))
    found = report_parameters.importance(Findings.of(runs))
    assert list(found) == ["max_lr", "aug_strength"] and found["max_lr"] > 0.8
    assert report_parameters.importance(Findings.of(runs[: report_parameters.ENOUGH - 1])) is None


def test_importance_of_a_parameter_that_is_drawn_by_its_logarithm():
    """A third of the draws fails; they are a hundredth of the range from 0 to 1."""
    import numpy as np

    dice = np.random.default_rng(0)
    runs = []
    for number in range(30):
        rate, other = 10 ** dice.uniform(-3, 0), dice.uniform(0, 2)
        value = 0.5 * (rate > 0.01) + 0.005 * other + dice.normal(0, 0.005)
        runs.append(made(str(number), [value], max_lr=rate, aug_strength=other))
    assert report_parameters.importance(Findings.of(runs))["max_lr"] > 0.8


def test_importance_of_a_key_with_many_words_is_not_asked_for():
    """fANOVA would go through the combinations of all of them: hours."""
    runs = []
    for number in range(20):
        config = {"model": f"m{number}", "max_lr": 0.1 + number, "aug_strength": 1.0 + number % 5}
        runs.append(made(str(number), [0.5 + 0.01 * (number % 7)], **config))
    found = Findings.of(runs)
    assert set(report_parameters.importance(found)) == {"max_lr", "aug_strength"}
    assert report_parameters.left_out(found) == ["model"]
    alone = [made(one.run_id, [one.rows[0]["val/acc"]], model=one.config["model"]) for one in runs]
    found = Findings.of(alone)
    assert report_parameters.importance(found) is None
    assert "fewer than two parameters can be judged" in report_sections._importance(found)
    assert "different values: model." in report_parameters.without(found)


def certainty(runs, studies=()):
    told = report_certainty.certainty(Findings.of(runs, studies))
    return told.beside("val/acc"), " ".join(told.sentences)


def test_one_run_is_as_sure_as_its_images():
    beside, told = certainty([made("a", [0.2, 0.6, 0.5])])
    assert beside == "± 4.8 points, standard error, 100 images"
    assert "100 validation images" in told and "No other seed of this config" in told
    assert "the best of 3 epochs" in told and "last epoch, which nobody chose, has 50.0%" in told


def test_where_images_grew_the_best_is_chosen_among_the_epochs_at_the_largest():
    run = made("a", [0.7, 0.6, 0.5])
    for row, pixels in zip(run.rows, (32, 64, 64), strict=True):
        row["pixels"] = pixels
    _, told = certainty([run])
    assert "the best of 2 epochs at the largest size, chosen" in told
    del run.rows[2]
    _, told = certainty([run])
    assert "chosen" not in told and "of 1 epoch" not in told


def test_other_seeds_say_more_than_the_images():
    runs = [made("a", [0.6], seed=0), made("b", [0.5], seed=1), made("c", [0.55], seed=0, x=1)]
    beside, told = certainty(runs)
    assert beside == "mean 55.0% ± 7.1 points, 2 seeds"
    assert "2 seeds: mean 55.0% ± 7.1 points" in told and "no more than what another seed" in told


def test_a_confirmed_study_says_it_best():
    trial = {"trial": "001", "run_id": "a", "values": {"1": 0.5, "2": 0.6}}
    trial |= {"mean": 0.55, "sd": 0.07}
    confirmed = {"metric": "val/acc", "trials": [trial], "sentence": "the lead is noise"}
    study = PastStudy("s", Path("s"), "val/acc", "maximize", frozenset(), confirmed)
    beside, told = certainty([made("a", [0.7])], [study])
    assert beside == "mean 55.0% ± 7.0 points, 2 other seeds"  # 70% is not within
    assert told.startswith("It was trained again with 2 seeds: mean 55.0% ± 7.1 points")
    assert "The lead is noise." in told
    _, told = certainty([made("a", [0.7]), made("b", [0.8], max_lr=0.3)], [study])
    assert "Of the trials of s that were run again, a is the best: it was trained again" in told
    beside, told = certainty([made("b", [0.8])], [study])  # of other data, or not here
    assert "again" not in told and "standard error" in beside


def test_seeds_that_failed_are_told():
    lost = made("c", [0.7], "failed", seed=2)
    runs = [made("a", [0.6], seed=0), made("b", [0.5], seed=1), lost]
    assert "mean 55.0% ± 7.1 points (standard deviation); 1 other seed failed" in certainty(runs)[1]
    trial = {"run_id": "a", "values": {}, "failed": 3, "mean": None, "sd": None}
    confirmed = {"metric": "val/acc", "trials": [trial], "sentence": ""}
    study = PastStudy("s", Path("s"), "val/acc", "maximize", frozenset(), confirmed)
    beside, told = certainty(runs[:1], [study])
    assert "It was trained again with 3 other seeds, and failed." in told
    assert "standard error" in beside
    trial.update(failed=0, open=3)  # another driver's, which has not ended
    assert "trained again" not in certainty(runs[:1], [study])[1]


def test_classes_best_first(tmp_path):
    import numpy as np

    true, predicted = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 0])
    told = report_best.by_class(made(about={"classes": list(CLASSES)}), true, predicted)
    assert told == [("square", 1.0, 1), ("disc", 0.5, 2), ("ring", 0.0, 1)]


def test_the_command_has_what_is_not_the_default():
    run = made(max_lr=0.3, amp="auto", flip=False, data_dir="a b", workers=7, split_fingerprint="y")
    expected = "python train.py --dataset=shapes --max_lr=0.3 --flip=False '--data_dir=a b'"
    assert report_best.command_of(run) == expected


def test_plotly_takes_every_chart(tmp_path):
    """A name of a key that plotly does not know would be ignored by the browser in silence."""
    from plotly.graph_objects import Figure

    for number in range(3):
        write_run(tmp_path, f"r{number}", reached=0.5 + number / 10, max_lr=0.01 * 5**number,
                  optimizer="sgd" if number else "adam")  # fmt: skip
    told = write([tmp_path], tmp_path / "report.html")
    figures = re.findall(r'<script type="application/json">(.*?)</script>', told)
    assert len(figures) >= 9
    for text in figures:
        figure = json.loads(re.sub(r'"\$[a-z]+( [\d.]+)?"', '"red"', text))
        Figure(figure["data"], figure["layout"])
        Figure(layout=figure.get("narrow"))


def test_sizes_that_differ_are_told():
    runs = [made(name, [0.3, 0.5], image_size=48) for name in "abc"]
    assert report_sections.notices(Findings.of(runs)) == []
    runs[1].about["full_pixels"] = 64  # whose image_size is 0
    runs.append(made("dead", [], "failed", image_size=24))
    found = Findings.of(runs)
    (told,) = map(str, report_sections.notices(found)[:1])
    assert "1 run at 64 px, 2 runs at 48 px.<" in told
    assert ">pixels<" in str(report_leaderboard.leaderboard(found).body)
    grows = {"resolution_schedule": "24:0.5", "image_size": 48}
    runs[2] = made("c", [0.3, 0.5], **grows)
    runs[2].rows[0]["pixels"] = runs[2].rows[1]["pixels"] = 24
    runs.append(made("lost", [0.4], **grows))
    told = report_sections.sizes_differ(Findings.of(runs))
    assert "1 run at 48 px, 1 run at 24 px, 1 run at a size that is not known. A run" in told
    assert told in report_wandb_text.notices(Findings.of(runs))


def test_of_very_many_runs_the_best_are_drawn():
    many = Findings.of([made(f"r{n}", [n / 1000], max_lr=0.1 + n / 1000) for n in range(250)])
    drawn = report_charts.painted(many)
    assert (len(drawn), drawn[0].name, drawn[-1].name) == (200, "r50", "r249")
    (told,) = report_sections.notices(many)
    assert "The charts draw the best 200 of 250 runs." in told


# The command --------------------------------------------------------------------------------------


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    assert_mistake(run("report.py", tmp_path / "nowhere"), "nowhere", "no such folder")
    write_run(tmp_path / "runs", "a")
    for arguments, words in (
        (["empty"], "no run, no folder of runs and no study"),
        (["runs", "--outptu=x"], "did you mean '--output'"),
        (["nowhere", "-o", "missing/x.html"], "-o missing/x.html: cannot be written"),
        (["runs", "-o", "empty"], "-o empty: cannot be written (it is a folder)"),
        (["runs", "-o", "."], "-o .: cannot be written (it is a folder)"),
        (["diff", "runs/a", "runs/a", "-o", "/"], "-o /: cannot be written (it is a folder)"),
        (["runs", "--wandb", "a/b"], "give one of them"),
        (["--wandb", "a/b", "--workspace", "-o", "x.html"], "give one of them"),
        (["--workspace"], "give --wandb ENTITY/PROJECT as well"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            with pytest.raises(Mistake, match=re.escape(words)):
                report.main(arguments)
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [("summary.json", b"{"), ("config.yaml", b"[1]"), ("history.csv", b"epoch\nx\n"),
     ("history.csv", b"epoch\n\xff\n"), ("predictions.npz", b"no"), ("about.json", b"no"),
     ("figures/mistakes.png", b"\x89PNG"), ("figures/gradcam.jpg", b"")],
)  # fmt: skip
def test_a_broken_file_is_named(tmp_path, name, content):
    (write_run(tmp_path, "a", figures=True) / name).write_bytes(content)
    with pytest.raises(Mistake, match=name):
        report.main([str(tmp_path), "-o", str(tmp_path / "report.html")])


def test_a_study_brings_its_metric_and_its_runs(tmp_path, capsys):
    import study
    from study_folder import create

    sweep = {
        "program": "train.py",
        "method": "random",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": {"max_lr": {"distribution": "log_uniform_values", "min": 0.01, "max": 0.1}},
    }
    kept = create(tmp_path / "found", sweep)
    for number, rate in enumerate((0.02, 0.03)):
        folder = write_run(tmp_path / "runs", f"r{number}", reached=0.4 + number / 5, max_lr=rate)
        job = {"run_id": folder.name, "run": str(folder), "parameters": {"max_lr": rate}}
        kept.optuna.ask().set_user_attr("job", job)
    # Of one that was killed too often the study alone knows the end.
    (tmp_path / "runs" / "r0" / "summary.json").unlink()
    lost = kept.jobs()[0]
    assert kept.claim(lost.key)
    kept.ended(lost, study.End("failed", None, 3, ("killed",)))
    for places in ([tmp_path / "found"], [tmp_path / "found", tmp_path / "runs"]):
        assert [one.state for one in collect(places)] == ["failed", "finished"]
    told = write([tmp_path / "found"], tmp_path / "report.html")
    assert "found: 2 runs on shapes" in told and "validation loss" in told
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'report.html'} (")
    # Of runs that are not here the study has the values.
    whole = kept.jobs()[1]
    assert kept.claim(whole.key)
    kept.ended(whole, study.End("finished", 1.25, 5))
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    places = [tmp_path / "found"]
    best = Findings.of(collect(places), read_studies(places)).best
    assert (best.name, best.value, best.epochs, best.when) == ("r1", 1.25, 5, "at the end")
    write(places, tmp_path / "report.html")

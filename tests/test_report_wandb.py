"""`report.py --wandb`: runs read from W&B, a report and a workspace there, by the real clients,
against the stand-in.
"""

import json
import math
import pickle
import re
from pathlib import Path

import pytest
import yaml
from wandb_server import ENTITY, LOGIN_MISTAKES, StoredRun, StoredSweep, WandbServer

import collection
import report_wandb_text as text
from cli import Mistake
from collection import PastRun
from conftest import REPO
from measures import METRICS
from report_findings import Findings
from report_from_wandb import number, place_of, state_of
from report_wandb import parameters, without_symbols
from runs import Run

PROJECT = f"{ENTITY}/tinysweep"
RATES = {"a1": 0.05, "b2": 0.02}  # run -> max_lr
CALL = """
import os, pickle, report
from pathlib import Path
home = Path(os.environ["HOME"])
def keep(path):
    from report_from_wandb import collect_from_wandb
    (home / "found").write_bytes(pickle.dumps(collect_from_wandb(path)))
def page(path):
    return report.main(["--wandb", path, "-o", str(home / "report.html")])
def publish(path):
    return report.main(["--wandb", path])
def workspace(path):
    return report.main(["--wandb", path, "--workspace"])
train.command = lambda _: {}({!r})
"""


@pytest.fixture(scope="module")
def made(start, tmp_path_factory):
    """A server with two runs of a sweep, and their folders."""
    base = tmp_path_factory.mktemp("made")
    with WandbServer() as server:
        config = yaml.safe_load((REPO / "sweep.yaml").read_text())
        server.sweeps["sweep0"] = StoredSweep("sweep0", config)
        runs = [start_in_sweep(start, base / name, name, server) for name in RATES]
        assert [run.wait() for run in runs] == [0, 0], runs[0].text + runs[1].text
        yield server, [run.folder for run in runs]


def start_in_sweep(start, folder: Path, name: str, server: WandbServer) -> Run:
    """As the agent does."""
    folder.mkdir()
    drawn = {"max_lr": {"value": RATES[name]}, "aug_strength": {"value": 0.5}}
    (folder / "parameters.yaml").write_text(yaml.safe_dump({"wandb_version": 1, **drawn}))
    env = {**server.env, "WANDB_PROJECT": "tinysweep", "WANDB_SWEEP_ID": "sweep0"}
    env |= {"WANDB_RUN_ID": name, "WANDB_SWEEP_PARAM_PATH": str(folder / "parameters.yaml")}
    return start(folder, name, env=env, epochs=2, mistakes=4)


@pytest.fixture
def server(made):
    yield made[0]
    assert made[0].unknown == []


@pytest.fixture
def call(tmp_path, zygote, server):
    """Call one of CALL's functions as a command would be: exit status, and what it says."""

    def run(what: str, path: str = f"{PROJECT}/sweep0", patch: str = "", **env: str):
        del server.seen[:]
        server.views.clear()
        code = patch + CALL.format(what, path)
        one = Run(zygote, tmp_path, run_id="", patch=code, **{**server.env, **env})
        return one.wait(), one.text

    return run


def collected(call, folder: Path, path: str) -> tuple[list[PastRun], list]:
    status, said = call("keep", path)
    assert status == 0, said
    return pickle.loads((folder / "found").read_bytes())


def words(block: dict) -> str:
    """The text of a report's block."""
    return block.get("text", "") + "".join(words(one) for one in block.get("children", ()))


def panels_of(panels: list[dict]) -> dict[str, list[dict]]:
    """Their configs, by their kind."""
    found: dict[str, list[dict]] = {}
    for panel in panels:
        found.setdefault(panel["viewType"], []).append(panel["config"])
    return found


def check_panels(panels: list[dict]) -> None:
    found = panels_of(panels)
    over_epoch = {tuple(one["metrics"]) for one in found["Run History Line Plot"]}
    curves = {("val/acc",), ("train/acc",), ("val/loss",), ("lr",)}
    assert over_epoch == curves | {("val/cam_energy_lift",), ("val/cam_pointing_lift",)}
    assert {one["xAxis"] for one in found["Run History Line Plot"]} == {"epoch"}
    (parallel,) = found["Parallel Coordinates Plot"]
    axes = {one["accessor"]: one.get("log", False) for one in parallel["columns"]}
    rate, strength = "config:max_lr.value", "config:aug_strength.value"
    assert axes == {rate: True, strength: False, "summary:best_val_acc": False}
    (importance,) = found["Parameter Importance"]
    assert importance["targetKey"] == "best_val_acc"
    scatter = {one["xAxis"]: one.get("xAxisLogScale", False) for one in found["Scatter Plot"]}
    assert scatter == {rate: True, strength: False}
    assert {one["yAxis"] for one in found["Scatter Plot"]} == {"summary:best_val_acc"}
    (media,) = found["Media Browser"]
    assert media["mediaKeys"] == ["val/gradcam"]
    (table,) = found["Weave"]
    assert '"val": "val/mistakes"' in json.dumps(table)


def filters_of(run_set: dict) -> dict[str, str]:
    """Keys of the run and what they must be."""
    assert {one["op"] for one in run_set["filters"]["filters"]} == {"="}
    assert {one["key"]["section"] for one in run_set["filters"]["filters"]} == {"run"}
    return {one["key"]["name"]: one["value"] for one in run_set["filters"]["filters"]}


def test_a_report_about_a_sweep(call, server, made):
    status, said = call("publish")
    assert status == 0, said
    ((view_id, view),) = server.views.items()
    assert said == f"{server.url}/{PROJECT}/reports/sweep0-2-runs--{view_id}\n"
    assert (view.type, view.project, view.title) == ("runs", "tinysweep", "sweep0: 2 runs")
    grids = [block for block in view.spec["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 4
    for grid in grids:
        (runs,) = grid["metadata"]["runSets"]
        assert filters_of(runs) == {"sweep": "sweep0"}
        assert runs["project"]["name"] == "tinysweep"
        assert runs["sort"]["keys"][0]["key"] == {"section": "summary", "name": "best_val_acc"}
    check_panels([p for g in grids for p in g["metadata"]["panelBankSectionConfig"]["panels"]])
    told = "\n".join(words(block) for block in view.spec["blocks"])
    folders = made[1]
    found = Findings.of([collection.read_run(folder) for folder in folders])
    best, second = found.ranked
    if best.value == second.value and f"is {second.name}:" in told:  # equal by chance
        best, second = second, best
    accuracy = f"validation accuracy {100 * best.value:.1f}%"
    assert f"The best of 2 runs is {best.name}: {accuracy} (± " in told
    assert f" points, standard error, 40 images) after epoch {best.epoch} of 2." in told
    assert f"The next, {second.name}, " in told
    assert f"The best run has max_lr {RATES[best.name]}." in told
    assert "lift of" in told
    assert "sweep.py confirm" not in told  # there is no study on this disk
    assert f"--max_lr={RATES[best.name]}" in told
    assert f"python report.py --wandb {PROJECT}/sweep0" in told
    assert f"{server.url}/{PROJECT}/runs/{best.name}" in json.dumps(view.spec)


def test_a_workspace_has_the_panels_of_the_report(call, server):
    status, said = call("workspace")
    assert status == 0, said
    (view,) = server.views.values()
    assert view.type == "project-view"
    assert re.fullmatch(rf"{server.url}/{PROJECT}\?nw=\w+\n", said)
    (runs,) = view.spec["section"]["runSets"]
    assert filters_of(runs) == {"sweep": "sweep0"}
    sections = view.spec["section"]["panelBankConfig"]["sections"]
    check_panels([panel for one in sections for panel in one["panels"]])


def told_of(config: dict) -> dict[str, str]:
    return {key: repr(value) for key, value in config.items()}


def test_runs_read_from_w_and_b_are_those_on_disk(call, tmp_path, made):
    runs, (study,) = collected(call, tmp_path, f"{PROJECT}/sweeps/sweep0")
    assert (study.name, study.metric, study.goal) == ("sweep0", "val/acc", "maximize")
    assert study.logarithmic == {"max_lr"}
    for folder, run in zip(made[1], sorted(runs, key=lambda run: run.run_id), strict=True):
        there = collection.read_run(folder)
        assert (run.run_id, run.state, run.folder) == (there.run_id, "finished", None)
        assert told_of(run.config) == told_of(there.config)
        assert run.rows == there.rows
        assert set(run.rows[0]) <= set(METRICS)
        assert run.fingerprint == there.fingerprint
        told = {k: v for k, v in there.summary.items() if k != "run_id"}
        assert {key: run.summary[key] for key in told} == told


def test_the_html_file(call, tmp_path):
    status, said = call("page")
    assert status == 0, said
    html = (tmp_path / "report.html").read_text()
    assert "sweep0: 2 runs on shapes" in html
    assert "Best of 2 runs" in html
    for name, rate in RATES.items():
        assert f">{name}<" in html
        assert f"--max_lr={rate}" in html


def stored(server, name: str, rows: list[dict], state_there: str, **summary) -> StoredRun:
    """A run of the project `odd`; its rows with what else stands in a history."""
    run = server.runs[name] = StoredRun(name, "odd", job_type="train", state=state_there)
    run.config = {"dataset": "shapes", "max_lr": 0.1, "_wandb": {"t": 1}}
    for row in rows:
        run.history.append({"_step": len(run.history), "train/step": 1, "train/lr_step": 0.1})
        run.history.append({"_step": len(run.history), **row})
        run.history.append({"_step": len(run.history), "val/gradcam": {}, "epoch": row["epoch"]})
    run.summary = {k: v for row in run.history for k, v in row.items()} | summary
    return run


@pytest.fixture
def odd(server):
    """Runs as they come."""
    nan = [{"epoch": 1, "val/acc": 0.2, "val/loss": "NaN"},
           {"epoch": 2, "val/acc": "NaN", "val/loss": "Infinity"}]  # fmt: skip
    twice = [{"epoch": 1, "val/acc": 0.2}, {"epoch": 2, "val/acc": 0.3},
             {"epoch": 2, "val/acc": 0.4}, {"epoch": 3, "val/acc": 0.5}]  # fmt: skip
    partly = [{"epoch": 1, "val/acc": 0.2}, {"epoch": 2, "val/acc": 0.3, "val/top5": 0.9}]
    stored(server, "nan1", nan, "failed", state="failed")
    stored(server, "again1", twice, "running", state="preempted")
    stored(server, "partly1", partly, "crashed")
    stored(server, "none1", [], "killed")
    stored(server, "only1", [{"epoch": 1, "train/acc": 0.5}], "finished", state="stopped")
    stored(server, "other1", [], "finished").job_type = "find_lr"
    yield server
    for name in [name for name, run in server.runs.items() if run.project == "odd"]:
        del server.runs[name]


def test_odd_runs(call, tmp_path, odd):
    for i in range(50):  # so that the server tells of them in two parts
        stored(odd, f"many{i}", [], "pending")
    runs, studies = collected(call, tmp_path, f"{ENTITY}/odd")
    assert studies == []
    found = {run.run_id: run for run in runs}
    assert len(found) == 55
    assert "other1" not in found
    states = {name: found[name].state for name in ("nan1", "again1", "partly1", "none1", "only1")}
    assert list(states.values()) == ["failed", "running", "killed", "killed", "stopped"]
    nan = found["nan1"]
    assert math.isnan(nan.rows[1]["val/acc"])
    assert nan.rows[1]["val/loss"] == math.inf
    assert nan.best() == (1, 0.2)
    assert found["again1"].column("val/acc") == ([1, 2, 3], [0.2, 0.4, 0.5])
    assert found["partly1"].rows == [
        {"epoch": 1, "val/acc": 0.2}, {"epoch": 2, "val/acc": 0.3, "val/top5": 0.9}
    ]  # fmt: skip
    assert found["none1"].rows == []
    assert found["only1"].best() is None
    assert {"dataset": "shapes", "max_lr": 0.1}.items() <= found["only1"].config.items()
    assert found["only1"].config["nesterov"] is True  # a field that is younger than the run
    told = " ".join(text.notices(Findings.of(runs)))
    assert "1 run failed" in told
    assert "51 runs still going on" in told


def test_a_report_about_odd_runs(call, odd):
    status, said = call("publish", f"{ENTITY}/odd")
    assert status == 0, said
    (view,) = odd.views.values()
    told = "\n".join(words(block) for block in view.spec["blocks"])
    assert "The best of 2 runs is again1: validation accuracy 50.0% after epoch 3 of 3." in told
    assert "1 run failed" in told
    grids = [block for block in view.spec["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 2  # nothing was searched, nothing has boxes
    for grid in grids:
        assert filters_of(grid["metadata"]["runSets"][0]) == {"jobType": "train"}


WRONG = {
    **LOGIN_MISTAKES,
    "a project that is not there": ({}, 2, f"{ENTITY}/nothing: W&B has no such project"),
    "a sweep that is not there": ({}, 2, f"{PROJECT}/nothing: W&B has no such sweep"),
    "a sweep without runs": ({}, 2, "this sweep has no run yet"),
    "without wandb-workspaces": ({}, 2, "wandb-workspaces is not installed"),
}
PATHS = {
    "a project that is not there": f"{ENTITY}/nothing",
    "a sweep that is not there": f"{PROJECT}/nothing",
    "a sweep without runs": f"{PROJECT}/empty",
}
PATCHES = {
    "a dead server": "import wandb_api; wandb_api.TIMEOUT_S = 1",
    "without wandb-workspaces": "import importlib.util; importlib.util.find_spec = lambda _: None",
}
FEW_TRIES = {  # where the server goes away
    f"WANDB_X_GRAPHQL_RETRY_{key}": "1" for key in ("MAX", "WAIT_MIN_SECONDS", "WAIT_MAX_SECONDS")
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_report_that_cannot_be_made_says_so_in_a_line(call, server, mistake):
    env, status, line = WRONG[mistake]
    server.sweeps["empty"] = StoredSweep("empty", server.sweeps["sweep0"].config)
    path = PATHS.get(mistake, f"{PROJECT}/sweep0")
    told, said = call("publish", path, PATCHES.get(mistake, ""), **env)
    assert told == status, said
    assert len(said.splitlines()) == 1, said
    assert line in said
    assert server.changes() == []


def test_the_server_goes_away_in_the_middle(call, server):
    server.interrupt("upsert_view", False, lambda: server.go_away(3600))
    try:
        status, said = call("publish", **FEW_TRIES)
    finally:
        server.down_until = 0.0
    assert status == 1
    assert len(said.splitlines()) == 1, said
    assert f"W&B at {server.url}" in said


def test_a_project_may_have_spaces():
    assert place_of("me/my project/abc") == place_of("me/my project/sweeps/abc")
    assert place_of("me/my project").project == "my project"


PLACES = ("tester", "/tester/tinysweep", "tester/tinysweep/", "a/b/c/d", "a b/c", "", "a/b/c'd")


@pytest.mark.parametrize("path", PLACES)
def test_a_malformed_path(path):
    with pytest.raises(Mistake, match="must be ENTITY/PROJECT or ENTITY/PROJECT/SWEEP_ID"):
        place_of(path)


@pytest.mark.parametrize(
    ("told", "own", "ours"),
    [
        ("finished", "finished", "finished"),
        ("finished", "stopped", "stopped"),
        ("finished", None, "finished"),
        ("failed", "preempted", "preempted"),
        ("failed", "interrupted", "interrupted"),
        ("failed", None, "failed"),
        ("killed", "stopped", "stopped"),
        ("killed", None, "killed"),
        ("crashed", "preempted", "killed"),  # it had been resumed since
        ("running", "preempted", "running"),
        ("pending", None, "pending"),
        ("preempting", None, "preempted"),
        ("a new one", None, "a new one"),
    ],
)
def test_states(told, own, ours):
    assert state_of(told, own) == ours


def test_numbers():
    assert math.isnan(number("NaN"))
    assert [number("Infinity"), number("-Infinity"), number(1)] == [math.inf, -math.inf, 1.0]
    assert [number(value) for value in (None, True, "0.5", {}, [])] == [None] * 5


def test_a_sentence_with_code_and_run_ids_but_no_words_and_no_numbers():
    told = text.pieces("run ab1 of 50, ab12, x-ab1 (`a b` ab1)", ["ab1", "ab12", "run", "50"])
    assert [piece for piece, kind in told if kind == "run"] == ["ab1", "ab12", "ab1"]
    assert [piece for piece, kind in told if kind == "code"] == ["a b"]
    assert "".join(piece for piece, _ in told) == "run ab1 of 50, ab12, x-ab1 (a b ab1)"
    assert text.pieces("run", []) == [("run", "text")]


def test_the_name_of_a_view_has_no_symbols():
    assert without_symbols("lr+aug ✨: 4 runs") == "lr-aug -: 4 runs"


def test_parameters_of_a_project_are_those_that_differ():
    rows = [{"epoch": 1.0, "val/acc": 0.5}]
    configs = [{"max_lr": 10.0**-i, "momentum": 0.9, "flip": 0.1 * i, "seed": i} for i in range(5)]
    runs = [PastRun(str(c["seed"]), None, "finished", c, rows, {}, {}) for c in configs]
    assert parameters(Findings.of(runs), ()) == [("max_lr", True), ("flip", False)]
    assert parameters(Findings.of(runs), ("momentum",)) == [("momentum", False)]


def test_runs_on_other_images_are_told_apart():
    rows = [{"epoch": 1.0, "val/acc": 0.5}]
    runs = [
        PastRun(f"r{i}", None, "finished", {}, rows, {}, {"split_fingerprint": split})
        for i, split in enumerate("aab")
    ]
    (told,) = text.notices(Findings.of(runs))
    assert "1 run of 3 had other images" in told

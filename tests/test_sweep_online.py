"""`wandb sweep` and `wandb agent`, the real ones, with train.py, against a stand-in server."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from wandb_server import ENTITY, WandbServer

import agents
from conftest import REPO, assert_mistake, run
from runs import TIMEOUT_S, assert_same_bits, history_lines, summary

BIN = Path(sys.executable).parent
RANGES = {"max_lr": (0.01, 1.0), "aug_strength": (0.0, 2.0)}
SLOW_STEPS = "0.3"  # seconds, where a run is to be interrupted


@pytest.fixture
def server():
    with WandbServer() as started:
        yield started
        assert started.unknown == []


class Sweep:
    """A sweep on the server and the agents that work on it, in a folder of its own."""

    def __init__(self, folder: Path, server: WandbServer, data_dir: Path, command=(), **changed):
        self.folder, self.server, self.agents = folder, server, []
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        self.env |= {**server.env, "HOME": str(folder), "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.env |= {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1", "OMP_NUM_THREADS": "1"}
        config = yaml.safe_load((REPO / "sweep.yaml").read_text())
        fixed = {"dataset": "shapes", "data_dir": str(data_dir), "model": "small"}
        fixed |= {"image_size": 16, "batch_size": 16, "workers": 0, "mistakes": 4, "epochs": 2}
        for key, value in {**fixed, **changed}.items():
            config["parameters"][key] = {"value": value}
        config["program"] = str(REPO / "train.py")
        words = command or config["command"]
        config["command"] = [word.replace("=recipes/", f"={REPO}/recipes/") for word in words]
        config["run_cap"] = 3
        (folder / "sweep.yaml").write_text(yaml.safe_dump(config))
        done = self.wandb("sweep", "sweep.yaml")
        (self.stored,) = server.sweeps.values()
        assert f"wandb agent {ENTITY}/tinysweep/{self.stored.name}" in done.stderr

    def wandb(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [BIN / "wandb", *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )

    def agent(self, *arguments: str) -> subprocess.Popen:
        log = open(self.folder / f"agent{len(self.agents)}.txt", "w")
        path = f"{ENTITY}/tinysweep/{self.stored.name}"
        command = [BIN / "wandb", "agent", *arguments, path]
        agent = subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT
        )
        self.agents.append(agent)
        return agent

    def text(self) -> str:
        return "\n".join(p.read_text()[-3000:] for p in sorted(self.folder.glob("agent*.txt")))

    def until(self, happened, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def end(self) -> None:
        for agent in self.agents:
            agent.kill()
            agent.wait()

    def run(self, number: int):
        name = f"{self.stored.name}-run{number}"
        return self.server.runs.get(name)

    def epochs(self, number: int) -> int:
        run = self.run(number)
        return sum("val/acc" in row for row in run.history) if run else 0


@pytest.fixture
def sweep(tmp_path, server, shapes_dir):
    made = []

    def make(**changed) -> Sweep:
        made.append(Sweep(tmp_path, server, changed.pop("data_dir", shapes_dir), **changed))
        return made[-1]

    yield make
    for one in made:
        one.end()


def folder_of(sweep: Sweep, name: str) -> Path:
    return sweep.folder / "runs" / name


def test_two_agents_and_a_command_without_args(sweep, server):
    """Three runs by two agents: every key, picture, table and artifact arrives whole."""
    made = sweep(command=["${env}", "${interpreter}", "${program}"])
    agents = [made.agent(), made.agent()]
    made.until(lambda: all(agent.poll() is not None for agent in agents), 150)
    assert [agent.returncode for agent in agents] == [0, 0], made.text()
    assert len(made.stored.agents) == 2
    assert len(made.stored.runs) == len(server.runs) == 3
    drawn = set()
    for name in made.stored.runs:
        run, folder = server.runs[name], folder_of(made, name)
        assert (run.sweep, run.exit_code, run.project) == (made.stored.name, 0, "tinysweep")
        for key, one in made.stored.arguments[name].items():
            assert run.config[key] == one["value"], key  # what W&B shows
        written = yaml.safe_load((folder / "config.yaml").read_text())  # is what ran
        assert {key: run.config[key] for key in written} == written
        for key, (low, high) in RANGES.items():
            assert low <= run.config[key] <= high
        drawn.add(run.config["max_lr"])
        assert_whole(server, run, folder)
    assert len(drawn) == 3


def assert_rows(rows: list[dict], folder: Path) -> None:
    """The epochs among the rows that were logged are those of the run on disk."""
    lines = [line.split(",") for line in history_lines(folder)]
    told = [dict(zip(lines[0], map(float, line), strict=True)) for line in lines[1:]]
    epochs = [row for row in rows if "val/acc" in row]
    assert [{key: row[key] for key in lines[0]} for row in epochs] == told


def assert_whole(server: WandbServer, run, folder: Path) -> None:
    """What the server has of a run is what the run has on disk."""
    assert_rows(run.history, folder)
    panels = [row["val/gradcam"] for row in run.history if "val/gradcam" in row]
    assert len(panels) == len(history_lines(folder)) - 1
    for picture in panels:
        assert len(run.files[picture["path"]]) == picture["size"]
    assert run.summary["best_val_acc"] == summary(folder)["best_val_acc"]
    assert run.summary["state"] == "finished"
    (table,) = (row["val/mistakes"] for row in run.history if "val/mistakes" in row)
    kept = [a for a in server.artifacts.values() if a.run == run.name]
    (model,) = (a for a in kept if a.type == "model")
    (pictures,) = (a for a in kept if a.type == "run_table")
    assert model.name == f"model-{run.name}"
    assert set(model.aliases) == {"best", "latest"}
    assert model.files["best.pt"] == (folder / "best.pt").read_bytes()
    assert model.committed
    assert pictures.committed
    rows = json.loads(pictures.files["val/mistakes.table.json"])["data"]
    assert len(rows) == table["nrows"] == 4
    for row in rows:
        for picture in row[:3]:
            content = pictures.files[picture["path"]]
            assert hashlib.sha256(content).hexdigest() == picture["sha256"]


SLOWLY = """
import os, sys, time
from pathlib import Path

def slow_down():
    import ending, learner
    step, ask = learner.Learner.train_step, ending.Ending.ask
    def slow(self, batch):
        time.sleep(SECONDS)
        return step(self, batch)
    def noted(self, request):
        if self.request is None:
            note = Path(__file__).with_name(os.environ["WANDB_RUN_ID"])
            unfinished = note.with_suffix(f".{os.getpid()}")  # each process its own
            unfinished.write_text(str(time.monotonic()))
            unfinished.rename(note)
        ask(self, request)
    learner.Learner.train_step, ending.Ending.ask = slow, noted

class Hook:
    def find_spec(self, name, *_):
        if name == "measures":
            sys.meta_path.remove(self)
            slow_down()

if sys.argv[0].endswith("train.py"):
    sys.meta_path.insert(0, Hook())
"""


@pytest.fixture
def slowly(tmp_path, monkeypatch):
    """Every train.py that starts from here on rests in each step, and leaves a file `slow/<run id>`
    with the time at which the first request reached it (`sitecustomize` is Python's).
    """
    (tmp_path / "slow").mkdir()
    code = SLOWLY.replace("SECONDS", SLOW_STEPS)
    (tmp_path / "slow" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"))


@pytest.mark.slow
def test_three_runs_by_one_agent_with_the_sweeps_own_command(sweep, server):
    made = sweep(epochs=1)
    made.stored.limit = 9  # it is --count that ends the agent
    agent = made.agent("--count", "3")
    made.until(lambda: agent.poll() is not None, 300)
    assert agent.returncode == 0, made.text()
    assert len(made.stored.agents) == 1
    assert len(made.stored.runs) == len(server.runs) == 3
    log = (made.folder / "agent0.txt").read_text()
    for name in made.stored.runs:
        run, given = server.runs[name], made.stored.arguments[name]
        assert (run.sweep, run.exit_code, run.starts) == (made.stored.name, 0, 1)
        flags = [f"--config={REPO}/recipes/best.yaml"]
        flags += [f"--{key}={one['value']}" for key, one in given.items()]
        words = ["/usr/bin/env", "python", str(REPO / "train.py"), *flags]
        command = " ".join(f'"{word}"' if " " in word else word for word in words)  # as it logs it
        assert f"About to run command: {command}\n" in log
        written = yaml.safe_load((folder_of(made, name) / "config.yaml").read_text())
        for key, (low, high) in RANGES.items():
            assert low <= run.config[key] <= high
            assert run.config[key] == written[key] == given[key]["value"]
        assert run.config["cutmix"] == written["cutmix"] == 0.5  # of the recipe
        assert summary(folder_of(made, name))["state"] == "finished"
    assert len({server.runs[name].config["max_lr"] for name in made.stored.runs}) == 3


def test_stopped_by_hyperband_and_by_the_app(sweep, server, slowly):
    """The process has ended, with status 0, 10 s after the request has reached it. From the agent
    that is when the server told the agent. W&B's client asks only every 15 s whether the app's
    button was pressed: there it is when the client told the run, and the server's word is 15 s
    older at most.
    """
    made = sweep(epochs=40)
    # An exit status other than 0 would end the agent, and it would say so.
    agent = made.agent("--count", "2", "--max-consecutive-failed-runs", "1")
    for number in (0, 1):
        made.until(lambda number=number: made.epochs(number) >= 1)
        run, process = made.run(number), training_in(made.folder)
        if number == 0:
            made.stored.to_stop.add(run.name)  # the agent sends SIGTERM at its next heartbeat
        else:
            run.stop_asked = True
        made.until(lambda process=process: process not in processes_in(made.folder), 35)
        ended_at = time.monotonic()
        reached_at = float((made.folder / "slow" / run.name).read_text())
        assert run.told_at < reached_at < ended_at
        assert ended_at - (run.told_at, reached_at)[number] < 10
        assert ended_at - run.told_at < (10, 25)[number]
        folder = folder_of(made, run.name)
        assert run.exit_code == 0
        assert summary(folder)["state"] == run.summary["state"] == "stopped"
        rows = len(history_lines(folder)) - 1
        assert rows == made.epochs(number) < 40
        assert run.summary["best_val_acc"] == summary(folder)["best_val_acc"]
    made.until(lambda: agent.poll() is not None, 30)
    assert agent.returncode == 0
    assert "consecutive failed runs" not in made.text()


def test_preempted_and_handed_out_again_with_the_same_id(sweep, server, slowly, start, tmp_path):
    made = sweep(epochs=3)
    agent = made.agent("-f", "--count", "2")  # the preempted run counts, too
    made.until(lambda: made.epochs(0) >= 1)
    agent.send_signal(signal.SIGUSR1)  # as a batch system before it takes the machine
    made.until(lambda: made.run(0).exit_code == 143, 30)
    made.until(lambda: made.run(0).exit_code == 0, 60)
    assert made.stored.runs == [made.run(0).name]
    folder = folder_of(made, made.run(0).name)
    assert summary(folder)["state"] == "finished"
    given = {key: one["value"] for key, one in made.stored.arguments[made.run(0).name].items()}
    recipe = REPO / "recipes" / "best.yaml"  # as in the sweep's command
    undisturbed = start(tmp_path / "undisturbed", config=recipe, **given)
    assert undisturbed.wait() == 0, undisturbed.text
    assert_same_bits(folder, undisturbed.folder)
    made.until(lambda: agent.poll() is not None, 30)


# The command as the agent logs it, the sweep's parameter output_dir, the folder of the run.
PLACES = {
    "default": ("", None, "runs"),
    "flag": ("--output_dir=there --seed=1", None, "there"),
    "last flag": ("--output_dir=here --output_dir=there", None, "there"),
    "two words": ("--output_dir there", None, "there"),
    "spaces": ('"--output_dir=over there" --seed=1', None, "over there"),
    "two words with spaces": ('--output_dir "over there"', None, "over there"),
    "recipe": ("--config=recipe.yaml", None, "by_recipe"),
    "flag over recipe": ("--config=recipe.yaml --output_dir=there", None, "there"),
    "${args}": ("--output_dir=there", "there", "there"),
    "no ${args}": ("", "there", "there"),
    "parameter over flag": ("--output_dir=here", "there", "there"),
    "handed out again": ("--parameters=1 --output_dir=there", "there", "there"),
    "handed out again, from another machine": (
        "--output_dir=there --parameters=1 --output_dir=/old",
        "/old",
        "there",
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wandb_dir", [None, "elsewhere"])
def test_the_launcher_finds_how_a_run_ended(tmp_path, monkeypatch, place, wandb_dir):
    from wandb.sdk.lib import config_util

    words, parameter, output_dir = PLACES[place]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    if wandb_dir:
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / wandb_dir))
    Path("recipe.yaml").write_text("output_dir: by_recipe\n")
    parameters = {"seed": {"value": 1}}
    if "again" in place:
        parameters["parameters"] = {"value": 1}
    if parameter:
        parameters["output_dir"] = {"value": parameter}
    given = Path(wandb_dir or ".") / "wandb" / "sweep-abc" / "config-r1.yaml"
    given.parent.mkdir(parents=True)
    config_util.save_config_file_from_dict(given, parameters)  # as the agent does
    lines = [
        f"INFO - About to run command: /usr/bin/env python train.py {words}\n",
        "INFO - Cleaning up finished run: r1\n",
    ]
    agent = agents.Agent("0", [sys.executable, "-c", f"print({''.join(lines)!r})"], None, {})
    agent.start()
    agent.reader.join()
    agent.wait(time.monotonic() + 10)
    (ended,) = agent.ended
    assert agents.state_of(ended, "abc") is None  # nothing is there yet
    for folder in ("runs", "here", "there", "over there", "by_recipe"):
        state = "finished" if folder == output_dir else "failed"
        (tmp_path / folder / "r1").mkdir(parents=True)
        (tmp_path / folder / "r1" / "summary.json").write_text(json.dumps({"state": state}))
    assert agents.state_of(ended, "abc") == "finished"
    later = dataclasses.replace(ended, begun=time.time() + 60)  # as if it were of a start before
    assert agents.state_of(later, "abc") == "finished"  # the run had nothing to do
    (tmp_path / output_dir / "r1" / "summary.json").write_text('{"state": "preempted"}')
    assert agents.state_of(ended, "abc") == "preempted"
    assert agents.state_of(later, "abc") is None  # it did not even begin
    assert agents.state_of(dataclasses.replace(ended, run_id="r2"), "abc") is None


def launch(made: Sweep, *arguments: str) -> subprocess.Popen:
    """`python sweep.py agents` for a sweep; it ends with the test, like its agents."""
    log = open(made.folder / "agents.txt", "a")
    path = f"{ENTITY}/tinysweep/{made.stored.name}"
    launcher = subprocess.Popen(
        [sys.executable, REPO / "sweep.py", "agents", path, *arguments],
        cwd=made.folder,
        env=made.env,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    made.agents.append(launcher)
    return launcher


def processes_in(folder: Path) -> dict[int, str]:
    """What works in a folder: command lines, by their numbers."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (path / "cwd").resolve() == folder.resolve():
                found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
    return {pid: line for pid, line in found.items() if line}


def training_in(folder: Path) -> int:
    """The one process of train.py that works in a folder."""
    (pid,) = (pid for pid, line in processes_in(folder).items() if "train.py" in line)
    return pid


def test_the_launcher_preempts_all_and_goes_on(sweep, server, slowly):
    made = sweep(epochs=3)
    made.stored.limit = 2
    launcher = launch(made, "--workers", "2")
    made.until(lambda: made.epochs(0) >= 1 and made.epochs(1) >= 1)
    launcher.send_signal(signal.SIGTERM)
    made.until(lambda: launcher.poll() is not None, 40)
    assert launcher.returncode == -signal.SIGTERM
    assert processes_in(made.folder) == {}
    assert [made.run(n).exit_code for n in (0, 1)] == [143, 143]
    assert sorted(made.stored.waiting) == sorted(made.stored.runs)  # to be handed out again
    again = launch(made, "--workers", "2")
    made.until(lambda: again.poll() is not None)
    assert again.returncode == 0, made.text()
    assert [made.run(n).exit_code for n in (0, 1)] == [0, 0]
    for number in (0, 1):
        rows = [row["epoch"] for row in made.run(number).history if "val/acc" in row]
        assert sorted(set(rows)) == [1, 2, 3]
        assert len(history_lines(folder_of(made, made.run(number).name))) == 4


@pytest.mark.slow
def test_the_launcher_preempts_a_run_of_two_processes(sweep, server, slowly):
    made = sweep(epochs=3)
    made.stored.limit = 1
    launcher = launch(made, "--devices", "2")
    made.until(lambda: made.epochs(0) >= 1)
    launcher.send_signal(signal.SIGTERM)
    made.until(lambda: launcher.poll() is not None, 40)
    assert processes_in(made.folder) == {}
    assert made.run(0).exit_code == 143
    assert made.stored.waiting == made.stored.runs
    again = launch(made, "--devices", "2")
    made.until(lambda: again.poll() is not None)
    assert again.returncode == 0, made.text()
    assert made.run(0).exit_code == 0
    assert len(history_lines(folder_of(made, made.run(0).name))) == 4


@pytest.mark.slow
def test_an_agent_that_is_killed_is_started_again_and_its_run_preempted(sweep, server, slowly):
    made = sweep(epochs=3)
    made.stored.limit = 3
    launcher = launch(made, "--count", "1")  # all the same: what is begun again is the same run
    made.until(lambda: made.epochs(0) >= 1)
    train = training_in(made.folder)
    agent = int(Path(f"/proc/{train}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(agent, signal.SIGKILL)
    made.until(lambda: made.run(0).exit_code == 143, 30)
    made.until(lambda: launcher.poll() is not None)
    assert launcher.returncode == 0
    assert made.run(0).exit_code == 0
    assert made.stored.runs == [made.run(0).name]
    text = (made.folder / "agents.txt").read_text()
    assert "failure 1 of at most 5 in a row, 0: the agent ended with status -9" in text
    assert len(history_lines(folder_of(made, made.run(0).name))) == 4
    assert processes_in(made.folder) == {}


@pytest.mark.slow
def test_the_launcher_counts_a_killed_run_as_a_failure_and_stops(sweep, server, slowly):
    made = sweep(epochs=40)
    launcher = launch(made, "--max-failures", "2")
    for number in (0, 1):
        made.until(lambda number=number: made.epochs(number) >= 1)
        os.kill(training_in(made.folder), signal.SIGKILL)
    made.until(lambda: launcher.poll() is not None, 40)
    assert launcher.returncode == 1
    text = (made.folder / "agents.txt").read_text()
    for number in (0, 1):
        assert (
            f"failure {number + 1} of at most 2 in a row, 0: run {made.run(number).name} left no "
            "summary: killed, or ended before it began; last error: it printed none\n"
        ) in text
    assert text.endswith("2 failures in a row: no more runs are started\n")
    # W&B's monitor of a run that was killed with -9 takes a moment to notice.
    made.until(lambda: processes_in(made.folder) == {}, 20)


@pytest.mark.slow
def test_the_launcher_shows_why_runs_fail_and_stops(sweep, server, tmp_path):
    made = sweep(dataset="tiny-imagenet", data_dir=tmp_path / "nowhere")
    made.stored.limit = 9
    launcher = launch(made, "--max-failures", "2")
    made.until(lambda: launcher.poll() is not None, 120)
    assert launcher.returncode == 1
    text = (made.folder / "agents.txt").read_text()
    for number in (0, 1):
        run = made.run(number)
        assert run.exit_code == 2
        line = text.partition(f"failure {number + 1} of at most 2 in a row, 0: run {run.name} ")[2]
        assert "nowhere" in line.splitlines()[0].partition("last error: error: ")[2]
    assert "failure 3" not in text
    assert text.endswith("2 failures in a row: no more runs are started\n")
    assert processes_in(made.folder) == {}


def test_slurm_and_mistakes_of_the_launcher():
    printed = run("sweep.py", "agents", "me/tinysweep/abc", "--print-slurm", "--workers", "3")
    assert printed.returncode == 0
    for line in ("--array=0-2", "--signal=USR1@120", "--requeue", "agents me/tinysweep/abc"):
        assert line in printed.stdout
    checked = subprocess.run(["bash", "-n"], input=printed.stdout, text=True)
    assert checked.returncode == 0
    assert_mistake(run("sweep.py", "agents", "abc"), "ENTITY/PROJECT/ID")
    assert_mistake(run("sweep.py", "agents", "a/b/c", "--workers", "0"), "--workers=0")
    assert_mistake(run("sweep.py", "agent", "a/b/c"), "agents")


ANNOUNCED = """
import pathlib, tracking
def announced(name):
    real = getattr(tracking.Tracker, name)
    def call(self, *arguments, **named):
        (pathlib.Path(os.environ["HOME"]) / "here").touch()
        import time; time.sleep(0.5)
        return real(self, *arguments, **named)
    setattr(tracking.Tracker, name, announced_once(call, real))
def announced_once(call, real):
    state = []
    def either(self, *arguments, **named):
        if state:
            return real(self, *arguments, **named)
        state.append(1)
        return call(self, *arguments, **named)
    return either
announced("WHERE")
"""


@pytest.mark.fault("W&B: an outage of 20 s")
@pytest.mark.parametrize(
    "where",
    [
        "log_mistakes",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("log_picture", "finish", "log_model")),
    ],
)
def test_an_outage_of_20_seconds_loses_nothing(start, server, tmp_path, where):
    run = start(tmp_path, patch=ANNOUNCED.replace("WHERE", where), env=server.env, mistakes=4)
    run.timeout_s = 120
    run.until(lambda: (tmp_path / "here").exists() or run.ended)
    server.go_away(20)
    assert run.wait() == 0, run.text
    stored = server.runs["run"]
    assert stored.exit_code == 0
    assert_whole(server, stored, run.folder)


@pytest.mark.fault("W&B: a wrong key")
def test_a_wrong_key_is_said_and_the_run_is_kept_offline(start, server, tmp_path):
    env = {**server.env, "WANDB_API_KEY": "1" * 40}
    run = start(tmp_path, patch="import tracking; tracking.INIT_TIMEOUT_S = 4", env=env, epochs=1)
    run.timeout_s = 90
    assert run.wait() == 0, run.text
    assert "W&B cannot be reached" in run.text
    assert "wandb sync" in run.text
    assert "1" * 40 not in run.text
    assert summary(run.folder)["state"] == "finished"

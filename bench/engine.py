"""W&B's own search engine, `sweeps`, which needs numpy below 2: in an environment of its own.

    python bench/engine.py      a minute: installs it into .cache/wandb-sweeps (230 MB)

`Engine` starts it as a process and asks it, a JSON object a line each way. The benchmark of the
search and the recorded decisions of the tests come from here.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / ".cache" / "wandb-sweeps"
PYTHON = FOLDER / "bin" / "python"
PINNED = (
    "sweeps==0.3.0", "numpy==1.26.4", "scipy==1.17.1", "scikit-learn==1.9.1", "PyYAML==6.0.3",
    "jsonschema==4.26.0", "jsonref==1.1.0", "pydantic==2.14.3",
)  # fmt: skip


def install() -> None:
    """Makes the environment where it is missing."""
    mark = FOLDER / ".installed"
    if mark.exists() and mark.read_text() == "\n".join(PINNED):
        return
    print(f"installing W&B's sweeps engine into {FOLDER}", file=sys.stderr)
    if shutil.which("uv"):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        _call("uv", "venv", "--quiet", "--allow-existing", "--python", version, FOLDER)
        _call("uv", "pip", "install", "--quiet", "--python", PYTHON, *PINNED)
    else:
        _call(sys.executable, "-m", "venv", FOLDER)
        _call(PYTHON, "-m", "pip", "install", "--quiet", *PINNED)
    mark.write_text("\n".join(PINNED))


def _call(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True)


class Engine:
    """A process of the engine; it forgets everything from one question to the next but its dice."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [PYTHON, "-W", "ignore", __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def _ask(self, **question: Any) -> Any:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def seed(self, seed: int) -> None:
        self._ask(what="seed", seed=seed)

    def suggest(self, sweep: dict[str, Any], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The next run's parameters; `runs` have `config`, `state` and `history` (of values)."""
        return self._ask(what="next", sweep=sweep, runs=list(runs))

    def to_stop(self, sweep: dict[str, Any], runs: Sequence[dict[str, Any]]) -> set[str]:
        """Which runs hyperband ends; `runs` have `name`, `state` and `history`."""
        return set(self._ask(what="stop", sweep=sweep, runs=list(runs)))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Runs under the engine's own Python."""
    import random

    import numpy as np
    import sweeps

    def run_of(run: dict[str, Any], metric: str) -> sweeps.SweepRun:
        return sweeps.SweepRun(
            name=run.get("name"),
            state=run["state"],
            config={key: {"value": value} for key, value in run.get("config", {}).items()},
            history=[{metric: value} for value in run["history"]],
        )

    for line in sys.stdin:
        question = json.loads(line)
        if question["what"] == "seed":
            random.seed(question["seed"])
            np.random.seed(question["seed"])
            answer = None
        else:
            sweep = question["sweep"]
            runs = [run_of(run, sweep["metric"]["name"]) for run in question["runs"]]
            if question["what"] == "next":
                config = sweeps.next_run(sweep, runs).config
                answer = {key: value["value"] for key, value in config.items()}
            else:
                answer = [run.name for run in sweeps.stop_runs(sweep, runs)]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else install()

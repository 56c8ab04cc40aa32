"""What must never be written down, never be executed and never be installed."""

import ast
import base64
import dataclasses
import html.parser
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import wandb_http
import yaml
from past import write_run
from wandb_server import WandbServer

import page
import report
from collection import PastRun, PastStudy, read_run
from conftest import REPO, run
from report_diff import diff_page

# Secrets ------------------------------------------------------------------------------------------

KEY, OTHER_KEY = "5ec2e7a1" * 5, "0ddba11c" * 5
NETRC = "machine {} login user password {}\n"
VARIABLES = {
    "WANDB_API_KEY": KEY,
    "AWS_SECRET_ACCESS_KEY": "aws-5ec2e7-Jalr/XUtnFEMI+K7MDENG",
    "SOME_TOKEN": "tok_5ec2e7_c0ffee",
    "DB_PASSWORD": "hunter2-5ec2e7",
}
SECRETS = {*VARIABLES.values(), OTHER_KEY}
# As they stand in a file, or in the header of a request.
FORMS = [secret.encode() for secret in SECRETS]
FORMS += [base64.b64encode(f"api:{key}".encode()) for key in (KEY, OTHER_KEY)]


def leaks(folder: Path) -> list[str]:
    """The files with a secret in them, but the one where it belongs."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".netrc"]
    assert files
    return [str(path) for path in files if has_secret(path.read_bytes())]


def has_secret(content: bytes) -> bool:
    return any(form in content for form in FORMS)


def stored(server: WandbServer) -> bytes:
    """All that has arrived."""
    owners = [*server.runs.values(), *server.artifacts.values()]
    return b"\n".join([repr(vars(one)).encode() for one in owners]) + b"\n".join(
        content for one in owners for content in one.files.values()
    )


LOGINS = {  # the variables of the run, the key that the server takes
    "by a variable": (VARIABLES, KEY),
    "by .netrc": ({k: v for k, v in VARIABLES.items() if k != "WANDB_API_KEY"}, OTHER_KEY),
    "offline": ({**VARIABLES, "WANDB_MODE": "offline"}, KEY),
}


@pytest.mark.parametrize(
    "login", ["by a variable", *(pytest.param(k, marks=pytest.mark.slow) for k in list(LOGINS)[1:])]
)
def test_no_secret_in_a_run_nor_in_its_report(start, tmp_path, monkeypatch, fault, login):
    with fault("security: a secret in the environment", len(SECRETS)):
        variables, key = LOGINS[login]
        monkeypatch.setattr(wandb_http, "KEY", key)
        with WandbServer() as server:
            host = server.url.removeprefix("http://")
            (tmp_path / ".netrc").write_text(NETRC.format(host, OTHER_KEY))
            env = {"WANDB_BASE_URL": server.url, "WANDB_SILENT": "false", **variables}
            made = start(tmp_path, env=env, epochs=1, mistakes=4)
            assert made.wait() == 0, made.text
        told = run("report.py", made.folder, cwd=tmp_path, **{**env, "HOME": str(tmp_path)})
        assert told.returncode == 0, told.stderr
        assert not has_secret((told.stdout + told.stderr).encode())
        assert (made.folder / "about.json").is_file()
        assert (tmp_path / "report.html").is_file()
        assert list(made.folder.glob("wandb/*/run-*.wandb"))
        assert list(made.folder.glob("wandb/*/logs/*.log"))
        assert leaks(tmp_path) == []
        assert len(server.artifacts) == (0 if login == "offline" else 2)
        assert not has_secret(stored(server))


@pytest.mark.slow
def test_no_secret_in_a_study(tmp_path, fault):
    with fault("security: a secret in the environment", len(SECRETS)):
        sweep = {
            "program": str(REPO / "tests" / "stub.py"),
            "name": "s",
            "method": "random",
            "metric": {"name": "val/acc", "goal": "maximize"},
            "parameters": {"max_lr": {"min": 0.1, "max": 1.0}, "epochs": {"value": 2}},
        }
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
        (tmp_path / ".netrc").write_text(NETRC.format("api.wandb.ai", OTHER_KEY))
        env = {**VARIABLES, "HOME": str(tmp_path)}
        done = run("sweep.py", "run", "s.yaml", "--count", "3", cwd=tmp_path, **env)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "sweeps" / "s" / "study.journal").is_file()
        assert not has_secret((done.stdout + done.stderr).encode())
        assert leaks(tmp_path) == []


# Pages --------------------------------------------------------------------------------------------

PLANTS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</script><script>alert(1)</script>",
    "</style><svg onload=alert(1)>",
    '<a href="javascript:alert(1)">x</a>',
    "<!--",
    "]]>&quot;&amp;",
    "`${alert(1)}`",
)
ADDRESSES = ("href", "src", "action", "formaction", "data", "srcdoc", "poster", "background")


class Parsed(html.parser.HTMLParser):
    """A page as a browser would take it: the kinds of its elements, its scripts, its addresses."""

    def __init__(self, text: str):
        super().__init__()
        self.kinds: set[tuple] = set()
        self.scripts: list[tuple[dict, str]] = []
        self.addresses: list[str] = []
        self.policy = ""
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.kinds.add((tag, *sorted(given)))
        self.addresses += [value for key, value in attributes if key in ADDRESSES]
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append((given, ""))
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            given, text = self.scripts[-1]
            self.scripts[-1] = given, text + data


def assert_harmless(text: str, plain: str) -> None:
    """Planted text adds no kind of element or attribute, no address and no script to the page."""
    from plotly.offline import get_plotlyjs

    planted, usual = Parsed(text), Parsed(plain)
    assert planted.kinds <= usual.kinds
    assert not [key for _, *keys in planted.kinds for key in keys if key.startswith("on")]
    assert all(one.startswith(("#", "data:image/")) for one in planted.addresses)
    ours = {(REPO / "page.js").read_text(), get_plotlyjs()}
    for given, script in planted.scripts:
        if given.get("type") == "application/json":
            assert "<" not in script
            json.loads(script)
        else:
            assert given == {} and script in ours
    sources = dict(one.strip().split(" ", 1) for one in planted.policy.split(";"))
    assert sources["default-src"] == "'none'"
    assert all(one.startswith("'sha256-") for one in sources["script-src"].split())


def planted_runs(folder: Path, plants: tuple[str, ...]) -> list[PastRun]:
    """Three runs with such a text wherever a run has one."""
    word = itertools.cycle(plants).__next__
    made = []
    for number in range(3):
        extra = {"note": word(), f"{word()} key": number, "model": word(), "dataset": "shapes"}
        state = ("finished", "failed", word())[number]
        path = write_run(
            folder, f"r{number}", reached=0.5 + number / 10, max_lr=0.1 * (number + 1),
            classes=plants, figures=True, state=state, extra=extra,
        )  # fmt: skip
        past = read_run(path)
        start = {key: word() for key in ("command", "processor", "device", "commit", "time")}
        past.about["starts"] = [{**start, "versions": {"torch": word(), word(): "1"}}]
        past = dataclasses.replace(past, run_id=f"{word()} {number}")
        past.predictions["file"] = np.array([word() for _ in past.predictions["file"]])
        made.append(past)
    return made


def pages(folder: Path, plants: tuple[str, ...]) -> list[str]:
    """A report and a comparison."""
    runs = planted_runs(folder, plants)
    confirmed = {"metric": "val/acc", "sentence": plants[0]}
    confirmed["trials"] = [
        {
            "trial": "001",
            "run_id": one.run_id,
            "values": {"1": 0.5, "2": 0.6},
            "mean": 0.55,
            "sd": 0.07,
        }
        for one in runs
    ]
    study = PastStudy(plants[1], None, "val/acc", "maximize", frozenset(), confirmed)
    told = report.make(runs, [study], plants[2], f"python report.py {plants[3]}", plants[4])
    return [told, diff_page(*runs[1:], {})[0]]


def test_markup_in_a_page_is_text(tmp_path, fault):
    with fault("security: markup in a report", len(PLANTS)):
        evil = pages(tmp_path / "evil", PLANTS)
        plain = pages(tmp_path / "plain", tuple(f"word{i}" for i in range(len(PLANTS))))
        for one, usual in zip(evil, plain, strict=True):
            assert_harmless(one, usual)
            assert one.count(html.escape(PLANTS[0])) >= 1
        assert all(html.escape(plant) in evil[0] for plant in PLANTS)


def test_a_hole_in_a_page_would_be_found():
    plain = page.document("a", page.tag("h1", "a"), [])
    for plant in ("<script>alert(1)</script>", "<img src=x>", "<h1 onclick='alert(1)'>a</h1>"):
        evil = page.document("a", page.tag("h1", page.Html(plant)), [])
        with pytest.raises(AssertionError):
            assert_harmless(evil, plain)


# The code -----------------------------------------------------------------------------------------

CODE = sorted([*REPO.glob("*.py"), *REPO.glob("bench/*.py")])
OPEN_ARCHIVES = {
    "archive.py",
    "checkpoint.py",
}  # after its checks; to compare its sums
RUNS_TEXT = {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput"}
UNPICKLES = {f"pickle.{name}" for name in ("load", "loads", "Unpickler")}
UNPICKLES |= {"joblib.load", "dill.load", "dill.loads", "marshal.load", "marshal.loads"}
READS_YAML = {f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "Loader")}
UNPACKS = {"tarfile.open", "tarfile.TarFile", "shutil.unpack_archive"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the whole name of what is called, as far as imports tell it."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({a.asname: a.name for a in node.names if a.asname})
        elif isinstance(node, ast.ImportFrom):
            names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            yield names.get(first, first) + dot + rest, node


def unsafe(source: str, may_open_archives: bool = False) -> list[str]:
    """What a file does that none may; a pickle, for one, runs what its author wants."""
    found = []
    for name, call in calls(ast.parse(source)):
        given = {one.arg: ast.unparse(one.value) for one in call.keywords}
        if name == "torch.load":
            wrong = given.get("weights_only") != "True"
        elif name == "zipfile.ZipFile":
            wrong = not may_open_archives and "'w'" not in map(ast.unparse, call.args)
        else:
            wrong = (
                name in RUNS_TEXT | UNPICKLES | READS_YAML | UNPACKS
                or name.endswith((".extract", ".extractall"))
                or given.get("shell", "False") != "False"
                or given.get("allow_pickle", "False") != "False"
            )
        if wrong:
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


def test_no_unsafe_call():
    assert len(CODE) > 50
    for path in CODE:
        assert unsafe(path.read_text(), path.name in OPEN_ARCHIVES) == [], path


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load('x')",
        "import torch as t; t.load('x', weights_only=False)",
        "from torch import load; load('x')",
        "eval('1')",
        "from os import system as s; s('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "from subprocess import Popen; Popen('ls', shell=chosen)",
        "import pickle; pickle.loads(b'')",
        "from pickle import Unpickler; Unpickler(file).load()",
        "import yaml; yaml.load(text, Loader=yaml.Loader)",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "import zipfile; zipfile.ZipFile('x').extractall()",
        "import tarfile\nwith tarfile.open('x') as a: a.extract('y')",
    ],
)
def test_an_unsafe_call_would_be_found(source):
    assert unsafe(source)


# What is installed --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(REPO.glob("requirements*.txt")), ids=lambda path: path.name)
def test_requirements_are_pinned_and_come_from_the_index(path):
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    packages = [
        line for line in lines if line and not re.fullmatch(r"-r requirements[\w-]*\.txt", line)
    ]
    assert packages
    for line in packages:
        assert re.fullmatch(
            r"[A-Za-z0-9][A-Za-z0-9._-]*==\d+(\.\d+)*(\.?(post|rc|a|b)\d+)?", line
        ), line
        assert "albumentationsx" not in line.lower()  # its licence is the AGPL

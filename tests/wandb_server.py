"""A stand-in for the W&B server: loopback only, in memory, for the real client.

It knows the operations that the client uses for runs, sweeps, artifacts, reports and workspaces,
and nothing else: what it does not know it answers with an error and keeps in `unknown`, for the
test to fail. It stores what arrives as it arrived. Where it decides something, it is as simple as
can be: a sweep's parameters are drawn at random, an agent gets a run whenever it has none.

    with WandbServer() as server:
        env = server.env          # WANDB_BASE_URL, WANDB_API_KEY
        server.runs["abc"].history

It fails where a test wants it to: `go_away` is an outage, and `fault` is asked what is to happen to
each request.

        server.fault = lambda path: Fault(seconds=0.5)   # every answer is late
"""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml
from wandb_http import KEY, NONE, Fault, Http, handler

ENTITY = "tester"
CHANGES = ("Upsert", "Create", "Commit")  # how the names of operations begin that are no questions
LOGIN_MISTAKES = {  # in the environment; exit status and words of the answer
    "no login": ({"WANDB_API_KEY": ""}, 2, "wandb login"),
    "a wrong key": ({"WANDB_API_KEY": "1" * 40}, 2, "refuses the login"),
    "a key of no valid form": ({"WANDB_API_KEY": "secret"}, 2, "refuses the login"),
    "no address": ({"WANDB_BASE_URL": "wandb.mycompany.com"}, 2, "refuses WANDB_BASE_URL"),
    "a dead server": ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, 1, "cannot be reached"),
}


@dataclass
class StoredRun:
    name: str
    project: str
    sweep: str | None = None
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    job_type: str | None = None
    exit_code: int | None = None
    state: str = "running"
    preempting: bool = False
    stop_asked: bool = False  # by the app's button
    told_at: float | None = None  # when its agent or its client first heard of the stop
    starts: int = 0


@dataclass
class StoredSweep:
    name: str
    config: dict
    runs: list[str] = field(default_factory=list)  # in the order of their suggestion
    arguments: dict[str, dict] = field(default_factory=dict)  # of each run
    waiting: list[str] = field(default_factory=list)  # preempted, to be handed out again
    to_stop: set[str] = field(default_factory=set)  # as hyperband would, by the agent
    agents: list[str] = field(default_factory=list)
    limit: int = 10**9  # runs in all
    prior: list[str] = field(default_factory=list)  # runs from before the sweep


@dataclass
class StoredArtifact:
    name: str
    type: str
    run: str
    aliases: list[str] = field(default_factory=list)
    digest: str = ""
    metadata: dict = field(default_factory=dict)
    manifest: dict = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False

    @property
    def state(self) -> str:
        return "COMMITTED" if self.committed else "PENDING"


@dataclass
class StoredView:
    """A report or a workspace."""

    type: str
    project: str
    title: str
    description: str
    spec: dict


class WandbServer:
    def __init__(self, seed: int = 0):
        self.runs: dict[str, StoredRun] = {}
        self.sweeps: dict[str, StoredSweep] = {}
        self.artifacts: dict[str, StoredArtifact] = {}
        self.views: dict[str, StoredView] = {}
        self.blobs: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.seen: list[str] = []
        self.down_until = 0.0
        self.fault: Callable[[str], Fault] = lambda path: NONE
        self.lists_prior_runs = True  # as the sweep's; W&B's own may not (wandb#3347)
        self.dice = random.Random(seed)
        self.lock = threading.RLock()
        self.http = Http(("127.0.0.1", 0), handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.env = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def changes(self) -> list[str]:
        """What was asked for, but questions."""
        return [name for name in self.seen if name.startswith(CHANGES)]

    def interrupt(self, operation: str, is_done: bool, act: Callable[[], None]) -> None:
        """`act` when this operation is asked for the first time; it is not answered."""
        real = getattr(self, operation)

        def once(*asked):
            setattr(self, operation, real)
            if is_done:
                real(*asked)
            act()
            raise ConnectionError

        setattr(self, operation, once)

    def go_away(self, seconds: float) -> None:
        """An outage: every connection is closed without an answer."""
        self.down_until = time.monotonic() + seconds

    @property
    def is_away(self) -> bool:
        return time.monotonic() < self.down_until

    # What the client asks for, by the name of the GraphQL operation.

    def viewer(self, _: dict) -> dict:
        return {
            "viewer": {
                "id": "user",
                "entity": ENTITY,
                "username": ENTITY,
                "name": ENTITY,
                "email": "tester@example.org",
                "admin": False,
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    def server_features_query(self, _: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def organization_core_weave_organization_id(self, _: dict) -> dict:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def get_default_entity(self, _: dict) -> dict:
        return self.viewer({})

    def upsert_bucket(self, asked: dict) -> dict:
        name = asked["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, StoredRun(name, asked.get("project") or "uncategorized"))
        run.starts += inserted
        run.job_type = asked.get("jobType") or run.job_type
        run.sweep = asked.get("sweep") or run.sweep
        if asked.get("config"):
            run.config.update({k: v.get("value") for k, v in json.loads(asked["config"]).items()})
        if asked.get("summaryMetrics"):
            run.summary.update(json.loads(asked["summaryMetrics"]))
        if asked.get("state") == "preempting":
            run.preempting = True
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def _bucket(self, run: StoredRun) -> dict:
        entity = {"id": "entity", "name": ENTITY}
        return {
            "id": f"run-{run.name}",
            "name": run.name,
            "displayName": run.name,
            "description": None,
            "config": json.dumps({k: {"value": v} for k, v in run.config.items()}),
            "sweepName": run.sweep,
            "project": {"id": "project", "name": run.project, "entity": entity},
            "historyLineCount": len(run.history),
        }

    def run_resume_status(self, asked: dict) -> dict:
        run = self.runs.get(asked["name"])
        if run is None:
            return {"model": {"id": "project", "name": asked["project"], "bucket": None}}
        lines = [json.dumps(row) for row in run.history[-1:]]
        bucket = {
            **self._bucket(run),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(lines),
            "summaryMetrics": json.dumps(run.summary),
            "eventsTail": "[]",
            "wandbConfig": json.dumps({"t": 1}),
            "tags": [],
        }
        entity = {"id": "entity", "name": ENTITY}
        model = {"id": "project", "name": run.project, "entity": entity, "bucket": bucket}
        return {"model": model}

    def create_run_files(self, asked: dict) -> dict:
        files = [
            {"name": name, "uploadUrl": f"{self.url}/store/run/{asked['run']}/{name}"}
            for name in asked["files"]
        ]
        told = {"runID": f"run-{asked['run']}", "uploadHeaders": [], "files": files}
        return {"createRunFiles": told}

    def upsert_sweep(self, asked: dict) -> dict:
        name = asked.get("id") or f"sweep{len(self.sweeps)}"
        config = yaml.safe_load(asked["config"])
        sweep = self.sweeps.setdefault(name, StoredSweep(name, config))
        sweep.limit = config.get("run_cap", sweep.limit)
        for one in json.loads(asked.get("priorRunsFilters") or '{"$or": []}')["$or"]:
            if self.runs[one["name"]].project != asked["projectName"]:
                raise LookupError(f"prior run {one['name']} of another project")
            sweep.prior.append(one["name"])
            if self.lists_prior_runs:
                self.runs[one["name"]].sweep = name
        entity = {"id": "entity", "name": ENTITY}
        project = {"id": "project", "name": asked.get("projectName"), "entity": entity}
        told = {"id": name, "name": name, "config": asked["config"], "project": project}
        return {"upsertSweep": {"sweep": told, "configValidationWarnings": []}}

    def sweep_with_runs(self, asked: dict) -> dict:
        sweep = self.sweeps.get(asked["sweep"])
        if sweep is None:
            return {"project": {"sweep": None}}
        told = {
            "id": sweep.name,
            "name": sweep.name,
            "displayName": sweep.name,
            "method": sweep.config["method"],
            "state": "RUNNING",
            "description": None,
            "config": yaml.safe_dump(sweep.config),
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": None,
            "updatedAt": None,
            "earlyStopJobRunning": False,
            "controller": None,
            "scheduler": None,
            "runs": {"edges": []},
        }
        return {"project": {"sweep": told}}

    def create_agent(self, asked: dict) -> dict:
        sweep = self.sweeps[asked["sweep"]]
        sweep.agents.append(f"{sweep.name}/agent{len(sweep.agents)}")
        return {"createAgent": {"agent": {"id": sweep.agents[-1]}}}

    def heartbeat(self, asked: dict) -> dict:
        sweep = self.sweeps[asked["id"].split("/")[0]]
        running = json.loads(asked["runState"])
        commands = [{"type": "stop", "run_id": name} for name in running if name in sweep.to_stop]
        for command in commands:
            self._told(self.runs[command["run_id"]])
        if not running and not commands:
            commands = self._next_run(sweep)
        told = {"agent": {"id": asked["id"]}, "commands": json.dumps(commands)}
        return {"agentHeartbeat": told}

    def _next_run(self, sweep: StoredSweep) -> list[dict]:
        if sweep.waiting:
            # As W&B's own server (wandb#4237, wandb#9143): not with the sweep's parameters.
            name = sweep.waiting.pop(0)
            config = {**self.runs[name].config, "_wandb": {"t": {"1": [1, 5]}}}
            told = {key: {"value": value} for key, value in config.items()}
            program = sweep.config["program"]
            return [{"type": "resume", "run_id": name, "args": told, "program": program}]
        if len(sweep.runs) < sweep.limit:
            name = f"{sweep.name}-run{len(sweep.runs)}"
            sweep.runs.append(name)
            sweep.arguments[name] = {
                key: {"value": self._draw(spec)} for key, spec in sweep.config["parameters"].items()
            }
        else:
            return [{"type": "exit"}]
        program = sweep.config["program"]
        return [{"type": "run", "run_id": name, "args": sweep.arguments[name], "program": program}]

    def _draw(self, spec: dict) -> Any:
        if "value" in spec:
            return spec["value"]
        if "values" in spec:
            return self.dice.choice(spec["values"])
        if spec.get("distribution", "").startswith("log_uniform"):
            return spec["min"] * (spec["max"] / spec["min"]) ** self.dice.random()
        return self.dice.uniform(spec["min"], spec["max"])

    def artifact_type(self, _: dict) -> dict:
        return {"project": {"artifact": None}}

    def create_artifact(self, asked: dict) -> dict:
        name, digest = asked["artifactCollectionName"], asked["digest"]
        same = [k for k, a in self.artifacts.items() if (a.name, a.digest) == (name, digest)]
        number = same[0] if same else f"artifact{len(self.artifacts)}"
        aliases = [one["alias"] for one in asked.get("aliases") or []]
        made = StoredArtifact(
            name, asked["artifactTypeName"], asked.get("runName"), aliases, digest
        )
        artifact = self.artifacts.setdefault(number, made)
        if asked.get("metadata"):
            artifact.metadata = json.loads(asked["metadata"])
        told = {"id": number, "state": artifact.state, "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": told}}

    def create_artifact_manifest(self, asked: dict) -> dict:
        number = asked["artifactID"]
        address = f"{self.url}/store/manifest/{number}"
        file = {"id": "file", "name": asked["name"], "displayName": asked["name"]}
        file |= {"uploadUrl": address, "uploadHeaders": []}
        manifest = {"id": f"manifest-{number}", "file": file}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def create_artifact_files(self, asked: dict) -> dict:
        edges = []
        for one in asked["artifactFiles"]:
            address = f"{self.url}/store/artifact/{one['artifactID']}/{one['name']}"
            node = {"id": one["name"], "name": one["name"], "displayName": one["name"]}
            node |= {"uploadUrl": address, "uploadHeaders": [], "storagePath": one["name"]}
            node |= {"uploadMultipartUrls": None, "artifact": {"id": one["artifactID"]}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def commit_artifact(self, asked: dict) -> dict:
        artifact = self.artifacts[asked["artifactID"]]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": ""}}}

    def artifact_by_id(self, asked: dict) -> dict:
        return {"artifact": {"id": asked["id"], "state": "COMMITTED"}}

    # What wandb.Api asks for besides.

    def run(self, asked: dict) -> dict:
        run = self._run_of(asked, "name")
        return {"project": {"run": run and self._whole_run(run)}}

    def _whole_run(self, run: StoredRun) -> dict:
        return {
            **self._bucket(run),
            "projectId": "1",
            "state": run.state,
            "jobType": run.job_type,
            "commit": None,
            "createdAt": "2026-01-01T00:00:00",
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "historyKeys": None,
            "user": {"name": ENTITY, "username": ENTITY},
        }

    def list_runs(self, asked: dict) -> dict:
        """The operation `Runs`; of its filters those by equality."""
        if not self._is_project(asked["entity"], asked["project"]):
            return {"project": None}
        names = {"sweep": "sweep", "jobType": "job_type"}
        wanted = {names[key]: value for key, value in json.loads(asked["filters"]).items()}
        found = [
            run
            for run in self.runs.values()
            if run.project == asked["project"]
            and all(getattr(run, key) == value for key, value in wanted.items())
        ]
        start = int(asked["cursor"] or 0)
        page = found[start : start + asked["perPage"]]
        edges = [
            {"node": self._whole_run(run), "cursor": str(start + place)}
            for place, run in enumerate(page, 1)
        ]
        more = {"endCursor": None, "hasNextPage": start + len(page) < len(found)}
        told = {"internalId": "1", "runCount": len(found), "readOnly": False}
        return {"project": {**told, "runs": {"edges": edges, "pageInfo": more}}}

    def _is_project(self, entity: str, project: str) -> bool:
        return entity == ENTITY and project in self._projects()

    def _projects(self) -> set[str]:
        return {run.project for run in self.runs.values()}

    def get_sweep(self, asked: dict) -> dict:
        if not self._is_project(asked["entity"], asked["project"]):
            return {"project": None}
        return self.sweep_with_runs({"sweep": asked["name"]})

    def _run_of(self, asked: dict, key: str) -> StoredRun | None:
        run = self.runs.get(asked[key])
        return run if run and (asked["entity"], asked["project"]) == (ENTITY, run.project) else None

    def run_sampled_history(self, asked: dict) -> dict:
        (spec,) = map(json.loads, asked["specs"])
        keys, history = spec["keys"], self.runs[asked["name"]].history
        rows = [{k: row[k] for k in keys} for row in history if set(keys) <= set(row)]
        return {"project": {"run": {"sampledHistory": [rows[: spec["samples"]]]}}}

    def run_files(self, asked: dict) -> dict:
        files, names = self._run_of(asked, "name").files, asked["fileNames"]
        edges = [
            {"node": {"id": name, "name": name, "sizeBytes": len(content)}, "cursor": name}
            for name, content in files.items()
            if not names or name in names
        ]
        page = {"endCursor": None, "hasNextPage": False}
        run = {"fileCount": len(edges), "files": {"edges": edges, "pageInfo": page}}
        return {"project": {"internalId": "1", "run": run}}

    def run_output_artifacts(self, asked: dict) -> dict:
        run = self._run_of(asked, "run")
        found = [(k, a) for k, a in self.artifacts.items() if a.run == run.name]
        told = {
            "totalCount": len(found),
            "pageInfo": {"endCursor": None, "hasNextPage": False},
            "edges": [{"node": self._artifact(run.project, *one)} for one in found],
        }
        return {"project": {"run": {"artifacts": told}}}

    def _artifact(self, project: str, number: str, artifact: StoredArtifact) -> dict:
        owner = {"id": "project", "internalId": "1", "name": project, "entity": {"name": ENTITY}}
        return {
            "__typename": "Artifact",
            "id": number,
            "artifactSequence": {
                "__typename": "ArtifactSequence",
                "name": artifact.name,
                "project": owner,
            },
            "versionIndex": 0,
            "artifactType": {"name": artifact.type},
            "description": None,
            "metadata": json.dumps(artifact.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": artifact.state,
            "size": 0,
            "digest": artifact.digest,
            "commitHash": None,
            "fileCount": len(artifact.files),
            "createdAt": "2026-01-01T00:00:00",
            "updatedAt": None,
            "aliases": [],
        }

    # What wandb-workspaces asks for: reports and workspaces.

    def get_projects(self, asked: dict) -> dict:
        names = self._projects() if asked["entity"] == ENTITY else ()
        project = {"__typename": "Project", "id": "project", "entityName": ENTITY}
        project |= {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
        edges = [{"node": {**project, "name": name}, "cursor": name} for name in names]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"edges": edges, "pageInfo": page}}

    def project_internal_id(self, asked: dict) -> dict:
        known = self._is_project(asked["entityName"], asked["projectName"])
        return {"project": {"id": "project", "internalId": "1"} if known else None}

    def upsert_view(self, asked: dict) -> dict:
        known = self._is_project(asked["entityName"], asked["projectName"])
        if asked.get("id") or not known:
            raise LookupError(f"view {asked.get('id')} of {asked['projectName']}")
        number, spec = f"Vmlldzo{len(self.views)}", json.loads(asked["spec"])
        words = {"type": asked["type"], "description": asked["description"]}
        self.views[number] = StoredView(
            **words, project=asked["projectName"], title=asked["displayName"], spec=spec
        )
        told = {"id": number, "name": asked["name"], "displayName": asked["displayName"], **words}
        told |= {"spec": asked["spec"], "updatedAt": "2026-01-01T00:00:00"}
        told["project"] = {"id": "1", "name": asked["projectName"], "entityName": ENTITY}
        return {"upsertView": {"view": told, "inserted": True}}

    upsert_view2 = upsert_view  # as workspaces call it

    def notify_scriptable_run_alert(self, _: dict) -> dict:
        return {"notifyScriptableRunAlert": {"success": True}}

    # What arrives by other ways than GraphQL.

    def file_stream(self, name: str, sent: dict) -> dict:
        run = self.runs[name]
        for file, part in sent.get("files", {}).items():
            lines = part.get("content", [])
            if file == "wandb-history.jsonl":
                run.history[part["offset"] :] = [json.loads(line) for line in lines]
            elif file == "wandb-summary.json":
                run.summary.update(json.loads(lines[-1]))
        if sent.get("preempting"):
            run.preempting = True
        run.state = "running"
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]
            run.state = "failed" if run.exit_code else "finished"
            self._requeue(run)
        if run.stop_asked:
            self._told(run)
        return {"stopped": run.stop_asked, "exitcode": None, "limits": {}}

    def _told(self, run: StoredRun) -> None:
        run.told_at = run.told_at or time.monotonic()

    def _requeue(self, run: StoredRun) -> None:
        for sweep in self.sweeps.values():
            if run.name in sweep.runs and run.preempting and run.exit_code:
                run.preempting = False
                sweep.waiting.append(run.name)

    def store(self, kind: str, owner: str, name: str, content: bytes) -> None:
        if kind == "run":
            self.runs[owner].files[name] = content
        elif kind == "manifest":
            self.artifacts[owner].manifest = json.loads(content)
        else:
            self.artifacts[owner].files[name] = content

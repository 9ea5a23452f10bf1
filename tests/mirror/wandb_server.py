"""A W&B server on the loopback, for the real client: keeps what it is sent, and refuses what a record would not send.

It answers the GraphQL operations and the file stream that `wandb` 0.31 and its process wandb-core use for runs and
reports (operation names and fields as they ask them; the stream's format as github.com/wandb/wandb documents it in
core/internal/filestream). What it refuses, W&B itself might take: a stream of a run that was never announced, a history
that leaves lines or steps out or goes back, a line sent again with other content.
"""

import base64
import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4
USER, TEAM = "ada", "lab"

Json = dict[str, Any]


@dataclass
class Run:
    """What the server holds of a run. `complete`: its process said that it ended, with `exitcode`."""

    name: str
    facts: Json = field(default_factory=dict)  # displayName, groupName, jobType, tags, host, …
    config: Json = field(default_factory=dict)
    history: list[Json] = field(default_factory=list)
    summary: Json = field(default_factory=dict)
    resent: int = 0  # history lines that came a second time
    complete: bool = False
    exitcode: int | None = None

    @property
    def state(self) -> str:
        if not self.complete:
            return "running"
        return "finished" if self.exitcode == 0 else "failed"

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]

    def node(self) -> Json:
        """The run as `Api.runs` asks for it."""
        return {
            "id": f"id-{self.name}",
            "projectId": "1",
            "name": self.name,
            "displayName": self.facts["displayName"],
            "sweepName": None,
            "state": self.state,
            "tags": self.facts["tags"] or [],
            "group": self.facts["groupName"],
            "jobType": self.facts["jobType"],
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "historyLineCount": len(self.history),
            "historyKeys": None,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "commit": None,
            "readOnly": False,
            "description": None,
            "notes": None,
            "user": {"name": USER, "username": USER},
        }


@dataclass
class Project:
    runs: dict[str, Run] = field(default_factory=dict)
    views: dict[str, Json] = field(default_factory=dict)


class Refused(Exception):
    """Answered with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class WandbServer:
    """What was received, by (entity, project), and the operations in the order they came."""

    def __init__(self, gapless: bool = True) -> None:
        self.gapless = gapless  # each step is the one before plus 1
        self.projects: dict[tuple[str, str], Project] = {}
        self.operations: list[str] = []
        self.refusals: list[str] = []
        self.before_stream: Callable[[str, Json], None] = lambda run, body: (
            None
        )  # may change the body, or raise Refused
        self.after_stream: Callable[[str], None] = lambda run: None  # may wait before it is answered
        self.lag = 0  # lines of each run that the next answer does not count yet
        self.lock = threading.RLock()
        self.url = ""

    def runs(self, project: str = "klsweep", entity: str = USER) -> dict[str, Run]:
        """The runs of a project, by id."""
        return self.projects[entity, project].runs

    def views(self, project: str = "klsweep", entity: str = USER) -> list[Json]:
        """The reports of a project."""
        return list(self.projects[entity, project].views.values())

    def count(self, operation: str) -> int:
        """How often an operation was asked."""
        return self.operations.count(operation)

    def project(self, variables: Json, create: bool = False) -> Project | None:
        """The project that variables name, under whatever names. 404 if its entity is nobody's."""
        entity = variables.get("entity") or variables.get("entityName") or USER
        name = variables.get("project") or variables.get("projectName") or variables.get("name")
        if entity not in (USER, TEAM):
            raise Refused(404, f"entity {entity} not found")
        if create:
            return self.projects.setdefault((entity, name), Project())
        return self.projects.get((entity, name))

    def graphql(self, query: str, variables: Json) -> Json:
        """The `data` of an operation."""
        name = next(word for word in query.replace("(", " ").split() if word not in ("#graphql", "query", "mutation"))
        with self.lock:
            self.operations.append(name)
            answer = getattr(self, f"on_{name}", None)
            if answer is None:
                raise Refused(400, f"no answer to operation {name}")
            return answer(variables)

    def on_Viewer(self, _: Json) -> Json:
        teams = {"edges": [{"node": {"name": name}} for name in (USER, TEAM)]}
        facts = {"id": "u", "entity": USER, "username": USER, "name": USER, "email": "ada@lab.invalid", "teams": teams}
        more = {"flags": "{}", "admin": False, "deletedAt": None, "apiKeys": {"edges": []}}
        return {"viewer": {**facts, **more}}

    on_GetViewer = on_GetDefaultEntity = on_Viewer

    def on_RunResumeStatus(self, variables: Json) -> Json:
        project = self.project(variables)
        if project is None:
            return {"model": None}
        run, bucket = project.runs.get(variables["name"]), None
        if run is not None:
            bucket = {
                **run.node(),
                "logLineCount": 0,
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
                "eventsTail": "[]",
                "wandbConfig": json.dumps({"t": run.config.get("_wandb", {}).get("value", {}).get("t")}),
            }
        entity = {"id": "e", "name": variables["entity"] or USER}
        return {"model": {"id": "p", "name": variables["project"], "entity": entity, "bucket": bucket}}

    def on_UpsertBucket(self, variables: Json) -> Json:
        project = self.project(variables, create=True)
        assert project is not None
        inserted = variables["name"] not in project.runs
        run = project.runs.setdefault(variables["name"], Run(variables["name"]))
        for key in ("displayName", "groupName", "jobType", "tags", "host"):
            run.facts[key] = variables.get(key) or run.facts.get(key)
        run.facts["displayName"] = run.facts["displayName"] or run.name
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        if inserted or variables.get("displayName"):  # announced anew: it goes on
            run.complete, run.exitcode = False, None
        entity = {"id": "e", "name": variables["entity"] or USER}
        where = {"project": {"id": "p", "name": variables["project"], "entity": entity}}
        return {"upsertBucket": {"bucket": {**run.node(), **where}, "inserted": inserted}}

    def on_CreateRunFiles(self, variables: Json) -> Json:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def on_Runs(self, variables: Json) -> Json:
        project = self.project(variables)
        if project is None:
            return {"project": None}
        (wanted,) = json.loads(variables["filters"]).values()  # {"name": {"$in": […]}}
        found = [project.runs[name] for name in wanted["$in"] if name in project.runs]
        start = int(variables.get("cursor") or 0)
        page = [run.node() for run in found[start : start + variables["perPage"]]]
        for node in page:
            node["historyLineCount"] -= self.lag
        self.lag = 0
        end = start + len(page)
        return {
            "project": {
                "internalId": "1",
                "runCount": len(found),
                "readOnly": False,
                "runs": {
                    "edges": [{"node": node, "cursor": str(start + n)} for n, node in enumerate(page, 1)],
                    "pageInfo": {"endCursor": str(end), "hasNextPage": end < len(found)},
                },
            }
        }

    def on_GetProjects(self, variables: Json) -> Json:
        entity = variables["entity"]
        names = [name for owner, name in self.projects if owner == entity]
        facts = {"entityName": entity, "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
        edges = [{"node": {"id": name, "name": name, **facts}, "cursor": name} for name in names]
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def on_ProjectViews(self, variables: Json) -> Json:
        project = self.project(variables)
        if project is None:
            return {"project": None}
        edges = [{"node": view, "cursor": view["id"]} for view in project.views.values()]
        return {"project": {"allViews": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}}

    def on_SpecificReport(self, variables: Json) -> Json:
        found = (project.views.get(variables["reportId"]) for project in self.projects.values())
        return {"view": next((view for view in found if view), None)}

    def on_upsertView(self, variables: Json) -> Json:
        project = self.project(variables)
        if project is None:
            raise Refused(404, f"project {variables['projectName']} not found")
        number = variables["id"] or base64.b64encode(f"View:{len(project.views)}".encode()).decode()
        if variables["id"] is not None and number not in project.views:
            raise Refused(404, f"no view {number}")
        facts = {key: variables[key] for key in ("name", "displayName", "description", "type", "spec")}
        where = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        when = {"createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}
        inserted = number not in project.views
        view = project.views[number] = {"id": number, **facts, "project": where, "user": None, **when}
        return {"upsertView": {"view": view, "inserted": inserted}}

    def stream(self, entity: str, project: str, name: str, body: Json) -> None:
        """A request of the file stream."""
        self.before_stream(name, body)
        with self.lock:
            self.operations.append("file_stream")
            there = self.project({"entity": entity, "project": project})
            if there is None or name not in there.runs:
                raise Refused(404, f"file stream of unknown run {entity}/{project}/{name}")
            run, files = there.runs[name], body.get("files") or {}
            if history := files.get("wandb-history.jsonl"):
                self._take_history(run, history["offset"], [json.loads(line) for line in history["content"]])
            if summary := files.get("wandb-summary.json"):
                run.summary = json.loads(summary["content"][-1])
            if body.get("complete"):
                run.complete, run.exitcode = True, body["exitcode"]

    def _take_history(self, run: Run, offset: int, rows: list[Json]) -> None:
        if offset > len(run.history):
            raise Refused(400, f"{run.name}: history line {offset} before line {len(run.history)}")
        for line, row in enumerate(rows, offset):
            if line < len(run.history):
                if _content(run.history[line]) != _content(row):
                    raise Refused(400, f"{run.name}: history line {line} again, with other content")
                run.resent += 1
                continue
            last = run.history[-1]["_step"] if run.history else None
            if last is not None and (row["_step"] <= last or (self.gapless and row["_step"] != last + 1)):
                raise Refused(400, f"{run.name}: step {row['_step']} after step {last}")
            if last is None and self.gapless and row["_step"] != 0:
                raise Refused(400, f"{run.name}: begins at step {row['_step']}")
            run.history.append(row)


def _content(row: Json) -> str:
    """A history row without what the moment of sending decides; as text, in which NaN equals NaN."""
    return json.dumps({key: value for key, value in row.items() if key != "_runtime"}, sort_keys=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Listener"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_POST(self) -> None:
        body, wandb = self._body(), self.server.wandb
        try:
            if self.path.startswith("/sdk/otel"):  # telemetry about the client itself
                self._answer({})
                return
            self._check_key()
            if self.path == "/graphql":
                asked = json.loads(body)
                self._answer({"data": wandb.graphql(asked["query"], asked.get("variables") or {})})
            elif self.path.endswith("/file_stream"):
                entity, project, run = self.path.split("/")[2:5]
                wandb.stream(entity, project, run, json.loads(body))
                wandb.after_stream(run)
                self._answer({"limits": {}})
            else:
                raise Refused(404, self.path)
        except Exception as error:  # of this server too: a test that looks at refusals finds it
            wandb.refusals.append(f"{type(error).__name__}: {error}")
            self._answer({"errors": [{"message": str(error)}]}, getattr(error, "status", 400))

    def _check_key(self) -> None:
        given = base64.b64decode((self.headers["Authorization"] or "Basic ").split()[-1]).decode()
        if given != f"api:{KEY}":
            raise Refused(401, "user is not logged in")

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: Json, status: int = 200) -> None:
        body = json.dumps(content).encode()
        with contextlib.suppress(OSError):  # a client that was killed
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, wandb: WandbServer) -> None:
        self.wandb = wandb
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent on a client that went away."""


@contextlib.contextmanager
def serving(wandb: WandbServer) -> Iterator[WandbServer]:
    """Listen on a free port of the loopback; `wandb.url` is where."""
    listener = _Listener(wandb)
    wandb.url = f"http://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield wandb
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()

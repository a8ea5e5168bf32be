"""A stand-in for W&B's server: enough of its interface that wandb's own client runs, uploads and resumes against it."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OPERATION = re.compile(r"(?:query|mutation)\s+(\w+)")


class WandbServer:
    """Keeps what clients upload. ``refuse`` is the HTTP status that answers uploads of metrics, if it is not None."""

    def __init__(self, refuse: int | None = None) -> None:
        self.refuse = refuse
        self.runs: dict[str, dict[str, Any]] = {}
        self.views: list[dict[str, Any]] = []  # saved workspaces
        self.artifacts: dict[str, dict[str, bytes]] = {}  # name -> contents of its files
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                status, reply = server.answer(self.path, self._body())
                self._reply(status, reply)

            def do_PUT(self) -> None:
                _, kind, owner, name = self.path.split("/", 3)
                files = server.artifacts[owner] if kind == "artifact" else server.run(owner)["files"]
                files[name] = self._body()
                self._reply(200, {})

            def do_GET(self) -> None:
                self._reply(200, {})

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _reply(self, status: int, reply: Any) -> None:
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                pass  # a client that hangs up

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def run(self, name: str) -> dict[str, Any]:
        empty = {"lines": {}, "summary": {}, "files": {}, "settings": {}, "starts": 0, "alerts": []}
        return self.runs.setdefault(name, empty)

    def history(self, name: str) -> list[dict[str, Any]]:
        """The rows of metrics, in order."""
        return [json.loads(line) for _, line in sorted(self.runs[name]["lines"].items())]

    def config(self, name: str) -> dict[str, Any]:
        config = json.loads(self.runs[name]["settings"]["config"])
        return {key: entry["value"] for key, entry in config.items() if key != "_wandb"}

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path.startswith("/graphql"):
            return 200, {"data": self._graphql(json.loads(body))}
        found = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path)
        if not found:
            return 200, {}
        if self.refuse is not None:
            return self.refuse, {"error": "storage quota exceeded"}
        run, files = self.run(found[1]), json.loads(body).get("files", {})
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        run["lines"] |= {history["offset"] + i: line for i, line in enumerate(history["content"])}
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            run["summary"] |= json.loads(line)
        return 200, {"exitcode": None, "limits": {}}

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        given = request.get("variables") or {}
        operation = request.get("operationName") or OPERATION.findall(request["query"])[0]
        match operation:
            case "UpsertBucket":
                name = given.get("name") or next(reversed(self.runs))
                run = self.run(name)
                run["settings"] |= {key: value for key, value in given.items() if value is not None}
                run["starts"] += given.get("name") is not None
                return {"upsertBucket": {"bucket": self._bucket(name), "inserted": True}}
            case "RunResumeStatus":
                known = given["name"] in self.runs
                bucket = self._bucket(given["name"]) if known else None
                return {"model": {"id": "p", "name": "fedmoe", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}
            case "CreateRunFiles":
                files = [{"name": f, "uploadUrl": f"{self.url}/up/{given['run']}/{f}"} for f in given["files"]]
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateArtifact":
                # A table's file: as if the server had it already. A model is uploaded: its files are those of its name.
                told = given["input"]
                name, kept = told["artifactCollectionName"], told["artifactTypeName"] == "model"
                state, sequence = "PENDING" if kept else "COMMITTED", {"id": "s", "latestArtifact": None}
                artifact = {"id": name, "state": state, "artifactSequence": sequence}
                if kept:
                    self.artifacts[name] = {}
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                name = given.get("artifactID") or given["input"]["artifactID"]
                file = self._upload(name, given.get("name") or given["input"]["name"])
                key = operation[0].lower() + operation[1:]
                return {key: {"artifactManifest": {"id": name, "file": file}}}
            case "CreateArtifactFiles":
                files = given.get("artifactFiles") or given["input"]["artifactFiles"]
                nodes = [{**self._upload(f["artifactID"], f["name"]), "artifact": {"id": "a"}} for f in files]
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
            case "UpsertView2":
                self.views.append(given)
                return {"upsertView": {"view": {"id": "v", "name": given["name"]}, "inserted": True}}
            case "NotifyScriptableRunAlert":
                self.run(given["runName"])["alerts"].append(given)
                return {"notifyScriptableRunAlert": {"success": True}}
            case "Viewer":
                return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def _upload(self, artifact: str, name: str) -> dict[str, Any]:
        place = {"uploadUrl": f"{self.url}/artifact/{artifact}/{name}", "uploadHeaders": []}
        return {"id": name, "name": name, "displayName": name, "storagePath": None, **place}

    def _bucket(self, name: str) -> dict[str, Any]:
        run = self.run(name)
        lines = [line for _, line in sorted(run["lines"].items())]
        return {
            "id": "r",
            "name": name,
            "displayName": name,
            "config": run["settings"].get("config", "{}"),
            "summaryMetrics": json.dumps(run["summary"]),
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(lines[-1:]),
            "eventsTail": "[]",
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),  # the run has started
            "sweepName": None,
            "project": {"id": "p", "name": "fedmoe", "entity": {"id": "e", "name": "me"}},
        }

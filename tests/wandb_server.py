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
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                status, reply = server.answer(self.path, self._body())
                self._reply(status, reply)

            def do_PUT(self) -> None:
                _, _, run, name = self.path.split("/", 3)
                server.run(run)["files"][name] = self._body()
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
        return self.runs.setdefault(name, {"lines": {}, "summary": {}, "files": {}, "settings": {}, "starts": 0})

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
            case "CreateArtifact":  # a table's file: as if the server had it already
                sequence = {"id": "s", "latestArtifact": None}
                return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
            case "Viewer":
                return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

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

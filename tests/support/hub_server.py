"""A server on loopback that speaks as much of the Hub of Hugging Face as its client asks for.

Models are kept in memory. Every commit has all files of its model. Not shown by it: Xet, pull
requests, pages of listings, quotas, and who may do what beyond one token.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator

TOKEN = "hf_loopback"


class Hub(http.server.ThreadingHTTPServer):
    """The server, in a thread of this process.

    models: {ORG/NAME: {commit: {file: content}}}. branches: {ORG/NAME: {branch: commit}}.
    gated: names that are refused to everybody. cut: bytes of a file after which the connection
    ends, as often as `cuts` says. down: whether every request is answered with 503. asked: the
    requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.cut, self.cuts, self.down = 0, 0, False
        self.asked: list[str] = []
        self.uploaded: dict[str, bytes] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit to a branch, with these files beside those that it has."""
        branches = self.branches.setdefault(name, {})
        commits = self.models.setdefault(name, {})
        whole = commits.get(branches.get(branch, ""), {}) | files
        parts = [x for path in sorted(whole) for x in (path.encode(), whole[path])]
        commit = hashlib.sha1(b"\0".join(parts)).hexdigest()
        commits[commit], branches[branch] = whole, commit
        return commit


class Missing(Exception):
    """An answer that is an error: its status and the Hub's word for it."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answered(self._get)

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def do_PUT(self) -> None:
        self._answered(self._put)

    def _answered(self, answer) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.path, _, self.query = urllib.parse.unquote(self.path).partition("?")
        self.server.asked.append(f"{self.command} {self.path}")
        try:
            if self.server.down:
                raise Missing(503, "Down")
            answer()
        except Missing as error:
            status, word = error.args
            self._send(status, b"{}", {"X-Error-Code": word, "X-Error-Message": word})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cuts and len(content) > self.server.cut > 0:
            self.server.cuts -= 1
            self.wfile.write(content[: self.server.cut])
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(content)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        if name not in self.server.models:
            raise Missing(404, "RepoNotFound")
        if name in self.server.gated:
            raise Missing(403, "GatedRepo")
        commit = self.server.branches[name].get(revision, revision)
        if commit not in self.server.models[name]:
            raise Missing(404, "RevisionNotFound")
        return commit, self.server.models[name][commit]

    def _get(self) -> None:
        if info := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.path):
            name, revision = info[1], info[2] or "main"
            commit, files = self._files(name, revision)
            siblings = [{"rfilename": file} for file in files]
            self._json({"id": name, "sha": commit, "siblings": siblings, "private": False})
        elif file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            commit, files = self._files(file[1], file[2])
            if file[3] not in files:
                raise Missing(404, "EntryNotFound")
            content = files[file[3]]
            headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            status, asked = 200, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if asked:
                begin, whole = int(asked[1]), len(content)
                headers["Content-Range"] = f"bytes {begin}-{whole - 1}/{whole}"
                status, content = 206, content[begin:]
            self._send(status, content, headers)
        else:
            raise Missing(404, "EntryNotFound")

    def _post(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Missing(401, "Unauthorized")
        if self.path == "/api/repos/create":
            asked = json.loads(self.body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name not in self.server.models:
                self.server.commit(name, {})
            self._json({"url": f"{self.server.endpoint}/{name}", "id": name})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            files = [file["path"] for file in json.loads(self.body)["files"]]
            self._json({"files": [
                {"path": x, "uploadMode": "lfs" if x.endswith(".safetensors") else "regular",
                 "shouldIgnore": False, "oid": None} for x in files]})  # fmt: skip
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(self.body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{one['oid']}"}}
            self._json({"transfer": "basic", "objects": objects})
        elif commit := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
            files = {}
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.uploaded[value["oid"]]
            oid = self.server.commit(commit[1], files)
            url = f"{self.server.endpoint}/{commit[1]}/commit/{oid}"
            self._json({"success": True, "commitOid": oid, "commitUrl": url})
        else:
            raise Missing(404, "EntryNotFound")

    def _put(self) -> None:
        self.server.uploaded[self.path.rpartition("/")[2]] = self.body
        self._json({})


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """The server, for a block of code."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()

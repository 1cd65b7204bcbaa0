"""A bucket of Google Cloud Storage on loopback, with latency, faults and counts: gs://bucket.

    python -m tests.support.bucket [--latency=0.05] [--rate=100e6] [--fault=...] -- COMMAND ...

runs COMMAND with an environment in which three libraries take this bucket for Google's:

- tensorstore (Orbax's arrays, the records of data sets) by TENSORSTORE_GCS_HTTP_URL;
- google-cloud-storage and gcsfs by STORAGE_EMULATOR_HOST;
- TensorFlow's gfile (etils.epath, TFDS, clu), which has no such variable, by those of its libcurl:
  HTTPS_PROXY leads to the same port, where CONNECT is answered for *.googleapis.com alone, by TLS
  with a certificate made for the occasion, which CURL_CA_BUNDLE names.
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from tests.support.bucket_server import BUCKET, Fault, Server

__all__ = ["ROOT", "Bucket", "Fault"]

ROOT = f"gs://{BUCKET}"


class Bucket:
    """The bucket in a process of its own: TensorFlow keeps Python's lock while it waits for it."""

    def __enter__(self) -> "Bucket":
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.bucket", "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent.parent,
        )
        assert self.process.stdout is not None
        self.environment: dict[str, str] = json.loads(self.process.stdout.readline())
        self.host = self.environment["STORAGE_EMULATOR_HOST"].removeprefix("http://")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # the end of its stdin is its end

    @property
    def counts(self) -> dict[str, int]:
        """Requests by kind, and bytes; those that were not met are absent."""
        return self._ask("GET", "counts")

    def files(self, prefix: str = "") -> dict[str, bytes]:
        """The contents of all objects below a prefix."""
        found = self._ask("GET", "files", prefix)
        return {name: base64.b64decode(content) for name, content in found.items()}

    def put(self, name: str, content: bytes) -> None:
        self._ask("PUT", "files", name, content)

    def delete(self, name: str) -> None:
        self._ask("DELETE", "files", name)

    def alias(self, name: str, other: str) -> None:
        """Give an object another name, under which its content is not kept again."""
        self._ask("POST", f"alias/{other}", name)

    def copy(self, folder: Path, prefix: str) -> None:
        """Put all files below a folder there."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    @contextlib.contextmanager
    def suffering(self, *faults: Fault, latency: float = 0.0, rate: float = 0.0) -> Iterator[None]:
        """Let faults, latency and rate last for a block of code, with the counts begun anew."""
        listed = [fault.described() for fault in faults]
        self._settle({"latency": latency, "rate": rate, "faults": listed})
        try:
            yield
        finally:
            self._settle({})

    def _settle(self, settings: dict) -> None:
        self._ask("PUT", "settings", body=json.dumps(settings).encode())

    def _ask(self, method: str, what: str, name: str = "", body: bytes = b"") -> dict:
        connection = http.client.HTTPConnection(self.host)
        path = f"/-/{what}?{urllib.parse.urlencode({'name': name})}"
        connection.request(method, path, body)
        with connection.getresponse() as response:
            assert response.status == 200, response.read()
            return json.loads(response.read())


def _fault(text: str) -> dict:
    """Read KIND,SKIP,TIMES,EVERY,PATTERN."""
    kind, skip, times, every, pattern = text.split(",", 4)
    return Fault(kind, pattern, int(skip), int(times), int(every)).described()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--latency", type=float, default=0.0, help="seconds before each request is answered")
    add("--rate", type=float, default=0.0, help="bytes a second of one answer; 0: no limit")
    add("--fault", type=_fault, action="append", default=[], metavar="KIND,SKIP,TIMES,EVERY,REGEX",
        help="as in Fault: --fault=503,10,200,3,'GET .*tfrecord'")  # fmt: skip
    add("--folder", type=Path, help="a folder whose files are in the bucket from the start")
    add("--counts", type=Path, help="a file to be written with the counts of requests and bytes")
    add("--serve", action="store_true", help="tell the environment and run until stdin ends")
    add("command", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bucket-") as folder:
        server = Server(Path(folder))
        server.settle(given.latency, given.rate, given.fault)
        for path in sorted(given.folder.rglob("*")) if given.folder else ():
            if path.is_file():
                name = path.relative_to(given.folder).as_posix()
                server.objects.write(name, path.read_bytes(), {})
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        if given.serve:
            print(json.dumps(server.environment()), flush=True)
            sys.stdin.read()
            return 0
        code = subprocess.call(given.command, env=os.environ | server.environment())
        counts = json.dumps(dict(sorted(server.counts.items())))
    print(f"bucket: {counts}", file=sys.stderr)
    if given.counts:
        given.counts.write_text(counts + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())

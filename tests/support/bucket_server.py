"""A server on loopback that answers as Google Cloud Storage does, for one bucket.

Objects are kept in memory and lost at the end. Conditions on generations (ifGenerationMatch) hold.
Not shown by it: quotas, permissions, HTTP/2 and gRPC, checksums of uploads, folders of a
hierarchical namespace, and what Google's servers do under load.
"""

import base64
import collections
import contextlib
import dataclasses
import datetime
import http.server
import itertools
import json
import re
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.parse
from collections.abc import Sequence
from email.message import Message
from pathlib import Path

BUCKET = "bucket"
ROOT = f"gs://{BUCKET}"
_PART = 1 << 18  # bytes that are sent at once where the rate is limited


@dataclasses.dataclass
class Fault:
    """What befalls some of the requests whose "METHOD /path" a regular expression is found in.

    The path of an upload ends with "?name=" and the object's name, if that is known from it.

    kind: "503" or another status, "reset" (of the connection), "lost" (reset after what was asked
    for is done), "cut" (reset in mid-answer), or "delay" by `seconds`. Of those found, `skip` pass
    first; then one in `every`, `times` times.
    """

    kind: str
    pattern: str
    skip: int = 0
    times: int = 1 << 30
    every: int = 1
    seconds: float = 5.0
    seen: int = dataclasses.field(default=0, init=False)
    done: int = dataclasses.field(default=0, init=False)

    def described(self) -> dict:
        """The arguments that make another such fault."""
        return {x.name: getattr(self, x.name) for x in dataclasses.fields(self) if x.init}

    def strikes(self, request: str) -> bool:
        if not re.search(self.pattern, request):
            return False
        self.seen += 1
        number = self.seen - 1 - self.skip
        struck = number >= 0 and number % self.every == 0 and self.done < self.times
        self.done += struck
        return struck


@dataclasses.dataclass(frozen=True)
class Object:
    content: bytes
    generation: int
    updated: str

    def described(self, name: str) -> dict:
        """Its resource, as the JSON interface gives it."""
        return {
            **{"kind": "storage#object", "bucket": BUCKET, "name": name},
            **{"size": str(len(self.content)), "generation": str(self.generation)},
            **{"metageneration": "1", "etag": str(self.generation)},
            **{"updated": self.updated, "timeCreated": self.updated, "storageClass": "STANDARD"},
        }


class Refused(Exception):
    """An answer that is an error: its status."""


class Objects:
    """What the bucket holds; every change of an object gives it a greater generation."""

    def __init__(self) -> None:
        self.held: dict[str, Object] = {}
        self.lock = threading.Lock()
        self.generations = itertools.count(1_700_000_000_000_000)

    def __getitem__(self, name: str) -> Object:
        try:
            return self.held[name]
        except KeyError:
            raise Refused(404) from None

    def write(self, name: str, content: bytes, query: dict[str, str]) -> Object:
        """Raises Refused(412) where the query's condition does not hold."""
        with self.lock:
            self.check(name, query)
            now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
            written = self.held[name] = Object(content, next(self.generations), now)
            return written

    def delete(self, name: str, query: dict[str, str]) -> None:
        with self.lock:
            self.check(name, query)
            if self.held.pop(name, None) is None:
                raise Refused(404)

    def check(self, name: str, query: dict[str, str]) -> None:
        """Raises Refused(412), or 304, where a condition on the generation does not hold."""
        there = self.held[name].generation if name in self.held else 0  # 0: it must not exist
        if int(query.get("ifGenerationMatch", there)) != there:
            raise Refused(412)
        if int(query.get("ifGenerationNotMatch", there + 1)) == there:
            raise Refused(304)

    def listed(self, query: dict[str, str]) -> dict:
        """One page of names, those below a delimiter gathered to prefixes."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, last = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
        after, most = query.get("pageToken", ""), int(query.get("maxResults", 1000))
        page: dict[str, dict | None] = {}
        with self.lock:
            names = sorted(self.held)
        for name in names:
            if not (name.startswith(prefix) and first <= name < last):
                continue
            stem, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            entry = prefix + stem + found if found else name
            if entry <= after or entry in page:
                continue
            if len(page) == most:
                break
            held = self.held.get(name)
            if found or held is not None:
                page[entry] = None if found else held.described(name)
        else:
            most = 0  # this page is the last
        answer: dict = {"kind": "storage#objects"}
        answer["items"] = [item for item in page.values() if item is not None]
        answer["prefixes"] = [name for name, item in page.items() if item is None]
        return answer | ({"nextPageToken": max(page)} if most else {})


class Server(http.server.ThreadingHTTPServer):
    """The bucket, on a port of its own: plain, and behind CONNECT by TLS.

    latency: seconds before each request is answered. rate: bytes a second of one answer.
    faults: those to come. counts: requests by kind, and bytes.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.latency = self.rate = 0.0
        self.faults: list[Fault] = []
        self.objects, self.uploads = Objects(), dict[str, tuple[str, dict, bytes]]()
        self.counts: collections.Counter[str] = collections.Counter()
        self.lock = threading.Lock()
        self.certificate, key = certificate(folder)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate, key)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """The variables by which libraries find this bucket, and no other."""
        return {
            **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), self.url),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1"),
            "CURL_CA_BUNDLE": str(self.certificate),
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "STORAGE_EMULATOR_HOST": self.url,
            "GOOGLE_CLOUD_PROJECT": "project",
            "NO_GCE_CHECK": "true",  # TensorFlow need not ask the machine for a token,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GCE_METADATA_ROOT": "127.0.0.1:9",  # nor tensorstore
        }

    def settle(self, latency: float = 0.0, rate: float = 0.0, faults: Sequence[dict] = ()) -> None:
        """Change what befalls requests from now on, and begin to count anew."""
        with self.lock:
            self.counts.clear()
            self.latency, self.rate = latency, rate
            self.faults = [Fault(**fault) for fault in faults]

    def count(self, **added: int) -> None:
        with self.lock:
            self.counts.update(added)

    def fault(self, request: str) -> Fault | None:
        """The first fault that strikes a request."""
        with self.lock:
            return next((fault for fault in self.faults if fault.strikes(request)), None)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is gone is no error here; others are told as usual."""
        if not isinstance(sys.exception(), (ConnectionError, ssl.SSLError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    """A connection: plain, or after CONNECT by TLS."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    secure = losing = False

    def do_CONNECT(self) -> None:
        if not self.path.endswith("googleapis.com:443"):
            self.send_error(403, "loopback only")
            return
        self.send_response_only(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb")
        self.secure, self.close_connection = True, False

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()
        with contextlib.suppress(OSError):
            self.connection.close()

    def do_GET(self) -> None:
        self.answer_request()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET

    def answer_request(self) -> None:
        """Find out what is asked, after the latency and the faults that are due."""
        body = self.body()
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        if parts.path.startswith("/-/"):
            self.control(parts.path, query, body)
            return
        time.sleep(self.server.latency)
        request = f"{self.command} {urllib.parse.unquote(parts.path)}"
        request += f"?name={query['name']}" if "name" in query else ""
        self.server.count(requests=1)
        fault = self.server.fault(request)
        self.losing = fault is not None and fault.kind == "lost"
        if fault is not None:
            self.server.count(**{f"faults_{fault.kind}": 1})
            if fault.kind == "delay":
                time.sleep(fault.seconds)
            elif fault.kind == "reset":
                self.reset()
                return
            elif fault.kind not in ("cut", "lost"):
                self.answer(int(fault.kind), {"error": {"code": int(fault.kind)}})
                return
        try:
            self.route(parts.path, query, body, cut=fault is not None and fault.kind == "cut")
        except Refused as refused:
            status = refused.args[0]
            self.answer(status, {"error": {"code": status, "message": f"{status}: {request}"}})

    def control(self, path: str, query: dict[str, str], body: bytes) -> None:
        """Do what a test asks, which counts for nothing and is never refused."""
        objects, name = self.server.objects, query.get("name", "")
        answer = {}
        if path == "/-/counts":
            answer = dict(self.server.counts)
        elif path == "/-/settings":
            self.server.settle(**json.loads(body))
        elif path.startswith("/-/alias/"):
            objects.write(path.removeprefix("/-/alias/"), objects[name].content, {})
        elif self.command == "PUT":
            objects.write(name, body, {})
        elif self.command == "DELETE":
            objects.delete(name, {})
        else:
            held = sorted((k, x.content) for k, x in objects.held.items() if k.startswith(name))
            answer = {key: base64.b64encode(content).decode() for key, content in held}
        self.answer(200, answer)

    def route(self, path: str, query: dict[str, str], body: bytes, cut: bool) -> None:
        """Do what is asked of the bucket, an object, or several."""
        objects, count = self.server.objects, self.server.count
        found = re.fullmatch(r"(/\w+)?/storage/v1/b/([^/]+)(/o|/storageLayout)?(/.*)?", path)
        if found is None:  # the XML interface, by which TensorFlow reads
            bucket, _, name = path.lstrip("/").partition("/")
            kind, of_bucket, rest = "", "/o", "/" + name
            query = {**query, "alt": "media"}
        else:
            kind, bucket, of_bucket, rest = (x or "" for x in found.groups())
        if bucket != BUCKET:
            raise Refused(404)
        names = rest.lstrip("/").split("/") if found else [rest.removeprefix("/")]
        name, *then = (urllib.parse.unquote(x) for x in names)

        if of_bucket == "/storageLayout":
            self.answer(200, {"location": "US", "locationType": "region"})
        elif not of_bucket:
            self.answer(200, {"kind": "storage#bucket", "name": BUCKET, "location": "US"})
        elif kind == "/upload":
            self.upload(query, body)
        elif self.command == "POST" and then[:1] in (["rewriteTo"], ["copyTo"]):
            count(copies=1)
            copied = objects.write(then[4], objects[name].content, query)
            resource = copied.described(then[4])
            whole = {"done": True, "resource": resource, "objectSize": resource["size"]}
            self.answer(200, whole if then[0] == "rewriteTo" else resource)
        elif self.command == "POST" and then == ["compose"]:
            sources = [objects[x["name"]].content for x in json.loads(body)["sourceObjects"]]
            self.answer(200, objects.write(name, b"".join(sources), query).described(name))
        elif self.command == "DELETE":
            count(deletes=1)
            objects.delete(name, query)
            self.answer(204)
        elif self.command in ("GET", "HEAD") and not name:
            count(lists=1)
            self.answer(200, objects.listed(query))
        elif self.command in ("GET", "HEAD"):
            there = objects[name]
            objects.check(name, query)
            if query.get("alt") == "media":
                self.media(there, cut)
            else:
                self.answer(200, there.described(name))
        else:
            raise Refused(400)

    def media(self, there: Object, cut: bool) -> None:
        """Send an object's content, or the range asked for."""
        size, status, headers = len(there.content), 200, {"x-goog-generation": there.generation}
        begin, end = 0, size
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(asked[1]), min(int(asked[2] or size) + 1, size)
            if begin >= size:
                self.answer(416, headers={"Content-Range": f"bytes */{size}"})
                return
            status, headers["Content-Range"] = 206, f"bytes {begin}-{end - 1}/{size}"
        self.server.count(reads=1, bytes_read=end - begin)
        content = memoryview(there.content)[begin:end]
        self.begin(status, len(content), headers | {"Content-Type": "application/octet-stream"})
        if cut:
            self.connection.sendall(content[: len(content) // 2])
            self.reset()
        elif self.command != "HEAD":
            self.send(content)

    def send(self, content: memoryview) -> None:
        """Send at the server's rate."""
        rate, start = self.server.rate, time.perf_counter()
        for sent in range(0, len(content), _PART if rate else max(len(content), 1)):
            part = content[sent : sent + _PART] if rate else content
            if rate:
                time.sleep(max(0.0, start + (sent + len(part)) / rate - time.perf_counter()))
            self.connection.sendall(part)

    def upload(self, query: dict[str, str], body: bytes) -> None:
        """Take an object whole, or begin, go on with or ask about a resumable upload."""
        server = self.server
        if query.get("uploadType") == "multipart":
            about, content = _parts(self.headers, body)
            self.written(about.get("name") or query["name"], content, query)
        elif query.get("uploadType") == "resumable" and self.command == "POST":
            name = query.get("name") or json.loads(body)["name"]
            with server.lock:
                number = f"{len(server.uploads)}"
                server.uploads[number] = name, query, b""
            origin = f"http{'s' * self.secure}://{self.headers['Host']}"
            where = f"{origin}/upload/storage/v1/b/{BUCKET}/o?upload_id={number}"
            self.answer(200, headers={"Location": where})
        elif "upload_id" in query:
            name, given, before = server.uploads[query["upload_id"]]
            whole = f"bytes 0-{len(body) - 1}/{len(body)}" if body else "bytes */0"
            sent = self.headers.get("Content-Range", whole)
            span = re.fullmatch(r"bytes (\*|\d+-\d+)/(\*|\d+)", sent)
            if span is None:
                raise Refused(400)
            if span[1] != "*":
                before = before[: int(span[1].partition("-")[0])] + body
                server.uploads[query["upload_id"]] = name, given, before
            if span[2] == str(len(before)):
                self.written(name, before, given)
            else:
                have = {"Range": f"bytes=0-{len(before) - 1}"} if before else {}
                self.answer(308, headers=have)
        else:
            self.written(query["name"], body, query)

    def written(self, name: str, content: bytes, query: dict[str, str]) -> None:
        self.server.count(writes=1, bytes_written=len(content))
        self.answer(200, self.server.objects.write(name, content, query).described(name))

    def body(self) -> bytes:
        """The request's body; libcurl sends chunks where TensorFlow does not tell it the length."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, content: dict | None = None, headers: dict | None = None) -> None:
        sent = b"" if content is None or status in (204, 304) else json.dumps(content).encode()
        self.begin(status, len(sent), {"Content-Type": "application/json"} | (headers or {}))
        if self.command != "HEAD":
            self.wfile.write(sent)

    def begin(self, status: int, length: int, headers: dict) -> None:
        if self.losing:
            self.reset()
            raise ConnectionResetError
        self.send_response_only(status)
        for key, value in ({"Content-Length": length} | headers).items():
            self.send_header(key, str(value))
        self.end_headers()

    def flush_headers(self) -> None:
        super().flush_headers()
        self.wfile.flush()  # a client that waits for "100 Continue" waits a second

    def reset(self) -> None:
        """Close the connection so that the client sees a reset, not an end."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def _parts(headers: Message, body: bytes) -> tuple[dict, bytes]:
    """The two parts of a multipart upload: what is said of the object, and its content."""
    boundary = re.search(r'boundary="?([^";]+)', headers["Content-Type"])[1].encode()
    _, about, content, _ = body.split(b"--" + boundary)
    strip = lambda part: part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")  # noqa: E731
    return json.loads(strip(about)), strip(content)


def certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for *.googleapis.com that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback bucket")])
    hosts = ["*.googleapis.com", "*.storage.googleapis.com"]
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    made = made.public_key(key.public_key()).serial_number(x509.random_serial_number())
    made = made.not_valid_before(now - day).not_valid_after(now + 2 * day)
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
    made = made.add_extension(names, False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    signed, kept = folder / "certificate.pem", folder / "key.pem"
    signed.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    kept.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return signed, kept

"""A stand-in for a model hub on the loopback interface: as much of its HTTP interface as pushing and pulling use."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_right"


class Hub:
    """The repositories of the stand-in, and how it misbehaves.

    `repositories` maps a name to its commits (oldest first), each a (commit hash, {path: bytes}); `fail` maps the
    beginning of a path to a status; `cut` sends half of these files; `swap` replaces the bytes of files on download.
    """

    def __init__(self):
        self.repositories = {}
        self.private = set()
        self.requests = []
        self.large = {}
        self.fail = {}
        self.cut = set()
        self.swap = {}
        self.endpoint = ""

    def commit(self, repository, files):
        commits = self.repositories.setdefault(repository, [])
        before = commits[-1][1] if commits else {}
        content = {**before, **files}
        number = hashlib.sha1(repr((len(commits), sorted(content))).encode()).hexdigest()
        commits.append((number, content))
        return number

    def at(self, repository, revision):
        commits = self.repositories[repository]
        if revision == "main":
            return commits[-1] if commits else ("0" * 40, {})
        return next((commit for commit in commits if commit[0] == revision), None)

    def downloads(self):
        return sorted(
            {path.split("/")[-1] for method, path in self.requests if "/resolve/" in path and method == "GET"}
        )


def is_large(path):
    return path.endswith((".safetensors", ".bin"))


def metadata(path, content):
    entry = {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if is_large(path):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def handle_any(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        self.hub, self.query = hub, parse_qs(urlsplit(self.path).query)
        hub.requests.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for start, status in hub.fail.items():
            if path.startswith(start):
                return self.answer(status, {"error": "as the test asked"})
        for method, pattern, act in ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                return act(self, **match.groupdict())
        return self.answer(404, {"error": f"no route for {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - the standard library's names

    def answer(self, status, value=None, content=None, headers=()):
        data = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for key, text in dict(headers).items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def authorised(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def missing(self, code="RepoNotFound", status=404):
        self.answer(status, {"error": "not found"}, headers={"X-Error-Code": code})


def create(self):
    if not self.authorised():
        return self.answer(401, {"error": "Invalid user token."})
    wanted = json.loads(self.body)
    name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
    if name in self.hub.repositories:
        return self.answer(409, {"error": "exists", "url": f"{self.hub.endpoint}/{name}"})
    self.hub.repositories[name] = []
    if wanted.get("private") or wanted.get("visibility") == "private":
        self.hub.private.add(name)
    return self.answer(200, {"url": f"{self.hub.endpoint}/{name}", "id": name})


def validate(self):
    return self.answer(200, {"errors": [], "warnings": []})


def preupload(self, repo, revision):
    if not self.authorised():
        return self.answer(403, {"error": "no right to write"})
    files = json.loads(self.body)["files"]
    modes = [{"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular"} for f in files]
    return self.answer(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})


def batch(self, repo):
    objects = []
    for item in json.loads(self.body)["objects"]:
        href = f"{self.hub.endpoint}/lfs/{item['oid']}"
        objects.append({**item, "actions": {"upload": {"href": href, "header": {}}}})
    return self.answer(200, {"transfer": "basic", "objects": objects})


def store(self, oid):
    if hashlib.sha256(self.body).hexdigest() != oid:
        return self.answer(400, {"error": "other bytes"})
    self.hub.large[oid] = self.body
    return self.answer(200, {})


def commit(self, repo, revision):
    import base64

    files = {}
    for line in self.body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            files[value["path"]] = self.hub.large[value["oid"]]
    number = self.hub.commit(repo, files)
    return self.answer(
        200, {"success": True, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{number}", "commitOid": number}
    )


def found(self, repo, revision):
    if repo not in self.hub.repositories or (repo in self.hub.private and not self.authorised()):
        self.missing(status=404 if self.authorised() else 401)
        return None
    state = self.hub.at(repo, revision)
    if state is None:
        self.missing("RevisionNotFound")
    return state


def info(self, repo, revision="main"):
    if (state := found(self, repo, revision)) is None:
        return
    siblings = []
    for path, content in state[1].items():
        entry = metadata(path, content)
        sibling = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
        if "lfs" in entry:
            sibling["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134}
        siblings.append(sibling)
    self.answer(
        200,
        {
            "id": repo,
            "modelId": repo,
            "sha": state[0],
            "private": repo in self.hub.private,
            "siblings": siblings,
            "tags": [],
        },
    )


def tree(self, repo, revision):
    if (state := found(self, repo, revision)) is not None:
        self.answer(200, [{"type": "file", "path": path, **metadata(path, data)} for path, data in state[1].items()])


def resolve(self, repo, revision, path):
    if (state := found(self, repo, revision)) is None:
        return
    if path not in state[1]:
        return self.missing("EntryNotFound")
    content = state[1][path]
    entry = metadata(path, content)
    etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": state[0], "X-Linked-Size": str(len(content))}
    sent = self.hub.swap.get(path, content)
    if path in self.hub.cut and self.command == "GET":
        self.send_response(200)
        for key, text in headers.items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent[: len(sent) // 2])
        self.close_connection = True
        return None
    return self.answer(200, content=sent, headers=headers)


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", store),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", commit),
    ("GET", rf"/api/models/{REPO}", info),
    ("GET", rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)", info),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)", tree),
    ("HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
    ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]


@contextmanager
def running_hub():
    """Serve a `Hub` on a free port of 127.0.0.1 until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = hub
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

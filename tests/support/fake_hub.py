"""A server on this machine that speaks the parts of the Hugging Face hub's protocol that we use.

Uploads are commits of files that are not in Git LFS: the storage of large files is not imitated.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest

TOKEN = "hf_fake"  # the only one that the server accepts
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclasses.dataclass
class FakeHub:
    """Repositories by name.

    Attributes:
      folders: the content of each repository, by name; a revision other than "main" is NAME@REVISION.
      gated: names of repositories that exist and may not be read.
      requests: the paths of all requests.
      down: whether every request is refused.
      uploads: where new repositories are kept.
      read_only: owners whose repositories may not be written.
      visibility: of each repository that was created.
    """

    uploads: Path

    folders: dict[str, Path] = dataclasses.field(default_factory=dict)
    gated: set[str] = dataclasses.field(default_factory=set)
    requests: list[str] = dataclasses.field(default_factory=list)
    down: bool = False
    read_only: set[str] = dataclasses.field(default_factory=set)
    visibility: dict[str, str] = dataclasses.field(default_factory=dict)

    def folder(self, name: str, revision: str) -> Path | None:
        """Returns the content of a repository, or None if there is no such revision."""
        named = {self.commit(key): path for key, path in self.folders.items() if key.split("@")[0] == name}
        named["main"] = self.folders.get(name)
        named |= {key.partition("@")[2]: path for key, path in self.folders.items() if key.startswith(f"{name}@")}
        return named.get(revision)

    @staticmethod
    def commit(key: str) -> str:
        """Returns the commit that a key of `folders` stands for."""
        return COMMIT if "@" not in key else hashlib.sha1(key.encode()).hexdigest()


@contextlib.contextmanager
def fake_hub(cache: Path) -> Iterator[FakeHub]:
    """Starts a server and lets `huggingface_hub`, which reads its environment on import, use it and an empty cache."""
    hub = FakeHub(cache / "uploads")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        address = f"http://127.0.0.1:{server.server_port}"
        patch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in (huggingface_hub.constants, huggingface_hub.file_download):  # versions before 1 have a copy
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        set_offline(patch, False)
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("DEBERTA_JAX_CACHE", str(cache / "converted"))
        try:
            yield hub
        finally:
            reset_sessions()
            server.shutdown()
            server.server_close()
            thread.join()


def set_offline(patch: pytest.MonkeyPatch, offline: bool) -> None:
    """Does what the environment variable HF_HUB_OFFLINE does, which `huggingface_hub` reads on import."""
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    reset_sessions()


def reset_sessions() -> None:
    """Closes kept connections, which refer to an earlier server; versions before 1 keep the offline mode with them."""
    from huggingface_hub import utils

    (utils.close_session if hasattr(utils, "close_session") else utils.reset_sessions)()


def _handler(hub: FakeHub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.split("?")[0].strip("/")
            hub.requests.append(path)
            if path == "api/whoami-v2":
                known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                self.answer(503 if hub.down else 200 if known else 401, b'{"name": "me", "type": "user"}')
                return
            is_api = path.startswith("api/models/")
            owner, name, *rest = path.removeprefix("api/models/").split("/")
            repository = f"{owner}/{name}"
            action, revision, *inner = [*rest, *(["revision", "main"] if not rest else [])]
            folder = hub.folder(repository, revision)
            if hub.down:
                self.answer(503, b"down")
            elif repository in hub.gated:
                self.answer(403, b"", **{"X-Error-Code": "GatedRepo"})
            elif folder is None:
                known = any(key.split("@")[0] == repository for key in hub.folders)
                self.answer(404, b"", **{"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
            elif is_api:
                self.answer_api(repository, action, revision, folder)
            else:
                self.answer_file(folder.joinpath(*inner), self.commit_of(repository, revision))

        do_HEAD = do_GET  # noqa: N815 (the name that http.server calls)

        def do_POST(self) -> None:
            path = self.path.split("?")[0].strip("/")
            hub.requests.append(path)
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, b"{}")
            elif path == "api/validate-yaml":
                self.answer(200, b'{"errors": [], "warnings": []}')
            elif path == "api/repos/create":
                fields = json.loads(body)
                self.create(f"{fields['organization']}/{fields['name']}", fields)
            elif "/preupload/" in path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self.answer(200, json.dumps({"files": files}).encode())
            else:
                owner, name = path.removeprefix("api/models/").split("/")[:2]
                self.commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])

        def create(self, repository: str, fields: dict[str, str]) -> None:
            if repository.partition("/")[0] in hub.read_only:
                self.answer(403, b'{"error": "no rights"}')
                return
            hub.folders[repository] = hub.uploads / repository
            hub.folders[repository].mkdir(parents=True)
            private = fields.get("private")  # versions before 1
            hub.visibility[repository] = fields.get("visibility", "private" if private else "public")
            self.answer(200, json.dumps({"url": f"http://127.0.0.1/{repository}"}).encode())

        def commit(self, repository: str, lines: list[dict[str, dict[str, str]]]) -> None:
            if repository.partition("/")[0] in hub.read_only:
                self.answer(403, b'{"error": "no rights"}')
                return
            for line in lines:
                if line["key"] == "file":
                    path = hub.folders[repository] / line["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            url = f"http://127.0.0.1/{repository}/commit/{COMMIT}"
            self.answer(200, json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode())

        def commit_of(self, repository: str, revision: str) -> str:
            keys = [repository, *(key for key in hub.folders if key.startswith(f"{repository}@"))]
            return next(
                hub.commit(key) for key in keys if revision in (key.partition("@")[2] or "main", hub.commit(key))
            )

        def answer_api(self, repository: str, action: str, revision: str, folder: Path) -> None:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [path.relative_to(folder).as_posix() for path in files]
            if action == "tree":
                listing = [
                    {
                        "type": "file",
                        "path": name,
                        "size": path.stat().st_size,
                        "oid": hashlib.sha1(name.encode()).hexdigest(),
                    }
                    for name, path in zip(names, files, strict=True)
                ]
                self.answer(200, json.dumps(listing).encode())
                return
            info = {
                "id": repository,
                "modelId": repository,
                "sha": self.commit_of(repository, revision),
                "siblings": [{"rfilename": name} for name in names],
                "tags": [],
                "private": False,
                "downloads": 0,
                "likes": 0,
            }
            self.answer(200, json.dumps(info).encode())

        def answer_file(self, path: Path, commit: str) -> None:
            if not path.is_file():
                self.answer(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
                return
            content = path.read_bytes()
            self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', **{"X-Repo-Commit": commit})

        def answer(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    return Handler

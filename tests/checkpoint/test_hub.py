"""Hub ids, against a small imitation of the hub on the loopback interface: what is fetched, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.stored import MIXTRAL, mixtral_tensors, write_checkpoint, write_raw

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BIG = {"padding": ("F32", [1000, 1000])}
"""Four megabytes that nobody who asks for headers should fetch."""
SCRIPT = """
import json, sys
from moetool.checkpoint.locate import locate
from moetool.errors import MoetoolError
for arguments in json.loads(sys.argv[1]):
    try:
        found = locate(arguments[0], arguments[1], weights=arguments[2])
        print(json.dumps({"name": found.name, "revision": found.revision, "model_type": found.config["model_type"],
                          "tensors": len(found.tensors), "bytes": sum(t.size_bytes for t in found.tensors),
                          "folder": found.folder and str(found.folder)}))
    except MoetoolError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))
"""


class Hub(BaseHTTPRequestHandler):
    """Serves the files of a folder as org/name; other repositories are missing, gated or broken by their name."""

    server: Any

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        if repo == "org/gated" and not api:
            return self.send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if repo == "org/failing":
            return self.send(500, b"")
        if repo not in ("org/name", "org/gated"):
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        revision = parts[5] if api and len(parts) > 5 else parts[3] if not api else "main"
        if revision not in ("main", COMMIT):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"No {revision}"})
        files = sorted(path.name for path in self.server.folder.iterdir())
        if api:
            rows: Any = {
                "id": repo,
                "modelId": repo,
                "sha": COMMIT,
                "siblings": [{"rfilename": file} for file in files],
            }
            if "tree" in parts:
                rows = [{"type": "file", "path": f, "size": self.size(f), "oid": self.etag(f)} for f in files]
            return self.send(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
        return self.send_file("/".join(parts[4:]), body)

    def size(self, file: str) -> int:
        return int((self.server.folder / file).stat().st_size)

    def etag(self, file: str) -> str:
        return f"{abs(hash(file)):040x}"[:40]

    def send_file(self, file: str, body: bool) -> None:
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not (self.server.folder / file).is_file():
            return self.send(
                404, b"", {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            )
        content = (self.server.folder / file).read_bytes()
        headers["ETag"] = f'"{self.etag(file)}"'
        status, wanted = 200, self.headers.get("Range")
        if wanted and self.server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            headers["Content-Range"] = f"bytes {first}-{last or len(content) - 1}/{len(content)}"
            status, content = 206, content[int(first) : int(last) + 1 if last else None]
        if body:
            self.server.served[file] = self.server.served.get(file, 0) + len(content)
        return self.send(status, content, headers, body)

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None, body: bool = True) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(content)


@contextmanager
def hub(folder: Path, ranges: bool = True) -> Iterator[ThreadingHTTPServer]:
    """A hub on a free port; without ``ranges`` it sends whole files whatever was asked for."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.served, server.ranges = folder, {}, ranges
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def ask(
    home: Path, endpoint: str, *questions: tuple[str, str | None, str], offline: bool = False
) -> list[dict[str, Any]]:
    """Locate models in a process of their own: huggingface_hub reads its environment when it is imported."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    own = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(questions)],
        env=keep | own | ({"HF_HUB_OFFLINE": "1"} if offline else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("shards", [1, 3])
def test_headers_then_files_then_offline(tmp_path, shards):
    tensors = mixtral_tensors() | BIG
    folder = write_checkpoint(tmp_path / "repo", MIXTRAL, tensors, shards)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    home = tmp_path / "home"
    with hub(folder) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        (config,) = ask(home, address, ("org/name", None, "none"))
        assert set(server.served) == {"config.json"}
        (headers,) = ask(home, address, ("org/name", "main", "headers"))
        weights = {file: size for file, size in server.served.items() if file.endswith(".safetensors")}
        assert len(weights) == shards
        assert max(weights.values()) <= 100_001
        (files,) = ask(home, address, ("org/name", None, "files"))
        assert not {"pytorch_model.bin", "modeling_evil.py"} & set(server.served)
    (offline,) = ask(home, address, ("org/name", None, "headers"), offline=True)
    assert config["tensors"] == 0
    assert headers["tensors"] == files["tensors"] == offline["tensors"] == len(tensors)
    assert headers["bytes"] == files["bytes"] == offline["bytes"]
    assert {answer["revision"] for answer in (config, headers, files, offline)} == {COMMIT}
    assert headers["folder"] is None
    assert (Path(files["folder"]) / "config.json").is_file()
    assert offline["folder"] == files["folder"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_header_longer_than_what_is_fetched_at_first(tmp_path, ranges):
    tensors = mixtral_tensors() | {f"padding.{i}": ("F32", [100]) for i in range(2000)}
    folder = write_checkpoint(tmp_path / "repo", MIXTRAL, tensors)
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert header > 100_000
    with hub(folder, ranges) as server:
        (answer,) = ask(tmp_path / "home", f"http://127.0.0.1:{server.server_port}", ("org/name", None, "headers"))
        assert not ranges or server.served["model.safetensors"] == 100_000 + 8 + header
    assert (answer["tensors"], answer["bytes"]) == (len(tensors), 1416 * 2 + 2000 * 400)


HEADER = '"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
DAMAGED = {
    "a list": ("[]", 8, "is not a JSON object"),
    "no shape": ('{"t": {"dtype": "F32", "shape": null, "data_offsets": [0, 8]}}', 8, "lacks dtype"),
    "a tensor twice": (f"{{{HEADER}, {HEADER}}}", 8, "'t' occurs twice"),
    "cut short": (f"{{{HEADER}}}", 3, "end at byte 8 of 3"),
}


def test_damaged_remote_files_are_refused_like_local_ones(tmp_path):
    for damage, (header, data_bytes, message) in DAMAGED.items():
        folder = write_checkpoint(tmp_path / damage, MIXTRAL, mixtral_tensors())
        write_raw(folder / "model.safetensors", header.encode(), data_bytes)
        with hub(folder) as server:
            (answer,) = ask(tmp_path / "home", f"http://127.0.0.1:{server.server_port}", ("org/name", None, "headers"))
        assert message in answer["error"]
        assert "org/name/model.safetensors" in answer["error"]


def test_what_the_hub_refuses(tmp_path):
    folder = write_checkpoint(tmp_path / "repo", MIXTRAL, mixtral_tensors())
    with hub(folder) as server:
        missing, gated, revision, failing = ask(
            tmp_path / "home",
            f"http://127.0.0.1:{server.server_port}",
            ("org/missing", None, "headers"),
            ("org/gated", None, "headers"),
            ("org/name", "v9", "headers"),
            ("org/failing", None, "headers"),
        )
    assert "org/missing is neither a local folder nor a model" in missing["error"]
    assert "org/gated is gated" in gated["error"]
    assert "HF_TOKEN" in gated["hint"]
    assert "org/name has no revision 'v9'" in revision["error"]
    assert "org/failing" in failing["error"]
    assert "500" in failing["error"]


SPOILED = {
    "pickles": "pytorch_model.bin is a pickle",
    "no config": "has no config.json",
    "missing shard": "model-00001-of-00002.safetensors is missing",
    "lying header": "does not fill exactly",
    "climbing index": "not inside its folder",
}


@pytest.mark.parametrize("what", SPOILED)
def test_spoiled_repositories(tmp_path, what):
    folder = write_checkpoint(tmp_path / "repo", MIXTRAL, mixtral_tensors(), shards=2)
    shard, index = folder / "model-00001-of-00002.safetensors", folder / "model.safetensors.index.json"
    if what == "pickles":
        for path in folder.glob("model*"):
            path.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"")
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "missing shard":
        shard.unlink()
    elif what == "lying header":
        shard.write_bytes(shard.read_bytes().replace(b"[10, 8]", b"[11, 8]"))
    else:
        index.write_text(index.read_text().replace(shard.name, "../" + shard.name))
    with hub(folder) as server:
        (answer,) = ask(tmp_path / "home", f"http://127.0.0.1:{server.server_port}", ("org/name", None, "headers"))
    assert SPOILED[what] in answer["error"]
    assert "org/name" in answer["error"] or "index" in answer["error"]


def test_without_network(tmp_path):
    (answer,) = ask(tmp_path, "http://127.0.0.1:9", ("org/name", None, "headers"))
    assert "http://127.0.0.1:9) cannot be reached" in answer["error"]
    assert "HF_ENDPOINT" in answer["hint"]
    (answer,) = ask(tmp_path, "http://127.0.0.1:9", ("org/name", None, "headers"), offline=True)
    assert "HF_HUB_OFFLINE forbids" in answer["error"]

"""Each threat to a service, tried on a real server; a test here fails without its guard."""

import ast
import asyncio
import contextlib
import http.server
import inspect
import io
import json
import os
import re
import secrets
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from repmamba import durable
from repmamba.durable import free_bytes
from repmamba.errors import NoSpace, SourceError, TargetError
from repmamba.service import guards
from repmamba.service.app import Service
from repmamba.service.parsing import label
from repmamba.service.references import fetch
from repmamba.service.settings import Settings
from repmamba.service.store import Store

from .conftest import Server, as_base64, bands_of, picture

TOKEN = "a token of the tests"
PATIENCE = 1.0
MOST = 200_000  # bytes of an upload
DROPPED = (ConnectionResetError, BrokenPipeError)


class Listener(http.server.ThreadingHTTPServer):
    """A web server inside the network: what it is asked for, and what it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


FAULTS: dict[str, Callable[[socket.socket], None]] = {  # after ten of a thousand bytes
    "/ends": lambda connection: connection.shutdown(socket.SHUT_RDWR),
    "/stalls": lambda connection: time.sleep(3 * PATIENCE),
    "/resets": reset,
}


class Handler(http.server.BaseHTTPRequestHandler):
    server: Listener

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.startswith("/open/away"):
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/secret")
            self.end_headers()
            return
        self.send_response(200)
        if self.path in FAULTS:
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(bytes(10))
            self.wfile.flush()
            FAULTS[self.path](self.connection)
            return
        self.end_headers()
        content = picture() if self.path.endswith(".png") else bytes(10 * MOST)
        self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    server = Listener()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that references may name, beside a file that they may not."""
    folder = tmp_path_factory.mktemp("references")
    (folder / "secret.png").write_bytes(picture())
    (folder / "open").mkdir()
    (folder / "open" / "scene.png").write_bytes(picture())
    (folder / "open" / "link.png").symlink_to(folder / "secret.png")
    (folder / "openly").mkdir()
    (folder / "openly" / "scene.png").write_bytes(picture())
    return folder


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], listener: Listener, folder: Path) -> Server:
    allowed = [f"{listener.url}/open", str(folder / "open")]
    return start(limits={"upload_bytes": MOST, "pixels": 100_000}, allowed=allowed)


@pytest.fixture(scope="module")
def impatient(start: Callable[..., Server]) -> Server:
    return start(limits={"patience": PATIENCE, "waiting": 1})


@pytest.fixture(scope="module")
def closed(start: Callable[..., Server]) -> Server:
    """A server with a token, whose disk is fuller than its reserve allows."""
    return start(token=TOKEN, limits={"reserved_bytes": 1 << 60})


def files_of(server: Server) -> set[str]:
    folder = Path(server.settings["folder"])
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/..%2f..%2f..%2fetc%2fpasswd/results",
        "/jobs/{job}/tiles/..%2finput",
        "/jobs/{job}/tiles/..%2finput/0/0/0.png",
        "/jobs/{job}/tiles/result.tif/0/0/0.png",
        "/jobs/..%2fjobs/tiles/before/0/0/0.png",
        "/static/leaflet/..%2f__init__.py",
        "/static/leaflet/%2e%2e/__init__.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/uploads/..%2fjobs.sqlite",
    ],
)
def test_no_path_leads_out_of_its_folder(server, path):
    job = server.execute(picture(), wait=False).json()["jobID"]
    server.ended(job)
    assert server.client.get(path.format(job=job)).status_code in (404, 405)


@pytest.mark.parametrize("name", ["../jobs.sqlite", "..%2Fjobs.sqlite", "x" * 32, "." * 32, ""])
def test_no_upload_is_named_by_a_path(server, name):
    answer = server.execute({"href": f"{server.url}/uploads/{name}"})
    assert answer.status_code in (400, 403)
    assert re.search("no such upload|not allowed", answer.json()["detail"])


def test_names_of_clients_never_become_names_of_files(server):
    scene = {"href": server.upload(picture()), "title": "../../../tmp/evil.png"}
    answer = server.execute(scene)
    assert answer.headers["content-disposition"] == 'attachment; filename="_.._.._tmp_evil_x2.tif"'
    parts = re.compile(
        r"[0-9a-f]{32}|jobs|uploads|(input|result|before|after)[.a-z]*|jobs.sqlite(-wal|-shm)?"
    )
    names = {name for name in files_of(server) if not name.startswith(".service.lock")}
    assert [name for name in names if not all(map(parts.fullmatch, name.split("/")))] == []


@pytest.mark.parametrize(
    "href",
    [
        "file://{folder}/secret.png",
        "file://{folder}/open/../secret.png",
        "file://{folder}/open/%2e%2e/secret.png",
        "file://{folder}/open/link.png",
        "file://{folder}/openly/scene.png",
        "file://{folder}/open/scene.png%00.tif/../../secret.png",
        "{folder}/secret.png",
        "{url}/secret.png",
        "{url}/openly/scene.png",
        "{url}/open/../secret.png",
        "{url}/open/%2e%2e/secret.png",
        "{url}/open/%252e%252e/secret.png",
        "{url}/open/..%5csecret.png",
        "http://127.0.0.1:1/open/scene.png",
        "http://127.0.0.1@{host}/open/scene.png",
        "http://{host}\\@example.org/open/scene.png",
        "http://localhost:{port}/open/scene.png",
        "http://[::1]:{port}/open/scene.png",
        "https://{host}/open/scene.png",
        "ftp://{host}/open/scene.png",
        "/vsicurl/{url}/open/scene.png",
        "/vsizip//vsicurl/{url}/open/scene.zip",
        "http://example.org/uploads/" + "0" * 32,
    ],
)
def test_references_that_are_not_allowed_are_refused_and_never_fetched(
    server, listener, folder, href
):
    asked = len(listener.asked)
    host = listener.url.removeprefix("http://")
    port = listener.server_port
    answer = server.execute(href.format(folder=folder, url=listener.url, host=host, port=port))
    assert (answer.status_code, "not allowed" in answer.text) == (403, True)
    assert len(listener.asked) == asked


def test_references_that_are_allowed_are_taken(server, listener, folder, expected):
    for href in (f"{listener.url}/open/scene.png", f"file://{folder}/open/scene.png"):
        assert (bands_of(server.execute(href).content) == expected(picture())).all()


def test_a_redirect_is_not_followed(server, listener):
    assert "status 302" in server.failure(f"{listener.url}/open/away.png")
    assert "/secret" not in listener.asked


def test_a_reference_without_end_is_cut_off(server, listener):
    assert "more than 200.0 kB" in server.failure(f"{listener.url}/open/zeros")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/ends", "ended 990 bytes early"),
        ("/stalls", "cannot be fetched: .*timed out"),
        ("/resets", "cannot be fetched: .*reset"),
    ],
)
def test_a_reference_that_does_not_arrive_whole_is_refused(listener, tmp_path, path, said):
    with pytest.raises(SourceError, match=said):
        fetch(f"{listener.url}{path}", tmp_path / "input", limit=MOST, patience=PATIENCE)


def test_a_reference_that_cannot_be_stored_is_a_fault_of_the_disk(listener, tmp_path):
    with pytest.raises(TargetError, match="cannot be written"):
        fetch(f"{listener.url}/a.png", tmp_path / "none" / "input", limit=MOST, patience=20)


def virtual_raster(source: str) -> bytes:
    return (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{source}</SourceFilename></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    ).encode()


def test_a_virtual_raster_fetches_and_reads_nothing(server, listener, folder):
    asked = len(listener.asked)
    for source in (f"/vsicurl/{listener.url}/secret.png", str(folder / "secret.png")):
        assert "not in a format" in server.failure(virtual_raster(source))
        (folder / "open" / "virtual.tif").write_bytes(virtual_raster(source))
        assert "not in a format" in server.failure(f"file://{folder}/open/virtual.tif")
    assert len(listener.asked) == asked


def archive(kind: str) -> bytes:
    """A symlink to a file of the system, in an archive."""
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as file:
            link = zipfile.ZipInfo("scene.tif")
            link.external_attr = 0o120777 << 16
            file.writestr(link, "/etc/passwd")
    else:
        with tarfile.open(fileobj=content, mode="w:gz") as file:
            member = tarfile.TarInfo("scene.tif")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(member)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_are_not_opened(server, kind):
    assert "not in a format" in server.failure(archive(kind))


def test_decompression_bombs_fail_alone(server):
    from PIL import Image

    bomb = io.BytesIO()
    Image.new("L", (300, 100_000)).save(bomb, "TIFF", compression="tiff_adobe_deflate")
    content = bomb.getvalue()[:MOST]
    assert re.search(r"pixels in only|blocks of|this service takes", server.failure(content))
    assert "this service takes at most 100,000" in server.failure(picture(edge=400, kind="JPEG"))
    assert server.execute(picture()).status_code == 200


def zeros(pieces: int) -> Iterator[bytes]:
    for _ in range(pieces):
        yield bytes(10_000)


@pytest.mark.parametrize("body", [bytes(MOST + 1), zeros(1000)], ids=["stated", "endless"])
def test_bodies_beyond_the_limit_are_refused_and_leave_nothing(server, body):
    before = files_of(server)
    with contextlib.suppress(httpx.TransportError):  # closed while the client was sending
        assert server.client.post("/uploads", content=body).status_code == 413
    assert files_of(server) - before == set()


def test_a_body_that_is_said_to_be_too_long_is_refused_before_it_comes(server):
    with connection(server) as one:
        one.sendall(head(server, "POST /uploads", f"Content-Length: {MOST + 1}\r\n"))
        assert one.recv(100).startswith(b"HTTP/1.1 413 ")


def test_requests_beyond_the_limit_are_refused(server):
    scene = as_base64(bytes(1 << 20))
    assert server.execute({"value": scene}).status_code == 413


def connection(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def head(server: Server, line: str, more: str = "") -> bytes:
    return f"{line} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{more}\r\n".encode()


def time_until_dropped(one: socket.socket, trickle: bytes) -> float:
    """Seconds until the server ends a connection on which a byte comes now and then."""
    begun = time.monotonic()
    one.settimeout(PATIENCE / 4)
    while time.monotonic() < begun + 20 * PATIENCE:
        try:
            one.sendall(trickle)
            if one.recv(10_000) == b"":
                break
        except TimeoutError:
            continue
        except DROPPED:
            break
    return time.monotonic() - begun


def test_a_client_that_sends_nothing_is_dropped(impatient):
    with connection(impatient) as one:
        assert time_until_dropped(one, b"") < 10 * PATIENCE


def test_a_client_that_sends_its_head_slowly_is_dropped(impatient):
    with connection(impatient) as one:
        one.sendall(head(impatient, "GET /health")[:-2])
        assert time_until_dropped(one, b"X: 1\r\n") < 10 * PATIENCE


def test_a_client_that_sends_its_body_slowly_is_dropped(impatient):
    before = files_of(impatient)
    with connection(impatient) as one:
        one.sendall(head(impatient, "POST /uploads", "Content-Length: 100000\r\n"))
        assert time_until_dropped(one, b"x") < 10 * PATIENCE
    assert files_of(impatient) - before == set()


def test_a_client_that_sends_on_after_its_answer_is_dropped(impatient):
    with connection(impatient) as one:
        one.sendall(head(impatient, "POST /nowhere", "Content-Length: 100000000\r\n"))
        assert time_until_dropped(one, b"x" * 1000) < 10 * PATIENCE


def is_established(server: Server, port: int) -> bool:
    """Whether the server's end of the connection from a port is open, in the system's table."""
    ends = (f"0100007F:{server.port:04X}", f"0100007F:{port:04X}", "01")
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return ends in {tuple(line.split()[1:4]) for line in lines}


def test_a_client_that_does_not_read_its_result_is_dropped(impatient):
    job = impatient.execute(picture(edge=250), wait=False).json()["jobID"]
    impatient.ended(job)
    with connection(impatient) as one:
        port = one.getsockname()[1]
        assert is_established(impatient, port)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(60):  # more than the buffers of the system hold
            one.sendall(head(impatient, f"GET /jobs/{job}/results"))
        deadline = time.monotonic() + 20 * PATIENCE
        while is_established(impatient, port) and time.monotonic() < deadline:
            time.sleep(PATIENCE / 4)
        assert not is_established(impatient, port)


def test_a_client_that_reads_slowly_but_steadily_gets_its_results(impatient):
    job = impatient.execute(picture(edge=250), wait=False).json()["jobID"]
    impatient.ended(job)
    size = len(impatient.client.get(f"/jobs/{job}/results").content)
    line = f"GET /jobs/{job}/results"
    with connection(impatient) as one:
        one.sendall(20 * head(impatient, line) + head(impatient, line, "Connection: close\r\n"))
        begun, received = time.monotonic(), 0
        while piece := one.recv(100_000):
            received += len(piece)
            if time.monotonic() < begun + 3 * PATIENCE:
                time.sleep(PATIENCE / 20)
    assert received > 21 * size


def test_a_closed_connection_leaves_no_timer(tmp_path):
    made: list[guards.PatientProtocol] = []

    async def connect_and_close() -> None:
        config = uvicorn.Config(Service(settings_of(tmp_path), {}).app, lifespan="off")
        config.load()

        def protocol() -> guards.PatientProtocol:
            made.append(guards.PatientProtocol(config, ServerState(), {}))
            return made[-1]

        loop = asyncio.get_running_loop()
        listening = await loop.create_server(protocol, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        while not made or made[0]._head is None:
            await asyncio.sleep(0.01)
        writer.close()
        while made[0].transport is not None and not made[0].transport.is_closing():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        listening.close()

    asyncio.run(connect_and_close())
    assert made[0]._head is None


def test_more_connections_than_the_limit_are_answered_at_once(start):
    few = start(limits={"connections": 4})
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connection(few))
        time.sleep(0.2)
        one = stack.enter_context(connection(few))
        one.sendall(head(few, "GET /health"))
        assert one.recv(100).startswith(b"HTTP/1.1 503 ")


def settings_of(folder: Path, **values: object) -> Settings:
    return Settings(folder / "state", **{"weights": {"x4": "x4"}, **values})


def answer_of(service: Service, path: str, **headers: str) -> httpx.Response:
    """The answer of an application without a server."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=service._settings.url) as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "vary": "Accept, Authorization",
}


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/static/page.js", 200), ("/health", 200), ("/jobs", 401), ("/x", 401)],
)
def test_every_answer_tells_browsers_what_they_may_do_with_it(closed, path, status):
    answer = httpx.get(f"{closed.url}{path}")
    assert answer.status_code == status
    assert HEADERS.items() <= dict(answer.headers).items()
    policy = answer.headers["content-security-policy"].split("; ")
    assert {f"{name} 'none'" for name in ("default-src", "base-uri", "form-action")} < set(policy)
    assert "frame-ancestors 'none'" in policy
    assert "server" not in answer.headers


def test_the_answer_to_a_bug_says_nothing_and_has_the_same_headers(tmp_path, monkeypatch, caplog):
    service = Service(settings_of(tmp_path), {})
    monkeypatch.setattr(service._queue, "get", lambda job: {}["a secret"])
    with caplog.at_level("INFO", "repmamba"):
        answer = answer_of(service, "/jobs/x")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert HEADERS.items() <= dict(answer.headers).items()
    (request,) = [line for line in caplog.records if line.getMessage() == "request"]
    assert request.status == 500


def test_the_page_escapes_what_an_operator_named(tmp_path):
    service = Service(settings_of(tmp_path, weights={"<b>": "x4"}), {"scale": "a <i> b"})
    page = answer_of(service, "/", accept="text/html").text
    assert not re.search("<[bi]>", page)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("scene.tif", "scene.tif"),
        ("../a/b.tif", "_a_b.tif"),
        ("..", "scene"),
        ("a\r\nb\u202ec\0.tif", "a bc.tif"),
        ("x" * 1000, "x" * 100),
        ("  ", "scene"),
        (["a"], "scene"),
        (None, "scene"),
    ],
)
def test_a_name_is_one_short_line_that_can_be_shown(given, shown):
    assert label(given) == shown


def test_the_log_names_the_client_that_is_connected(server):
    path = f"/{secrets.token_hex(8)}"
    server.client.get(path, headers={"X-Forwarded-For": "192.0.2.1"})
    (line,) = [one for one in server.events("request") if one["path"] == path]
    assert line["client"] == "127.0.0.1"


NAME = 'a"\r\nSet-Cookie: x=1\r\n\r\n<script>alert(1)</script>\u202e.png'


def test_names_bring_neither_headers_nor_html_nor_log_lines(server):
    answer = server.execute({"href": server.upload(picture()), "title": NAME})
    assert "set-cookie" not in answer.headers
    disposition = answer.headers["content-disposition"]
    assert re.fullmatch(r"attachment; filename\*=utf-8''[\w.%()-]+_x2\.tif", disposition)
    jobs = server.client.get("/jobs")
    assert jobs.headers["content-type"] == "application/json"
    assert jobs.headers["x-content-type-options"] == "nosniff"
    assert jobs.json()["jobs"][0]["name"].isprintable()
    server.client.get("/%0a%7b%22event%22: %22forged%22%7d")
    assert server.events("forged") == []
    assert server.events("request")[-1]["path"].startswith("/\n")


def test_the_page_writes_what_it_is_told_as_text(server):
    page = Path(guards.__file__).parent / "static" / "page.js"
    script = page.read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    policy = server.client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = server.client.get("/", headers={"Accept": "text/html"}).text
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", text)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_pages_of_other_origins_change_nothing(server, headers):
    answer = server.client.post("/uploads", content=picture(), headers=headers)
    assert answer.status_code == 403
    assert server.client.delete("/jobs/none", headers=headers).status_code == 403
    assert (
        server.client.get("/jobs", headers=headers).headers.get("access-control-allow-origin")
        is None
    )


def test_the_page_itself_may_upload(server):
    headers = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert server.client.post("/uploads", content=b"x", headers=headers).status_code == 201


def test_a_form_cannot_execute(server):
    body = json.dumps({"inputs": {"scene": as_base64(picture())}})
    answer = server.client.post(
        "/processes/upscale/execution", content=body, headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 415


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1.evil.example:{port}", ""])
def test_forged_hosts_are_refused(server, host):
    answer = server.client.get("/", headers={"Host": host.format(port=server.port)})
    assert answer.status_code == 421


def test_links_do_not_follow_the_host_that_a_client_names(server):
    page = server.client.get("/conformance", headers={"X-Forwarded-Host": "evil.example"})
    assert page.status_code == 200
    landing = server.client.get("/", headers={"Host": f"localhost:{server.port}"})
    assert f"localhost:{server.port}" not in landing.text


@pytest.mark.parametrize(
    "path",
    [
        *("/jobs", "/metrics", "/processes", "/api", "/uploads", "/statics", "/health/"),
        *("/jobs/any/tiles/before", "/jobs/any/tiles/before/0/0/0.png"),
    ],
)
def test_a_token_is_needed(closed, path):
    with httpx.Client(base_url=closed.url) as stranger:
        for headers in (
            {},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer \xe9"},
        ):
            answer = stranger.get(
                path, headers={k: v.encode("latin-1") for k, v in headers.items()}
            )
            assert answer.status_code == 401
        assert stranger.get("/health").status_code == 200
    assert closed.client.get("/jobs").status_code == 200


def test_tokens_are_compared_in_constant_time():
    tree = ast.parse(inspect.getsource(guards))
    compared = {
        getattr(name, "attr", getattr(name, "id", ""))
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(sign, ast.Eq | ast.NotEq | ast.In) for sign in node.ops)
        for name in ast.walk(node)
    }
    assert not compared & {"token", "given"}
    (function,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "is_token"
    )
    assert "hmac.compare_digest(" in ast.unparse(function.body[-1])


def test_processes_of_jobs_do_not_know_the_token():
    code = (
        "from repmamba.service.settings import read_token; import subprocess, sys;"
        "token = read_token(None); print(token);"
        "subprocess.run([sys.executable, '-c', "
        "'import os; print(os.environ.get(\"REPMAMBA_TOKEN\"))'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "REPMAMBA_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(ran.stdout.splitlines()) == {TOKEN, "None"}


def test_a_disk_without_room_refuses_uploads_and_jobs(closed):
    assert free_bytes(Path(closed.settings["folder"])) < 1 << 60
    assert closed.client.post("/uploads", content=picture()).status_code == 507
    assert closed.execute({"value": as_base64(picture())}).status_code == 507
    assert closed.client.get("/ready").status_code == 507
    assert closed.client.get("/health").status_code == 200
    assert {name for name in files_of(closed) if "/" in name} == set()


def test_the_reserve_of_the_disk_stays_free(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "free_bytes", lambda folder: 1000)
    store = Store(tmp_path, reserved=900)
    store.check_space()
    store.check_space(100)
    with pytest.raises(NoSpace):
        store.check_space(101)
    store.close()


def test_other_users_cannot_open_the_folder(server):
    assert stat.S_IMODE(Path(server.settings["folder"]).stat().st_mode) == 0o700


def test_too_many_waiting_jobs_are_refused(impatient):
    href = impatient.upload(picture(edge=200))
    answers = [impatient.execute(href, wait=False, ensemble=True) for _ in range(4)]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert refused[0].headers["retry-after"]
    for answer in answers:
        if answer.status_code == 201:
            impatient.client.delete(f"/jobs/{answer.json()['jobID']}")

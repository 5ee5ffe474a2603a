"""The web application: OGC API - Processes, uploads, progress, and the page for people."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from jinja2 import Environment, PackageLoader
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from xstatic.pkg import leaflet

from repmamba.durable import PIECE, free_bytes, readable, remove
from repmamba.errors import UsageError
from repmamba.service import map_tiles, ogc
from repmamba.service.answers import HANDLERS, problem
from repmamba.service.dispatch import Dispatcher
from repmamba.service.guards import Guards
from repmamba.service.inputs import SCHEMAS, Json, format_of, keywords, schemas, value_of
from repmamba.service.logs import Metrics
from repmamba.service.parsing import decoded, label, preference, prefers_html, wanted_jobs, whole
from repmamba.service.queue import ACCEPTED, DISMISSED, FAILED, SUCCESSFUL, Job
from repmamba.service.references import admitted
from repmamba.service.settings import Settings
from repmamba.service.store import PICTURES, Store

HERE = Path(__file__).parent
LARGEST_REQUEST = 1 << 20  # bytes of JSON
SLOWEST = 1000.0  # bytes per second that a client must send on average
HEARTBEAT = 15.0  # seconds between signs of life while nothing changes
COALESCED = 0.2  # seconds between two events of a job


@dataclass(frozen=True, slots=True)
class Execution:
    """A request to execute, checked."""

    source: Path | bytes | None  # an upload, or what the request holds; None: a reference
    request: dict[str, Json]  # what the queue keeps


class Changes:
    """Tells tasks of the event loop about jobs that changed in other threads."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._events: dict[str, set[asyncio.Event]] = defaultdict(set)

    def begin(self) -> None:
        """Use the running event loop."""
        self._loop = asyncio.get_running_loop()

    def tell(self, job_id: str) -> None:
        """A job changed. From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set, job_id)

    def _set(self, job_id: str) -> None:
        for event in self._events.get(job_id, ()):
            event.set()

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the job changes."""
        event = asyncio.Event()
        self._events[job_id].add(event)
        try:
            yield event
        finally:
            self._events[job_id].discard(event)
            if not self._events[job_id]:
                del self._events[job_id]


class Service:
    """The handlers of all paths. The first line of each docstring describes it in OpenAPI."""

    def __init__(self, settings: Settings, explain: Mapping[str, str]):
        self._settings, self._explain = settings, explain
        self._store = Store(settings.folder, reserved=settings.limits.reserved_bytes)
        self._queue, self._changes = self._store.queue, Changes()
        self._metrics = Metrics(self._queue.counts, lambda: free_bytes(settings.folder))
        self._dispatcher = Dispatcher(
            self._store, settings, self._changes.tell, self._metrics.ended
        )
        pages = Environment(
            loader=PackageLoader("repmamba.service"), autoescape=True, trim_blocks=True
        )
        self._page = pages.get_template("page.html.j2")
        app = Starlette(
            routes=[
                *(Route(path, call, methods=methods) for path, methods, call in self._routes()),
                Mount("/static/leaflet", StaticFiles(directory=leaflet.BASE_DIR)),
                Mount("/static", StaticFiles(directory=HERE / "static")),
            ],
            exception_handlers=HANDLERS,
            lifespan=self._lifespan,
        )
        self.app = Guards(app, settings)  # around Starlette's own answer to a bug as well

    def _routes(self) -> tuple[tuple[str, list[str], Callable[[Request], Any]], ...]:
        get, job = ["GET"], "/jobs/{job}"
        return (
            ("/", get, self.landing),
            ("/api", get, self.api),
            ("/conformance", get, self.conformance),
            ("/processes", get, self.processes),
            ("/processes/{process}", get, self.process),
            ("/processes/{process}/execution", ["POST"], self.execute),
            ("/uploads", ["POST"], self.upload),
            ("/jobs", get, self.jobs),
            (job, get, self.job),
            (job, ["DELETE"], self.dismiss),
            (f"{job}/events", get, self.events),
            (f"{job}/results", get, self.results),
            (f"{job}/results/result", get, self.result),
            (f"{job}/tiles/{{picture}}", get, self.tiles),
            (f"{job}/tiles/{{picture}}/{{z}}/{{x}}/{{y}}.png", get, self.tile),
            ("/health", get, self.health),
            ("/ready", get, self.ready),
            ("/metrics", get, self.metrics),
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._changes.begin()
        self._dispatcher.start()
        try:
            yield
        finally:
            await run_in_threadpool(self._dispatcher.stop)
            self._store.close()

    def landing(self, request: Request) -> Response:
        """The landing page: links to everything, or a page for people."""
        url = self._settings.url
        if not prefers_html(request.headers.get("accept", "")):
            return JSONResponse(ogc.landing(url))
        inputs = schemas(self._settings.weights)
        shown = [(name, inputs[name], self._explain.get(name, "")) for name in SCHEMAS]
        page = self._page.render(inputs=shown, token=self._settings.token is not None)
        return Response(page, media_type="text/html")

    def api(self, request: Request) -> Response:
        """This document."""
        paths = [
            (path, methods, (call.__doc__ or "").partition("\n")[0])
            for path, methods, call in self._routes()
        ]
        return JSONResponse(ogc.openapi(self._settings.url, paths), media_type=ogc.OPENAPI)

    def conformance(self, request: Request) -> Response:
        """The parts of the standard that are implemented."""
        return JSONResponse({"conformsTo": list(ogc.CONFORMANCE)})

    def processes(self, request: Request) -> Response:
        """The processes: there is one."""
        url = self._settings.url
        links = [ogc.link(f"{url}/processes", "self", "This document")]
        return JSONResponse({"processes": [ogc.process_summary(url)], "links": links})

    def process(self, request: Request) -> Response:
        """The inputs and outputs of the process."""
        self._check_process(request)
        settings = self._settings
        return JSONResponse(ogc.process(settings.url, settings.weights, self._explain))

    async def upload(self, request: Request) -> Response:
        """Store the body as an input for jobs; the answer has its link."""
        limit = self._settings.limits.upload_bytes
        upload_id, draft = self._store.new_upload()
        try:
            with draft.open("wb") as file:
                async for piece in self._pieces(request, limit, PIECE):
                    await run_in_threadpool(file.write, piece)
                    await run_in_threadpool(self._store.check_space)
                size = file.tell()
            if size == 0:
                raise UsageError("The body is empty: send the bytes of a raster.")
            await run_in_threadpool(self._store.keep_upload, upload_id)
        finally:
            remove(draft)
        href = f"{self._settings.url}/uploads/{upload_id}"
        return JSONResponse({"href": href, "bytes": size}, 201, {"Location": href})

    async def execute(self, request: Request) -> Response:
        """Execute the process, and wait for the result unless asked otherwise (Prefer)."""
        self._check_process(request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "Send the request as application/json.")
        pieces = self._pieces(request, LARGEST_REQUEST, LARGEST_REQUEST)
        execution = self._read(b"".join([piece async for piece in pieces]))
        job = await run_in_threadpool(self._submit, execution)
        asynchronous, seconds = preference(request.headers.getlist("prefer"))
        headers = {}
        if not asynchronous:
            longest = seconds if seconds is not None else self._settings.limits.seconds
            job = await self._ended(job, longest)
            if not job.is_open:
                answer = self._results(job)
                at = f"{self._settings.url}/jobs/{job.id}"
                answer.headers.append("Link", f'<{at}>; rel="monitor"')
                return answer
        elif seconds is None:
            headers["Preference-Applied"] = "respond-async"
        headers["Location"] = f"{self._settings.url}/jobs/{job.id}"
        return JSONResponse(self._status(job), 201, headers)

    def jobs(self, request: Request) -> Response:
        """The jobs that are kept, the newest first."""
        query, url = request.query_params, self._settings.url
        limit, offset = whole(query.get("limit", "100"), 1, 1000), whole(query.get("offset", "0"))
        found = self._queue.newest(limit + 1, offset, wanted_jobs(query))
        links = [ogc.link(f"{url}/jobs", "self", "This document")]
        if len(found) > limit:
            following = request.url.include_query_params(offset=offset + limit)
            links.append(ogc.link(f"{url}/jobs?{following.query}", "next", "More jobs"))
        return JSONResponse({"jobs": [self._status(job) for job in found[:limit]], "links": links})

    def job(self, request: Request) -> Response:
        """The status of a job."""
        return JSONResponse(self._status(self._job(request)))

    def dismiss(self, request: Request) -> Response:
        """Stop a job, or remove its result."""
        job = self._job(request)
        if job.status == DISMISSED:
            raise HTTPException(410, "The job was dismissed before.")
        self._dispatcher.dismiss(job.id)
        return JSONResponse(self._status(self._job(request)))

    async def events(self, request: Request) -> Response:
        """The status of a job whenever it changes, as server-sent events."""
        job = await run_in_threadpool(self._job, request)
        return StreamingResponse(self._events(job), media_type="text/event-stream")

    def results(self, request: Request) -> Response:
        """The result of a job, as the request asked for it (raw or as a document)."""
        return self._results(self._job(request))

    def result(self, request: Request) -> Response:
        """The file that a job made."""
        return self._file(self._job(request))

    def tiles(self, request: Request) -> Response:
        """The map of the input (before) or of the result (after), as TileJSON."""
        url = f"{self._settings.url}{request.url.path}/{{z}}/{{x}}/{{y}}.png"
        return JSONResponse(map_tiles.describe(self._copy(request), url))

    def tile(self, request: Request) -> Response:
        """A tile of such a map, as PNG."""
        copy = self._copy(request)
        content = map_tiles.tile(copy, *(whole(request.path_params[name]) for name in "zxy"))
        if content is None:
            raise HTTPException(404, "There is no such tile.")
        return Response(content, media_type="image/png")

    def health(self, request: Request) -> Response:
        """Whether the server answers."""
        return JSONResponse({"status": "ok"})

    def ready(self, request: Request) -> Response:
        """Whether it takes jobs: the database can be written, and there is disk space."""
        self._store.check_space()
        if not self._dispatcher.is_ready:
            raise HTTPException(503, "A thread of the service has ended: restart it.")
        self._check_queue()
        return JSONResponse({"status": "ready"})

    def metrics(self, request: Request) -> Response:
        """Metrics for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    @staticmethod
    def _check_process(request: Request) -> None:
        if request.path_params["process"] != ogc.PROCESS:
            raise problem(404, f"The only process is {ogc.PROCESS}.", ogc.NO_SUCH_PROCESS)

    async def _pieces(self, request: Request, limit: int, size: int) -> AsyncIterator[bytes]:
        """The body in pieces of about `size`. Raises HTTPException for a long or slow one."""
        too_long = HTTPException(413, f"The body is larger than {readable(limit)}.")
        if whole(request.headers.get("content-length", "0")) > limit:
            raise too_long
        begun, count, patience = time.monotonic(), 0, self._settings.limits.patience
        held, stream = bytearray(), request.stream()
        while True:
            try:
                async with asyncio.timeout(patience):
                    piece = await anext(stream, None)
            except TimeoutError:
                piece, begun = b"", -math.inf
            count += 0 if piece is None else len(piece)
            if count > limit:
                raise too_long
            if time.monotonic() - begun > patience + count / SLOWEST:
                raise HTTPException(408, "The body comes too slowly.", {"Connection": "close"})
            held += piece or b""
            if held and (piece is None or len(held) >= size):
                yield bytes(held)
                held.clear()
            if piece is None:
                return

    def _read(self, body: bytes) -> Execution:
        """A request to execute. Raises UsageError, NotAllowed."""
        try:
            asked = json.loads(body)
            json.dumps(asked, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
            inputs = {name: value_of(value) for name, value in asked["inputs"].items()}
            scene, outputs = inputs.pop("scene"), asked.get("outputs", {})
            output = outputs.get("result", {})
            mode = output.get("transmissionMode", "value")
            media_type = output.get("format", {}).get("mediaType")
            response, unknown = asked.get("response", "raw"), set(outputs) - {"result"}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UsageError(
                'The request is not JSON of the form {"inputs": {"scene": {"href": ...}, ...}}.'
            ) from error
        if unknown or mode not in ("value", "reference") or response not in ("raw", "document"):
            raise UsageError(
                "The only output is result; its transmissionMode is value or reference, and the "
                "response raw or document."
            )
        if media_type is not None:
            chosen = format_of(media_type)
            if inputs.setdefault("format", chosen) != chosen:
                raise UsageError(f"The output is asked for as {chosen} and as another format.")
        keywords(inputs, self._settings.weights)
        source: Path | bytes | None
        if isinstance(scene, str):
            source, reference, name = decoded(scene), None, "scene"
        elif isinstance(scene, dict) and isinstance(scene.get("href"), str):
            source, reference = self._linked(scene["href"])
            path = "" if reference is None else unquote(urlsplit(reference).path)
            name = scene.get("title") or PurePosixPath(path).name
        else:
            raise UsageError("The scene is neither a link (href) nor base64 (value).")
        request = {"name": label(name), "inputs": inputs, "reference": reference}
        return Execution(source, {**request, "response": response, "transmission": mode})

    def _linked(self, href: str) -> tuple[Path | None, str | None]:
        """The upload that a link names, or the reference that the job will fetch."""
        upload = re.fullmatch(r"(.*)/uploads/([^/]*)", href)
        if upload is None or upload[1].lower() not in self._settings.urls | {""}:
            admitted(href, self._settings.allowed)
            return None, href
        path = self._store.upload(upload[2])
        if path is None:
            raise UsageError("There is no such upload: it may have expired. Upload the file again.")
        return path, None

    def _submit(self, execution: Execution) -> Job:
        self._check_queue()
        size = execution.source.stat().st_size if isinstance(execution.source, Path) else 0
        self._store.check_space(0 if size else LARGEST_REQUEST)
        job_id = self._store.new_job(execution.source)
        try:
            job = self._queue.add(job_id, execution.request)
        except BaseException:
            self._store.remove_job(job_id)
            raise
        self._dispatcher.submitted()
        return job

    def _check_queue(self) -> None:
        if self._queue.counts()[ACCEPTED] >= self._settings.limits.waiting:
            raise HTTPException(503, "Too many jobs wait: try later.", {"Retry-After": "60"})

    async def _ended(self, job: Job, seconds: float) -> Job:
        """The job when it has ended, or as it is after that many seconds."""
        with self._changes.of(job.id) as changed:
            try:
                async with asyncio.timeout(seconds):
                    while job.is_open:
                        job = await run_in_threadpool(self._fresh, job)
                        if job.is_open:
                            await changed.wait()
                            changed.clear()
            except TimeoutError:
                pass
        return job

    async def _events(self, job: Job) -> AsyncIterator[str]:
        with self._changes.of(job.id) as changed:
            while True:
                changed.clear()
                job = await run_in_threadpool(self._fresh, job)
                yield f"event: status\ndata: {json.dumps(self._status(job))}\n\n"
                if not job.is_open:
                    return
                await asyncio.sleep(COALESCED)
                while not changed.is_set():
                    try:
                        await asyncio.wait_for(changed.wait(), HEARTBEAT)
                    except TimeoutError:
                        yield ": alive\n\n"

    def _fresh(self, job: Job) -> Job:
        return self._queue.get(job.id) or replace(job, status=DISMISSED)

    def _status(self, job: Job) -> dict[str, Json]:
        return ogc.status_info(self._settings.url, job, self._dispatcher.progress(job.id))

    def _job(self, request: Request) -> Job:
        job = self._queue.get(request.path_params["job"])
        if job is None:
            raise problem(404, "There is no such job: it may have expired.", ogc.NO_SUCH_JOB)
        return job

    def _copy(self, request: Request) -> Path:
        """What a map of a job shows."""
        job, name = self._job(request), PICTURES.get(request.path_params["picture"])
        path = None if name is None else self._store.job(job.id) / name
        if path is None or not path.is_file():
            raise HTTPException(404, "There is no such map: a successful job has before and after.")
        return path

    def _results(self, job: Job) -> Response:
        if job.status == SUCCESSFUL:
            href = f"{self._settings.url}/jobs/{job.id}/results/result"
            assert job.result is not None
            media_type = job.result["type"]
            if job.request["response"] == "document":
                return JSONResponse({"result": {"href": href, "type": media_type}})
            if job.request["transmission"] == "reference":
                return Response(None, 204, {"Link": f'<{href}>; rel="result"'})
        return self._file(job)

    def _file(self, job: Job) -> Response:
        if job.is_open:
            raise problem(404, f"The job is {job.status}, not finished.", ogc.NOT_READY)
        if job.status == FAILED:
            raise HTTPException(400, job.message)
        path = None if job.result is None else self._store.job(job.id) / job.result["file"]
        if job.result is None or path is None or not path.is_file():
            raise HTTPException(410, "The job was dismissed, and its result removed.")
        stem, suffix = PurePosixPath(job.request["name"]).stem, path.name.partition(".")[2]
        name = f"{stem or 'result'}_x{job.result['scale']}.{suffix}"
        return FileResponse(path, media_type=job.result["type"], filename=name)

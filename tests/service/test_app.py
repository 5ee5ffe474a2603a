"""The answers of a server: OGC API - Processes, results, progress, logs and metrics."""

import ast
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from repmamba.service import answers, app, guards, ogc
from repmamba.service.inputs import SCHEMAS

from .conftest import Server, as_base64, bands_of, picture

TIFF = "image/tiff; application=geotiff"


@pytest.fixture(scope="module")
def server(start: Callable[..., Server]) -> Server:
    return start()


@pytest.fixture(scope="module")
def job(server: Server) -> str:
    """A job that has ended."""
    answer = server.execute(picture(), wait=False)
    assert answer.status_code == 201
    assert server.ended(answer.json()["jobID"])["status"] == "successful"
    return str(answer.json()["jobID"])


def test_the_landing_page_links_what_the_standard_asks_for(server):
    page = server.client.get("/", headers={"Accept": "application/json"}).json()
    links = {link["rel"]: link for link in page["links"]}
    for relation in ("service-desc", "conformance"):
        answer = server.client.get(links[relation]["href"])
        assert answer.headers["content-type"] == links[relation]["type"]
    for relation in ("conformance", "processes", "job-list"):
        href = links[f"http://www.opengis.net/def/rel/ogc/1.0/{relation}"]["href"]
        assert server.client.get(href).status_code == 200


def test_conformance_names_the_parts_that_are_implemented(server):
    classes = server.client.get("/conformance").json()["conformsTo"]
    part = "http://www.opengis.net/spec/ogcapi-processes-1/1.0/conf/"
    assert {f"{part}{name}" for name in ("core", "json", "job-list", "dismiss")} < set(classes)


def test_openapi_describes_every_path_and_method(server):
    document = server.client.get("/api").json()
    assert document["openapi"].startswith("3.0")
    execute = document["paths"]["/processes/{process}/execution"]
    assert [parameter["name"] for parameter in execute["parameters"]] == ["process"]
    assert "execute" in execute["post"]["summary"].lower()
    tile = document["paths"]["/jobs/{job}/tiles/{picture}/{z}/{x}/{y}.png"]
    assert [parameter["name"] for parameter in tile["parameters"]] == ["job", "picture", *"zxy"]
    assert set(document["paths"]["/jobs/{job}"]) == {"get", "delete", "parameters"}
    for path in document["paths"].values():
        for name, operation in path.items():
            assert name == "parameters" or operation["summary"].endswith(".")


def test_the_process_describes_each_input_with_its_schema_and_help(server):
    (summary,) = server.client.get("/processes").json()["processes"]
    assert summary["jobControlOptions"] == ["sync-execute", "async-execute", "dismiss"]
    process = server.client.get(f"/processes/{summary['id']}").json()
    assert set(process["inputs"]) == {"scene", *SCHEMAS}
    assert process["inputs"]["scene"]["minOccurs"] == 1
    assert process["inputs"]["scale"]["description"] == "Upscaling factor."
    assert process["inputs"]["weights"]["schema"]["enum"] == ["small"]
    assert set(process["outputs"]) == {"result"}


def test_execution_without_a_preference_answers_with_the_file(server, expected):
    answer = server.execute(picture())
    assert (answer.status_code, answer.headers["content-type"]) == (200, TIFF)
    assert (bands_of(answer.content) == expected(picture())).all()


@pytest.mark.parametrize(
    "scene", [as_base64(picture()), {"value": as_base64(picture()), "mediaType": "image/png"}]
)
def test_an_input_may_be_base64_inside_the_request(server, expected, scene):
    body = {"inputs": {"scene": scene, "weights": "small"}}
    answer = server.client.post("/processes/upscale/execution", json=body)
    assert (bands_of(answer.content) == expected(picture())).all()


def test_an_asynchronous_job_reports_its_status_and_result(server, expected):
    answer = server.execute(picture(), wait=False)
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert answer.headers["Location"] == f"{server.url}/jobs/{answer.json()['jobID']}"
    assert answer.json()["status"] in ("accepted", "running")
    status = server.ended(answer.json()["jobID"])
    assert (status["status"], status["progress"], status["type"]) == ("successful", 100, "process")
    assert status["created"] <= status["started"] <= status["finished"]
    (results,) = [link["href"] for link in status["links"] if link["rel"].endswith("/results")]
    assert (bands_of(server.client.get(results).content) == expected(picture())).all()


def test_a_result_can_be_asked_for_in_each_way_of_the_standard(server):
    href = server.upload(picture())

    def ask(response: str, mode: str) -> object:
        body = {
            "inputs": {"scene": {"href": href}, "weights": "small"},
            "outputs": {"result": {"transmissionMode": mode}},
            "response": response,
        }
        return server.client.post("/processes/upscale/execution", json=body)

    document, reference = ask("document", "value"), ask("raw", "reference")
    assert document.json()["result"]["type"] == TIFF
    found = re.match(r'<(.*?)>; rel="result"', reference.headers["Link"])
    assert reference.status_code == 204
    for link in (document.json()["result"]["href"], found[1]):
        assert server.client.get(link).headers["content-type"] == TIFF


def test_a_synchronous_answer_links_its_job(server):
    answer = server.execute(picture())
    (link,) = re.fullmatch(r'<(.*)>; rel="monitor"', answer.headers["Link"]).groups()
    assert server.client.get(link).json()["status"] == "successful"


def test_an_output_can_be_asked_for_by_its_media_type(server):
    href = server.upload(picture())
    body = {
        "inputs": {"scene": {"href": href, "title": "a.tif"}, "scale": {"value": 2}},
        "outputs": {"result": {"format": {"mediaType": "image/png"}}},
    }
    answer = server.client.post("/processes/upscale/execution", json=body)
    assert (answer.headers["content-type"], answer.content[:4]) == ("image/png", b"\x89PNG")
    assert answer.headers["content-disposition"] == 'attachment; filename="a_x2.png"'
    body["inputs"]["format"] = "JPEG"
    answer = server.client.post("/processes/upscale/execution", json=body)
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "The output is asked for as PNG and as another format.",
    )


def test_a_request_without_weights_gets_those_that_are_offered(server):
    scene = {"href": server.upload(picture())}
    body = {"inputs": {"scene": scene}, "response": "document"}
    server.client.post("/processes/upscale/execution", json=body)
    status = server.client.get("/jobs?limit=1").json()["jobs"][0]
    assert (status["facts"]["weights"], status["facts"]["scale"]) == ("small", 2)
    assert status["name"] == "scene"


def test_waiting_ends_when_the_client_says_so(server):
    href = server.upload(picture(edge=200))
    body = {"inputs": {"scene": {"href": href}, "weights": "small", "ensemble": True}}
    answer = server.client.post(
        "/processes/upscale/execution", json=body, headers={"Prefer": "wait=0"}
    )
    assert answer.status_code == 201
    assert server.ended(answer.json()["jobID"])["status"] == "successful"


def test_a_result_before_its_time_is_not_ready_and_an_unknown_job_is_none(server):
    waiting = server.execute(picture(edge=200), wait=False).json()["jobID"]
    early = server.client.get(f"/jobs/{waiting}/results")
    unknown = server.client.get("/jobs/none")
    process = server.client.get("/processes/downscale")
    for answer, kind in (
        (early, "result-not-ready"),
        (unknown, "no-such-job"),
        (process, "no-such-process"),
    ):
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"].endswith(f"/1.0/{kind}")


def test_a_job_that_waits_runs_or_is_done_can_be_dismissed(server):
    running, waiting = (
        server.execute(picture(edge=400), wait=False, ensemble=True).json()["jobID"]
        for _ in range(2)
    )
    done = server.execute(picture(), wait=False)
    for job_id in (running, waiting):
        assert server.client.delete(f"/jobs/{job_id}").json()["status"] == "dismissed"
    server.ended(done.json()["jobID"])
    server.client.delete(f"/jobs/{done.json()['jobID']}")
    for job_id in (running, waiting, done.json()["jobID"]):
        assert server.client.get(f"/jobs/{job_id}").json()["status"] == "dismissed"
        assert server.client.get(f"/jobs/{job_id}/results").status_code == 410
        assert server.client.delete(f"/jobs/{job_id}").status_code == 410


def test_the_list_of_jobs_has_pages_and_filters_by_status(server, job):
    server.execute(picture())
    first = server.client.get("/jobs?limit=1&status=successful").json()
    (following,) = [link["href"] for link in first["links"] if link["rel"] == "next"]
    second = server.client.get(following).json()
    assert first["jobs"][0]["jobID"] != second["jobs"][0]["jobID"]
    assert {one["status"] for one in first["jobs"] + second["jobs"]} == {"successful"}
    query = "limit=1&status=successful&status=failed&processID=upscale&type=process"
    (following,) = server.client.get(f"/jobs?{query}").json()["links"][1:]
    assert following["href"].endswith("/jobs?" + query + "&offset=1")


@pytest.mark.parametrize(
    ("query", "is_listed"),
    [
        ("status=running&status=successful", True),
        ("status=running&status=failed", False),
        ("processID=upscale&processID=other", True),
        ("processID=other", False),
        ("type=process", True),
        ("type=other", False),
        ("datetime={created}", True),
        ("datetime=2020-01-01T00:00:00Z", False),
        ("datetime=2020-01-01T00:00:00Z/{created}", True),
        ("datetime=2020-01-01T01:00:00%2B01:00/..", True),
        ("datetime=../{created}", True),
        ("datetime=../2020-01-01T00:00:00Z", False),
        ("datetime=/2020-01-01", False),
        ("datetime={created}/", True),
        ("minDuration=0", True),
        ("minDuration=3600", False),
        ("maxDuration=3600", True),
        ("maxDuration=0", False),
        ("minDuration=0&maxDuration=3600&limit=1000", True),
    ],
)
def test_the_list_of_jobs_takes_the_parameters_of_the_standard(server, job, query, is_listed):
    created = server.client.get(f"/jobs/{job}").json()["created"]
    answer = server.client.get("/jobs?" + query.format(created=created))
    assert answer.status_code == 200
    assert (job in [one["jobID"] for one in answer.json()["jobs"]]) == is_listed


@pytest.mark.parametrize(
    "query",
    [
        *("limit=many", "limit=0", "limit=1001", "limit=²", "limit=-1", "offset=1.5"),
        *("offset=10000000000000000000", "offset=" + "9" * 30, "status=done", "datetime=today"),
        *("datetime=2020-01-01/2020-13-01", "minDuration=-1", "maxDuration=x"),
    ],
)
def test_a_wrong_parameter_of_the_list_is_one_clear_line(server, query):
    answer = server.client.get(f"/jobs?{query}")
    assert answer.status_code == 400
    assert re.search("expected|whole number", answer.json()["detail"])


def test_progress_comes_as_events_until_the_job_ends(server):
    job_id = server.execute(picture(edge=600), wait=False).json()["jobID"]
    with server.client.stream("GET", f"/jobs/{job_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith("data:")]
    told = [json.loads(line.removeprefix("data:")) for line in lines]
    assert told[-1]["status"] == "successful"
    assert any(0 < one["progress"] < 100 for one in told)
    progress = [one["progress"] for one in told]
    assert progress == sorted(progress)


def test_inputs_decide_what_is_computed(server):
    made = bands_of(server.execute(picture(), window=[2, 4, 10, 8], bands=[1]).content)
    assert made.shape == (1, 16, 20)
    png = server.execute(picture(), format="PNG")
    assert (png.headers["content-type"], png.content[:4]) == ("image/png", b"\x89PNG")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"tile": 32}, "There is no input 'tile'"),
        ({"scale": 5}, "scale is 5"),
        ({"scale": True}, "scale is True"),
        ({"weights": "/etc/passwd"}, "weights is '/etc/passwd'"),
        ({"window": [0, 0, 8]}, "window is [0, 0, 8]"),
        ({"bands": [{}]}, "bands is"),
        ({"value_range": [1, "a"]}, "value_range is"),
    ],
)
def test_wrong_inputs_are_one_clear_line(server, inputs, said):
    answer = server.execute(picture(), **inputs)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(said)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"no", "not JSON of the form"),
        (b"[" * 100_000, "not JSON of the form"),
        (b"{}", "not JSON of the form"),
        (b'{"inputs": []}', "not JSON of the form"),
        (b'{"inputs": {"scene": "AA==", "bands": ["\\ud800"]}}', "not JSON of the form"),
        (b'{"inputs": {"scene": {"href": "file:///\\ud800"}}}', "not JSON of the form"),
        (b'{"inputs": {"scene": {"href": 1}}}', "neither a link (href) nor base64"),
        (b'{"inputs": {"scene": {"title": "a.tif"}}}', "neither a link (href) nor base64"),
        (b'{"inputs": {"scene": 1}}', "neither a link (href) nor base64"),
        (b'{"inputs": {"scene": "@@@"}}', "valid base64"),
        (b'{"inputs": {"scene": "AA=="}, "outputs": {"other": {}}}', "only output is result"),
        (b'{"inputs": {"scene": {"href": "/uploads/none"}}}', "no such upload"),
    ],
)
def test_wrong_requests_are_one_clear_line(server, body, said):
    answer = server.client.post(
        "/processes/upscale/execution", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


def test_an_empty_upload_is_one_clear_line(server):
    answer = server.client.post("/uploads", content=b"")
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "The body is empty: send the bytes of a raster.",
    )


def test_a_failed_job_says_why_without_the_paths_of_the_server(server):
    scene = {"href": server.upload(b"no raster"), "title": "mine.tif"}
    assert server.failure(scene).startswith("mine.tif is not in a format")
    assert "lie inside the scene" in server.failure(picture(), window=[500, 500, 8, 8])


def test_the_page_has_the_options_with_their_help(server):
    page = server.client.get("/", headers={"Accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "Upscaling factor." in page.text
    for source in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert server.client.get(source).status_code == 200


def test_metrics_count_jobs_and_the_log_has_a_line_of_json_for_each_request(server, job):
    text = server.client.get("/metrics").text
    assert re.search(r'^repmamba_jobs_ended_total\{status="successful"\} [1-9]', text, re.MULTILINE)
    assert re.search(r"^repmamba_disk_free_bytes \d", text, re.MULTILINE)
    assert "repmamba_job_seconds_bucket" in text
    requests = server.events("request")
    assert {"path": "/metrics", "method": "GET"}.items() <= requests[-1].items()
    assert job in [line["job"] for line in server.events("job finished")]


def test_health_and_readiness_are_answered(server):
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/ready").json() == {"status": "ready"}


def test_the_server_never_loads_torch(server, job):
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in maps


def test_errors_of_every_status_have_a_title():
    numbers = {
        node.args[0].value
        for module in (answers, app, guards)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("HTTPException", "problem", "answer")
        and isinstance(node.args[0], ast.Constant)
    }
    assert {404, 421, 507} < numbers
    assert numbers <= set(ogc._TITLES)

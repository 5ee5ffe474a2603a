"""A server of one file, as a process: `python address_server.py FOLDER` prints its port and serves
FOLDER/scene.tif.

Parts are given where parts are asked for; FOLDER/says.json has further headers. A process of its
own, since GDAL may keep Python's threads waiting while it waits for an answer.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1])


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        whole = (FOLDER / "scene.tif").read_bytes()
        first, last, code = 0, len(whole) - 1, 200
        if asked := self.headers.get("Range"):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last, code = int(start), min(int(end or last), last), 206
        if self.path != "/scene.tif":
            first, last, code = 0, -1, 404
        self.send_response(code)
        if code == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.send_header("Content-Length", str(last - first + 1))
        for header, value in json.loads((FOLDER / "says.json").read_text()).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(whole[first : last + 1])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()

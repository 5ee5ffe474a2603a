// Serves dist/ as `npm run serve`, with the headers that allow threads; a port may be given.

import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
  ".txt": "text/plain; charset=utf-8",
};
// Threads share memory, which browsers only allow where no other origin shares the process.
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

const [port = "8000", isolated = "isolated"] = process.argv.slice(2);
const server = createServer((request, response) => {
  const { pathname } = new URL(request.url, "http://localhost");
  const path = join("dist", normalize(decodeURIComponent(pathname === "/" ? "/index.html" : pathname)));
  try {
    const { size } = statSync(path);
    const type = TYPES[extname(path)] ?? "application/octet-stream";
    response.writeHead(200, { "Content-Type": type, "Content-Length": size, ...(isolated === "isolated" && ISOLATED) });
    createReadStream(path).pipe(response);
  } catch {
    response.writeHead(404).end();
  }
});
server.listen(Number(port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));

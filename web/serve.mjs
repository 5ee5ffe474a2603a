// Serves a folder, dist/ by default, with the headers that allow threads:
// node serve.mjs [PORT [FOLDER [without-threads]]]

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
  ".md": "text/plain; charset=utf-8",
  ".txt": "text/plain; charset=utf-8",
};
// Threads share memory, which browsers only allow where no other origin shares the process.
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

const [port = "8000", folder = "dist", without] = process.argv.slice(2);
const headers = without === "without-threads" ? {} : ISOLATED;
const server = createServer((request, response) => {
  try {
    const { pathname } = new URL(request.url, "http://localhost");
    const file = decodeURIComponent(pathname.endsWith("/") ? `${pathname}index.html` : pathname);
    const path = join(folder, normalize(file));
    const content = readFileSync(path);
    const type = TYPES[extname(path)] ?? "application/octet-stream";
    response.writeHead(200, { "Content-Type": type, ...headers }).end(content);
  } catch {
    response.writeHead(404).end();
  }
});
server.listen(Number(port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));

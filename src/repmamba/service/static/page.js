// The page of the service: upload, progress, before and after on a map (Leaflet), download.
// Whatever the server or a file's name says is written as text, never as HTML.

const at = (id) => document.getElementById(id);
let job = null;
let map = null;

function headers(more = {}) {
  const token = at("token");
  return token ? { ...more, Authorization: `Bearer ${token.value}` } : more;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers(options.headers) });
  if (answer.ok) return answer;
  let why = `${answer.status} ${answer.statusText}`;
  try {
    why = (await answer.json()).detail ?? why;
  } catch {}
  throw new Error(why);
}

function say(text, failed = false) {
  at("status").textContent = text;
  at("status").className = failed ? "failed" : "";
}

function inputs() {
  const found = {};
  for (const field of document.querySelectorAll("[data-input]")) {
    const text = field.value.trim();
    if (text) found[field.dataset.input] = value(text, field);
  }
  return found;
}

// "3,2,1" is a list, "0" a number, "robust" a word; choices are JSON already.
function value(text, field) {
  if (field.tagName === "SELECT") return JSON.parse(text);
  const parts = text.split(",").map((part) => {
    const word = part.trim();
    return word !== "" && Number.isFinite(Number(word)) ? Number(word) : word;
  });
  return "list" in field.dataset || parts.length > 1 ? parts : parts[0];
}

function upload(file) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much was sent
    request.open("POST", "/uploads");
    for (const [name, text] of Object.entries(headers())) request.setRequestHeader(name, text);
    request.upload.onprogress = ({ loaded, total }) => (at("progress").value = (100 * loaded) / total);
    request.onerror = () => failed(new Error("The upload was interrupted."));
    request.onload = () => {
      let answer = {};
      try {
        answer = JSON.parse(request.responseText);
      } catch {}
      if (request.status === 201) done(answer.href);
      else failed(new Error(answer.detail ?? `The upload failed with status ${request.status}.`));
    };
    request.send(file);
  });
}

// EventSource cannot send a token, so the events are read from a stream.
async function watch(path, show) {
  const reader = (await ask(path)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value: piece, done } = await reader.read();
    if (done) return;
    const events = (text + piece).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) show(JSON.parse(data.slice(6)));
    }
  }
}

function show(status) {
  at("progress").value = status.progress;
  const waiting = { accepted: "Waiting for its turn.", running: `Running: ${status.progress} %` };
  say(status.message || waiting[status.status] || status.status, status.status === "failed");
  return status;
}

// Leaflet's own tiles are images with a URL, which cannot send a token.
const Tiles = L.GridLayer.extend({
  createTile({ x, y, z }, done) {
    const tile = document.createElement("img");
    tile.alt = "";
    tile.stop = new AbortController();
    ask(`${this.options.path}/${z}/${x}/${y}.png`, { signal: tile.stop.signal })
      .then((answer) => answer.blob())
      .then((blob) => {
        tile.src = URL.createObjectURL(blob);
        return tile.decode();
      })
      .then(() => done(null, tile), (error) => done(error, tile))
      .finally(() => URL.revokeObjectURL(tile.src));
    return tile;
  },
});

// Before lies left of the line, after right of it.
function swipe() {
  const { x, y } = map.getSize();
  const [left, right] = [map.containerPointToLayerPoint([0, 0]), map.containerPointToLayerPoint([x, y])];
  const line = left.x + (x * at("swipe").value) / 100;
  const clip = (from, to) => `polygon(${[[from, left.y], [to, left.y], [to, right.y], [from, right.y]]
    .map((corner) => corner.map((end) => `${end}px`).join(" ")).join(", ")})`;
  map.getPane("before").style.clipPath = clip(left.x, line);
  map.getPane("after").style.clipPath = clip(line, right.x);
  at("line").style.left = `${at("swipe").value}%`;
}

async function compare() {
  const path = (name) => `/jobs/${job}/tiles/${name}`;
  const [before, after] = await Promise.all(
    ["before", "after"].map(async (name) => ({ name, path: path(name), ...(await (await ask(path(name))).json()) })),
  );
  at("compare").hidden = false;
  map?.remove();
  map = L.map("map", { maxZoom: after.maxzoom + 3 });
  map.attributionControl.setPrefix("Leaflet");
  for (const { name, path, bounds, maxzoom } of [before, after]) {
    const [west, south, east, north] = bounds;
    map.createPane(name);
    new Tiles({ path, pane: name, noWrap: true, maxNativeZoom: maxzoom, bounds: [[south, west], [north, east]] })
      .on("tileunload", ({ tile }) => tile.stop.abort())
      .addTo(map);
    map.fitBounds([[south, west], [north, east]]);
  }
  if (after.geographic) L.control.scale().addTo(map);
  map.on("move zoom resize", swipe);
  swipe();
}

async function follow() {
  let last = null;
  while (last === null || ["accepted", "running"].includes(last.status)) {
    try {
      await watch(`/jobs/${job}/events`, (status) => (last = show(status)));
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      say("The connection was lost; trying again.");
      await new Promise((wake) => setTimeout(wake, 2000));
    }
  }
  at("dismiss").hidden = true;
  if (last.status !== "successful") return;
  const { facts } = last;
  say(`${facts.width} x ${facts.height} pixels, with ${facts.weights}, in ${facts.seconds} s.`);
  at("download").hidden = false;
  await compare();
}

at("order").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [file] = at("file").files;
  at("job").hidden = at("dismiss").hidden = false;
  at("compare").hidden = at("download").hidden = true;
  at("submit").disabled = true;
  at("name").textContent = file.name;
  try {
    say("Uploading.");
    const href = await upload(file);
    const answer = await ask("/processes/upscale/execution", {
      method: "POST",
      headers: { "Content-Type": "application/json", Prefer: "respond-async" },
      body: JSON.stringify({ inputs: { scene: { href, title: file.name }, ...inputs() } }),
    });
    job = (await answer.json()).jobID;
    await follow();
  } catch (error) {
    at("dismiss").hidden = true;
    say(error.message, true);
  } finally {
    at("submit").disabled = false;
  }
});

at("dismiss").addEventListener("click", () => job && ask(`/jobs/${job}`, { method: "DELETE" }));

at("download").addEventListener("click", async () => {
  const answer = await ask(`/jobs/${job}/results/result`);
  const named = /filename\*?=(?:utf-8'')?"?([^";]+)/.exec(answer.headers.get("content-disposition"));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = named ? decodeURIComponent(named[1]) : "result";
  link.click();
  URL.revokeObjectURL(link.href);
});

at("swipe").addEventListener("input", swipe);

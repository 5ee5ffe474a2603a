/** The page: takes a file, runs the worker, shows progress, and then the comparison. */

import type { Answer } from "./messages";
import { hasGpu, type Model } from "./network";
import { type Before, View } from "./view";

const PAN = 80; // CSS pixels for an arrow key
const ZOOM = 1.5;

function part<Kind extends HTMLElement>(id: string): Kind {
  return document.getElementById(id) as Kind;
}

const input = part<HTMLInputElement>("file");
const drop = part("drop");
const scales = part<HTMLSelectElement>("scale");
const terms = part("terms");
const gpu = part<HTMLInputElement>("gpu");
const enlarge = part<HTMLButtonElement>("enlarge");
const cancel = part<HTMLButtonElement>("cancel");
const progress = part<HTMLProgressElement>("progress");
const status = part("status");
const failure = part("failure");
const comparison = part("comparison");
const canvas = part<HTMLCanvasElement>("canvas");
const line = part<HTMLInputElement>("line");
const download = part<HTMLAnchorElement>("download");

let models: Model[] = [];
let chosen: File | undefined;
let worker: Worker | undefined;
let view: View | undefined;

async function start(): Promise<void> {
  models = (await (await fetch("models.json")).json()) as Model[];
  scales.replaceChildren(
    ...models.map(({ scale }, number) => new Option(`${scale} times`, String(number))),
  );
  part("scales").hidden = models.length < 2;
  showTerms();
  part("gpus").hidden = !(await hasGpu());
  input.disabled = false;
}

function showTerms(): void {
  terms.textContent = `Weights ${models[scales.selectedIndex].name}: ${models[scales.selectedIndex].terms}.`;
}

function choose(file: File | undefined): void {
  if (!file || input.disabled) return;
  chosen = file;
  run();
}

function run(): void {
  if (!chosen) return;
  const file = chosen;
  const model = models[scales.selectedIndex];
  const began = performance.now();
  failure.textContent = "";
  comparison.hidden = true;
  view = undefined;
  setRunning(true);
  status.textContent = `Reading ${file.name} and loading the network.`;
  worker ??= new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  let doing = "";
  worker.onmessage = ({ data }: MessageEvent<Answer>) => {
    if (data.kind === "started") {
      const { width, height } = data.picture;
      doing = `Enlarging ${file.name}, ${width} × ${height} pixels (${data.runsOn})`;
      status.textContent = `${doing}.`;
    } else if (data.kind === "progress") {
      progress.value = data.done;
      if (data.done > 0) status.textContent = `${doing}: ${Math.round(100 * data.done)} %.`;
    } else if (data.kind === "failed") {
      fail(data.message);
    } else {
      const seconds = Math.round((performance.now() - began) / 1000);
      finish(data, `${doing.replace("Enlarging", "Enlarged")} in ${seconds} s.`);
    }
  };
  worker.onerror = (event) => {
    stop();
    fail(`The picture could not be enlarged: ${event.message ?? "the worker did not start"}`);
  };
  worker.postMessage({ file, model, useGpu: gpu.checked });
}

function finish(answer: Extract<Answer, { kind: "finished" }>, summary: string): void {
  const { picture, result, file } = answer;
  setRunning(false);
  status.textContent = summary;
  URL.revokeObjectURL(download.href);
  download.href = URL.createObjectURL(file);
  download.download = file.name;
  download.textContent = `Download ${file.name}`;
  part("facts").textContent =
    `${result.width} × ${result.height} pixels, ${(file.size / 1e6).toFixed(1)} MB` +
    (result.place ? ", georeferenced" : "") +
    (result.consistent ? ", consistent with its input." : ".");
  comparison.hidden = false;
  resize();
  view = new View(canvas, picture, result);
  view.moveLine(line.valueAsNumber / 100);
  view.showBefore(beforeShown());
}

function fail(message: string): void {
  setRunning(false);
  status.textContent = "";
  failure.textContent = message;
}

/** Ends the run; a network that is computing cannot be interrupted otherwise. */
function stop(): void {
  worker?.terminate();
  worker = undefined;
}

function setRunning(running: boolean): void {
  progress.hidden = cancel.hidden = !running;
  progress.removeAttribute("value");
  enlarge.hidden = running || !chosen;
  input.disabled = running;
  if (running) cancel.focus();
}

function beforeShown(): Before {
  return document.querySelector<HTMLInputElement>("[name=before]:checked")?.value as Before;
}

function resize(): void {
  canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
  canvas.height = Math.round(canvas.clientHeight * devicePixelRatio);
}

input.addEventListener("change", () => {
  choose(input.files?.[0]);
  input.value = ""; // the same file can be chosen again
});
for (const kind of ["dragover", "dragleave", "drop"] as const) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose((event as DragEvent).dataTransfer?.files[0]);
  });
}
scales.addEventListener("change", showTerms);
enlarge.addEventListener("click", run);
cancel.addEventListener("click", () => {
  stop();
  setRunning(false);
  status.textContent = "Cancelled.";
  enlarge.focus();
});
line.addEventListener("input", () => view?.moveLine(line.valueAsNumber / 100));
for (const radio of document.querySelectorAll<HTMLInputElement>("[name=before]")) {
  radio.addEventListener("change", () => view?.showBefore(beforeShown()));
}
part("larger").addEventListener("click", () => view?.zoomBy(ZOOM));
part("smaller").addEventListener("click", () => view?.zoomBy(1 / ZOOM));
part("actual").addEventListener("click", () => view?.actualSize());
part("fit").addEventListener("click", () => view?.fit());

const KEYS: Record<string, () => void> = {
  ArrowLeft: () => view?.pan(PAN * devicePixelRatio, 0),
  ArrowRight: () => view?.pan(-PAN * devicePixelRatio, 0),
  ArrowUp: () => view?.pan(0, PAN * devicePixelRatio),
  ArrowDown: () => view?.pan(0, -PAN * devicePixelRatio),
  "+": () => view?.zoomBy(ZOOM),
  "-": () => view?.zoomBy(1 / ZOOM),
};
canvas.addEventListener("keydown", (event) => {
  if (!(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});
canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
canvas.addEventListener("pointermove", (event) => {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  view?.pan(event.movementX * devicePixelRatio, event.movementY * devicePixelRatio);
});
canvas.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    const factor = event.deltaY < 0 ? ZOOM : 1 / ZOOM;
    view?.zoomBy(factor, event.offsetX * devicePixelRatio, event.offsetY * devicePixelRatio);
  },
  { passive: false },
);
new ResizeObserver(() => {
  if (comparison.hidden) return;
  resize();
  view?.redraw();
}).observe(canvas);

start().catch(() => fail("The page is incomplete: its models are missing. Build it with make web."));

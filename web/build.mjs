// Builds the page into dist/: `npm run build`. The models come from models/, where `make web` puts them.

import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { build } from "esbuild";

const DIST = "dist";
const MODELS = "models";
const ATTRIBUTION = "../src/repmamba/inference/weights/ATTRIBUTION.md";
const RUNTIME = "node_modules/onnxruntime-web/dist";
// For the CPU, and for the GPU. They are loaded by name, beside the page.
const RUNTIMES = ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"];
// Packages that name their licence but do not contain it: the holder of the rights, and the text.
const LICENCES = {
  "guid-typescript": ["Nicolas", "licences/ISC.txt"],
  lerc: ["Esri", "../LICENSE"],
  "onnxruntime-common": ["Microsoft Corporation", "licences/MIT.txt"],
  "onnxruntime-web": ["Microsoft Corporation", "licences/MIT.txt"],
};

rmSync(DIST, { recursive: true, force: true });
mkdirSync(DIST);
const { metafile } = await build({
  entryPoints: ["src/page.ts", "src/worker.ts"],
  outdir: DIST,
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  metafile: true,
  conditions: ["onnxruntime-web-use-extern-wasm"],
  legalComments: "none", // LICENSES.txt has them all
});
for (const file of ["index.html", "style.css"]) cpSync(join("src", file), join(DIST, file));
cpSync(ATTRIBUTION, join(DIST, "ATTRIBUTION.md")); // the terms of the weights refer to it
for (const runtime of RUNTIMES) {
  for (const ending of [".mjs", ".wasm"]) cpSync(join(RUNTIME, runtime + ending), join(DIST, runtime + ending));
}
writeFileSync(join(DIST, "models.json"), JSON.stringify(models()));
writeFileSync(join(DIST, "LICENSES.txt"), licences(Object.keys(metafile.inputs)));

/** Copies the models, and returns what the page has to know of each, the default first. */
function models() {
  const facts = readdirSync(MODELS).filter((name) => name.endsWith(".json"));
  if (!facts.length) throw new Error("There is no model in models/: run make web.");
  return facts
    .map((name) => {
      const { scale, tile, halo, terms, denoises, name: weights } = JSON.parse(readFileSync(join(MODELS, name), "utf8"));
      const file = basename(name, ".json") + ".onnx";
      cpSync(join(MODELS, file), join(DIST, file));
      return { file, name: weights, scale, tile, halo, terms, denoises };
    })
    .sort((a, b) => b.scale - a.scale);
}

/** The licences of the packages in the bundles, and of those that these packages contain. */
function licences(inputs) {
  const found = new Map();
  const add = (name) => {
    if (found.has(name)) return;
    const folder = join("node_modules", name);
    const described = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    found.set(name, `${name} ${described.version} (${described.license})\n\n${textOf(folder, name)}\n`);
    Object.keys(described.dependencies ?? {}).forEach(add);
  };
  for (const path of inputs) {
    const name = path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1];
    if (name) add(name);
  }
  return [...found.keys()].sort().map((name) => found.get(name)).join(`\n${"-".repeat(80)}\n\n`);
}

function textOf(folder, name) {
  const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
  if (file) return readFileSync(join(folder, file), "utf8").trim();
  if (!LICENCES[name]) throw new Error(`${name} contains no licence: add it to LICENCES in build.mjs.`);
  const [holder, text] = LICENCES[name];
  return `Copyright (c) ${holder}\n\n${readFileSync(text, "utf8").trim()}`;
}

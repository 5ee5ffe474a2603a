/** The exported network in ONNX Runtime: on the GPU through WebGPU where that works, else on the CPU. */

import type { InferenceSession, Tensor } from "onnxruntime-web";

/** What models.json says of a model: the facts that `repmamba export` writes. */
export interface Model {
  file: string;
  name: string;
  scale: number;
  tile: number; // lr pixels
  halo: number;
  terms: string;
  denoises: boolean; // trained on noisy or compressed pictures, to give clean ones
}

export interface Network {
  /** How it runs, for people. */
  runsOn: string;
  /** (3, h, w) in [0, 1], band after band -> (3, scale h, scale w), not clamped. */
  run(unit: Float32Array, height: number, width: number): Promise<Float32Array>;
}

type Runtime = typeof import("onnxruntime-web");
type Provider = "webgpu" | "wasm";

const THREADS = 8; // more gain little
const SAMPLE = 48; // edge in pixels of the picture on which a GPU is compared with the CPU
const AGREE = 1 / 1024; // of the range: largest difference of a GPU that is used

/** folder: where the page's files are, ending in a slash. */
export async function loadNetwork(model: Model, folder: string, useGpu: boolean): Promise<Network> {
  const content = new Uint8Array(await (await fetch(`${folder}${model.file}`)).arrayBuffer());
  if (useGpu && (await hasGpu())) {
    const network = await onGpu(content, folder).catch(() => undefined);
    if (network) return network;
  }
  const ort = await import("onnxruntime-web/wasm");
  return network(ort, content, folder, "wasm");
}

/** Whether the browser gives this page a GPU through WebGPU. */
export async function hasGpu(): Promise<boolean> {
  const gpu = (navigator as { gpu?: { requestAdapter(): Promise<unknown> } }).gpu;
  return !!(await gpu?.requestAdapter().catch(() => null));
}

/** The network on the GPU; undefined where its result is not that of the CPU. */
async function onGpu(content: Uint8Array, folder: string): Promise<Network | undefined> {
  const ort = await import("onnxruntime-web/webgpu");
  const cpu = await network(ort, content, folder, "wasm");
  const gpu = await network(ort, content, folder, "webgpu");
  const sample = Float32Array.from({ length: 3 * SAMPLE * SAMPLE }, (_, at) => (at * 37 % 256) / 255);
  const expected = await cpu.run(sample, SAMPLE, SAMPLE);
  const found = await gpu.run(sample, SAMPLE, SAMPLE);
  return found.every((number, at) => Math.abs(number - expected[at]) < AGREE) ? gpu : undefined;
}

async function network(
  ort: Runtime,
  content: Uint8Array,
  folder: string,
  provider: Provider,
): Promise<Network> {
  // Threads share memory, which browsers only allow on pages that are isolated from other origins.
  const threads = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, THREADS) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = folder;
  ort.env.logLevel = "error";
  const session: InferenceSession = await ort.InferenceSession.create(content, {
    executionProviders: [provider],
    // Planning which node may reuse which memory takes half a minute in WebAssembly; this omits it.
    executionMode: "parallel",
  });
  return {
    runsOn: provider === "webgpu" ? "GPU" : `CPU, ${threads} thread${threads > 1 ? "s" : ""}`,
    async run(unit, height, width) {
      const lr: Tensor = new ort.Tensor("float32", unit, [1, 3, height, width]);
      const { sr } = await session.run({ lr });
      const numbers = (await sr.getData()) as Float32Array;
      sr.dispose();
      return numbers;
    },
  };
}

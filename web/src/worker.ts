/** The worker: reads a file, enlarges it and writes the result, away from the page's thread. */

import { upscale } from "./engine";
import type { Answer, Request } from "./messages";
import { loadNetwork, type Network } from "./network";
import { Unsupported } from "./picture";
import { readPicture } from "./read";
import { fileOf } from "./write";

const FOLDER = new URL("./", import.meta.url).href;

let loaded: { key: string; network: Promise<Network> } | undefined;

self.onmessage = async (event: MessageEvent<Request>) => {
  try {
    await enlarge(event.data);
  } catch (failure) {
    if (!(failure instanceof Unsupported)) loaded = undefined;
    answer({ kind: "failed", message: messageOf(failure) });
  }
};

async function enlarge({ file, model, useGpu }: Request): Promise<void> {
  const picture = await readPicture(file, model.scale);
  const key = `${model.file} ${useGpu}`;
  if (loaded?.key !== key) loaded = { key, network: loadNetwork(model, FOLDER, useGpu) };
  const network = await loaded.network;
  const { width, height } = picture;
  answer({ kind: "started", picture: { width, height }, runsOn: network.runsOn });
  const result = await upscale(picture, network, model, (done) => answer({ kind: "progress", done }));
  const written = await fileOf(result);
  const planes = [...picture.bands, ...result.bands].map((band) => band.buffer);
  answer({ kind: "finished", picture, result, file: written }, planes);
}

function answer(content: Answer, transfer: ArrayBufferLike[] = []): void {
  self.postMessage(content, { transfer: transfer as ArrayBuffer[] });
}

function messageOf(failure: unknown): string {
  if (failure instanceof Unsupported) return failure.message;
  const reason = failure instanceof Error ? failure.message : String(failure);
  if (failure instanceof RangeError || /memory|allocat/i.test(reason)) {
    return "The browser ran out of memory. Close other pages, or use the command line.";
  }
  return `The picture could not be enlarged: ${reason.split("\n")[0]}`;
}

/** PNG files, 8 and 16 bits, decoded without the colour management of a browser. */

import { convertIndexedToRgb, decode } from "fast-png";
import { checkSize, type Numbers, onlyOnTheCommandLine, type Picture } from "./picture";

export async function readPng(file: File, scale: number): Promise<Picture> {
  const content = new Uint8Array(await file.arrayBuffer());
  const chunks = chunksOf(content);
  if (chunks.has("acTL")) throw onlyOnTheCommandLine(file.name, "is an animation");
  if (chunks.has("eXIf")) throw onlyOnTheCommandLine(file.name, "may ask to be rotated (EXIF)");
  const header = new DataView(content.buffer);
  checkSize(file.name, header.getUint32(16), header.getUint32(20), scale);
  const png = decode(content, { checkCrc: true });
  if (png.depth !== 16 && png.depth !== 8) {
    throw onlyOnTheCommandLine(file.name, `has ${png.depth} bits per pixel`);
  }
  if (chunks.has("tRNS")) {
    throw onlyOnTheCommandLine(file.name, "has transparent colours without an alpha band");
  }
  const { width, height } = png;
  const channels = png.palette ? 3 : png.channels;
  const pixels = (png.palette ? convertIndexedToRgb(png) : png.data) as Numbers;
  const planes = separated(pixels, channels);
  const alpha = channels % 2 === 0 ? planes.pop() : undefined;
  const largest = png.depth === 16 ? 65535 : 255;
  return { name: file.name, width, height, bands: planes, largest, alpha, isTiff: false };
}

/** Interleaved pixels as one plane per channel. */
export function separated(pixels: Numbers | Uint8ClampedArray, channels: number): Numbers[] {
  const Kind = pixels instanceof Uint16Array ? Uint16Array : Uint8Array;
  return Array.from({ length: channels }, (_, channel) => {
    const plane = new Kind(pixels.length / channels);
    for (let at = 0; at < plane.length; at++) plane[at] = pixels[at * channels + channel];
    return plane;
  });
}

/** The names of a file's chunks. */
function chunksOf(content: Uint8Array): Set<string> {
  const view = new DataView(content.buffer);
  const names = new Set<string>();
  for (let at = 8; at + 8 <= content.length; at += 12 + view.getUint32(at)) {
    names.add(String.fromCharCode(...content.subarray(at + 4, at + 8)));
  }
  return names;
}

/**
 * GeoTIFF files, little-endian, in strips compressed by Deflate, with a mask if there is one.
 *
 * geotiff.js writes TIFFs too, but neither compressed ones nor masks.
 */

import type { Result } from "./engine";
import type { Numbers, Place } from "./picture";
import { interleaved } from "./write";

type Kind = keyof typeof KINDS;
type Entry = [tag: number, kind: Kind, values: ArrayLike<number>];

const KINDS = { byte: [1, 1], ascii: [2, 1], short: [3, 2], long: [4, 4], double: [12, 8] } as const;
const STRIP_BYTES = 1 << 20;
const DEFLATE = 8;
const BY_DIFFERENCES = 2; // the horizontal predictor
const MASK = 4; // NewSubfileType, and PhotometricInterpretation

/** A page: its entries without those of the strips, and its compressed strips. */
interface Page {
  entries: Entry[];
  rows: number; // in a strip
  strips: Uint8Array[];
}

export async function tiffOf(result: Result): Promise<Blob> {
  const pages = [await picturePage(result)];
  if (result.mask) pages.push(await maskPage(result.mask, result.width, result.height));
  const parts: Uint8Array[] = [new Uint8Array([0x49, 0x49, 42, 0, 8, 0, 0, 0])];
  let at = 8;
  for (const [number, page] of pages.entries()) {
    const written = directory(page, at, number === pages.length - 1);
    parts.push(written, ...page.strips);
    at += written.length + total(page.strips);
    if (at % 2) parts.push(new Uint8Array(1)); // directories begin at even offsets
    at += at % 2;
  }
  return new Blob(parts as BlobPart[], { type: "image/tiff" });
}

async function picturePage(result: Result): Promise<Page> {
  const { width, height, bands, alpha, largest } = result;
  const planes = alpha ? [...bands, alpha] : bands;
  const bytes = largest === 255 ? 1 : 2;
  const rows = Math.max(1, Math.floor(STRIP_BYTES / (width * planes.length * bytes)));
  const strips = [];
  for (let row = 0; row < height; row += rows) {
    const end = Math.min(row + rows, height) * width;
    const pixels = interleaved(planes, row * width, end);
    differences(pixels, width, planes.length);
    strips.push(await deflated(new Uint8Array(pixels.buffer as ArrayBuffer)));
  }
  const entries: Entry[] = [
    ...sizes(width, height),
    [258, "short", planes.map(() => 8 * bytes)],
    [262, "short", [bands.length === 3 ? 2 : 1]],
    [277, "short", [planes.length]],
    [317, "short", [BY_DIFFERENCES]],
    [339, "short", planes.map(() => 1)],
  ];
  if (alpha) entries.push([338, "short", [2]]);
  if (result.place) entries.push(...placeEntries(result.place, result.scale));
  return { entries, rows, strips };
}

/** One bit a pixel, as GDAL stores masks. */
async function maskPage(mask: Uint8Array, width: number, height: number): Promise<Page> {
  const wide = Math.ceil(width / 8);
  const bits = new Uint8Array(wide * height);
  for (let row = 0; row < height; row++) {
    for (let col = 0; col < width; col++) {
      if (mask[row * width + col]) bits[row * wide + (col >> 3)] |= 0x80 >> (col & 7);
    }
  }
  const entries: Entry[] = [
    [254, "long", [MASK]],
    ...sizes(width, height),
    [258, "short", [1]],
    [262, "short", [MASK]],
    [277, "short", [1]],
  ];
  return { entries, rows: height, strips: [await deflated(bits)] };
}

function sizes(width: number, height: number): Entry[] {
  return [
    [256, "long", [width]],
    [257, "long", [height]],
    [259, "short", [DEFLATE]],
    [284, "short", [1]],
  ];
}

/** The place of a raster whose pixels are scale times smaller. */
function placeEntries(place: Place, scale: number): Entry[] {
  // From corners, a place in pixels is multiplied; places of pixel centres are half a pixel away.
  const centre = place.isPoint ? 0.5 : 0;
  const entries: Entry[] = [];
  if (place.pixelScale) {
    const [x, y, z] = place.pixelScale;
    entries.push([33550, "double", [x / scale, y / scale, z]]);
  }
  if (place.tiepoints) {
    const moved = place.tiepoints.map((number, at) =>
      at % 6 < 2 ? (number + centre) * scale - centre : number,
    );
    entries.push([33922, "double", moved]);
  }
  if (place.transformation) {
    const shift = centre / scale - centre;
    const matrix = place.transformation.map((number, at, all) => {
      const row = at - (at % 4);
      if (at % 4 < 2) return number / scale;
      return at % 4 === 3 && row < 12 ? number + (all[row] + all[row + 1]) * shift : number;
    });
    entries.push([34264, "double", matrix]);
  }
  if (place.keys) entries.push([34735, "short", place.keys]);
  if (place.doubles) entries.push([34736, "double", place.doubles]);
  if (place.ascii) {
    const text = new TextEncoder().encode(`${place.ascii.replace(/\0+$/, "")}\0`);
    entries.push([34737, "ascii", text]);
  }
  return entries;
}

/** Each number minus the one before it in its row and band, in place: it compresses better. */
function differences(pixels: Numbers, width: number, bands: number): void {
  const wide = width * bands;
  for (let start = 0; start < pixels.length; start += wide) {
    for (let at = start + wide - 1; at >= start + bands; at--) pixels[at] -= pixels[at - bands];
  }
}

async function deflated(content: Uint8Array): Promise<Uint8Array> {
  const stream = new Blob([content as BlobPart]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The directory of a page that begins at an offset, followed by the numbers that it refers to. */
function directory(page: Page, start: number, isLast: boolean): Uint8Array {
  const offsets = page.strips.map(() => 0);
  const entries: Entry[] = [
    ...page.entries,
    [273, "long", offsets],
    [278, "long", [page.rows]],
    [279, "long", page.strips.map((strip) => strip.length)],
  ];
  entries.sort((a, b) => a[0] - b[0]);
  const table = 2 + 12 * entries.length + 4;
  const outside = entries.map(([, kind, values]) => {
    const size = KINDS[kind][1] * values.length;
    return size > 4 ? size + (size % 2) : 0;
  });
  const length = table + outside.reduce((sum, size) => sum + size, 0);
  page.strips.reduce((at, strip, number) => {
    offsets[number] = at;
    return at + strip.length;
  }, start + length);

  const view = new DataView(new ArrayBuffer(length));
  view.setUint16(0, entries.length, true);
  let free = table;
  entries.forEach(([tag, kind, values], number) => {
    const at = 2 + 12 * number;
    view.setUint16(at, tag, true);
    view.setUint16(at + 2, KINDS[kind][0], true);
    view.setUint32(at + 4, values.length, true);
    if (outside[number]) view.setUint32(at + 8, start + free, true);
    put(view, outside[number] ? free : at + 8, kind, values);
    free += outside[number];
  });
  const end = start + length + total(page.strips);
  view.setUint32(table - 4, isLast ? 0 : end + (end % 2), true);
  return new Uint8Array(view.buffer);
}

function put(view: DataView, start: number, kind: Kind, values: ArrayLike<number>): void {
  const size = KINDS[kind][1];
  for (let number = 0; number < values.length; number++) {
    const at = start + number * size;
    if (kind === "double") view.setFloat64(at, values[number], true);
    else if (kind === "long") view.setUint32(at, values[number], true);
    else if (kind === "short") view.setUint16(at, values[number], true);
    else view.setUint8(at, values[number]);
  }
}

function total(strips: Uint8Array[]): number {
  return strips.reduce((sum, strip) => sum + strip.length, 0);
}

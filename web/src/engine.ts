/**
 * A picture tile by tile through the network, as `repmamba upscale` does it: the same tiles, range,
 * missing pixels, outliers and consistency.
 */

import { makeConsistent } from "./consistency";
import { filled } from "./missing";
import type { Model, Network } from "./network";
import { type Numbers, type Picture, validOf } from "./picture";
import { fromUnit, NETWORK_RANGE, OUTLIER, rangeOf, toUnit } from "./radiometry";
import type { Range } from "./histogram";
import { bilinear } from "./resample";
import { planTiles, type Tile, type Window } from "./tiles";

export interface Result extends Picture {
  scale: number;
  range: Range; // what was black and white to the network
  consistent: boolean; // whether it gives back the picture when it is downsampled
}

/** Enlarge a picture. progress: called with the share that is done, 0 to 1. */
export async function upscale(
  picture: Picture,
  network: Network,
  { scale, tile: edge, halo, denoises }: Pick<Model, "scale" | "tile" | "halo" | "denoises">,
  progress: (done: number) => void,
): Promise<Result> {
  const { width, height, bands, largest } = picture;
  const range = rangeOf(picture);
  const valid = validOf(picture);
  // Where a pixel is missing, the result keeps its number.
  const enlarged = bands.map((band) => repeated(band, picture, scale));
  const consistent = !!picture.place && !denoises;
  const tiles = planTiles(height, width, scale, edge, halo);
  for (const [number, tile] of tiles.entries()) {
    progress(number / tiles.length);
    const known = valid && cropped(valid, width, tile.read);
    if (known && !known.some((each) => each)) continue;
    const raw = bands.map((band) => cropped(band, width, tile.read));
    const sr = await upscaleTile(raw, known, tile.read, network, scale, range, consistent);
    sr.forEach((unit, band) => {
      write(unit, enlarged[band], tile, known, scale, scale * width, (number) =>
        fromUnit(number, range, largest),
      );
    });
  }
  progress(1);
  return {
    ...picture,
    width: scale * width,
    height: scale * height,
    bands: enlarged,
    alpha: picture.alpha && repeated(picture.alpha, picture, scale),
    mask: picture.mask && repeated(picture.mask, picture, scale),
    scale,
    range,
    consistent,
  };
}

/** The unit values of a tile, (scale h, scale w) for each band, halo included. */
async function upscaleTile(
  raw: Numbers[],
  known: Uint8Array | undefined,
  { height, width }: Window,
  network: Network,
  scale: number,
  range: Range,
  consistent: boolean,
): Promise<Float32Array[]> {
  const size = height * width;
  const whole = raw.map((band) => toUnit(band, range));
  const usable = whole.map((unit) => usableOf(unit, known));
  // An outlier is clipped before anything is computed; the clipped part is added again at the end.
  const units = whole.map((unit, band) => {
    const plain = usable[band] ? unit.map((number) => clip(number, isOutlier(number))) : unit;
    return known ? filled(plain, known, height, width) : plain;
  });
  const seen = new Float32Array(3 * size);
  for (let band = 0; band < 3; band++) {
    seen.set(units[units.length === 3 ? band : 0].map((number) => clip(number)), band * size);
  }
  const colours = await network.run(seen, height, width);
  const enlarged = scale ** 2 * size;
  return units.map((unit, band) => {
    const isGrey = units.length === 1;
    const sr = isGrey ? mean(colours) : colours.subarray(band * enlarged, (band + 1) * enlarged);
    const beyond = unit.map((number) => number - clip(number));
    addResampled(sr, beyond, height, width, scale);
    if (consistent) makeConsistent(sr, unit, usable[band] ?? known, height, width, scale);
    if (usable[band]) {
      const cut = whole[band].map((number, at) =>
        isOutlier(number) && (!known || known[at]) ? number - unit[at] : 0,
      );
      addResampled(sr, cut, height, width, scale);
    }
    return sr;
  });
}

function isOutlier(unit: number): boolean {
  return unit < OUTLIER[0] || unit > OUTLIER[1];
}

/** known, without outliers; undefined where there are none. */
function usableOf(unit: Float32Array, known: Uint8Array | undefined): Uint8Array | undefined {
  if (!unit.some(isOutlier)) return undefined;
  return Uint8Array.from(unit, (number, at) => (isOutlier(number) || known?.[at] === 0 ? 0 : 1));
}

function clip(unit: number, outside = true): number {
  return outside ? Math.min(Math.max(unit, NETWORK_RANGE[0]), NETWORK_RANGE[1]) : unit;
}

/** Grey: the mean of the three bands that the network returns. */
function mean(colours: Float32Array): Float32Array {
  const size = colours.length / 3;
  return Float32Array.from(
    { length: size },
    (_, at) => (colours[at] + colours[at + size] + colours[at + 2 * size]) / 3,
  );
}

function addResampled(
  sr: Float32Array,
  beyond: Float32Array,
  height: number,
  width: number,
  scale: number,
): void {
  if (!beyond.some((number) => number !== 0)) return;
  bilinear(beyond, height, width, scale).forEach((number, at) => (sr[at] += number));
}

/** Write the kept part of a tile where its pixels are valid. */
function write(
  unit: Float32Array,
  target: Numbers,
  { read, keep, write }: Tile,
  known: Uint8Array | undefined,
  scale: number,
  wide: number,
  numberOf: (unit: number) => number,
): void {
  for (let row = 0; row < keep.height; row++) {
    const from = (keep.row + row) * scale * read.width + keep.col;
    const to = (write.row + row) * wide + write.col;
    const lr = Math.floor((keep.row + row) / scale) * read.width;
    for (let col = 0; col < keep.width; col++) {
      if (known && !known[lr + Math.floor((keep.col + col) / scale)]) continue;
      target[to + col] = numberOf(unit[from + col]);
    }
  }
}

function cropped<Kind extends Numbers>(plane: Kind, wide: number, window: Window): Kind {
  const part = new (plane.constructor as new (length: number) => Kind)(window.height * window.width);
  for (let row = 0; row < window.height; row++) {
    const start = (window.row + row) * wide + window.col;
    part.set(plane.subarray(start, start + window.width), row * window.width);
  }
  return part;
}

/** Each pixel scale x scale times. */
function repeated<Kind extends Numbers>(
  plane: Kind,
  { width, height }: { width: number; height: number },
  scale: number,
): Kind {
  const wide = scale * width;
  const result = new (plane.constructor as new (length: number) => Kind)(scale * height * wide);
  for (let row = 0, at = 0; row < scale * height; row++) {
    const start = Math.floor(row / scale) * width;
    for (let col = 0; col < wide; col++) result[at++] = plane[start + Math.floor(col / scale)];
  }
  return result;
}

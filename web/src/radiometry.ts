/** Numbers of a picture in [0, 1] and back, as in src/repmamba/pixels/radiometry.py. */

import { type Range, robustRange } from "./histogram";
import { type Numbers, type Picture, validOf } from "./picture";

/** Beyond it, in unit, are dead pixels and undeclared nodata. */
export const OUTLIER: Range = [-40, 41];

/** Unit values are clipped to it before the network. */
export const NETWORK_RANGE: Range = [-0.5, 1.5];

/** 8-bit pictures use the range of their type, others that of nearly all their values. */
export function rangeOf(picture: Picture): Range {
  const usual: Range = [0, picture.largest];
  if (picture.largest === 255) return usual;
  return robustRange(picture.bands as Uint16Array[], validOf(picture)) ?? usual;
}

export function toUnit(raw: Numbers, [low, high]: Range): Float32Array {
  return Float32Array.from(raw, (number) => (number - low) / (high - low));
}

/** A unit value as a whole number of the type: clipped, then rounded half to even. */
export function fromUnit(unit: number, [low, high]: Range, largest: number): number {
  const number = Math.min(Math.max(unit * (high - low) + low, 0), largest);
  const rounded = Math.round(number);
  return rounded - number === 0.5 && rounded % 2 === 1 ? rounded - 1 : rounded;
}

/**
 * Consistency: the smallest change of a result such that imresize reduces it to its input.
 *
 * The same projection as src/repmamba/inference/consistency.py. Along an axis, reducing is a matrix
 * D with few taps, and its pseudoinverse is D' (D D')^-1. D D' is banded and positive definite, so
 * it is solved through its Cholesky factor, which has the same band.
 */

import { type Taps, taps } from "./resample";

interface Axis {
  length: number; // lr
  down: Taps;
  band: number; // of the factor: entries left of the diagonal
  factor: Float64Array; // (length, band + 1), lower triangle; the diagonal comes last
}

/**
 * The nearest image to sr that is reduced to lr where lr is known.
 *
 * sr: (scale h, scale w), changed in place.  lr: (h, w).  known: (h, w), 0 where lr is missing.
 */
export function makeConsistent(
  sr: Float32Array,
  lr: Float32Array,
  known: Uint8Array | undefined,
  height: number,
  width: number,
  scale: number,
): void {
  const rows = axisOf(height, scale);
  const cols = axisOf(width, scale);
  const difference = reduced(sr, rows, cols, scale * width);
  for (let at = 0; at < difference.length; at++) {
    difference[at] = known && !known[at] ? 0 : lr[at] - difference[at];
  }
  for (let col = 0; col < width; col++) solve(rows, difference, col, width);
  for (let row = 0; row < height; row++) solve(cols, difference, row * width, 1);
  addSpread(sr, difference, rows, cols, scale * width);
}

const axes = new Map<string, Axis>(); // tiles come in a few sizes

function axisOf(length: number, scale: number): Axis {
  const key = `${length} ${scale}`;
  let axis = axes.get(key);
  if (!axis) axes.set(key, (axis = factored(length, taps(scale * length, 1 / scale))));
  return axis;
}

/** The Cholesky factor of D D'. */
function factored(length: number, down: Taps): Axis {
  const rows = down.sources.map((sources, row) => {
    const merged = new Map<number, number>(); // at the edges, a source has several taps
    sources.forEach((source, tap) => {
      const weight = down.weights[row][tap];
      if (weight) merged.set(source, (merged.get(source) ?? 0) + weight);
    });
    return merged;
  });
  const band = Math.min(length - 1, 4); // D's kernel covers four lr pixels
  const size = band + 1;
  const factor = new Float64Array(length * size);
  for (let row = 0; row < length; row++) {
    for (let col = Math.max(0, row - band); col <= row; col++) {
      let total = 0;
      for (const [source, weight] of rows[row]) total += weight * (rows[col].get(source) ?? 0);
      for (let k = Math.max(0, row - band); k < col; k++) {
        total -= factor[row * size + band - row + k] * factor[col * size + band - col + k];
      }
      factor[row * size + band - row + col] =
        row === col ? Math.sqrt(total) : total / factor[col * size + band];
    }
  }
  return { length, down, band, factor };
}

/** D of both axes. */
function reduced(sr: Float32Array, rows: Axis, cols: Axis, wide: number): Float64Array {
  const result = new Float64Array(rows.length * cols.length);
  const line = new Float64Array(wide);
  for (let row = 0; row < rows.length; row++) {
    line.fill(0);
    rows.down.sources[row].forEach((source, tap) => {
      const weight = rows.down.weights[row][tap];
      if (weight) for (let col = 0; col < wide; col++) line[col] += weight * sr[source * wide + col];
    });
    for (let col = 0; col < cols.length; col++) {
      const sources = cols.down.sources[col];
      const weights = cols.down.weights[col];
      let total = 0;
      for (let tap = 0; tap < sources.length; tap++) total += weights[tap] * line[sources[tap]];
      result[row * cols.length + col] = total;
    }
  }
  return result;
}

/** (D D')^-1 of one line of lr numbers, in place. */
function solve(axis: Axis, numbers: Float64Array, first: number, step: number): void {
  const { length, band, factor } = axis;
  const size = band + 1;
  for (let row = 0; row < length; row++) {
    let total = numbers[first + row * step];
    for (let k = Math.max(0, row - band); k < row; k++) {
      total -= factor[row * size + band - row + k] * numbers[first + k * step];
    }
    numbers[first + row * step] = total / factor[row * size + band];
  }
  for (let row = length - 1; row >= 0; row--) {
    let total = numbers[first + row * step];
    for (let k = row + 1; k <= Math.min(length - 1, row + band); k++) {
      total -= factor[k * size + band - k + row] * numbers[first + k * step];
    }
    numbers[first + row * step] = total / factor[row * size + band];
  }
}

/** Add D' of both axes. */
function addSpread(
  sr: Float32Array,
  numbers: Float64Array,
  rows: Axis,
  cols: Axis,
  wide: number,
): void {
  const line = new Float64Array(wide);
  for (let row = 0; row < rows.length; row++) {
    line.fill(0);
    for (let col = 0; col < cols.length; col++) {
      const number = numbers[row * cols.length + col];
      const sources = cols.down.sources[col];
      const weights = cols.down.weights[col];
      for (let tap = 0; tap < sources.length; tap++) line[sources[tap]] += weights[tap] * number;
    }
    rows.down.sources[row].forEach((source, tap) => {
      const weight = rows.down.weights[row][tap];
      if (weight) for (let col = 0; col < wide; col++) sr[source * wide + col] += weight * line[col];
    });
  }
}

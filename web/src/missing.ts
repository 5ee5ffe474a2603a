/** Missing pixels of one band, filled before the network as in src/repmamba/pixels/nodata.py. */

/**
 * unit with a smooth continuation of the known values where known is 0.
 *
 * Each is interpolated from the mean of the known values in the smallest block around it that has
 * any (of 2, 4, 8 ... pixels); 0 without any.
 */
export function filled(
  unit: Float32Array,
  known: Uint8Array,
  height: number,
  width: number,
): Float32Array {
  if (known.every((each) => each)) return unit;
  if (!known.some((each) => each)) return new Float32Array(unit.length);
  const h = (height + 1) >> 1;
  const w = (width + 1) >> 1;
  const sums = new Float32Array(h * w);
  const counts = new Float32Array(h * w);
  for (let row = 0, at = 0; row < height; row++) {
    for (let col = 0; col < width; col++, at++) {
      if (!known[at]) continue;
      const block = (row >> 1) * w + (col >> 1);
      sums[block] += unit[at];
      counts[block]++;
    }
  }
  const means = sums.map((total, block) => total / Math.max(counts[block], 1));
  const present = Uint8Array.from(counts, (count) => (count > 0 ? 1 : 0));
  const smooth = doubled(filled(means, present, h, w), h, w);
  const result = unit.slice();
  for (let row = 0, at = 0; row < height; row++) {
    for (let col = 0; col < width; col++, at++) {
      if (!known[at]) result[at] = smooth[row * 2 * w + col];
    }
  }
  return result;
}

/** Twice as many rows and columns, bilinear between the centres of the coarse pixels. */
function doubled(coarse: Float32Array, height: number, width: number): Float32Array {
  const tall = new Float32Array(2 * height * width);
  for (let row = 0; row < 2 * height; row++) {
    const own = row >> 1;
    const next = Math.min(Math.max(own + (row % 2 ? 1 : -1), 0), height - 1);
    for (let col = 0; col < width; col++) {
      const near = coarse[own * width + col];
      tall[row * width + col] = 0.75 * near + 0.25 * coarse[next * width + col];
    }
  }
  const result = new Float32Array(4 * height * width);
  for (let row = 0; row < 2 * height; row++) {
    for (let col = 0; col < 2 * width; col++) {
      const own = col >> 1;
      const next = Math.min(Math.max(own + (col % 2 ? 1 : -1), 0), width - 1);
      const near = tall[row * width + own];
      result[row * 2 * width + col] = 0.75 * near + 0.25 * tall[row * width + next];
    }
  }
  return result;
}

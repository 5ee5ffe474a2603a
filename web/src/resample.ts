/** Resampling by whole scales: MATLAB's imresize (src/repmamba/pixels/resize.py), and bilinear. */

/** For each pixel of a resized axis, the source pixels and their weights. */
export interface Taps {
  sources: Int32Array[];
  weights: Float64Array[];
}

/** Keys' cubic convolution kernel with a = -1/2, of offsets in pixels. */
function cubic(offset: number): number {
  const t = Math.abs(offset);
  if (t <= 1) return 1.5 * t ** 3 - 2.5 * t ** 2 + 1;
  return t <= 2 ? -0.5 * t ** 3 + 2.5 * t ** 2 - 4 * t + 2 : 0;
}

/** Taps of imresize along an axis; scale: 4 enlarges, 1/4 reduces with antialiasing. */
export function taps(length: number, scale: number): Taps {
  const shrink = Math.min(scale, 1);
  const width = 4 / shrink;
  const result: Taps = { sources: [], weights: [] };
  for (let pixel = 0; pixel < Math.round(length * scale); pixel++) {
    const centre = (pixel + 0.5) / scale - 0.5;
    const first = Math.floor(centre - width / 2);
    const sources = Int32Array.from({ length: Math.ceil(width) + 2 }, (_, tap) => first + tap);
    const weights = Float64Array.from(sources, (source) => cubic(shrink * (centre - source)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    result.sources.push(sources.map((source) => mirrored(source, length)));
    result.weights.push(weights.map((weight) => weight / total));
  }
  return result;
}

/** An index inside the axis, with the edge pixel repeated. */
export function mirrored(index: number, length: number): number {
  const place = ((index % (2 * length)) + 2 * length) % (2 * length);
  return place < length ? place : 2 * length - 1 - place;
}

/** (h, w) -> (scale h, scale w), bilinear between pixel centres, the edge repeated. */
export function bilinear(
  plane: Float32Array,
  height: number,
  width: number,
  scale: number,
): Float32Array {
  const result = new Float32Array(scale * height * scale * width);
  const columns = Array.from({ length: scale * width }, (_, col) => between(col, width, scale));
  for (let row = 0, at = 0; row < scale * height; row++) {
    const [above, below, down] = between(row, height, scale);
    for (const [left, right, along] of columns) {
      const upper = (1 - along) * plane[above * width + left] + along * plane[above * width + right];
      const lower = (1 - along) * plane[below * width + left] + along * plane[below * width + right];
      result[at++] = (1 - down) * upper + down * lower;
    }
  }
  return result;
}

/** The two pixels around a resized pixel, and the weight of the second. */
function between(pixel: number, length: number, scale: number): [number, number, number] {
  const place = Math.max((pixel + 0.5) / scale - 0.5, 0);
  const first = Math.floor(place);
  return [first, Math.min(first + 1, length - 1), place - first];
}

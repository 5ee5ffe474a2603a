/**
 * The value range of 16-bit pictures, as src/repmamba/pixels/histogram.py finds it.
 *
 * Bins are the leading bits of float32 numbers: sign, exponent and 11 bits of mantissa. For whole
 * numbers of 16 bits that is the number without the bits after its first twelve.
 */

const ROBUST = [0.5, 99.5] as const; // percent of the valid values
const FEW = 3; // values that do not affect the range, wherever they are
const WIDEST = 100; // times that the range is widened for a tail, at most
const FILL_SHARE = 0.001; // smallest share of a fill
const MOST_FILLS = 3; // fills below all other values, and above them
const MANY = 5; // fewest other values
const WIDENING = 1; // widths of the others' range, from which a fill is left out of it
const APART = 0.5; // the same, from which a number is a fill
const CROWD = 0.1; // largest share of other numbers near a fill
const OUTLIER = 40; // widths beyond the range, as in radiometry.ts

export type Range = [low: number, high: number];

/** Values in ascending order, and how many pixels have each. */
interface Bins {
  values: Float64Array;
  counts: Float64Array;
}

interface Fill {
  number: number;
  low: number; // the range of nearly all others
  high: number;
}

/**
 * The range of nearly all values; undefined where there are none.
 *
 * bands: that go through the network together, and share a range.
 * valid: 0 where a pixel is missing.
 */
export function robustRange(bands: Uint16Array[], valid?: Uint8Array): Range | undefined {
  const { bins, numbers } = counted(bands, valid);
  for (const fill of fillsOf(bins, numbers)) {
    if (distanceOf(fill) <= WIDENING * (fill.high - fill.low)) continue;
    const far = WIDENING * (fill.high - fill.low);
    bins.values.forEach((value, place) => {
      const beyond = fill.number < fill.low ? fill.low - value : value - fill.high;
      if (beyond > far) bins.counts[place] = 0;
    });
  }
  if (!sum(bins.counts)) return undefined;
  let [low, high] = percentiles(bins);
  if (low === high) [low, high] = rangeOfSparse(bins, low);
  return withTail(bins, low, high);
}

function counted(bands: Uint16Array[], valid?: Uint8Array): { bins: Bins; numbers: number[] } {
  const counts = new Map<number, number>();
  const numbers = new Map<number, number>(); // the last number of each bin
  const exact = new Float64Array(1 << 16);
  for (const band of bands) {
    for (let place = 0; place < band.length; place++) {
      if (!valid || valid[place]) exact[band[place]]++;
    }
  }
  exact.forEach((count, number) => {
    if (!count) return;
    const dropped = Math.max(0, 20 - Math.clz32(number)); // bits after the first twelve
    const bin = (number >> dropped) << dropped;
    counts.set(bin, (counts.get(bin) ?? 0) + count);
    numbers.set(bin, number);
  });
  return {
    bins: { values: Float64Array.from(counts.keys()), counts: Float64Array.from(counts.values()) },
    numbers: [...numbers.values()],
  };
}

/** Numbers that look like undeclared nodata. */
function fillsOf(bins: Bins, numbers: number[]): Fill[] {
  const { values, counts } = bins;
  const total = sum(counts);
  const heavy = [...counts.keys()].filter(
    (place) => counts[place] > FEW && counts[place] >= FILL_SHARE * total,
  );
  const pairs: [number, number][] = [];
  for (let below = 0; below <= MOST_FILLS; below++) {
    for (let above = 0; above <= MOST_FILLS; above++) pairs.push([below, above]);
  }
  // As many as possible: one of two fills would hide that the other is far from the rest.
  pairs.sort((a, b) => b[0] + b[1] - (a[0] + a[1]));
  for (const [below, above] of pairs) {
    if (below + above === 0 || below + above > heavy.length) continue;
    const suspects = [...heavy.slice(0, below), ...heavy.slice(heavy.length - above)];
    const others = counts.slice();
    for (const place of suspects) others[place] = 0;
    const left = values.filter((_, place) => others[place] > 0);
    if (left.length < MANY) continue;
    let [low, high] = percentiles({ values, counts: others });
    if (low === high) [low, high] = [left[0], left[left.length - 1]];
    const stands = (place: number): boolean => {
      const far = APART * (high - low);
      const number = numbers[place];
      let crowd = 0;
      values.forEach((value, at) => {
        if (Math.abs(value - number) < far) crowd += others[at];
      });
      return distanceOf({ number, low, high }) > far && crowd <= CROWD * counts[place];
    };
    if (suspects.every(stands)) {
      return suspects
        .sort((a, b) => counts[b] - counts[a])
        .map((place) => ({ number: numbers[place], low, high }));
    }
  }
  return [];
}

function distanceOf(fill: Fill): number {
  return Math.max(fill.low - fill.number, fill.number - fill.high);
}

function percentiles(bins: Bins): Range {
  const total = sum(bins.counts);
  const [low, high] = ROBUST.map((part) => Math.max(1, (total * part) / 100));
  return [atRank(bins.values, bins.counts, low), atRank(bins.values, bins.counts, high)];
}

/** The value at a rank (from 1), from ascending values and their counts. */
function atRank(values: Float64Array, counts: Float64Array, rank: number): number {
  let before = 0;
  for (let place = 0; place < values.length; place++) {
    before += counts[place];
    if (before >= rank) return values[place];
  }
  return values[values.length - 1];
}

/** Counts of the chosen values, without the commonest if more than FEW have it; else 0. */
function countsOf(counts: Float64Array, chosen: (place: number) => boolean): Float64Array {
  const left = counts.map((count, place) => (chosen(place) ? count : 0));
  const commonest = left.indexOf(left.reduce((most, count) => Math.max(most, count), 0));
  if (left[commonest] > FEW) left[commonest] = 0;
  return left;
}

/** The range of a picture with nearly all values equal. */
function rangeOfSparse(bins: Bins, usual: number): Range {
  const { values } = bins;
  const present = bins.counts;
  const distances = values.map((value) => Math.abs(value - usual));
  const others = countsOf(present, (place) => distances[place] > 0);
  const total = sum(others);
  if (total > FEW) {
    const [near, counts] = ascending(distances, others);
    const share = (ROBUST[1] - ROBUST[0]) / 100;
    const reach = atRank(near, counts, Math.min(total - FEW, total * share));
    const kept = values.filter((_, place) => distances[place] <= reach);
    return [kept[0], kept[kept.length - 1]];
  }
  const start = usual === 0 || values.length > 1 ? Infinity : 0;
  const nearest = distances.reduce((least, far) => (far > 0 ? Math.min(least, far) : least), start);
  return [usual, usual + Math.max(Math.min(1, nearest), Math.abs(usual) / 1024)];
}

/** The range, widened if more than FEW values would be outliers; at most WIDEST times. */
function withTail(bins: Bins, low: number, high: number): Range {
  const beyond = bins.values.map((value) => Math.max(low - value, value - high) / (high - low));
  const tail = countsOf(
    bins.counts,
    (place) => beyond[place] > OUTLIER && beyond[place] < OUTLIER * WIDEST,
  );
  const total = sum(tail);
  if (total <= FEW) return [low, high];
  const [far, counts] = ascending(beyond, tail);
  const limit = 2 * atRank(far, counts, total - FEW);
  let reach = 0;
  beyond.forEach((distance, place) => {
    if (tail[place] > 0 && distance <= limit) reach = Math.max(reach, distance);
  });
  return [low, low + ((high - low) * reach * (1 + 2 ** -10)) / OUTLIER];
}

function ascending(keys: Float64Array, counts: Float64Array): [Float64Array, Float64Array] {
  const order = [...keys.keys()].sort((a, b) => keys[a] - keys[b]);
  return [Float64Array.from(order, (at) => keys[at]), Float64Array.from(order, (at) => counts[at])];
}

function sum(numbers: Float64Array): number {
  return numbers.reduce((total, number) => total + number, 0);
}

/** Picture: the pixels of a file and what they mean, however the file stores them. */

export type Numbers = Uint8Array | Uint16Array;

/** Where a raster lies, as the tags of a GeoTIFF. */
export interface Place {
  pixelScale?: number[]; // ModelPixelScale
  tiepoints?: number[]; // ModelTiepoint: col, row, 0, x, y, z
  transformation?: number[]; // ModelTransformation, 4 x 4
  keys?: number[]; // GeoKeyDirectory
  doubles?: number[]; // GeoDoubleParams
  ascii?: string; // GeoAsciiParams
  isPoint: boolean; // places are those of pixel centres, not of corners
}

export interface Picture {
  name: string;
  width: number;
  height: number;
  bands: Numbers[]; // one, grey, or three: red, green, blue; (height * width) each
  largest: 255 | 65535; // number of the type
  alpha?: Numbers; // 0 where a pixel is missing
  mask?: Uint8Array; // 0 where a pixel is missing
  place?: Place; // undefined: not georeferenced
  isTiff: boolean;
}

/** Where pixels are valid, 1 or 0; undefined where all are. */
export function validOf(picture: Picture): Uint8Array | undefined {
  const marks = picture.mask ?? picture.alpha;
  if (!marks || marks.every((mark) => mark !== 0)) return undefined;
  return Uint8Array.from(marks, (mark) => (mark === 0 ? 0 : 1));
}

/** A file that this page cannot enlarge as the command line would; the message says so in a line. */
export class Unsupported extends Error {}

/** What to do with a file that the engine can enlarge and this page cannot. */
export function onlyOnTheCommandLine(name: string, found: string): Unsupported {
  return new Unsupported(
    `${name} ${found}, which this page cannot enlarge correctly. ` +
      `Use the command line: repmamba upscale ${name.includes(" ") ? `"${name}"` : name}`,
  );
}

/** Pixels of a result that fit into a browser's memory with what is computed beside them. */
const MOST_PIXELS = 1e8;

/** Throws Unsupported for a picture whose result would not fit into memory; for before it is decoded. */
export function checkSize(name: string, width: number, height: number, scale: number): void {
  if (width * height * scale ** 2 > MOST_PIXELS) {
    throw onlyOnTheCommandLine(
      name,
      `has ${width} x ${height} pixels, and x${scale} would make more than ${MOST_PIXELS / 1e6} megapixels`,
    );
  }
}

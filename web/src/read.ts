/** Reading the files that this page takes: PNG, JPEG and GeoTIFF, as the command line reads them. */

import { onlyOnTheCommandLine, type Picture, Unsupported } from "./picture";
import { readJpeg } from "./read_jpeg";
import { readPng } from "./read_png";
import { readTiff } from "./read_tiff";

/** Pixels of a result that fit into a browser's memory with what is computed beside them. */
const MOST_PIXELS = 1e8;

const FORMATS: { named: string; starts: number[][]; read: (file: File) => Promise<Picture> }[] = [
  { named: "PNG", starts: [[0x89, 0x50, 0x4e, 0x47]], read: readPng },
  { named: "JPEG", starts: [[0xff, 0xd8, 0xff]], read: readJpeg },
  {
    named: "TIFF",
    starts: [
      [0x49, 0x49, 42, 0],
      [0x4d, 0x4d, 0, 42],
      [0x49, 0x49, 43, 0],
      [0x4d, 0x4d, 0, 43],
    ],
    read: readTiff,
  },
];

/** The picture in a file. Throws Unsupported. */
export async function readPicture(file: File): Promise<Picture> {
  const head = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  const format = FORMATS.find(({ starts }) =>
    starts.some((start) => start.every((byte, at) => head[at] === byte)),
  );
  if (!format) {
    throw new Unsupported(`${file.name} is not a PNG, JPEG or TIFF file. Choose one of these.`);
  }
  try {
    return await format.read(file);
  } catch (failure) {
    if (failure instanceof Unsupported) throw failure;
    throw new Unsupported(
      `${file.name} cannot be read as a ${format.named} file: it is damaged or incomplete. Get it again.`,
    );
  }
}

/** Throws Unsupported for a picture whose result would not fit into memory. */
export function checkSize(picture: Picture, scale: number): void {
  const { name, width, height } = picture;
  if (width * height * scale ** 2 > MOST_PIXELS) {
    throw onlyOnTheCommandLine(
      name,
      `has ${width} x ${height} pixels, and x${scale} would make more than ${MOST_PIXELS / 1e6} megapixels`,
    );
  }
}

/** Reading the files that this page takes: PNG, JPEG and GeoTIFF, as the command line reads them. */

import { type Picture, Unsupported } from "./picture";
import { readJpeg } from "./read_jpeg";
import { readPng } from "./read_png";
import { readTiff } from "./read_tiff";

/** Throws Unsupported, also for a picture whose result would be too large. */
type Reader = (file: File, scale: number) => Promise<Picture>;

const FORMATS: { named: string; starts: number[][]; read: Reader }[] = [
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

/** The picture in a file, to be enlarged by a scale. Throws Unsupported. */
export async function readPicture(file: File, scale: number): Promise<Picture> {
  const head = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  const format = FORMATS.find(({ starts }) =>
    starts.some((start) => start.every((byte, at) => head[at] === byte)),
  );
  if (!format) {
    throw new Unsupported(`${file.name} is not a PNG, JPEG or TIFF file. Choose one of these.`);
  }
  try {
    return await format.read(file, scale);
  } catch (failure) {
    if (failure instanceof Unsupported) throw failure;
    throw new Unsupported(
      `${file.name} cannot be read as a ${format.named} file: it is damaged or incomplete. Get it again.`,
    );
  }
}

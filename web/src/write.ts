/** A result as a file: GeoTIFF for a TIFF, its place kept; PNG for everything else. */

import { encode } from "fast-png";
import type { Result } from "./engine";
import type { Numbers } from "./picture";
import { tiffOf } from "./write_tiff";

export async function fileOf(result: Result): Promise<File> {
  const stem = result.name.replace(/\.[^.]*$/, "");
  const named = `${stem}_x${result.scale}`;
  if (result.isTiff) {
    return new File([await tiffOf(result)], `${named}.tif`, { type: "image/tiff" });
  }
  const planes = result.alpha ? [...result.bands, result.alpha] : result.bands;
  const png = encode({
    width: result.width,
    height: result.height,
    data: interleaved(planes, 0, result.width * result.height),
    depth: result.largest === 255 ? 8 : 16,
    channels: planes.length,
  });
  return new File([png as BlobPart], `${named}.png`, { type: "image/png" });
}

/** Planes from pixel `first` to `end`, pixel by pixel. */
export function interleaved(planes: Numbers[], first: number, end: number): Numbers {
  const Kind = planes[0] instanceof Uint16Array ? Uint16Array : Uint8Array;
  const pixels = new Kind((end - first) * planes.length);
  planes.forEach((plane, band) => {
    for (let at = first; at < end; at++) pixels[(at - first) * planes.length + band] = plane[at];
  });
  return pixels;
}

/** JPEG files, decoded by the browser: upright, and without colour management. */

import { onlyOnTheCommandLine, type Picture, Unsupported } from "./picture";
import { separated } from "./read_png";

export async function readJpeg(file: File): Promise<Picture> {
  const components = componentsOf(new Uint8Array(await file.arrayBuffer()));
  if (components !== 1 && components !== 3) {
    throw onlyOnTheCommandLine(file.name, `has ${components} colour components`);
  }
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = image;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Unsupported("This browser gives no canvas to decode JPEG files with.");
  context.drawImage(image, 0, 0);
  const planes = separated(context.getImageData(0, 0, width, height).data, 4);
  return {
    name: file.name,
    width,
    height,
    bands: planes.slice(0, components),
    largest: 255,
    isTiff: false,
  };
}

/** How many components the frame header of a JPEG file names. */
function componentsOf(content: Uint8Array): number {
  const view = new DataView(content.buffer);
  for (let at = 2; at + 10 <= content.length; at += 2 + view.getUint16(at + 2)) {
    const marker = content[at + 1];
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return content[at + 9];
  }
  throw new Error("no frame header");
}

/** JPEG files, decoded by the browser: upright, and without colour management. */

import { checkSize, onlyOnTheCommandLine, type Picture, Unsupported } from "./picture";
import { separated } from "./read_png";

export async function readJpeg(file: File, scale: number): Promise<Picture> {
  const frame = frameOf(new DataView(await file.arrayBuffer()));
  const { components } = frame;
  if (components !== 1 && components !== 3) {
    throw onlyOnTheCommandLine(file.name, `has ${components} colour components`);
  }
  checkSize(file.name, frame.width, frame.height, scale);
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

/** What the frame header of a JPEG file says. */
function frameOf(content: DataView): { height: number; width: number; components: number } {
  for (let at = 2; at + 10 <= content.byteLength; at += 2 + content.getUint16(at + 2)) {
    const marker = content.getUint8(at + 1);
    if (marker < 0xc0 || marker > 0xcf || [0xc4, 0xc8, 0xcc].includes(marker)) continue;
    return {
      height: content.getUint16(at + 5),
      width: content.getUint16(at + 7),
      components: content.getUint8(at + 9),
    };
  }
  throw new Error("no frame header");
}

/** TIFF and GeoTIFF files, through geotiff.js. */

import { fromBlob, type GeoTIFFImage } from "geotiff";
import { checkSize, type Numbers, onlyOnTheCommandLine, type Picture, type Place } from "./picture";

const REDUCED = 1; // NewSubfileType: an overview
const MASK = 4; // NewSubfileType: a mask of valid pixels
const GREY = 1; // PhotometricInterpretation
const RGB = 2;
const OF_POINTS = 2; // GTRasterTypeGeoKey

export async function readTiff(file: File, scale: number): Promise<Picture> {
  const tiff = await fromBlob(file);
  const image = await tiff.getImage(0);
  const place = await placeOf(image);
  const found = await faultOf(image, place);
  if (found) throw onlyOnTheCommandLine(file.name, found);
  checkSize(file.name, image.getWidth(), image.getHeight(), scale);
  let mask: Uint8Array | undefined;
  for (let page = 1; page < (await tiff.getImageCount()); page++) {
    const other = await tiff.getImage(page);
    const kind = ((await valueOf(other, "NewSubfileType")) as number | undefined) ?? 0;
    if (kind & REDUCED) continue;
    if (!(kind & MASK)) throw onlyOnTheCommandLine(file.name, "has several pages");
    [mask] = (await other.readRasters()) as unknown as Uint8Array[];
  }
  const planes = (await image.readRasters()) as unknown as Numbers[];
  const bands = [...planes].slice(0, planes.length < 3 ? 1 : 3);
  return {
    name: file.name,
    width: image.getWidth(),
    height: image.getHeight(),
    bands,
    largest: image.getBitsPerSample() === 8 ? 255 : 65535,
    alpha: planes[bands.length],
    mask,
    place,
    isTiff: true,
  };
}

/** What this page cannot do as the engine does, in words; undefined for nothing. */
async function faultOf(image: GeoTIFFImage, place?: Place): Promise<string | undefined> {
  const samples = image.getSamplesPerPixel();
  const bits = Array.from({ length: samples }, (_, band) => image.getBitsPerSample(band));
  const photometric = await valueOf(image, "PhotometricInterpretation");
  const extra = numbersOf(await valueOf(image, "ExtraSamples")) ?? [];
  const colours = photometric === RGB ? 3 : 1;
  if (bits.some((each, band) => each !== bits[0] || image.getSampleFormat(band) !== 1)) {
    return "has numbers that are signed, fractions or of several types";
  }
  if (bits[0] !== 8 && bits[0] !== 16) return `has ${bits[0]} bits per band`;
  if (photometric === 3) return "has a palette";
  if (photometric !== RGB && photometric !== GREY) {
    return `stores its colours as photometric interpretation ${photometric}`;
  }
  if (samples !== colours && !(samples === colours + 1 && (extra[0] === 1 || extra[0] === 2))) {
    return `has ${samples} bands that are not just grey or red, green and blue`;
  }
  if (image.getGDALNoData() !== null) return "declares nodata";
  if (await valueOf(image, 50844)) return "is located by RPCs";
  if (place?.tiepoints && !place.pixelScale && !place.transformation) {
    return "is located by ground control points";
  }
  if (!place && ((await valueOf(image, "Orientation")) ?? 1) !== 1) return "asks to be rotated";
  return undefined;
}

async function placeOf(image: GeoTIFFImage): Promise<Place | undefined> {
  const place = {
    pixelScale: numbersOf(await valueOf(image, "ModelPixelScale")),
    tiepoints: numbersOf(await valueOf(image, "ModelTiepoint")),
    transformation: numbersOf(await valueOf(image, "ModelTransformation")),
    keys: numbersOf(await valueOf(image, "GeoKeyDirectory")),
    doubles: numbersOf(await valueOf(image, "GeoDoubleParams")),
    ascii: (await valueOf(image, "GeoAsciiParams")) as string | undefined,
  };
  if (Object.values(place).every((value) => value === undefined)) return undefined;
  return { ...place, isPoint: image.getGeoKeys()?.GTRasterTypeGeoKey === OF_POINTS };
}

async function valueOf(image: GeoTIFFImage, tag: string | number): Promise<unknown> {
  const directory = image.getFileDirectory();
  if (!directory.hasTag(tag as never)) return undefined;
  return directory.loadValue(tag as never);
}

function numbersOf(value: unknown): number[] | undefined {
  return value === undefined ? undefined : Array.from(value as ArrayLike<number>);
}

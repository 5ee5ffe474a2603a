/** The view: input or bicubic left of a line, the result right of it, on one canvas. */

import type { Result } from "./engine";
import type { Range } from "./histogram";
import type { Numbers, Picture } from "./picture";
import { taps } from "./resample";

export type Before = "input" | "bicubic";

const MOST_ZOOM = 32;

export class View {
  private before: Before = "input";
  private line = 0.5; // share of the canvas
  private zoom = 1; // pixels of the canvas for one of the result
  private left = 0; // of the result, at the canvas's left edge
  private top = 0;
  private rows;
  private cols;
  private layers: { before: HTMLCanvasElement; after: HTMLCanvasElement };
  private scheduled = false;
  private layersAreOld = true;

  constructor(
    private canvas: HTMLCanvasElement,
    private picture: Picture,
    private result: Result,
  ) {
    this.rows = taps(picture.height, result.scale);
    this.cols = taps(picture.width, result.scale);
    this.layers = {
      before: document.createElement("canvas"),
      after: document.createElement("canvas"),
    };
    this.fit();
    if (this.zoom < 1) this.actualSize(); // no pixel of a large result is left out at first
  }

  showBefore(before: Before): void {
    this.before = before;
    this.redraw();
  }

  /** line: share of the canvas's width, 0 to 1. */
  moveLine(line: number): void {
    this.line = line;
    this.schedule();
  }

  /** All of the result, as large as possible. */
  fit(): void {
    const { width, height } = this.canvas;
    this.zoom = Math.min(width / this.result.width, height / this.result.height);
    this.left = (this.result.width - width / this.zoom) / 2;
    this.top = (this.result.height - height / this.zoom) / 2;
    this.redraw();
  }

  /** factor: how many times larger, around a point of the canvas (default its centre). */
  zoomBy(factor: number, x = this.canvas.width / 2, y = this.canvas.height / 2): void {
    const least = Math.min(1, this.canvas.width / this.result.width) / 4;
    const zoom = Math.min(Math.max(this.zoom * factor, least), MOST_ZOOM);
    this.left += x / this.zoom - x / zoom;
    this.top += y / this.zoom - y / zoom;
    this.zoom = zoom;
    this.redraw();
  }

  /** One pixel of the result for one of the canvas. */
  actualSize(): void {
    this.zoomBy(1 / this.zoom);
  }

  /** Move the picture by pixels of the canvas. */
  pan(x: number, y: number): void {
    this.left -= x / this.zoom;
    this.top -= y / this.zoom;
    this.redraw();
  }

  redraw(): void {
    this.layersAreOld = true;
    this.schedule();
  }

  private schedule(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.draw();
    });
  }

  private draw(): void {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    if (!context || !width || !height) return;
    if (this.layersAreOld) {
      this.paint(this.layers.after, this.pixelOf(this.result, 1, this.result.range));
      this.paint(this.layers.before, this.beforePixel());
      this.layersAreOld = false;
    }
    const line = Math.round(this.line * width);
    context.clearRect(0, 0, width, height);
    if (line > 0) context.drawImage(this.layers.before, 0, 0, line, height, 0, 0, line, height);
    if (line < width) {
      const rest = width - line;
      context.drawImage(this.layers.after, line, 0, rest, height, line, 0, rest, height);
    }
    context.fillStyle = "#fff";
    context.fillRect(line - 1, 0, 2, height);
    context.fillStyle = "#000";
    context.fillRect(line + 1, 0, 1, height);
    context.fillRect(line - 2, 0, 1, height);
  }

  /** Fill a layer; pixel: writes the colours of a pixel of the result. */
  private paint(layer: HTMLCanvasElement, pixel: Painter): void {
    layer.width = this.canvas.width;
    layer.height = this.canvas.height;
    const context = layer.getContext("2d");
    if (!context) return;
    const image = context.createImageData(layer.width, layer.height);
    for (let y = 0, at = 0; y < layer.height; y++) {
      const row = Math.floor(this.top + (y + 0.5) / this.zoom);
      for (let x = 0; x < layer.width; x++, at += 4) {
        const col = Math.floor(this.left + (x + 0.5) / this.zoom);
        if (row < 0 || col < 0 || row >= this.result.height || col >= this.result.width) continue;
        pixel(row, col, image.data, at);
      }
    }
    context.putImageData(image, 0, 0);
  }

  private beforePixel(): Painter {
    const { scale, range } = this.result;
    const stored = this.pixelOf(this.picture, scale, range);
    if (this.before === "input") return stored;
    const width = this.picture.width;
    return (row, col, data, at) => {
      stored(row, col, data, at);
      const down = this.rows.sources[row];
      const along = this.cols.sources[col];
      for (let colour = 0; colour < 3; colour++) {
        const band = this.picture.bands[this.picture.bands.length === 3 ? colour : 0];
        let total = 0;
        for (let tap = 0; tap < down.length; tap++) {
          const weight = this.rows.weights[row][tap];
          if (!weight) continue;
          const start = down[tap] * width;
          for (let other = 0; other < along.length; other++) {
            total += weight * this.cols.weights[col][other] * band[start + along[other]];
          }
        }
        data[at + colour] = shown(total, range);
      }
    };
  }

  /** The pixels of a picture that is `smaller` times smaller than the result. */
  private pixelOf(picture: Picture, smaller: number, range: Range): Painter {
    const { width, bands } = picture;
    const marks: Numbers | undefined = picture.mask ?? picture.alpha;
    return (row, col, data, at) => {
      const place = Math.floor(row / smaller) * width + Math.floor(col / smaller);
      for (let colour = 0; colour < 3; colour++) {
        data[at + colour] = shown(bands[bands.length === 3 ? colour : 0][place], range);
      }
      data[at + 3] = marks && !marks[place] ? 0 : 255;
    };
  }
}

type Painter = (row: number, col: number, data: Uint8ClampedArray, at: number) => void;

/** A number of the picture as a level of the screen; a Uint8ClampedArray clips and rounds it. */
function shown(number: number, [low, high]: Range): number {
  return (255 * (number - low)) / (high - low);
}

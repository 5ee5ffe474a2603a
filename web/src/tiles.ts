/** Tile plans, as in src/repmamba/tiles/plan.py: which windows to read, and what to keep of each. */

/** Rows row to row + height and columns col to col + width, ends excluded, in pixels. */
export interface Window {
  row: number;
  col: number;
  height: number;
  width: number;
}

export interface Tile {
  read: Window; // lr, halo included, clipped to the picture
  keep: Window; // hr, inside this tile's result
  write: Window; // hr, inside the whole result; same size as keep
}

export function planTiles(
  height: number,
  width: number,
  scale: number,
  tile: number,
  halo: number,
): Tile[] {
  const tiles: Tile[] = [];
  for (let row = 0; row < height; row += tile) {
    for (let col = 0; col < width; col += tile) {
      const kept = clipped({ row, col, height: tile, width: tile }, height, width);
      const read = clipped(
        { row: row - halo, col: col - halo, height: tile + 2 * halo, width: tile + 2 * halo },
        height,
        width,
      );
      const inside = { ...kept, row: kept.row - read.row, col: kept.col - read.col };
      tiles.push({ read, keep: scaled(inside, scale), write: scaled(kept, scale) });
    }
  }
  return tiles;
}

function clipped(window: Window, height: number, width: number): Window {
  const row = Math.max(0, window.row);
  const col = Math.max(0, window.col);
  return {
    row,
    col,
    height: Math.min(height, window.row + window.height) - row,
    width: Math.min(width, window.col + window.width) - col,
  };
}

function scaled(window: Window, scale: number): Window {
  return {
    row: scale * window.row,
    col: scale * window.col,
    height: scale * window.height,
    width: scale * window.width,
  };
}

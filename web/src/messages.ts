/** What the page and its worker send each other. */

import type { Result } from "./engine";
import type { Model } from "./network";
import type { Picture } from "./picture";

/** To the worker: enlarge a file. */
export interface Request {
  file: File;
  model: Model;
  useGpu: boolean;
}

/** From the worker, in this order; a failure ends the run. */
export type Answer =
  | { kind: "started"; picture: Pick<Picture, "width" | "height">; runsOn: string }
  | { kind: "progress"; done: number }
  | { kind: "finished"; picture: Picture; result: Result; file: File }
  | { kind: "failed"; message: string };

import type { StageOptions } from "../work/progress.ts";

/** What training a LoRA and training weights have in common. */
export interface TrainOptions extends StageOptions {
  /** Folder of training pictures, see `readTrainingFolder`. */
  pairs: string;
  /** File or folder to write. */
  out: string;
  /** See `chooseLayers`. */
  layers?: string;
  steps?: number;
  batch?: number;
  learningRate?: number;
  warmup?: number;
  weightDecay?: number;
  clipNorm?: number;
  /** Decay of the parameters' moving average, which is what is written; 0 writes the last parameters. */
  averageDecay?: number;
  captionDropout?: number;
  /** Adds every example mirrored. */
  flip?: boolean;
  /** Pixels, `[height, width]`; default: what the model was trained with. */
  size?: readonly [height: number, width: number];
  /** Folder of pictures kept out of training: the parameters with the least loss on them are written. */
  validation?: string;
  /** Steps between two measurements on `validation`. */
  validateEvery?: number;
  seed?: number;
  /** Recompute activations in this many segments: less memory, more time. "auto": only where memory is short. */
  segments?: number | "auto";
  checkpointEvery?: number;
  threads?: number;
  onWarning?: (message: string) => void;
}

/** Defaults of {@link TrainOptions}. */
export const runDefaults = {
  layers: "attention,feed-forward",
  steps: 1500,
  batch: 8,
  learningRate: 1e-3,
  warmup: 50,
  weightDecay: 0.01,
  clipNorm: 1,
  averageDecay: 0.995,
  captionDropout: 0.1,
  flip: false,
  validateEvery: 200,
  seed: 0,
  segments: "auto",
  checkpointEvery: 100,
  threads: 2,
} as const;

export type CompleteOptions = TrainOptions & Required<Pick<TrainOptions, keyof typeof runDefaults>>;

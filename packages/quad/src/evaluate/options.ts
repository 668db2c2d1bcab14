import type { BuildConfig } from "../settings/config.ts";
import type { StageOptions } from "../work/progress.ts";
import type { NetworkPaths } from "./networks.ts";
import type { SimulatedVariant } from "./simulated-variants.ts";

/** Denoiser calls per task that layers are measured on. */
export const defaultLayerCalls = 3;

/** What `evaluate` compares with, draws and measures. */
export interface EvaluateOptions extends StageOptions {
  /** Full-precision model folder, or an exposed folder. */
  against: string;
  /** Cases per task, and where adapters and observations are found. */
  config: BuildConfig;
  /** Folder for `evaluation.json`, the pictures, and what a second run can use again. */
  out: string;
  /** Pictures per task; default: one per evaluation case. */
  pictures?: number;
  /** Tasks to evaluate; default: all that have cases. */
  tasks?: readonly string[];
  /** Original LoRA files by adapter name, where they are not found by themselves. */
  adapters?: Readonly<Record<string, string>>;
  /** Default: the candidate's own `profile.json`. */
  profile?: string;
  /** Default: those of the configuration's build, where its calibration is done and nothing that it depends on has changed. */
  observations?: string;
  /**
   * Simulated variants to draw too: the profile without training, a profile per task, everything at 8 bits; default: all.
   * With false, nothing is simulated, and causes are not measured.
   */
  simulate?: false | readonly SimulatedVariant[];
  /** Shares of narrow layers to draw for the ablation table, 0 to 1. */
  shares?: readonly number[];
  /** Denoiser calls per task that layers are measured on; 0 leaves this out. */
  layerCalls?: number;
  networks?: NetworkPaths;
}

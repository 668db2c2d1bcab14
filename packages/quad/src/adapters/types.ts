/** Parts of a pipeline that adapters change, named as in diffusers. */
export type AdapterComponent =
  | "unet"
  | "transformer"
  | "text_encoder"
  | "text_encoder_2"
  | "text_encoder_3"
  | "controlnet";

/** A layer of the model that a LoRA can be attached to. */
export interface AdaptableModule {
  readonly component: AdapterComponent;
  /** Dotted diffusers path inside the component, such as `down_blocks.0.attentions.0.proj_in`. */
  readonly name: string;
  readonly kind: "linear" | "conv";
  /** Input features or channels, over all groups. */
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** Height and width of a convolution's kernel; `[1, 1]` where absent. */
  readonly kernel?: readonly [number, number];
  readonly groups?: number;
}

/** One layer's low-rank change: `delta = up x down`, for strength 1. */
export interface AdapterLayer {
  readonly component: AdapterComponent;
  /** The module's name in the model. */
  readonly module: string;
  readonly rank: number;
  /** `[rank, in]`, or `[rank, in / groups, kernel height, kernel width]` for convolutions; layers may share it. */
  readonly down: Float32Array;
  /** `[out, rank]`, with alpha / rank (or what else the file scales by) folded in. */
  readonly up: Float32Array;
}

/** How the file names its tensors. */
export type AdapterFormat = "kohya" | "lycoris" | "diffusers" | "peft";

/** What became of every key of the file: each stands in exactly one of the lists. */
export interface AdapterReport {
  /** `module` lists several names, joined by ` + `, where a fused weight was split. */
  readonly matched: readonly { key: string; module: string; component: AdapterComponent }[];
  readonly unmatched: readonly { key: string; reason: string }[];
  readonly mismatched: readonly { key: string; module: string; expected: string; got: string }[];
  /** What the user has to know besides: changes that were shortened, alphas that found no layer, products that are zero. */
  readonly warnings: readonly string[];
  /** Smallest and largest rank among the layers. */
  readonly rankMin: number;
  readonly rankMax: number;
}

/** A LoRA in a form that no longer depends on the file's format. */
export interface ImportedAdapter {
  readonly name: string;
  /** The path it was read from. */
  readonly source: string;
  readonly format: AdapterFormat;
  readonly layers: readonly AdapterLayer[];
  readonly report: AdapterReport;
}

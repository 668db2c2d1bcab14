import type { AdapterTarget } from "../names/target.ts";
import type { AdapterFormat } from "../types.ts";

/** A key that belongs to a method: which of a layer's tensors it names, and the layer in the file's spelling. */
export interface LayerKey {
  readonly part: string;
  /** The key without its suffix: prefix and module. */
  readonly module: string;
  readonly format?: AdapterFormat;
}

/** A problem with a layer's tensors that leaves the layer out. */
export interface Mismatch {
  readonly expected: string;
  readonly got: string;
}

/** One layer's tensors in a file, as a method reads them. */
export interface LayerTensors {
  readonly target: AdapterTarget;
  has(part: string): boolean;
  /** Shape of a part that the layer has. */
  shape(part: string): readonly number[];
  /** @throws InputError for integers in place of weights and for values that are not finite */
  read(part: string): Promise<Float32Array>;
  /**
   * The factor that a rank, alpha and configuration give: alpha / rank, 1 without an alpha.
   * @param rank - Rank that alpha is divided by; undefined where the tensors show none.
   */
  scale(rank: number | undefined): Promise<number | Mismatch>;
  /** The layer's own alpha: the file's, the configuration's, or undefined. */
  alpha(): Promise<number | undefined | Mismatch>;
  /** @throws InputError where a value that was computed from a part is not finite */
  assertFinite(values: Float32Array, part: string): void;
}

/** A layer's change as a product `up down`, all scaling folded into `up`. */
export interface LayerFactors {
  readonly rank: number;
  /** `[rank, ...]` */
  readonly down: Float32Array;
  /** `[out, rank]` */
  readonly up: Float32Array;
  /** Frobenius norm of what the product leaves out, relative to that of the change; absent where it is exact. */
  readonly error?: number;
}

/** A way to describe a layer's change by smaller tensors, which can be brought into the form of two factors. */
export interface AdapterMethod {
  readonly name: string;
  /** Takes a key apart by its suffix; undefined where it is not one of this method. */
  parse(key: string): LayerKey | undefined;
  /** Whether a layer with these parts is of this method. */
  accepts(parts: ReadonlySet<string>): boolean;
  /**
   * @param maximumRank - Bound of the product's rank; a change of a larger one is truncated.
   */
  read(layer: LayerTensors, maximumRank: number): Promise<LayerFactors | Mismatch>;
}

/** Folds a factor into `up`. */
export function scaled(values: Float32Array, factor: number): Float32Array {
  return factor === 1 ? values : values.map((value) => value * factor);
}

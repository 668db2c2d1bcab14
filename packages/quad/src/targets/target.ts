import type { Model } from "@quad-lora/onnx";
import type { CodeNodes } from "../quantizable/code-nodes.ts";
import type { PlacedPoint } from "../quantizable/points.ts";
import type { Quantizable } from "../quantizable/quantizable.ts";
import type { WeightCodes } from "../quantizable/weight-codes.ts";
import type { Encoding } from "../quantization/index.ts";

/**
 * What a quantized graph is made for. A target is one folder here and a line in `index.ts`; profiles, configurations and
 * manifests know it by its name, and everything else in Quad asks it.
 */
export interface Target {
  readonly name: string;
  /** One sentence for people who choose a target. */
  readonly description: string;
  /** Whether its graph has static shapes: all adapters are then padded to one rank, which the graph is compiled for. */
  readonly hasFixedRank: boolean;
  /**
   * Operators beyond the ONNX standard that its graphs may have, `DOMAIN.OPERATOR`: the ONNX Runtime that opens a bundle has
   * to have them. A manifest names those that its graph uses.
   */
  readonly operators: readonly string[];
  /** Where its graph rounds activations, in the order of the graph: what gets an encoding from a profile. */
  points(quantizable: Quantizable): PlacedPoint[];
  /** Gives a prepared graph the target's form: integer weights, and activations quantized at {@link points}. Edits `model` in place. */
  place(model: Model, quantizable: Quantizable, tools: PlacementTools): void;
}

/** What a target's graph is built with. */
export interface PlacementTools {
  codes: CodeNodes;
  weights: WeightCodes;
  /** Layers whose inputs have 8 bits. */
  narrowLayers: ReadonlySet<string>;
  /**
   * The encoding of one of the target's points, unsigned, affine and per tensor.
   * @throws InputError where the profile lacks the point
   */
  encodingOf: (point: string) => Encoding;
}

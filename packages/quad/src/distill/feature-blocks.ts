import { InputError } from "@quad-lora/base";
import type { Model, Value } from "@quad-lora/onnx";
import { modulePath } from "../layers/module-names.ts";

/** A block of the denoiser whose output student and teacher are compared at. */
export interface FeatureBlock {
  /** Module path, `down_blocks.0`. */
  name: string;
  /** Name of the value behind it, in the prepared graph and in graphs made from it. */
  output: string;
  /** Shape of that value. */
  dims: readonly number[];
}

/** Features are `[rows, channels, height, width]` or `[rows, tokens, width]`; time embeddings and other vectors are none. */
const leastAxes = 3;

/**
 * The blocks of a prepared graph whose module paths match, in execution order. A block's output is the last value in
 * execution order that its nodes, adapter branches included, compute for nodes outside of it.
 * @param patterns - regular expressions over module paths; a block inside a matching one counts where it matches itself
 * @throws InputError where nothing matches, naming the outermost blocks there are
 */
export function findFeatureBlocks({ graph, file }: Model, patterns: readonly string[]): FeatureBlock[] {
  const expressions = patterns.map((pattern) => new RegExp(pattern));
  const isWanted = (name: string) => expressions.some((expression) => expression.test(name));
  const paths = new Map([...graph.nodes].map((node) => [node, modulePath(node) ?? ""]));
  const outermost = new Set<string>();
  const outputs = new Map<string, Value>();
  for (const node of graph.sorted()) {
    const value = node.outputs[0];
    const shape = value?.concreteShape;
    if (value?.dataType !== "float32" || !shape || shape.length < leastAxes) continue;
    const segments = paths.get(node)!.split(".");
    outermost.add(segments.slice(0, /^\d+$/.test(segments[1] ?? "") ? 2 : 1).join("."));
    for (let length = 1; length <= segments.length; length++) {
      const name = segments.slice(0, length).join(".");
      if (!isWanted(name)) continue;
      const isRead = value.uses.some((use) => !`${paths.get(use.node) ?? ""}.`.startsWith(`${name}.`));
      // Moved to the end: blocks stand in the order in which they are finished.
      if (isRead || graph.outputs.includes(value)) {
        outputs.delete(name);
        outputs.set(name, value);
      }
    }
  }
  if (outputs.size === 0) {
    throw new InputError({
      what: "no block of the denoiser has features to compare",
      ...(file ? { file } : {}),
      where: "distill.featureBlocks",
      expected: `regular expressions that match ${[...outermost].filter(Boolean).join(", ")} or a module inside`,
      got: patterns.join(", "),
      fix: "Correct the expressions, or set distill.features to 0.",
    });
  }
  return [...outputs].map(([name, value]) => ({ name, output: value.name, dims: value.concreteShape! }));
}

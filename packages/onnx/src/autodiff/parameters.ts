import type { Model } from "../ir/model.ts";
import { elementCount } from "../ir/tensor.ts";
import type { Value } from "../ir/value.ts";
import { Builder } from "./builder.ts";

/** Where one tensor lies inside a vector of parameters. */
export interface PackedParameter {
  readonly name: string;
  /** Index of the first element. */
  readonly offset: number;
  readonly dims: readonly number[];
}

/** Where parameters lie in the vector that replaces them. */
export interface PackedParameters {
  /** The graph input that holds all of them, `[size]`. */
  readonly vector: Value;
  readonly size: number;
  readonly layout: readonly PackedParameter[];
}

/**
 * Replaces float graph inputs by pieces of one new vector input. A vector has one gradient, and an optimizer step on it
 * is a dozen operators instead of a dozen for each of hundreds of tensors.
 * @param inputs - graph inputs of one element type and with concrete shapes; they leave the graph
 */
export function packInputs(model: Model, inputs: readonly Value[], name: string): PackedParameters {
  const build = new Builder(model);
  build.scope = name;
  const { graph } = model;
  const layout: PackedParameter[] = [];
  let size = 0;
  for (const input of inputs) {
    const dims = build.dims(input);
    layout.push({ name: input.name, offset: size, dims });
    size += elementCount(dims);
  }
  const vector = graph.addInput(name, build.type(inputs[0]), [size]);
  const pieces = build.split(
    vector,
    0,
    layout.map(({ dims }) => elementCount(dims)),
  );
  inputs.forEach((input, index) => {
    graph.replace(input, build.reshape(pieces[index], layout[index].dims));
    graph.inputs.splice(graph.inputs.indexOf(input), 1);
  });
  return { vector, size, layout };
}

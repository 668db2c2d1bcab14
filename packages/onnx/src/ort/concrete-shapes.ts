import { InputError } from "@quad-lora/base";
import { cloneModel } from "../ir/clone.ts";
import type { Model } from "../ir/model.ts";
import { makesSequence, outputDataType } from "../ir/operator-types.ts";
import { elementCount, type NumericDataType, Tensor } from "../ir/tensor.ts";
import { tensorType, type Value } from "../ir/value.ts";
import { runModel } from "./run.ts";
import { replaceLayersByShapes } from "./shape-probe.ts";

/** Lengths for the symbolic dimensions of graph inputs: by symbol (`batch`), or whole shapes by input name. */
export interface ShapeBindings {
  symbols?: Readonly<Record<string, number>>;
  inputs?: Readonly<Record<string, readonly number[]>>;
}

/** Concrete dimensions of a graph input. Throws {@link InputError} for a dimension that nothing binds. */
export function bindShape(model: Model, input: Value, bindings: ShapeBindings): readonly number[] {
  const given = bindings.inputs?.[input.name];
  const declared = input.type?.kind === "tensor" ? input.type.shape : null;
  if (given) {
    const fits =
      !declared ||
      (declared.length === given.length &&
        declared.every((dim, index) => typeof dim !== "number" || dim === given[index]));
    if (fits) return given;
    throw new InputError({
      what: "the given shape does not fit the graph input",
      file: model.file,
      where: `input "${input.name}"`,
      expected: `[${declared}]`,
      got: `[${given}]`,
    });
  }
  if (!declared) {
    throw new InputError({
      what: "a shape must be given: the model declares none",
      file: model.file,
      where: `input "${input.name}"`,
    });
  }
  return declared.map((dim) => {
    const length = typeof dim === "number" ? dim : dim === null ? undefined : bindings.symbols?.[dim];
    if (length !== undefined) return length;
    throw new InputError({
      what: `no length is given for dimension "${dim ?? "?"}"`,
      file: model.file,
      where: `input "${input.name}"`,
      fix: `Bind it, for example { ${dim ?? "name"}: 1 }.`,
    });
  });
}

/** Ones of the given type: no input that a graph divides by, takes the root of or looks up is out of its domain. */
export function onesTensor(dataType: NumericDataType, dims: readonly number[]): Tensor {
  const count = elementCount(dims);
  if (dataType === "int64") return Tensor.int64(dims, new Array(count).fill(1));
  if (dataType === "float32") return Tensor.float32(dims, new Float32Array(count).fill(1));
  if (dataType === "float16") return Tensor.of("float16", dims, new Uint16Array(count).fill(0x3c00));
  if (dataType === "float64") return Tensor.of("float64", dims, new Float64Array(count).fill(1));
  if (dataType === "int32") return Tensor.of("int32", dims, new Int32Array(count).fill(1));
  if (dataType === "bool") return Tensor.of("bool", dims, new Uint8Array(count).fill(1));
  if (dataType === "int8") return Tensor.of("int8", dims, new Int8Array(count).fill(1));
  if (dataType === "uint8") return Tensor.of("uint8", dims, new Uint8Array(count).fill(1));
  throw new TypeError(`no ones of type ${dataType}`);
}

/**
 * Finds the concrete type and shape of every value of the main graph, by running the model once in ONNX Runtime with
 * Shape outputs added, and writes them into the values' types. Inputs that `samples` lacks are ones.
 * Static shapes do not depend on the inputs' content; for a graph where they do, give samples.
 */
export async function inferShapes(
  model: Model,
  bindings: ShapeBindings = {},
  samples: Readonly<Record<string, Tensor>> = {},
): Promise<void> {
  const feeds: Record<string, Tensor> = {};
  for (const input of model.graph.inputs) {
    if (input.initializer) continue;
    const dims = samples[input.name]?.dims ?? bindShape(model, input, bindings);
    const dataType = input.dataType as NumericDataType;
    feeds[input.name] = samples[input.name] ?? onesTensor(dataType, dims);
    input.type = tensorType(dataType, dims);
  }
  const values: Value[] = [];
  for (const node of model.graph.sorted()) {
    node.outputs.forEach((value, index) => {
      if (!value || value.type?.kind === "opaque" || makesSequence(node)) return;
      const dataType = value.dataType ?? outputDataType(node, index);
      if (dataType) value.type = tensorType(dataType, null);
      values.push(value);
    });
  }
  const probe = cloneModel(model);
  probe.graph.outputs.length = 0;
  const probes: [string, Value][] = [];
  const twins = probe.graph.valuesByName();
  // Last value first: ONNX Runtime works its way to the last leaf of the graph before it turns to the one before, and a
  // value stays in memory until its Shape has run.
  for (const value of values.reverse()) {
    const shape = probe.graph.apply("Shape", [twins.get(value.name)!], { name: `shape_of_${probes.length}` });
    shape.type = tensorType("int64", null);
    probe.graph.outputs.push(shape);
    probes.push([shape.name, value]);
  }
  replaceLayersByShapes(probe);
  const shapes = await runModel(probe, feeds, { graphOptimizationLevel: "disabled" });
  for (const [name, value] of probes) {
    const dims = shapes.get(name)!.toNumbers();
    const dataType = value.dataType;
    if (dataType) value.type = tensorType(dataType, dims);
  }
}

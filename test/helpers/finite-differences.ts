import {
  type AttributeInput,
  buildGradients,
  checkModel,
  createSession,
  type GradientOptions,
  Graph,
  inferShapes,
  Model,
  Node,
  runSession,
  Tensor,
  tensorType,
  Value,
} from "@quad-lora/onnx";

/** Repeatable numbers in [0, 1). (Mulberry32.) */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface OperatorCase {
  op: string;
  domain?: string;
  opset?: number;
  attributes?: Record<string, AttributeInput>;
  inputs: readonly CaseInput[];
  outputs?: number;
  /** float64 gives sharper differences where the operator has such a kernel. */
  type?: "float32" | "float64";
  tolerance?: number;
  options?: GradientOptions;
  seed?: number;
}

/** An omitted input, a constant, or a float input that is differentiated. */
export type CaseInput =
  | null
  | Tensor
  | {
      dims: readonly number[];
      /** Values are drawn from this range; -1 to 1 unless given. */
      from?: number;
      to?: number;
      /** All values differ, in random order: for operators with kinks where elements tie. */
      distinct?: boolean;
      /** Values keep this distance from zero. */
      awayFromZero?: number;
      /** Given content instead of random numbers. */
      values?: readonly number[];
      /** Not differentiated. */
      frozen?: boolean;
    };

/**
 * Compares the gradients of one operator with central differences of its own outputs, in every element:
 * the loss is a random weighting of the outputs, summed in float64.
 * @returns the largest deviation, relative to the largest element of each gradient
 */
export async function gradientError(example: OperatorCase): Promise<number> {
  const type = example.type ?? "float32";
  const random = randomNumbers(example.seed ?? 1);
  const model = new Model(new Graph("case"));
  model.irVersion = 10;
  model.opsets.set("", example.opset ?? 17);
  if (example.domain) model.opsets.set(example.domain, 1);
  const { graph } = model;
  const feeds: Record<string, Tensor> = {};
  const wrt: Value[] = [];
  const inputs = example.inputs.map((input, index) => {
    if (input === null) return null;
    if (input instanceof Tensor) return graph.addInitializer(`constant${index}`, input);
    const value = graph.addInput(`input${index}`, type, input.dims);
    feeds[value.name] = floats(type, input.dims, drawValues(input, random));
    if (!input.frozen) wrt.push(value);
    return value;
  });
  const node = new Node(example.op, inputs, {
    name: "node",
    ...(example.domain && { domain: example.domain }),
    ...(example.attributes && { attributes: example.attributes }),
  });
  for (let index = 0; index < (example.outputs ?? 1); index++) node.addOutput(new Value(`output${index}`));
  graph.insert(node);
  const outputs = node.outputs.map((value) => value!);
  for (const value of outputs) value.type = tensorType(type, null);
  graph.outputs.push(...outputs);
  await inferShapes(model, {}, feeds);

  const weights = outputs.map((value) => Array.from({ length: size(value.concreteShape!) }, () => random() * 2 - 1));
  const forward = await createSession(model, { graphOptimizationLevel: "disabled" });
  const loss = async () => {
    const results = await runSession(forward, feeds);
    return outputs.reduce((sum, value, index) => sum + dot(results.get(value.name)!.toNumbers(), weights[index]), 0);
  };

  const seeds = outputs.map((value, index) =>
    graph.addInitializer(`seed${index}`, floats(type, value.concreteShape!, weights[index])),
  );
  const gradients = buildGradients(model, {
    outputs: outputs.map((value, index) => ({ value, seed: seeds[index] })),
    wrt,
    ...example.options,
  });
  graph.outputs.push(...new Set(wrt.map((value) => gradients.get(value)!)));
  checkModel(model);
  const backward = await createSession(model, { graphOptimizationLevel: "disabled" });
  const computed = await runSession(backward, feeds);
  const step = type === "float64" ? 1e-5 : 4e-3;
  let worst = 0;
  for (const value of wrt) {
    const gradient = computed.get(gradients.get(value)!.name)!;
    if (gradient.dims.join() !== value.concreteShape!.join()) return Number.POSITIVE_INFINITY;
    const array = feeds[value.name].array() as Float32Array;
    const expected: number[] = [];
    for (let index = 0; index < array.length; index++) {
      const original = array[index];
      array[index] = original + step;
      const above = array[index];
      const high = await loss();
      array[index] = original - step;
      const below = array[index];
      const low = await loss();
      array[index] = original;
      expected.push((high - low) / (above - below));
    }
    worst = Math.max(worst, relativeError(gradient.toNumbers(), expected));
  }
  await forward.release();
  await backward.release();
  return worst;
}

/** Largest difference over the largest reference element; NaN counts as infinite. */
export function relativeError(actual: ArrayLike<number>, reference: ArrayLike<number>): number {
  let difference = 0;
  let scale = 0;
  for (let index = 0; index < reference.length; index++) {
    const distance = Math.abs(actual[index] - reference[index]);
    difference = Math.max(difference, Number.isNaN(distance) ? Number.POSITIVE_INFINITY : distance);
    scale = Math.max(scale, Math.abs(reference[index]));
  }
  return difference === 0 ? 0 : difference / Math.max(scale, 1e-3);
}

function drawValues(input: Exclude<CaseInput, null | Tensor>, random: () => number): number[] {
  if (input.values) return [...input.values];
  const { from = -1, to = 1 } = input;
  const count = size(input.dims);
  if (input.distinct) {
    const order = Array.from({ length: count }, (_, index) => ({ index, key: random() })).sort((a, b) => a.key - b.key);
    return order.map(({ index }) => from + ((to - from) * (index + 0.5)) / count);
  }
  const gap = input.awayFromZero ?? 0;
  return Array.from({ length: count }, () => {
    const value = from + (to - from) * random();
    return value < 0 ? value - gap : value + gap;
  });
}

function floats(type: "float32" | "float64", dims: readonly number[], values: readonly number[]): Tensor {
  return type === "float32" ? Tensor.float32(dims, values) : Tensor.of("float64", dims, Float64Array.from(values));
}

function size(dims: readonly number[]): number {
  return dims.reduce((product, dim) => product * dim, 1);
}

function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, index) => sum + value * b[index], 0);
}

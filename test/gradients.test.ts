import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseSafetensors, toFloat32, toTypedArray } from "@quad-lora/base";
import {
  Builder,
  buildGradients,
  createSession,
  loadModel,
  type Model,
  meanSquaredError,
  runModel,
  runPasses,
  runSession,
  specialize,
  Tensor,
  type Value,
} from "@quad-lora/onnx";
import { bindAdapter, exposeGraph, findLayers, importAdapter } from "quad-lora";
import { describe, expect, test } from "vitest";
import { randomNumbers, relativeError } from "./helpers/finite-differences.ts";

const root = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const tensorsOf = (path: string) => parseSafetensors(readFileSync(root(path)), path).tensors;

const reference = tensorsOf("test/reference/pocket/unet.safetensors");

function floatTensor(tensors: ReturnType<typeof tensorsOf>, name: string): Tensor {
  const tensor = tensors.get(name)!;
  return Tensor.float32(tensor.shape, toFloat32(tensor));
}

const unetInputs = {
  sample: floatTensor(reference, "sample"),
  timestep: Tensor.of("int64", [], toTypedArray(reference.get("timestep")!) as BigInt64Array<ArrayBuffer>),
  encoder_hidden_states: floatTensor(reference, "encoder_hidden_states"),
};
const inputShapes = Object.fromEntries(Object.entries(unetInputs).map(([name, tensor]) => [name, tensor.dims]));

/** The pocket UNet with one adapter's layers exposed, and the adapter's factors by graph input. */
async function unetWithAdapter(path: string) {
  const model = loadModel(root("models/pocket/unet/model.onnx"));
  const { layers } = findLayers(model);
  const modules = layers.map((layer) => ({
    ...layer,
    component: "unet" as const,
    kind: layer.kind === "conv" ? ("conv" as const) : ("linear" as const),
  }));
  const adapter = await importAdapter(root(path), modules, { name: "adapter" });
  const used = new Set(adapter.layers.map((layer) => layer.module));
  const { rankMax } = adapter.report;
  const exposed = exposeGraph(
    model,
    "unet",
    layers.filter((layer) => used.has(layer.name)),
    { kind: "fixed", rank: rankMax },
  );
  const bound = bindAdapter(adapter.layers, { unet: exposed });
  const feeds: Record<string, Tensor> = {
    ...unetInputs,
    [exposed.strengthInput]: Tensor.float32([rankMax], new Float32Array(rankMax).fill(1)),
  };
  for (const { name, shape, data } of bound.tensors) feeds[name] = Tensor.float32(shape, data as Float32Array);
  await specialize(model, { inputs: inputShapes });
  return { model, feeds, slots: exposed.slots };
}

function inputOf(model: Model, name: string): Value {
  return model.graph.inputs.find((value) => value.name === name)!;
}

/** `[rows, columns]` -> `[columns, rows]`. */
function transposed(values: ArrayLike<number>, rows: number, columns: number): Float32Array {
  const result = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * rows + row] = values[row * columns + column];
  }
  return result;
}

describe("the UNet's gradients by every adapter factor equal PyTorch's", () => {
  test.each([
    // Files hold the factors before scaling by alpha / rank, and so do the reference gradients.
    { name: "flat", path: "models/pocket/adapters/flat.safetensors", scale: 0.5, segments: 1 },
    { name: "flat", path: "models/pocket/adapters/flat.safetensors", scale: 0.5, segments: 5 },
    { name: "sketch", path: "models/pocket/adapters/sketch", scale: 1, segments: 1 },
  ])("$name in $segments segment(s)", async ({ name, path, scale, segments }) => {
    const expected = tensorsOf(`test/reference/pocket/gradients-${name}.safetensors`);
    const { model, feeds, slots } = await unetWithAdapter(path);
    const build = new Builder(model);
    const output = model.graph.outputs[0];
    const target = model.graph.addInput("target", "float32", build.dims(output));
    const loss = meanSquaredError(build, output, target);
    const factors = slots.flatMap((slot) => [inputOf(model, slot.inputA), inputOf(model, slot.inputB)]);
    const gradients = buildGradients(model, { outputs: [{ value: loss }], wrt: factors, segments });
    model.graph.outputs.length = 0;
    model.graph.outputs.push(loss, ...factors.map((value) => gradients.get(value)!));
    const names = new Map(factors.map((value, index) => [value.name, index + 1]));
    await runPasses(model);
    const results = await runModel(model, { ...feeds, target: floatTensor(expected, "target") });
    const result = (index: number) => results.get(model.graph.outputs[index].name)!.toFloat32();
    expect(relativeError(result(0), toFloat32(expected.get("loss")!))).toBeLessThan(1e-4);

    const errors = new Map<string, number>();
    for (const slot of slots) {
      const down = expected.get(`${slot.name}.down`)!;
      const up = expected.get(`${slot.name}.up`)!;
      const [a, b] = [result(names.get(slot.inputA)!), result(names.get(slot.inputB)!)];
      const rank = down.shape[0];
      const isConv = slot.kind === "conv";
      errors.set(down.name, relativeError(isConv ? a : transposed(a, slot.inFeatures, rank), toFloat32(down)));
      const scaled = (isConv ? b : transposed(b, rank, slot.outFeatures)).map((value) => value * scale);
      errors.set(up.name, relativeError(scaled, toFloat32(up)));
    }
    expect(errors.size).toBe([...expected.keys()].filter((key) => /\.(down|up)$/.test(key)).length);
    expect([...errors].filter(([, error]) => !(error <= 1e-3))).toEqual([]);
  });
});

/**
 * Compares gradients with central differences of the model's output along random directions. The loss is a fixed random
 * weighting of the output.
 */
async function directionalErrors(
  path: string,
  shapes: Record<string, readonly number[]>,
  feeds: Record<string, Tensor>,
  pick: (model: Model) => Value[],
  step: number,
) {
  const model = loadModel(root(path));
  await specialize(model, { inputs: shapes });
  const random = randomNumbers(17);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const output = model.graph.outputs[0];
  const dims = output.concreteShape!;
  const weights = Float32Array.from({ length: dims.reduce((product, dim) => product * dim, 1) }, normal);
  const chosen = pick(model);
  // Constants become inputs, so that differences can be taken by them.
  const all = { ...feeds };
  for (const value of chosen) {
    if (!value.initializer) continue;
    all[value.name] = Tensor.float32(value.initializer.dims, value.initializer.toFloat32().slice());
    value.initializer = null;
    model.graph.initializers.delete(value);
    model.graph.inputs.push(value);
  }
  const seed = model.graph.addInitializer("seed", Tensor.float32(dims, weights));
  const gradients = buildGradients(model, { outputs: [{ value: output, seed }], wrt: chosen });
  model.graph.outputs.push(...chosen.map((value) => gradients.get(value)!));
  await runPasses(model);
  const session = await createSession(model);
  const outputs = model.graph.outputs.map((value) => value.name);
  const computed = await runSession(session, all);
  const loss = async () => {
    const result = (await runSession(session, all, [outputs[0]])).get(outputs[0])!.toFloat32();
    return result.reduce((sum, value, index) => sum + value * weights[index], 0);
  };
  const errors: number[] = [];
  for (const [index, value] of chosen.entries()) {
    const gradient = computed.get(outputs[index + 1])!.toFloat32();
    const array = all[value.name].array() as Float32Array;
    const original = array.slice();
    const norm = length(gradient);
    // Half along the gradient, half at random: a direction with a slope well above rounding noise.
    const noise = Float32Array.from(gradient, normal);
    const noiseLength = length(noise);
    const direction = gradient.map((slope, place) => slope / norm + noise[place] / noiseLength);
    const at = async (distance: number) => {
      for (let place = 0; place < array.length; place++) array[place] = original[place] + distance * direction[place];
      return loss();
    };
    const scale = step * Math.max(1, length(original));
    const slope = ((await at(scale)) - (await at(-scale))) / (2 * scale);
    array.set(original);
    const expected = gradient.reduce((sum, part, place) => sum + part * direction[place], 0);
    errors.push(Math.abs(slope - expected) / Math.abs(expected));
  }
  await session.release();
  return errors;
}

function length(vector: Float32Array): number {
  return Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
}

const constants = (pattern: RegExp) => (model: Model) =>
  [...model.graph.initializers].filter(
    (value) => pattern.test(value.name) && value.dataType === "float32" && value.initializer!.dims.length > 0,
  );

test("the VAE decoder's gradients equal finite differences", async () => {
  const random = randomNumbers(3);
  const latent = Tensor.float32(
    [1, 4, 4, 4],
    Float32Array.from({ length: 64 }, () => random() * 2 - 1),
  );
  const pick = (model: Model) => [inputOf(model, "latent_sample"), ...constants(/conv.*weight$/)(model).slice(0, 4)];
  const errors = await directionalErrors(
    "models/pocket/vae_decoder/model.onnx",
    { latent_sample: [1, 4, 4, 4] },
    { latent_sample: latent },
    pick,
    1e-3,
  );
  expect(errors.length).toBe(5);
  expect(Math.max(...errors)).toBeLessThan(3e-3);
});

test("the text encoder's gradients equal finite differences", async () => {
  const ids = Tensor.int64(
    [2, 16],
    Array.from({ length: 32 }, (_, index) => (index * 7) % 23),
  );
  // Softmax does not see what a bias adds to all keys: that gradient is zero, and has no relative error.
  const pick = constants(/(?<!k_proj\.)(embed|MatMul|weight|bias)/);
  const errors = await directionalErrors(
    "models/pocket/text_encoder/model.onnx",
    { input_ids: [2, 16] },
    { input_ids: ids },
    pick,
    1e-3,
  );
  expect(errors.length).toBeGreaterThan(10);
  expect(Math.max(...errors)).toBeLessThan(3e-3);
});

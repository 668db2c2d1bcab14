import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseSafetensors } from "@quad-lora/base";
import { checkModel, createSession, type Model, runModel, Tensor } from "@quad-lora/onnx";
import { expose } from "quad-lora";
import { beforeAll, describe, expect, test } from "vitest";
import { ownZeroPoints } from "../packages/quad/src/compile/own-zero-points.ts";
import {
  adapterFeeds,
  type Bench,
  buildBoth,
  encodingFeeds,
  exactProducts,
  observedBench,
  openAsWritten,
  output,
  type Variant,
} from "../packages/quad/src/compile/testing.ts";
import { ExposedModel } from "../packages/quad/src/exposed/exposed-model.ts";
import { fromSafetensors } from "../packages/quad/src/files/runtime-tensors.ts";
import { type DenoiserCall, inFloat32, shapeOf } from "../packages/quad/src/model/denoiser-calls.ts";
import { layerInputPoint } from "../packages/quad/src/quantizable/points.ts";
import { findQuantizable } from "../packages/quad/src/quantizable/quantizable.ts";
import { maxRelative, temporaryFolder } from "./helpers/models.ts";

// Denoisers of real architectures with random weights (test/families), held to what PyTorch computed with them.
const root = fileURLToPath(new URL("families/", import.meta.url));
const scratch = temporaryFolder();

interface Family {
  name: string;
  /** Its LoRA, and the case of the reference that has it merged. */
  adapter: string;
  /** The graph's inputs that are activations; all others are time steps, sizes, positions and masks. */
  activations: string[];
}

const families: Family[] = [
  { name: "sdxl", adapter: "kohya_sgm", activations: ["sample", "encoder_hidden_states", "text_embeds"] },
  { name: "sd3", adapter: "peft", activations: ["hidden_states", "encoder_hidden_states", "pooled_projections"] },
  { name: "flux", adapter: "peft", activations: ["hidden_states", "encoder_hidden_states", "pooled_projections"] },
  { name: "pixart", adapter: "peft", activations: ["hidden_states", "encoder_hidden_states"] },
  { name: "sana", adapter: "peft", activations: ["hidden_states", "encoder_hidden_states"] },
  { name: "sd15-fp16", adapter: "kohya", activations: ["sample", "encoder_hidden_states"] },
  {
    name: "controlnet",
    adapter: "kohya",
    activations: [
      ...["sample", "encoder_hidden_states", "mid_block_additional_residual"],
      ...[0, 1, 2, 3, 4, 5].map((block) => `down_block_additional_residuals_${block}`),
    ],
  },
];

const power = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0);
/** Decibels of `reference` over `values - reference`. */
const signalToNoise = (values: Float32Array, reference: Float32Array) =>
  10 * Math.log10(power(reference) / power(values.map((value, index) => value - reference[index])));

describe.each(families)("$name", ({ name: family, adapter, activations }) => {
  let model: ExposedModel;
  let bench: Bench;
  let base: Call;
  let adapted: Call;
  const tolerance = family === "sd15-fp16" ? 5e-3 : 1e-4;

  beforeAll(async () => {
    const folder = join(root, family);
    const extension = ["peft"].includes(adapter) ? "" : ".safetensors";
    const out = join(scratch, family);
    await expose(join(folder, "model"), { out, adapters: { lora: join(folder, "adapters", adapter + extension) } });
    model = await ExposedModel.open(out);
    [base, adapted] = ["base", adapter].map((name) => readCall(folder, `${model.component}_${name}`));
    const prepared = await model.prepare(shapeOf([{ task: "base", calls: [base.recorded] }]));
    const { slots } = model;
    bench = await observedBench(out, prepared, slots, 4, [base.inputs, adapted.inputs], ["lora"]);
  }, 120_000);

  test("the prepared graph computes what PyTorch does, without the adapter and with it", async () => {
    const { factors } = await model.factors(["lora"]);
    expect(factors.size).toBe(1);
    const none = { ...base.inputs, ...adapterFeeds(bench, null, "values") };
    expect(maxRelative(await run(bench.prepared, none), base.output)).toBeLessThan(tolerance);
    // The adapter on 8-bit grids: not more than they round.
    const bound = { ...adapted.inputs, ...adapterFeeds(bench, "lora", "values") };
    expect(signalToNoise(await run(bench.prepared, bound), adapted.output)).toBeGreaterThan(30);
  });

  test("time steps, sizes, positions and masks are not rounded, nor scores that a mask was added to", () => {
    const { activations: values, phases } = findQuantizable(bench.prepared, bench.slots);
    const inputs = (list: typeof values) => list.filter(({ producer }) => !producer).map(({ name }) => name);
    expect(inputs(values)).toEqual([...activations].sort((a, b) => orderOf(bench.prepared, a, b)));
    expect(inputs(phases)).toContain("timestep");
    // Masks add -10,000 or less.
    for (const { min } of bench.ranges.values()) expect(min).toBeGreaterThan(-9000);
  });

  test("every layer with a slot and every product of two activations has its points", async () => {
    const { layers } = findQuantizable(bench.prepared, bench.slots);
    const names = new Set(layers.map(({ name }) => name));
    for (const { name } of bench.slots.slots) expect(names).toContain(name);
    const softmaxes = [...bench.prepared.graph.nodes].filter(({ opType }) => opType === "Softmax").length;
    expect(softmaxes).toBeGreaterThan(0);
    expect(layers.filter(({ kind }) => kind === "product").length).toBeGreaterThanOrEqual(2 * softmaxes);
    const { simulation } = await buildBoth(bench, { placement: "cpu", weightBits: 8, narrow: () => false });
    const points = new Set(simulation.points.map(({ name }) => name));
    for (const { name } of bench.slots.slots) expect(points).toContain(layerInputPoint(name, 0));
  });

  // UNets have two variants here: what the pocket model's tests hold is not repeated for each of them. The largest takes half a
  // minute to open in its second.
  const isUnet = activations.includes("sample");
  const isSlow = family === "sdxl" && process.env.QUAD_FULL_TESTS !== "1";
  const variants: (Variant & { label: string })[] = [
    { label: "narrow", placement: "cpu", weightBits: 8, narrow: () => true },
    { label: "wide", placement: "npu", weightBits: 8, narrow: () => false },
    { label: "wide", placement: "cpu", weightBits: 8, narrow: () => false },
    { label: "narrow", placement: "npu", weightBits: 8, narrow: () => true },
  ];
  test.each(variants.slice(0, isSlow ? 1 : isUnet ? 2 : 4))(
    "$placement, all $label: the compiled graph is as near to full precision as the simulation",
    async (variant) => {
      const { simulation, compiled, encodings, narrowLayers } = await buildBoth(bench, variant);
      ownZeroPoints(compiled);
      checkModel(compiled);
      const inputs = { ...adapted.inputs, ...adapterFeeds(bench, "lora", "values") };
      const full = await run(bench.prepared, inputs);
      const simulated = await openAsWritten(simulation.model);
      const expected = await output(simulated, { ...inputs, ...encodingFeeds(encodings) });
      await simulated.release();
      const isCpu = variant.placement === "cpu";
      const session = isCpu ? await createSession(compiled, exactProducts) : await openAsWritten(compiled);
      const found = await output(session, { ...adapted.inputs, ...adapterFeeds(bench, "lora", "codes") });
      await session.release();
      const lost = signalToNoise(expected, full);
      // Random weights of a few channels lose more at 8 bits than trained ones.
      expect(lost).toBeGreaterThan(narrowLayers.size > 0 ? 18 : 25);
      expect(signalToNoise(found, full)).toBeGreaterThan(lost - 1.5);
      // Where nothing is cut to 8 bits, what differs is the order of float sums and products that stay in float.
      if (narrowLayers.size === 0) expect(signalToNoise(found, expected)).toBeGreaterThan(lost + 10);
    },
  );
});

interface Call {
  recorded: DenoiserCall;
  /** In float32. */
  inputs: Record<string, Tensor>;
  output: Float32Array;
}

/** A case of the reference: a graph's inputs, and PyTorch's output. */
function readCall(folder: string, name: string): Call {
  const file = join(folder, "reference.safetensors");
  const { tensors } = parseSafetensors(new Uint8Array(readFileSync(file)), file);
  const under = (prefix: string) =>
    Object.fromEntries(
      [...tensors]
        .filter(([key]) => key.startsWith(prefix))
        .map(([key, tensor]) => [key.slice(prefix.length), fromSafetensors(tensor, file)]),
    );
  const inputs = under(`${name}.inputs.`);
  const [output] = Object.values(under(`${name}.outputs.`));
  const tensorOf = (input: (typeof inputs)[string]) => {
    const { type, dims, data } = inFloat32(input);
    return Tensor.of(type as "float32", dims, data as Float32Array<ArrayBuffer>);
  };
  return {
    recorded: { inputs, output },
    inputs: Object.fromEntries(Object.entries(inputs).map(([key, tensor]) => [key, tensorOf(tensor)])),
    output: inFloat32(output).data as Float32Array,
  };
}

function orderOf({ graph }: Model, a: string, b: string): number {
  const names = graph.inputs.map(({ name }) => name);
  return names.indexOf(a) - names.indexOf(b);
}

async function run(model: Model, feeds: Record<string, Tensor>): Promise<Float32Array> {
  return [...(await runModel(model, feeds)).values()][0].toFloat32();
}

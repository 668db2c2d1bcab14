import { type Graph, type Model, Tensor } from "@quad-lora/onnx";
import { expect, test } from "vitest";
import { buildModel, maxRelative } from "../../../../test/helpers/models.ts";
import { distillNames } from "../distill/student-graph.ts";
import type { Profile } from "../records/profile.ts";
import { policySchema } from "../settings/policy.ts";
import { LossSession, TrainingSession } from "../train/training-graph.ts";
import { buildRangeGraph, rangeParameters } from "./range-graph.ts";
import { rangeGroups, withFactors } from "./range-groups.ts";

const slots = { strengthInput: "unet.lora_strength", slots: [] };
const weight = Tensor.float32([3, 2], [127, 0, 0, 127, 127, -127]);
const other = Tensor.float32([3, 2], [127, 127, -127, 0, 0, 127]);

/** Two linear layers that read the same value; rounding to 8 bits leaves their weights as they are. */
function smallModel(): Model {
  const model = buildModel((graph: Graph) => {
    const x = graph.addInput("x", "float32", [2, 3]);
    graph.addInput(slots.strengthInput, "float32", [1]);
    const layers = Object.entries({ first: weight, second: other }).map(([name, tensor]) =>
      graph.apply("MatMul", [x, graph.addInitializer(`${name}.weight`, tensor)], { name: `/${name}/MatMul` }),
    );
    return { y: { value: graph.apply("Add", layers, { name: "/Add" }) } };
  });
  model.opsets.set("", 17);
  model.irVersion = 8;
  return model;
}

const point = (bits: 8 | 16, scale: number, zeroPoint: number) => ({ bits, scale: Math.fround(scale), zeroPoint });
const profileOf = (points: Profile["points"]): Profile => ({
  ...{ format: "quad-profile", version: 1, component: "unet", graph: "", placement: "cpu", rank: 1 },
  shape: { batch: 2, height: 1, width: 1, tokens: 1 },
  policy: policySchema.parse({}),
  strategy: { kind: "unified", anchor: null, reason: "" },
  ...{ scores: {}, shared: {}, narrowLayers: [], layerSensitivity: {}, slots: {}, points },
});

const rowWeights = [0.5, 2];
const teacher = [1, -2, 3, 0.5];

async function open(profile: Profile) {
  const built = await buildRangeGraph(smallModel(), slots, profile, {
    ...{ calls: 2, rowsPerCall: 1, rank: 1, reconstruction: 3, guided: 0 },
    ...{ weightDecay: 0, clipNorm: Number.POSITIVE_INFINITY },
  });
  const session = await TrainingSession.open(built.training, rangeParameters, 1);
  const measuring = await LossSession.open(built.forward, rangeParameters, 1);
  const size = built.groups.length;
  const batch = (x: number[]) => ({
    x: { type: "float32" as const, dims: [2, 3], data: Float32Array.from(x) },
    [distillNames.teacher]: { type: "float32" as const, dims: [2, 2], data: Float32Array.from(teacher) },
    [distillNames.rowWeights]: { type: "float32" as const, dims: [2], data: Float32Array.from(rowWeights) },
  });
  return {
    groups: built.groups,
    loss: async (factors: number[], x: number[]) => 3 * (await measuring.loss(Float32Array.from(factors), batch(x))),
    gradient: async (factors: number[], x: number[]) => {
      const zeros = { mean: new Float32Array(size), square: new Float32Array(size) };
      const { state } = await session.step({ parameters: Float32Array.from(factors), ...zeros }, 1, 0, batch(x));
      // AdamW's first running mean is a tenth of the gradient.
      return [...state.mean].map((value) => value / 0.1);
    },
  };
}

/** Loss and its gradient by the logarithms of both layers' scales, from the closed form. */
function byHand(x: number[], layers: { scale: number; zero: number; weight: Tensor }[]) {
  const output = [0, 0, 0, 0];
  const slopes = layers.map(({ scale, zero, weight: tensor }) => {
    const w = tensor.toFloat32();
    const slope = [0, 0, 0, 0];
    x.forEach((value, index) => {
      const code = Math.min(255 - zero, Math.max(-zero, Math.round(value / scale)));
      const isClipped = value / scale < -zero - 0.5 || value / scale > 255 - zero + 0.5;
      const byScale = isClipped ? code : code - value / scale;
      for (const column of [0, 1]) {
        const to = 2 * Math.floor(index / 3) + column;
        output[to] += code * scale * w[2 * (index % 3) + column];
        slope[to] += byScale * scale * w[2 * (index % 3) + column];
      }
    });
    return slope;
  });
  const errors = output.map((value, index) => value - teacher[index]);
  // Reconstruction 3, mean over 2 rows and 2 columns.
  const factor = (index: number) => (3 * rowWeights[index >> 1]) / 4;
  return {
    loss: errors.reduce((sum, error, index) => sum + factor(index) * error ** 2, 0),
    gradient: slopes.map((slope) => slope.reduce((sum, s, index) => sum + 2 * factor(index) * errors[index] * s, 0)),
  };
}

test("loss and gradient are those of learned step size quantization", async () => {
  const graph = await open(profileOf({ "first#0": point(8, 0.01, 100), "second#0": point(8, 0.02, 30) }));
  expect(graph.groups.map(({ points }) => points)).toEqual([["first#0"], ["second#0"]]);
  // The second layer clips -0.8, the first -1.7 and 1.9.
  const x = [0.123, -0.456, 0.789, -1.7, 1.9, -0.8];
  const factors = [0.1, -0.05];
  const expected = byHand(x, [
    { scale: 0.01 * Math.exp(0.1), zero: 100, weight },
    { scale: 0.02 * Math.exp(-0.05), zero: 30, weight: other },
  ]);
  expect(await graph.loss(factors, x)).toBeCloseTo(expected.loss, -Math.log10(expected.loss * 1e-5));
  expect(maxRelative(await graph.gradient(factors, x), expected.gradient)).toBeLessThan(1e-3);
});

test("where every value is clipped the loss is smooth, and the gradient that of finite differences", async () => {
  const graph = await open(profileOf({ "first#0": point(8, 0.01, 128), "second#0": point(8, 0.005, 128) }));
  const x = [5, -6, 7, -8, 9, -4];
  const step = 2e-3;
  const differences: number[] = [];
  for (const group of [0, 1]) {
    const shifted = (by: number) => [0, 0].map((value, index) => (index === group ? value + by : value));
    differences.push(((await graph.loss(shifted(step), x)) - (await graph.loss(shifted(-step), x))) / (2 * step));
  }
  expect(maxRelative(await graph.gradient([0, 0], x), differences)).toBeLessThan(1e-3);
});

test("points of one value and encoding share a factor; wide points have none", () => {
  const points = ["a#0", "b#0", "c#0", "d#0"].map((name) => ({
    ...{ name, kind: "layer-input" as const, layer: name.slice(0, 1) },
    observed: name === "c#0" ? "other" : "value",
  }));
  const same = point(8, 0.1, 7);
  const profile = profileOf({ "a#0": same, "b#0": same, "c#0": same, "d#0": point(16, 0.1, 7) });
  const groups = rangeGroups(points, profile);
  expect(groups.map((group) => group.points)).toEqual([["a#0", "b#0"], ["c#0"]]);
  const changed = withFactors(profile, groups, Float32Array.of(Math.LN2, 0)).points;
  expect(changed["a#0"].scale).toBeCloseTo(0.2, 6);
  expect(changed["b#0"]).toEqual(changed["a#0"]);
  expect([changed["c#0"], changed["d#0"]]).toEqual([same, point(16, 0.1, 7)]);
  expect(changed["a#0"].zeroPoint).toBe(7);
  expect(() => rangeGroups(points.slice(3), profile)).toThrow(/no 8-bit activations/);
});

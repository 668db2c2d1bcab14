import { cloneModel, type Model, runModel, Tensor, type Value } from "@quad-lora/onnx";
import { describe, expect, test } from "vitest";
import { buildModel, maxRelative, randomTensor } from "../../../../test/helpers/models.ts";
import { encodingFromRange, encodingRange } from "../quantization/index.ts";
import { buildSimulation, encodingInputs } from "../simulate/simulation-graph.ts";
import { findQuantizable } from "./quantizable.ts";

const slots = { strengthInput: "transformer.lora_strength", slots: [] };

function quantizable(make: Parameters<typeof buildModel>[0]): Model {
  const model = buildModel(make);
  model.opsets.set("", 17);
  model.irVersion = 8;
  return model;
}

/** Runs a model as it is, and rounding every activation of it to 16 bits of the range that it has there. */
async function exactAndRounded(model: Model, feeds: Record<string, Tensor>) {
  const watched = cloneModel(model);
  const { activations } = findQuantizable(watched, slots);
  const [result] = watched.graph.outputs;
  watched.graph.outputs.push(...activations.filter((value) => value.producer && value !== result));
  const seen = await runModel(watched, feeds);
  const { model: simulated, points } = buildSimulation(model, slots, {
    placement: "npu",
    weightBits: 8,
    weightMethod: "min-max",
  });
  const encodings = points.map(({ observed }) => {
    const values = (seen.get(observed) ?? feeds[observed]).toFloat32();
    const range = [Math.min(0, ...values), Math.max(0, ...values)] as const;
    return encodingFromRange(...range, { bits: 16, signed: false, symmetric: false });
  });
  const vector = (values: number[]) => Tensor.float32([values.length], values);
  const outputs = await runModel(simulated, {
    ...feeds,
    [encodingInputs.scale]: vector(encodings.map(({ scale }) => scale[0])),
    [encodingInputs.low]: vector(encodings.map((encoding) => encodingRange(encoding).min)),
    [encodingInputs.high]: vector(encodings.map((encoding) => encodingRange(encoding).max)),
  });
  const exact = seen.get(result.name)!.toFloat32();
  return { exact, rounded: [...outputs.values()][0].toFloat32(), names: activations.map(({ name }) => name) };
}

describe("what stays in float", () => {
  /** softmax(scores + bias), the bias as an exported transformer makes it from a mask. */
  const masked = (join: (mask: Value, scores: Value, parts: MaskParts) => Value) =>
    quantizable((graph) => {
      const mask = graph.addInput("encoder_attention_mask", "int64", [1, 4]);
      const scores = graph.addInput("hidden_states", "float32", [3, 4]);
      const constant = (name: string, value: number) => graph.addInitializer(name, Tensor.float32([1], [value]));
      const parts = { graph, constant };
      return { y: { value: graph.apply("Softmax", [join(mask, scores, parts)], { name: "/Softmax" }) } };
    });
  type MaskParts = {
    graph: Model["graph"];
    constant: (name: string, value: number) => Value;
  };

  test.each([
    [
      "a bias of -10,000 for what is masked",
      (mask: Value, scores: Value, { graph, constant }: MaskParts) => {
        const cast = graph.apply("Cast", [mask], { name: "/Cast", attributes: { to: 1 } });
        const hidden = graph.apply("Sub", [constant("one", 1), cast], { name: "/Sub" });
        const bias = graph.apply("Mul", [hidden, constant("far", -10_000)], { name: "/Mul" });
        return graph.apply("Add", [scores, bias], { name: "/Add" });
      },
    ],
    [
      "the least float in its place",
      (mask: Value, scores: Value, { graph, constant }: MaskParts) => {
        const keep = graph.apply("Cast", [mask], { name: "/Cast", attributes: { to: 9 } });
        return graph.apply("Where", [keep, scores, constant("least", -3.4028234e38)], { name: "/Where" });
      },
    ],
  ])("masks, and scores with %s", async (_, join) => {
    const feeds = {
      encoder_attention_mask: Tensor.int64([1, 4], [1, 1, 1, 0]),
      hidden_states: randomTensor([3, 4], 1),
    };
    const { exact, rounded, names } = await exactAndRounded(masked(join), feeds);
    expect(names).toEqual(["hidden_states", "y"]);
    // A grid that reached the masked scores would have steps of 0.15 or more.
    expect(maxRelative(rounded, exact)).toBeLessThan(2e-4);
    for (const row of [0, 1, 2]) expect(rounded[4 * row + 3]).toBe(0);
  });

  test("divisors kept from zero by a constant", async () => {
    const model = quantizable((graph) => {
      const [sums, weights] = ["hidden_states", "encoder_hidden_states"].map((name) =>
        graph.addInput(name, "float32", [2, 3]),
      );
      const guard = graph.addInitializer("guard", Tensor.float32([1], [1e-15]));
      const divisor = graph.apply("Add", [weights, guard], { name: "/Add" });
      return { y: { value: graph.apply("Div", [sums, divisor], { name: "/Div" }) } };
    });
    const { exact, rounded, names } = await exactAndRounded(model, {
      hidden_states: Tensor.float32([2, 3], [0, 1, 2, 3, 4, 5]),
      encoder_hidden_states: Tensor.float32([2, 3], [0, 2, 3, 1, 4, 2]),
    });
    expect(names).not.toContain("/Add_output_0");
    expect(exact[0]).toBe(0);
    expect(maxRelative(rounded, exact)).toBeLessThan(1e-4);
  });

  test("a divisor that is a sum of activations is rounded like any value", () => {
    const model = quantizable((graph) => {
      const inputs = ["a", "b"].map((name) => graph.addInput(name, "float32", [2]));
      const sum = graph.apply("Add", inputs, { name: "/Add" });
      return { y: { value: graph.apply("Div", [inputs[0], sum], { name: "/Div" }) } };
    });
    const { activations } = findQuantizable(model, slots);
    expect(activations.map(({ name }) => name)).toEqual(["a", "b", "/Add_output_0", "y"]);
  });

  test("positions", () => {
    const model = quantizable((graph) => {
      const ids = graph.addInput("img_ids", "float32", [4, 3]);
      const patches = graph.addInput("hidden_states", "float32", [4, 3]);
      return { y: { value: graph.apply("Add", [patches, ids], { name: "/Add" }) } };
    });
    const { activations } = findQuantizable(model, slots);
    expect(activations.map(({ name }) => name)).toEqual(["hidden_states", "y"]);
  });
});

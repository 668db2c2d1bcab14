import { type Graph, Model, runModel, Tensor, type Value } from "@quad-lora/onnx";
import { expect, test } from "vitest";
import { maxRelative, randomTensor } from "../../../../test/helpers/models.ts";
import { ownZeroPoints } from "./own-zero-points.ts";
import { exactProducts } from "./testing.ts";

/** Two 8-bit layers whose weights have the same zero points. */
function sharingModel(): Model {
  const model = new Model();
  model.opsets.set("", 17);
  const { graph } = model;
  const zero = graph.addInitializer("zero", Tensor.of("int8", [4], new Int8Array(4)));
  const input = graph.addInput("x", "float32", [3, 4]);
  const layer = (x: Value, name: string) => {
    // As large as codes get: byte products of these overflow 16 bits.
    const codes = Int8Array.from({ length: 16 }, (_, index) => (index % 3 === 0 ? -127 : 127));
    const weight = graph.addInitializer(`${name}.codes`, Tensor.of("int8", [4, 4], codes));
    const scale = graph.addInitializer(`${name}.scale`, Tensor.float32([4], [0.01, 0.02, 0.01, 0.03]));
    const values = graph.apply("DequantizeLinear", [weight, scale, zero], { attributes: { axis: 1 } });
    return rounded(graph, graph.apply("MatMul", [rounded(graph, x), values]));
  };
  const result = layer(layer(input, "first"), "second");
  result.name = "y";
  graph.outputs.push(result);
  return model;
}

function rounded(graph: Graph, value: Value): Value {
  const scale = graph.addInitializer("step", Tensor.scalar(0.05));
  const zero = graph.addInitializer("middle", Tensor.of("uint8", [], Uint8Array.of(128)));
  return graph.apply("DequantizeLinear", [graph.apply("QuantizeLinear", [value, scale, zero]), scale, zero]);
}

test("weights get zero points of their own, and ONNX Runtime opens the graph with exact products", async () => {
  const model = sharingModel();
  const inputs = { x: randomTensor([3, 4], 1) };
  const asWritten = { logSeverityLevel: 3 as const, extra: { session: { disable_quant_qdq: "1" } } };
  const expected = await runModel(model, inputs, asWritten);
  ownZeroPoints(model);
  const weights = [...model.graph.nodes].filter(({ inputs: [codes] }) => codes?.name.endsWith(".codes"));
  expect(new Set(weights.map((node) => node.input(2))).size).toBe(2);
  const found = await runModel(model, inputs, exactProducts);
  expect(maxRelative(found.get("y")!.toFloat32(), expected.get("y")!.toFloat32())).toBeLessThan(1e-6);
});

import { encodeFloat16 } from "@quad-lora/base";
import { cloneModel, runModel, Tensor } from "@quad-lora/onnx";
import { expect, test } from "vitest";
import { buildModel, maxRelative, randomTensor } from "../../../../test/helpers/models.ts";
import { computeInFloat32 } from "./in-float32.ts";

test("a float16 graph computes in float32 what it computed in half precision, from the same weights", async () => {
  const half = (values: Float32Array, dims: number[]) => Tensor.of("float16", dims, encodeFloat16(values));
  const weight = randomTensor([3, 2], 4).toFloat32();
  const model = buildModel((graph) => {
    const x = graph.addInput("x", "float16", [2, 3]);
    const wide = graph.apply("Cast", [x], { attributes: { to: 1 } });
    const back = graph.apply("Cast", [graph.apply("Sin", [wide])], { attributes: { to: 10 } });
    const product = graph.apply("MatMul", [back, graph.addInitializer("weight", half(weight, [3, 2]))]);
    return { y: { value: product, type: "float16" } };
  });
  model.opsets.set("", 17);
  const widened = cloneModel(model);
  computeInFloat32(widened);
  const types = [...widened.graph.inputs, ...widened.graph.outputs].map(({ dataType }) => dataType);
  expect(types).toEqual(["float32", "float32"]);
  const x = randomTensor([2, 3], 5).toFloat32();
  const [expected] = (await runModel(model, { x: half(x, [2, 3]) })).values();
  const [found] = (await runModel(widened, { x: Tensor.float32([2, 3], half(x, [2, 3]).toFloat32()) })).values();
  expect(found.dataType).toBe("float32");
  // Half precision has 11 bits: the graph rounds twice.
  expect(maxRelative(found.toFloat32(), expected.toFloat32())).toBeLessThan(3 * 2 ** -11);
});

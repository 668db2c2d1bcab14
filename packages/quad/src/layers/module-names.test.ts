import { runPasses } from "@quad-lora/onnx";
import { expect, test } from "vitest";
import { buildModel, randomTensor } from "../../../../test/helpers/models.ts";
import { findLayers } from "./find-layers.ts";
import { keepModuleNames } from "./module-names.ts";

/** As dynamo exports: the module's name is the weight's, which is transposed on its way to anonymous nodes. */
const model = () =>
  buildModel((graph) => {
    const weight = graph.addInitializer("blocks.0.fc.weight", randomTensor([6, 6], 1));
    const turned = graph.apply("Transpose", [weight], { attributes: { perm: [1, 0] } });
    const first = graph.apply("MatMul", [graph.addInput("x", "float32", [2, 6]), turned], { name: "node_MatMul_1" });
    const second = graph.apply("MatMul", [graph.apply("Tanh", [first]), turned], { name: "node_MatMul_2" });
    return { y: { value: second } };
  });

test("folding constants takes dynamo's module names away, unless they were written into the nodes", async () => {
  const lost = model();
  await runPasses(lost);
  expect(findLayers(lost).layers.map(({ name }) => name)).not.toContain("blocks.0.fc");

  const kept = model();
  keepModuleNames(findLayers(kept).layers);
  await runPasses(kept);
  const { layers, skipped } = findLayers(kept);
  expect(skipped).toEqual([]);
  expect(layers.map(({ name, calls }) => [name, calls.length])).toEqual([["blocks.0.fc", 2]]);
});

import fc from "fast-check";
import { expect, test } from "vitest";
import { outputDifference, randomTensor } from "../../../../test/helpers/models.ts";
import {
  checkModel,
  cloneModel,
  decodeModel,
  encodeModel,
  type Graph,
  Model,
  passes,
  runModel,
  runPasses,
  specialize,
  Tensor,
  type Value,
} from "../index.ts";

const rows = 3;
const columns = 4;
type Step = { operator: string; a: number; b: number; constant: number };

const binary = ["Add", "Sub", "Mul", "Max"];
const unary = ["Neg", "Abs", "Tanh", "Identity", "Sigmoid", "Relu"];
const structural = ["ShapeReshape", "DoubleTranspose", "Zeros", "CastBack", "Concat"];

/** Every value is `[rows, columns]`, whatever way it was made. */
function addStep(graph: Graph, values: Value[], { operator, a, b, constant }: Step): Value {
  const left = values[a % values.length];
  const right = values[b % values.length];
  const shapes: [number[], number[]][] = [
    [[], [0]],
    [[], [1]],
    [[columns], [0, 0, 0, 0]],
    [[1, 1], [1]],
    [
      [rows, 1],
      [0.5, -1, 2],
    ],
  ];
  const [dims, content] = shapes[constant % shapes.length];
  if (binary.includes(operator)) {
    if (constant % 2 === 0) return graph.apply(operator, [left, right]);
    const other = graph.apply("Constant", [], { attributes: { value: Tensor.float32(dims, content) } });
    return graph.apply(operator, b % 2 === 0 ? [left, other] : [other, left]);
  }
  if (unary.includes(operator)) return graph.apply(operator, [left]);
  switch (operator) {
    case "ShapeReshape":
      return graph.apply("Reshape", [graph.apply("Relu", [left]), graph.apply("Shape", [right])]);
    case "DoubleTranspose": {
      const turned = graph.apply("Transpose", [left], { attributes: { perm: [1, 0] } });
      return graph.apply("Transpose", [turned], { attributes: { perm: [1, 0] } });
    }
    case "Zeros": {
      const zeros = graph.apply("ConstantOfShape", [graph.apply("Shape", [right])]);
      return graph.apply("Add", [left, graph.apply("Mul", [zeros, graph.addInitializer("two", Tensor.scalar(2))])]);
    }
    case "CastBack":
      return graph.apply("Cast", [graph.apply("Cast", [left], { attributes: { to: 11 } })], { attributes: { to: 1 } });
    default: {
      const both = graph.apply("Concat", [left, right], { attributes: { axis: 0 } });
      const bounds = [0, rows, 0].map((value) => graph.addInitializer("bound", Tensor.int64([1], [value])));
      return graph.apply("Slice", [both, ...bounds]);
    }
  }
}

function buildGraph(steps: readonly Step[], outputs: readonly number[], isDynamic: boolean): Model {
  const model = new Model();
  const { graph } = model;
  const shape = isDynamic ? ["rows", columns] : [rows, columns];
  const values: Value[] = [
    graph.addInput("x", "float32", shape),
    graph.addInput("y", "float32", shape),
    graph.addInitializer("w", randomTensor([rows, columns], 3)),
  ];
  for (const step of steps) values.push(addStep(graph, values, step));
  const made = values.filter(({ producer }) => producer);
  for (const index of new Set(outputs.map((output) => output % made.length))) {
    made[index].type = { kind: "tensor", dataType: "float32", shape: null };
    graph.outputs.push(made[index]);
  }
  return model;
}

const step = fc.record({
  operator: fc.constantFrom(...binary, ...unary, ...structural),
  a: fc.nat(100),
  b: fc.nat(100),
  constant: fc.nat(100),
});

test("passes keep the outputs of arbitrary small graphs, reach a fixed point, and leave legal graphs", async () => {
  const feeds = { x: randomTensor([rows, columns], 1), y: randomTensor([rows, columns], 2) };
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { minLength: 1, maxLength: 14 }),
      fc.array(fc.nat(100), { minLength: 1, maxLength: 3 }),
      fc.boolean(),
      async (steps, outputs, isDynamic) => {
        const original = buildGraph(steps, outputs, isDynamic);
        checkModel(original);
        const expected = await runModel(original, feeds);
        const optimized = cloneModel(original);
        await runPasses(optimized);
        const specialized = cloneModel(original);
        await specialize(specialized, { symbols: { rows } });
        for (const model of [optimized, specialized]) {
          checkModel(model);
          const again = decodeModel(encodeModel(model), { file: "again.onnx" });
          expect(outputDifference(await runModel(again, feeds), expected)).toBeLessThan(1e-6);
          for (const pass of passes) expect(await pass.run(model), pass.name).toBe(0);
        }
        const left = specialized.graph.sorted().map(({ opType }) => opType);
        expect(left).not.toContain("Shape");
        expect(left).not.toContain("Constant");
        if (isDynamic) return;
        // Without a free dimension the plain passes need no help with the inputs' shapes.
        expect(optimized.graph.nodes.size).toBeGreaterThanOrEqual(specialized.graph.nodes.size);
      },
    ),
    { seed: 11, numRuns: 60 },
  );
});

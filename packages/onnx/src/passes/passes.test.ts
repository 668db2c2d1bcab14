import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, test } from "vitest";
import { buildModel, outputDifference, randomTensor } from "../../../../test/helpers/models.ts";
import {
  checkModel,
  cloneModel,
  commonSubexpressions,
  constantFolding,
  deadCodeElimination,
  Graph,
  identityRemoval,
  inferShapes,
  loadModel,
  Model,
  Node,
  type Pass,
  passes,
  runModel,
  runPasses,
  specialize,
  Tensor,
  Value,
} from "../index.ts";

const pocket = fileURLToPath(new URL("../../../../models/pocket/", import.meta.url));

const samples: Record<string, Record<string, Tensor>> = {
  unet: {
    sample: randomTensor([2, 9, 16, 16], 1),
    timestep: Tensor.int64([], [500]),
    encoder_hidden_states: randomTensor([2, 16, 96], 2),
  },
  vae_decoder: { latent_sample: randomTensor([1, 4, 16, 16], 3) },
  vae_encoder: { sample: randomTensor([1, 3, 64, 64], 4) },
  text_encoder: {
    input_ids: Tensor.int64(
      [2, 16],
      Array.from({ length: 32 }, (_, i) => (i * 7) % 20),
    ),
  },
};

describe.each(Object.entries(samples))("pocket %s", (name, inputs) => {
  const original = loadModel(join(pocket, name, "model.onnx"));
  let expected: Map<string, Tensor>;
  beforeAll(async () => {
    expected = await runModel(original, inputs);
  });

  test("every pass alone, and all together, leave the outputs as they were", async () => {
    for (const list of [...passes.map((pass) => [pass]), passes]) {
      const model = cloneModel(original);
      for (const pass of list) {
        await pass.run(model);
        checkModel(model);
      }
      expect(
        outputDifference(await runModel(model, inputs), expected),
        list.map((pass) => pass.name).join(),
      ).toBeLessThan(1e-5);
    }
  });

  test("specialized: no shape arithmetic, the same outputs, nothing left to do", async () => {
    const model = cloneModel(original);
    const shapes = Object.fromEntries(Object.entries(inputs).map(([key, { dims }]) => [key, dims]));
    await specialize(model, { inputs: shapes });
    checkModel(model);
    const operators = new Set([...model.graph.nodes].map(({ opType }) => opType));
    for (const left of ["Shape", "Size", "Constant", "ConstantOfShape", "Identity"])
      expect(operators).not.toContain(left);
    expect(model.graph.nodes.size).toBeLessThan(original.graph.nodes.size);
    expect(outputDifference(await runModel(model, inputs), expected)).toBeLessThan(1e-5);
    for (const pass of passes) expect(await pass.run(model), pass.name).toBe(0);
  });
});

describe("fixed point", () => {
  test("a second round of all passes changes nothing, and results say what ran", async () => {
    const model = loadModel(join(pocket, "text_encoder", "model.onnx"));
    const results = await runPasses(model);
    expect(results.slice(-passes.length).every(({ changes }) => changes === 0)).toBe(true);
    expect(results.map(({ pass }) => pass).slice(0, passes.length)).toEqual(passes.map(({ name }) => name));
  });
});

/** Runs a pass on a model of one input x [2, 3]. */
async function apply(pass: Pass, model: Model, feeds: Record<string, Tensor> = { x: randomTensor([2, 3], 9) }) {
  const expected = await runModel(model, feeds);
  const changes = await pass.run(model);
  checkModel(model);
  expect(outputDifference(await runModel(model, feeds), expected)).toBe(0);
  return { changes, operators: model.graph.sorted().map(({ opType }) => opType) };
}

const scalar = (graph: Graph, value: number) => graph.addInitializer("c", Tensor.scalar(value));

describe("identity removal", () => {
  test.each<[string, (graph: Graph, x: Value) => Value]>([
    ["x + 0", (graph, x) => graph.apply("Add", [x, scalar(graph, 0)])],
    ["0 + x", (graph, x) => graph.apply("Add", [scalar(graph, 0), x])],
    ["x - 0", (graph, x) => graph.apply("Sub", [x, scalar(graph, 0)])],
    ["1 * x", (graph, x) => graph.apply("Mul", [scalar(graph, 1), x])],
    ["x / 1", (graph, x) => graph.apply("Div", [x, scalar(graph, 1)])],
    ["x ^ 1", (graph, x) => graph.apply("Pow", [x, scalar(graph, 1)])],
    ["x + [0, 0, 0]", (graph, x) => graph.apply("Add", [x, graph.addInitializer("z", Tensor.float32([3], [0, 0, 0]))])],
    ["Identity", (graph, x) => graph.apply("Identity", [x])],
    ["Dropout", (graph, x) => graph.apply("Dropout", [x])],
    ["Transpose (0, 1)", (graph, x) => graph.apply("Transpose", [x], { attributes: { perm: [0, 1] } })],
  ])("%s goes", async (_, build) => {
    const model = buildModel((graph) => {
      const x = graph.addInput("x", "float32", [2, 3]);
      return { y: { value: graph.apply("Relu", [build(graph, x)]) } };
    });
    expect(await apply(identityRemoval, model)).toEqual({ changes: 1, operators: ["Relu"] });
  });

  test.each<[string, (graph: Graph, x: Value) => Value]>([
    ["0 - x", (graph, x) => graph.apply("Sub", [scalar(graph, 0), x])],
    ["1 / x", (graph, x) => graph.apply("Div", [scalar(graph, 1), x])],
    ["1 ^ x", (graph, x) => graph.apply("Pow", [scalar(graph, 1), x])],
    ["x + 1", (graph, x) => graph.apply("Add", [x, scalar(graph, 1)])],
    [
      "x + zeros [4, 1, 1]: it broadcasts",
      (graph, x) => graph.apply("Add", [x, graph.addInitializer("z", Tensor.float32([4, 1, 1], [0, 0, 0, 0]))]),
    ],
    ["Transpose", (graph, x) => graph.apply("Transpose", [x], { attributes: { perm: [1, 0] } })],
    ["Transpose without perm", (graph, x) => graph.apply("Transpose", [x])],
    [
      "Cast",
      (graph, x) =>
        graph.apply("Cast", [graph.apply("Cast", [x], { attributes: { to: 7 } })], { attributes: { to: 1 } }),
    ],
  ])("%s stays", async (_, build) => {
    const model = buildModel((graph) => {
      const x = graph.addInput("x", "float32", [2, 3]);
      return { y: { value: graph.apply("Relu", [build(graph, x)]) } };
    });
    expect((await apply(identityRemoval, model)).changes).toBe(0);
  });

  test("zeros that could broadcast a dynamic shape stay; a default that can be overridden stays, in subgraphs too", async () => {
    const dynamic = buildModel((graph) => {
      const x = graph.addInput("x", "float32", ["rows", 3]);
      const zeros = graph.addInitializer("z", Tensor.float32([2, 3], new Float32Array(6)));
      return { y: { value: graph.apply("Add", [x, zeros]) } };
    });
    expect((await apply(identityRemoval, dynamic, { x: randomTensor([1, 3], 1) })).changes).toBe(0);

    const overridable = new Model();
    const { graph } = overridable;
    const condition = graph.addInput("c", "bool", []);
    const x = graph.addInput("x", "float32", [3]);
    const offset = graph.addInput("offset", "float32", []);
    offset.initializer = Tensor.scalar(0);
    graph.initializers.add(offset);
    const branches = ["then", "else"].map((name) => {
      const branch = new Graph(name);
      const sum = branch.apply("Add", [x, offset], { name });
      sum.type = { kind: "tensor", dataType: "float32", shape: [3] };
      branch.outputs.push(sum);
      return branch;
    });
    const chosen = new Node("If", [condition], {
      attributes: {
        then_branch: { kind: "graph", value: branches[0] },
        else_branch: { kind: "graph", value: branches[1] },
      },
    });
    chosen.addOutput(new Value("y", { kind: "tensor", dataType: "float32", shape: [3] }));
    graph.insert(chosen);
    graph.outputs.push(chosen.output());
    const feeds = { c: Tensor.of("bool", [], Uint8Array.of(1)), x: randomTensor([3], 1), offset: Tensor.scalar(2) };
    expect((await apply(identityRemoval, overridable, feeds)).changes).toBe(0);
    expect((await apply(deadCodeElimination, overridable, feeds)).changes).toBe(0);
    expect((await apply(constantFolding(), overridable, feeds)).changes).toBe(0);
  });

  test("an output that is an input keeps its name through an Identity", async () => {
    const model = buildModel((graph) => ({
      y: { value: graph.apply("Identity", [graph.addInput("x", "float32", [2, 3])]) },
    }));
    expect((await apply(identityRemoval, model)).changes).toBe(0);
    expect(model.graph.outputs[0].name).toBe("y");
  });
});

describe("dead code", () => {
  test("removes what nothing needs and keeps the interface", async () => {
    const model = buildModel((graph) => {
      const x = graph.addInput("x", "float32", [2, 3]);
      const unused = graph.addInput("unused", "float32", [1]);
      unused.initializer = Tensor.float32([1], [3]);
      graph.initializers.add(unused);
      graph.apply("Exp", [graph.apply("Add", [x, scalar(graph, 4)])]);
      return { y: { value: graph.apply("Neg", [x]) } };
    });
    expect(await apply(deadCodeElimination, model)).toEqual({ changes: 3, operators: ["Neg"] });
    expect(model.graph.inputs.map(({ name }) => name)).toEqual(["x", "unused"]);
  });
});

describe("common subexpressions", () => {
  test("equal nodes and equal constants merge; attributes, types and random numbers keep nodes apart", async () => {
    const model = buildModel((graph) => {
      const x = graph.addInput("x", "float32", [2, 3]);
      const sum = (value: number) => graph.apply("Add", [x, scalar(graph, value)]);
      const twins = graph.apply("Mul", [sum(1), sum(1)]);
      const slope = (alpha: number) =>
        graph.apply("LeakyRelu", [twins], { attributes: { alpha: { kind: "float", value: alpha } } });
      return { y: { value: graph.apply("Add", [slope(0.1), slope(0.2)]) } };
    });
    const { changes, operators } = await apply(commonSubexpressions, model);
    expect(changes).toBe(2);
    expect(operators.filter((name) => name === "LeakyRelu")).toHaveLength(2);

    const random = buildModel((graph) => {
      const draw = () =>
        graph.apply("RandomNormal", [], { attributes: { shape: [3], seed: { kind: "float", value: 1 } } });
      return { y: { value: graph.apply("Sub", [draw(), draw()]) } };
    });
    expect(await commonSubexpressions.run(random)).toBe(0);
  });
});

describe("constant folding", () => {
  test("folds chains, keeps what it is told to keep and what would grow", async () => {
    const build = () =>
      buildModel((graph) => {
        const x = graph.addInput("x", "float32", [2, 3]);
        const shape = graph.addInitializer("shape", Tensor.int64([2], [2, 3]));
        const ones = graph.apply("ConstantOfShape", [shape], { attributes: { value: Tensor.float32([1], [1]) } });
        return { y: { value: graph.apply("Add", [x, graph.apply("Exp", [ones])]) } };
      });
    expect((await apply(constantFolding(), build())).operators).toEqual(["Add"]);
    expect((await apply(constantFolding({ maxBytes: 16 }), build())).operators).toContain("ConstantOfShape");
    expect((await apply(constantFolding({ keep: new Set(["Exp"]) }), build())).operators).toEqual(["Exp", "Add"]);
  });

  test("what ONNX Runtime or JavaScript cannot hold stays, and does not keep the rest from folding", async () => {
    const model = buildModel((graph) => {
      const x = graph.addInput("x", "float32", [2]);
      const c = graph.addInitializer("c", Tensor.float32([2], [1, 2]));
      const own = graph.apply("Unknown", [c], { domain: "example.org", name: "own" });
      const b16 = graph.apply("Cast", [graph.apply("Cast", [c], { attributes: { to: 16 } })], {
        attributes: { to: 1 },
      });
      const folded = graph.apply("Exp", [c]);
      return { y: { value: graph.apply("Sum", [x, own, b16, folded]) } };
    });
    model.opsets.set("example.org", 1);
    await constantFolding().run(model);
    checkModel(model);
    const operators = model.graph.sorted().map(({ opType }) => opType);
    expect(operators).toContain("Unknown");
    expect(operators).not.toContain("Exp");
  });

  test("constants of branches keep their names apart from the names around them", async () => {
    const model = new Model();
    const { graph } = model;
    const x = graph.addInput("x", "float32", [1]);
    const taken = graph.apply("Neg", [x]);
    taken.name = graph.claimName("k_1");
    const condition = graph.addInput("c", "bool", []);
    const branches = [1, 2].map((value) => {
      const branch = new Graph(`branch ${value}`);
      const node = new Node("Constant", [], { attributes: { value: Tensor.float32([1], [value]) } });
      node.addOutput(new Value(value === 1 ? "k" : "m"));
      branch.insert(node);
      const sum = branch.apply("Add", [taken, node.output()], { name: `sum${value}` });
      sum.type = { kind: "tensor", dataType: "float32", shape: [1] };
      branch.outputs.push(sum);
      return branch;
    });
    const chosen = new Node("If", [condition], {
      attributes: {
        then_branch: { kind: "graph", value: branches[0] },
        else_branch: { kind: "graph", value: branches[1] },
      },
    });
    chosen.addOutput(new Value("y", { kind: "tensor", dataType: "float32", shape: [1] }));
    graph.insert(chosen);
    graph.outputs.push(chosen.output());
    for (const flag of [0, 1]) {
      const feeds = { c: Tensor.of("bool", [], Uint8Array.of(flag)), x: Tensor.float32([1], [3]) };
      await apply(constantFolding(), model, feeds);
    }
    await inferShapes(model);
    expect(chosen.output().type).toEqual({ kind: "tensor", dataType: "float32", shape: [1] });
  });
});

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { buildModel, outputDifference, randomTensor } from "../../../../test/helpers/models.ts";
import {
  CycleError,
  checkModel,
  cloneModel,
  encodeModel,
  extractModel,
  type Graph,
  InputError,
  Model,
  Node,
  runModel,
  Tensor,
  Value,
} from "../index.ts";

/** x -> Neg "n" -> Abs "y" (output). */
function chain() {
  const model = new Model();
  const { graph } = model;
  const x = graph.addInput("x", "float32", [4]);
  const n = graph.apply("Neg", [x], { name: "neg" });
  const y = graph.apply("Abs", [n], { name: "abs" });
  y.name = graph.claimName("y");
  y.type = { kind: "tensor", dataType: "float32", shape: [4] };
  graph.outputs.push(y);
  return { model, graph, x, n, y };
}

const x4 = Tensor.float32([4], [1, -2, 3, -4]);
const run = async (model: Model) => {
  checkModel(model);
  const outputs = await runModel(model, { x: x4 });
  return Object.fromEntries([...outputs].map(([name, tensor]) => [name, tensor.toNumbers()]));
};

describe("replace", () => {
  test("moves readers and leaves the exception its edge", async () => {
    const { model, graph, n } = chain();
    const doubled = graph.addNode("Add", [n, n]);
    graph.replace(n, doubled.output(), { except: doubled });
    expect(n.uses.map(({ node, index }) => [node, index])).toEqual([
      [doubled, 0],
      [doubled, 1],
    ]);
    expect(await run(model)).toEqual({ y: [2, 4, 6, 8] });
  });

  test("a graph output keeps its name: a node's value takes it over", async () => {
    const { model, graph, y } = chain();
    const sum = graph.addNode("Add", [y, y]);
    graph.replace(y, sum.output(), { except: sum });
    expect(graph.outputs).toEqual([sum.output()]);
    expect(y.name).not.toBe("y");
    expect(await run(model)).toEqual({ y: [2, 4, 6, 8] });
  });

  test("a graph output keeps its name: inputs, constants and other outputs get a carrier", async () => {
    for (const pick of ["input", "constant", "output"] as const) {
      const { model, graph, x, n, y } = chain();
      n.name = graph.claimName("n");
      n.type = { kind: "tensor", dataType: "float32", shape: [4] };
      graph.outputs.push(n);
      const to = { input: x, constant: graph.addInitializer("c", Tensor.float32([4], [5, 6, 7, 8])), output: n }[pick];
      graph.replace(y, to);
      const expected = { input: [1, -2, 3, -4], constant: [5, 6, 7, 8], output: [-1, 2, -3, 4] }[pick];
      expect(await run(model)).toEqual({ y: expected, n: [-1, 2, -3, 4] });
    }
  });

  test("a value that keeps its name hands it and its type to what replaces it", async () => {
    const { model, graph, n, y } = chain();
    n.name = "middle";
    n.type = { kind: "tensor", dataType: "float32", shape: [4] };
    const doubled = graph.addNode("Add", [n, n], { name: "doubled" });
    graph.replace(n, doubled.output(), { except: doubled, keepName: true });
    expect([doubled.output().name, n.name]).toEqual(["middle", "middle_replaced"]);
    expect(doubled.output().type).toEqual(n.type);
    const sum = graph.addNode("Add", [y, y]);
    graph.replace(y, sum.output(), { except: sum, formerName: "y_before" });
    expect([sum.output().name, y.name]).toEqual(["y", "y_before"]);
    expect(await run(model)).toEqual({ y: [4, 8, 12, 16] });
  });

  test("names stay unique however often outputs are replaced", async () => {
    const { model, graph } = chain();
    for (let round = 0; round < 5; round++) {
      const [from] = graph.outputs;
      const node = graph.addNode("Identity", [from], { name: "again" });
      graph.replace(from, node.output(), { except: node });
    }
    expect(await run(model)).toEqual({ y: [1, 2, 3, 4] });
  });
});

describe("sorted", () => {
  test("every node stands behind what it reads, whatever the insertion order", () => {
    fc.assert(
      fc.property(
        fc
          .integer({ min: 2, max: 30 })
          .chain((count) =>
            fc.tuple(
              fc.array(fc.tuple(fc.nat(), fc.nat()), { minLength: count, maxLength: count }),
              fc.shuffledSubarray([...Array(count).keys()], { minLength: count, maxLength: count }),
            ),
          ),
        ([edges, order]) => {
          const model = new Model();
          const values: Value[] = [model.graph.addInput("x", "float32", [1])];
          const nodes = edges.map(([a, b], index) => {
            const node = new Node("Add", [values[a % values.length], values[b % values.length]]);
            node.addOutput(new Value(`v${index}`));
            values.push(node.output());
            return node;
          });
          for (const index of order) model.graph.insert(nodes[index]);
          const position = new Map(model.graph.sorted().map((node, index) => [node, index]));
          expect(position.size).toBe(nodes.length);
          for (const node of nodes) {
            for (const input of node.inputs) {
              if (input?.producer) expect(position.get(input.producer)).toBeLessThan(position.get(node)!);
            }
          }
        },
      ),
      { seed: 5, numRuns: 100 },
    );
  });

  test("a circle is an error that names a node on it; the checker turns it into an InputError", () => {
    const { model, graph, n } = chain();
    n.producer!.setInput(0, graph.outputs[0]);
    expect(() => graph.sorted()).toThrow(CycleError);
    expect(() => checkModel(model)).toThrow(InputError);
    expect(() => checkModel(model)).toThrow(/(neg|abs)/);
  });

  test("deep graphs do not overflow the stack", () => {
    const model = new Model();
    let value = model.graph.addInput("x", "float32", [1]);
    const nodes: Node[] = [];
    for (let depth = 0; depth < 20_000; depth++) {
      const node = new Node("Neg", [value]);
      node.addOutput(new Value(`v${depth}`));
      value = node.output();
      nodes.push(node);
    }
    for (const node of nodes.reverse()) model.graph.insert(node);
    model.graph.outputs.push(value);
    expect(model.graph.sorted()).toHaveLength(20_000);
    checkModel(model);
  });
});

describe("checkModel finds edges that do not agree", () => {
  test.each<[string, (graph: Graph) => void, RegExp]>([
    ["a value of another graph", (graph) => [...graph.nodes][0].setInput(0, new Value("stranger")), /reads "stranger"/],
    ["an output nobody makes", (graph) => void graph.outputs.push(new Value("ghost")), /"ghost"/],
    ["an initializer without content", (graph) => void graph.initializers.add(new Value("empty")), /"empty"/],
    [
      "two values of one name",
      (graph) => {
        graph.addInitializer("w", x4).name = "x";
      },
      /duplicate name/,
    ],
    ["a value without a name", (graph) => void ([...graph.nodes][0].output().name = ""), /no name/],
    [
      "bytes that do not fit",
      (graph) => void graph.addInitializer("w", new Tensor("float32", [5], x4.source)),
      /"w".*data length does not fit float32 \[5\]/,
    ],
  ])("%s", (_, damage, message) => {
    const { model, graph } = chain();
    damage(graph);
    expect(() => checkModel(model)).toThrow(InputError);
    expect(() => checkModel(model)).toThrow(message);
  });
});

describe("copies", () => {
  const model = () =>
    buildModel((graph) => {
      const x = graph.addInput("x", "float32", [4]);
      const w = graph.addInitializer("w", randomTensor([4], 1));
      const a = graph.apply("Mul", [x, w], { name: "scale" });
      return { y: { value: graph.apply("Exp", [a]) }, z: { value: graph.apply("Neg", [a]) } };
    });

  test("a clone gives the same bytes and shares no edges", () => {
    const original = model();
    const before = encodeModel(original);
    const copy = cloneModel(original);
    checkModel(copy);
    expect(Buffer.compare(encodeModel(copy), before)).toBe(0);
    for (const node of [...copy.graph.nodes])
      if (node.opType === "Neg") copy.graph.replace(node.output(), node.input(0));
    copy.graph.inputs[0].name = "renamed";
    expect(Buffer.compare(encodeModel(original), before)).toBe(0);
    checkModel(original);
  });

  test("an extract computes inner values from given ones", async () => {
    const original = model();
    const scaled = [...original.graph.nodes].find(({ opType }) => opType === "Mul")!.output();
    const front = extractModel(original, [], [scaled]);
    const back = extractModel(original, [scaled], original.graph.outputs);
    for (const part of [front, back]) {
      checkModel(part);
      for (const value of part.graph.outputs) value.type ??= { kind: "tensor", dataType: "float32", shape: null };
    }
    scaled.type = { kind: "tensor", dataType: "float32", shape: [4] };
    const typed = extractModel(original, [scaled], original.graph.outputs);
    expect(typed.graph.inputs.map(({ name }) => name)).toEqual([scaled.name]);
    const middle = (await runModel(front, { x: x4 })).get(scaled.name)!;
    const whole = await runModel(original, { x: x4 });
    expect(outputDifference(await runModel(typed, { [scaled.name]: middle }), whole)).toBe(0);
  });
});

import { encodeFloat16 } from "@quad-lora/base";
import { checkModel, type Graph, type Model, runModel, Tensor, type Value } from "@quad-lora/onnx";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { buildModel, maxRelative, randomTensor } from "../../../../test/helpers/models.ts";
import type { AdapterLayer } from "../adapters/types.ts";
import { bindAdapter } from "../factors/bind-adapter.ts";
import { findLayers, type Layer } from "../layers/find-layers.ts";
import { exposeGraph } from "./expose-graph.ts";

/** How a weight's initializer lays out the PyTorch weight `[out, in, ...]`. */
type Layout = "out-in" | "in-out";
interface Case {
  /** Builds the graph; `weight` gives the named layer's (merged or plain) weight as an initializer. */
  build: (weight: (module: string, dims: readonly number[], layout: Layout, initializer: string) => Tensor) => Model;
  feeds: Record<string, Tensor>;
}

/** Random factors for a layer: down `[rank, columns]`, up `[out, rank]`. */
function factorsFor(layer: Layer, rank: number, seed: number): AdapterLayer {
  const columns =
    layer.kind === "conv" ? (layer.inFeatures / layer.groups!) * layer.kernel![0] * layer.kernel![1] : layer.inFeatures;
  return {
    component: "unet",
    module: layer.name,
    rank,
    down: randomTensor([rank, columns], seed).toFloat32(),
    up: randomTensor([layer.outFeatures, rank], seed + 1, 0.5).toFloat32(),
  };
}

/** The plain weight of a module: seeded by its initializer's name. */
function plainWeight(initializer: string, dims: readonly number[]): Float32Array {
  const seed = [...initializer].reduce((hash, character) => (hash * 31 + character.charCodeAt(0)) % 65521, 7);
  return randomTensor(dims, seed, 0.3).toFloat32();
}

/** `W + strength * up * down` in float64, in the initializer's layout. */
function weightTensor(
  dims: readonly number[],
  layout: Layout,
  initializer: string,
  adapter?: AdapterLayer,
  strength = 0,
) {
  const plain = plainWeight(initializer, dims);
  if (!adapter) return Tensor.float32(dims, plain);
  const rows = layout === "out-in" ? dims[0] : dims[1];
  const columns = plain.length / rows;
  const merged = Float32Array.from(plain, (value, index) => {
    const [row, column] =
      layout === "out-in" ? [Math.floor(index / columns), index % columns] : [index % rows, Math.floor(index / rows)];
    let delta = 0;
    for (let r = 0; r < adapter.rank; r++)
      delta += adapter.up[row * adapter.rank + r] * adapter.down[r * columns + column];
    return value + strength * delta;
  });
  return Tensor.float32(dims, merged);
}

/** Exposes the case's model and compares it with the merged one, for some strengths and for rank 0. */
async function compare(testCase: Case, expectedLayers: string[], options: { rank?: number; adapted?: string[] } = {}) {
  const { rank = 3, adapted = expectedLayers } = options;
  const plain = testCase.build((_, dims, layout, initializer) => weightTensor(dims, layout, initializer));
  const model = testCase.build((_, dims, layout, initializer) => weightTensor(dims, layout, initializer));
  const { layers } = findLayers(model);
  expect(layers.map(({ name }) => name).sort()).toEqual([...expectedLayers].sort());
  const adapter = layers
    .filter(({ name }) => adapted.includes(name))
    .map((layer, index) => factorsFor(layer, rank, 100 + index));
  const { slots, strengthInput } = exposeGraph(model, "unet", layers, { kind: "dynamic" });
  checkModel(model);
  const run = async (width: number, strength: number) => {
    const { tensors } = width === 0 ? { tensors: [] } : bindAdapter(adapter, { unet: { slots } });
    const bound = new Map(tensors.map(({ name, data }) => [name, data as Float32Array]));
    const feeds: Record<string, Tensor> = { ...testCase.feeds };
    for (const { inputA, shapeA, inputB, shapeB } of slots) {
      for (const [name, shape] of [[inputA, shapeA] as const, [inputB, shapeB] as const]) {
        const dims = shape.map((size) => (size === "rank" ? width : size));
        const zeros = new Float32Array(dims.reduce((product, size) => product * size, 1));
        feeds[name] = Tensor.float32(dims, bound.get(name) ?? zeros);
      }
    }
    feeds[strengthInput] = Tensor.float32([width], new Float32Array(width).fill(strength));
    return runModel(model, feeds);
  };
  const byName = new Map(adapter.map((layer) => [layer.module, layer]));
  for (const strength of [1, -0.4]) {
    const merged = testCase.build((module, dims, layout, initializer) =>
      weightTensor(dims, layout, initializer, byName.get(module), strength),
    );
    const expected = await runModel(merged, testCase.feeds);
    const base = await runModel(plain, testCase.feeds);
    const got = await run(rank, strength);
    expect([...got.keys()]).toEqual([...expected.keys()]);
    for (const [name, tensor] of expected) {
      expect(got.get(name)!.dims).toEqual(tensor.dims);
      expect(maxRelative(got.get(name)!.toNumbers(), tensor.toNumbers()), `${name}, strength ${strength}`).toBeLessThan(
        1e-4,
      );
    }
    if (adapted.length > 0) {
      const change = Math.max(
        ...[...base].map(([name, tensor]) => maxRelative(expected.get(name)!.toNumbers(), tensor.toNumbers())),
      );
      expect(change).toBeGreaterThan(1e-2);
    }
  }
  const base = await runModel(plain, testCase.feeds);
  for (const [name, tensor] of await run(0, 1)) {
    expect(maxRelative(tensor.toNumbers(), base.get(name)!.toNumbers()), `${name}, rank 0`).toBeLessThan(1e-6);
  }
}

const bias = (graph: Graph, size: number) => graph.addInitializer("some.bias", randomTensor([size], 77));

describe("linear layers", () => {
  const x = randomTensor([2, 5, 8], 1);
  test("MatMul with its bias as input 0 of an Add", () =>
    compare(
      {
        build: (weight) =>
          buildModel((graph) => {
            const w = graph.addInitializer("onnx::MatMul_12", weight("block.fc", [8, 6], "in-out", "w"));
            const y = graph.apply("MatMul", [graph.addInput("x", "float32", ["n", 5, 8]), w], {
              name: "/block/fc/MatMul",
            });
            return {
              y: { value: graph.apply("Relu", [graph.apply("Add", [bias(graph, 6), y], { name: "/block/fc/Add" })]) },
            };
          }),
        feeds: { x },
      },
      ["block.fc"],
    ));

  test("Gemm with transB, its output a graph output", () =>
    compare(
      {
        build: (weight) =>
          buildModel((graph) => {
            const w = graph.addInitializer("time.linear_1.weight", weight("time.linear_1", [6, 8], "out-in", "w"));
            const inputs = [graph.addInput("x", "float32", ["n", 8]), w, bias(graph, 6)];
            const y = graph.apply("Gemm", inputs, { name: "/time/linear_1/Gemm", attributes: { transB: 1 } });
            return { y: { value: y } };
          }),
        feeds: { x: randomTensor([3, 8], 2) },
      },
      ["time.linear_1"],
    ));

  test("output read by the bias and by another node, and as graph output besides the bias", async () => {
    for (const alsoOutput of [false, true]) {
      await compare(
        {
          build: (weight) =>
            buildModel((graph) => {
              const w = graph.addInitializer("w", weight("fc.proj", [8, 6], "in-out", "w"));
              const product = graph.apply("MatMul", [graph.addInput("x", "float32", [2, 5, 8]), w], {
                name: "/fc/proj/MatMul",
              });
              const sum = graph.apply("Add", [product, bias(graph, 6)], { name: "/fc/proj/Add" });
              const other: Record<string, { value: Value }> = alsoOutput
                ? { raw: { value: product } }
                : { other: { value: graph.apply("Tanh", [product]) } };
              return { y: { value: sum }, ...other };
            }),
          feeds: { x },
        },
        ["fc.proj"],
      );
    }
  });

  test("one module called twice, alone and inside a block that is called twice", () =>
    compare(
      {
        build: (weight) =>
          buildModel((graph) => {
            const input = graph.addInput("x", "float32", [2, 5, 8]);
            const w = graph.addInitializer("onnx::MatMul_1", weight("x.fc", [8, 8], "in-out", "w1"));
            const v = graph.addInitializer("onnx::MatMul_2", weight("blocks.0.proj", [8, 8], "in-out", "w2"));
            let value = input;
            for (const [name, constant] of [
              ["/x/fc/MatMul", w],
              ["/x/fc_1/MatMul", w],
              ["/blocks.0/proj/MatMul", v],
              ["/blocks.0_1/proj/MatMul", v],
            ] as const) {
              value = graph.apply("Tanh", [graph.apply("MatMul", [value, constant], { name })]);
            }
            return { y: { value } };
          }),
        feeds: { x },
      },
      ["x.fc", "blocks.0.proj"],
    ));

  test("two modules tied to one initializer are adapted apart", () =>
    compare(
      {
        build: (weight) =>
          buildModel((graph) => {
            const input = graph.addInput("x", "float32", [2, 5, 8]);
            const [first, second] = ["a.query", "b.key"].map((name) => weight(name, [8, 8], "in-out", "tied"));
            const isTied = first.toNumbers().join() === second.toNumbers().join();
            const one = graph.addInitializer("onnx::MatMul_1", first);
            const two = isTied ? one : graph.addInitializer("onnx::MatMul_2", second);
            const a = graph.apply("MatMul", [input, one], { name: "/a/query/MatMul" });
            const b = graph.apply("MatMul", [graph.apply("Tanh", [a]), two], { name: "/b/key/MatMul" });
            return { a: { value: a }, b: { value: b } };
          }),
        feeds: { x },
      },
      ["a.query", "b.key"],
    ));

  test("dynamo's names: the weight's through a Transpose, and the node's scopes", () =>
    compare(
      {
        build: (weight) =>
          buildModel((graph) => {
            const input = graph.addInput("x", "float32", [2, 5, 8]);
            const w = graph.addInitializer("blocks.0.fc.weight", weight("blocks.0.fc", [6, 8], "out-in", "w"));
            const turned = graph.apply("Transpose", [graph.apply("Identity", [w])], { attributes: { perm: [1, 0] } });
            const first = graph.apply("MatMul", [input, turned], { name: "node_MatMul_12" });
            const v = graph.addInitializer("val_3", weight("blocks.1.fc", [6, 8], "in-out", "v"));
            const second = graph.addNode("MatMul", [first, v], { name: "node_MatMul_13" });
            second.extra = {
              metadataProps: [
                { key: "pkg.torch.onnx.name_scopes", value: "['', 'blocks.1', 'blocks.1.fc', 'linear_1']" },
              ],
            };
            return { y: { value: second.output() } };
          }),
        feeds: { x },
      },
      ["blocks.0.fc", "blocks.1.fc"],
    ));

  test("a layer that the adapter lacks stays as it is", () =>
    compare(
      {
        build: (weight) =>
          buildModel((graph) => {
            const w = graph.addInitializer("w", weight("a.fc", [8, 8], "in-out", "w"));
            const v = graph.addInitializer("v", weight("b.fc", [8, 8], "in-out", "v"));
            const a = graph.apply("MatMul", [graph.addInput("x", "float32", [2, 5, 8]), w], { name: "/a/fc/MatMul" });
            return { a: { value: a }, b: { value: graph.apply("MatMul", [a, v], { name: "/b/fc/MatMul" }) } };
          }),
        feeds: { x },
      },
      ["a.fc", "b.fc"],
      { adapted: ["b.fc"] },
    ));

  test("arbitrary shapes", async () => {
    const shape = fc.record({
      lead: fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 1, maxLength: 3 }),
      inputs: fc.integer({ min: 1, max: 9 }),
      outputs: fc.integer({ min: 1, max: 9 }),
      rank: fc.integer({ min: 1, max: 12 }),
      biasFirst: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(shape, ({ lead, inputs, outputs, rank, biasFirst }) =>
        compare(
          {
            build: (weight) =>
              buildModel((graph) => {
                const input = graph.addInput("x", "float32", [...lead, inputs]);
                const w = graph.addInitializer("w", weight("m.fc", [inputs, outputs], "in-out", "w"));
                const y = graph.apply("MatMul", [input, w], { name: "/m/fc/MatMul" });
                const operands = biasFirst ? [bias(graph, outputs), y] : [y, bias(graph, outputs)];
                return { y: { value: graph.apply("Add", operands, { name: "/m/fc/Add" }) } };
              }),
            feeds: { x: randomTensor([...lead, inputs], 5) },
          },
          ["m.fc"],
          { rank },
        ),
      ),
      { seed: 3, numRuns: 15 },
    );
  });
});

describe("convolutions", () => {
  const conv = (
    channels: [number, number],
    kernel: [number, number],
    attributes: Record<string, number | string | number[]>,
  ): Case => {
    const groups = (attributes.group as number | undefined) ?? 1;
    return {
      build: (weight) =>
        buildModel((graph) => {
          const dims = [channels[1], channels[0] / groups, ...kernel];
          const w = graph.addInitializer("down.conv.weight", weight("down.conv", dims, "out-in", "w"));
          const inputs = [graph.addInput("x", "float32", ["n", channels[0], "h", "w"]), w, bias(graph, channels[1])];
          const y = graph.apply("Conv", inputs, { name: "/down/conv/Conv", attributes });
          return { y: { value: graph.apply("Tanh", [y]) } };
        }),
      feeds: { x: randomTensor([2, channels[0], 9, 8], 6) },
    };
  };
  test.each<[string, Case]>([
    [
      "3x3, stride 2, pads, dilations",
      conv([4, 6], [3, 3], { strides: [2, 2], pads: [1, 1, 1, 1], dilations: [1, 2], kernel_shape: [3, 3] }),
    ],
    ["asymmetric pads, no kernel_shape", conv([4, 6], [3, 2], { pads: [0, 1, 2, 0] })],
    ["auto_pad", conv([4, 6], [3, 3], { auto_pad: "SAME_UPPER", strides: [2, 2] })],
    ["1x1", conv([4, 6], [1, 1], { kernel_shape: [1, 1] })],
    ["1x1 with a stride", conv([4, 6], [1, 1], { strides: [2, 2] })],
    ["grouped", conv([4, 6], [3, 3], { group: 2, pads: [1, 1, 1, 1] })],
    ["depthwise", conv([4, 4], [3, 3], { group: 4, pads: [1, 1, 1, 1], strides: [2, 1] })],
    ["depthwise with a multiplier", conv([4, 8], [3, 3], { group: 4 })],
  ])("%s", (_, testCase) => compare(testCase, ["down.conv"]));

  test("a convolution called twice", () =>
    compare(
      {
        build: (weight) =>
          buildModel((graph) => {
            const w = graph.addInitializer("head.conv.weight", weight("head.conv", [3, 3, 3, 3], "out-in", "w"));
            const attributes = { pads: [1, 1, 1, 1] };
            const once = graph.apply("Conv", [graph.addInput("x", "float32", [1, 3, 6, 6]), w], {
              name: "/head/conv/Conv",
              attributes,
            });
            return { y: { value: graph.apply("Conv", [once, w], { name: "/head/conv_1/Conv", attributes }) } };
          }),
        feeds: { x: randomTensor([1, 3, 6, 6], 8) },
      },
      ["head.conv"],
    ));
});

test("float16 layers take float16 factors and float32 strengths", async () => {
  const half = (dims: number[], seed: number, scale = 0.3) => {
    const values = randomTensor(dims, seed, scale).toFloat32();
    return Tensor.of("float16", dims, encodeFloat16(values));
  };
  const build = (w: Tensor, k: Tensor) =>
    buildModel((graph) => {
      const x = graph.addInput("x", "float16", [1, 4, 5, 5]);
      const c = graph.apply("Conv", [x, graph.addInitializer("c.conv.weight", k)], { name: "/c/conv/Conv" });
      return {
        y: {
          value: graph.apply("MatMul", [c, graph.addInitializer("w", w)], { name: "/m/fc/MatMul" }),
          type: "float16",
        },
      };
    });
  const [w, k, x] = [half([5, 7], 1), half([4, 4, 1, 1], 2), half([1, 4, 5, 5], 3, 1)];
  const model = build(w, k);
  const { slots, strengthInput } = exposeGraph(model, "unet", findLayers(model).layers, { kind: "fixed", rank: 2 });
  checkModel(model);
  const feeds: Record<string, Tensor> = { x, [strengthInput]: Tensor.float32([2], [0.5, 0.5]) };
  const factors = new Map<string, number[]>();
  slots.forEach(({ inputA, shapeA, inputB, shapeB }, index) => {
    for (const [name, shape, seed] of [[inputA, shapeA, 10 + index] as const, [inputB, shapeB, 20 + index] as const]) {
      feeds[name] = half(
        shape.map((size) => (size === "rank" ? 2 : size)),
        seed,
      );
      factors.set(name, feeds[name].toNumbers());
    }
  });
  const got = (await runModel(model, feeds)).get("y")!;
  // Merged in float64, then rounded to float16 once.
  const product = (a: number[], b: number[], rows: number, columns: number) =>
    Array.from({ length: rows * columns }, (_, i) => {
      const [row, column] = [Math.floor(i / columns), i % columns];
      return 0.5 * (a[row * 2] * b[column] + a[row * 2 + 1] * b[columns + column]);
    });
  const [convSlot, linearSlot] = [
    slots.find(({ kind }) => kind === "conv")!,
    slots.find(({ kind }) => kind === "matmul")!,
  ];
  const deltaK = product(factors.get(convSlot.inputB)!, factors.get(convSlot.inputA)!, 4, 4);
  const deltaW = product(factors.get(linearSlot.inputA)!, factors.get(linearSlot.inputB)!, 5, 7);
  const add = (tensor: Tensor, delta: number[]) =>
    Tensor.of(
      "float16",
      tensor.dims,
      encodeFloat16(Float32Array.from(tensor.toNumbers(), (value, i) => value + delta[i])),
    );
  const expected = (await runModel(build(add(w, deltaW), add(k, deltaK)), { x })).get("y")!;
  expect(got.dataType).toBe("float16");
  expect(maxRelative(got.toNumbers(), expected.toNumbers())).toBeLessThan(4e-3);
});

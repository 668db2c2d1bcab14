import { fileURLToPath } from "node:url";
import { float32ToFloat16Bits, InputError } from "@quad-lora/base";
import { checkModel, Graph, Model, runModel, Tensor } from "@quad-lora/onnx";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { AdapterLayer } from "../adapters/types.ts";
import { openSafetensors } from "../files/safetensors.ts";
import { findLayers } from "../layers/find-layers.ts";
import { openModelFolder } from "../model/model-folder.ts";
import { inspectModel } from "./expose.ts";
import { mergeAdapter } from "./merge-adapter.ts";

const pocket = fileURLToPath(new URL("../../../../models/pocket", import.meta.url));
const reference = fileURLToPath(new URL("../../../../test/reference/pocket/unet.safetensors", import.meta.url));

/** Repeatable values in [-1, 1). */
function numbers(count: number, seed: number): Float32Array {
  let state = seed * 2654435761 + 1;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

type Kind = "matmul" | "matmul through Transpose" | "gemm" | "gemm with transB" | "conv";

interface Shape {
  kind: Kind;
  inFeatures: number;
  outFeatures: number;
  groups: number;
  kernel: [number, number];
}

/** One layer named `block.layer`, its weight `[out, ...]` as PyTorch has it, stored as each operator wants it. */
function oneLayer({ kind, inFeatures, outFeatures, groups, kernel }: Shape, weight: Float32Array): Model {
  const graph = new Graph();
  const model = new Model(graph);
  const init = (operator: string) => ({ name: `/block/layer/${operator}` });
  if (kind === "conv") {
    const x = graph.addInput("x", "float32", [1, inFeatures, 5, 5]);
    const w = graph.addInitializer("w", Tensor.float32([outFeatures, inFeatures / groups, ...kernel], weight));
    const attributes = { kernel_shape: kernel, group: groups, strides: [2, 2] };
    graph.outputs.push(graph.apply("Conv", [x, w], { ...init("Conv"), attributes }));
    return model;
  }
  const x = graph.addInput("x", "float32", [2, inFeatures]);
  const isOutputMajor = kind === "gemm with transB" || kind === "matmul through Transpose";
  const stored = isOutputMajor ? weight : transpose(weight, outFeatures, inFeatures);
  const dims = isOutputMajor ? [outFeatures, inFeatures] : [inFeatures, outFeatures];
  const initializer = graph.addInitializer("w", Tensor.float32(dims, stored));
  const w = kind === "matmul through Transpose" ? graph.apply("Transpose", [initializer]) : initializer;
  const node = kind.startsWith("gemm")
    ? graph.apply("Gemm", [x, w], { ...init("Gemm"), attributes: { transB: isOutputMajor ? 1 : 0 } })
    : graph.apply("MatMul", [x, w], init("MatMul"));
  graph.outputs.push(node);
  return model;
}

function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  return Float32Array.from(values, (_, index) => values[(index % rows) * columns + Math.floor(index / rows)]);
}

async function outputOf(model: Model): Promise<Float32Array> {
  const input = model.graph.inputs[0];
  const dims = input.concreteShape!;
  const x = Tensor.float32(
    dims,
    numbers(
      dims.reduce((a, b) => a * b, 1),
      99,
    ),
  );
  return [...(await runModel(model, { [input.name]: x })).values()][0].toFloat32();
}

const kinds: Kind[] = ["matmul", "matmul through Transpose", "gemm", "gemm with transB", "conv"];
const shapes = fc
  .record({
    kind: fc.constantFrom(...kinds),
    groups: fc.constantFrom(1, 2, 3),
    inPerGroup: fc.integer({ min: 1, max: 4 }),
    outPerGroup: fc.integer({ min: 1, max: 4 }),
    kernel: fc.tuple(fc.constantFrom(1, 3), fc.constantFrom(1, 2)),
    rank: fc.integer({ min: 1, max: 5 }),
    strength: fc.constantFrom(1, 0.5, -0.75, 0),
  })
  .map(({ kind, groups, inPerGroup, outPerGroup, kernel, rank, strength }) => {
    const own = kind === "conv" ? groups : 1;
    const shape: Shape = { kind, groups: own, inFeatures: inPerGroup * own, outFeatures: outPerGroup * own, kernel };
    return { shape, rank, strength, columns: kind === "conv" ? inPerGroup * kernel[0] * kernel[1] : inPerGroup };
  });

describe("mergeAdapter", () => {
  test("the merged layer is the layer of W + strength * up * down", async () => {
    await fc.assert(
      fc.asyncProperty(shapes, async ({ shape, rank, strength, columns }) => {
        const weight = numbers(shape.outFeatures * columns, 1);
        const [down, up] = [numbers(rank * columns, 2), numbers(shape.outFeatures * rank, 3)];
        const expected = weight.map((value, index) => {
          const [row, column] = [Math.floor(index / columns), index % columns];
          let sum = 0;
          for (let r = 0; r < rank; r++) sum += up[row * rank + r] * down[r * columns + column];
          return value + strength * sum;
        });
        const model = oneLayer(shape, weight);
        const layer: AdapterLayer = { component: "unet", module: "block.layer", rank, down, up };
        expect(mergeAdapter(model, findLayers(model).layers, [layer], strength)).toBe(1);
        checkModel(model);
        const [got, wanted] = [await outputOf(model), await outputOf(oneLayer(shape, expected))];
        got.forEach((value, index) => {
          expect(value).toBeCloseTo(wanted[index], 4);
        });
        // The old weight is gone, with the Transpose behind it.
        expect(model.graph.initializers.size).toBe(1);
        expect(model.graph.nodes.size).toBe(1);
      }),
      { numRuns: 60, seed: 7 },
    );
  });

  test.each([
    ["flat", [["flat", 1]]],
    ["sketch", [["sketch", 1]]],
    ["erase", [["erase", 1]]],
    [
      "flat@0.7+sketch@0.5",
      [
        ["flat", 0.7],
        ["sketch", 0.5],
      ],
    ],
    ["flat@-0.4", [["flat", -0.4]]],
  ] as const)("the merged pocket model equals PyTorch with the adapter: %s", async (name, members) => {
    const names = ["flat", "sketch", "erase"];
    const { models, components, adapters } = await inspectModel(
      await openModelFolder(pocket),
      Object.fromEntries(names.map((adapter) => [adapter, adapter])),
    );
    const model = models.get("unet")!;
    for (const [adapter, strength] of members) {
      const imported = adapters.find((candidate) => candidate.name === adapter)!;
      // What was merged before is a weight like any other: layers are found anew.
      const { layers } = findLayers(model);
      expect(mergeAdapter(model, layers, imported.layers, strength)).toBe(120);
    }
    expect(findLayers(model).layers.length).toBe(components[0].layers.length);
    const file = await openSafetensors(reference);
    const input = async (key: string) => {
      const { shape } = file.entries.get(key)!;
      return Tensor.float32([...shape], await file.readFloat32(key));
    };
    const timestep = Tensor.int64([], new BigInt64Array((await file.read("timestep")).bytes.slice().buffer));
    const outputs = await runModel(model, {
      sample: await input("sample"),
      encoder_hidden_states: await input("encoder_hidden_states"),
      timestep,
    });
    const expected = await file.readFloat32(`out.${name}`);
    await file.close();
    const got = outputs.get("out_sample")!.toFloat32();
    let [difference, largest] = [0, 0];
    expected.forEach((value, index) => {
      difference = Math.max(difference, Math.abs(value - got[index]));
      largest = Math.max(largest, Math.abs(value));
    });
    expect(difference / largest).toBeLessThan(1e-4);
  });

  test("a weight that two layers share changes for the adapted one only", async () => {
    const graph = new Graph();
    const model = new Model(graph);
    const x = graph.addInput("x", "float32", [1, 2]);
    const w = graph.addInitializer("onnx::MatMul_1", Tensor.float32([2, 2], [1, 2, 3, 4]));
    graph.outputs.push(graph.apply("MatMul", [x, w], { name: "/first/MatMul" }));
    graph.outputs.push(graph.apply("MatMul", [x, w], { name: "/second/MatMul" }));
    const layer: AdapterLayer = {
      component: "unet",
      module: "second",
      rank: 1,
      down: Float32Array.of(1, 0),
      up: Float32Array.of(0, 1),
    };
    mergeAdapter(model, findLayers(model).layers, [layer], 10);
    const outputs = [...(await runModel(model, { x: Tensor.float32([1, 2], [1, 1]) })).values()];
    expect([...outputs[0].toFloat32()]).toEqual([4, 6]);
    expect([...outputs[1].toFloat32()]).toEqual([4, 16]);
  });

  test("half-precision weights stay half precision, and an overflow is an error", () => {
    const half = () => {
      const graph = new Graph();
      const x = graph.addInput("x", "float16", [1, 1]);
      const w = graph.addInitializer("w", Tensor.of("float16", [1, 1], Uint16Array.of(float32ToFloat16Bits(2))));
      graph.outputs.push(graph.apply("MatMul", [x, w], { name: "/block/layer/MatMul" }));
      return new Model(graph);
    };
    const layer: AdapterLayer = {
      component: "unet",
      module: "block.layer",
      rank: 1,
      down: Float32Array.of(0.5),
      up: Float32Array.of(1),
    };
    const model = half();
    mergeAdapter(model, findLayers(model).layers, [layer]);
    const [merged] = model.graph.initializers;
    expect(merged!.initializer!.dataType).toBe("float16");
    expect([...merged!.initializer!.toFloat32()]).toEqual([2.5]);
    const other = half();
    expect(() => mergeAdapter(other, findLayers(other).layers, [layer], 1e6)).toThrow(/block\.layer.*float16's range/);
  });

  test("refuses what does not fit", () => {
    const shape: Shape = { kind: "matmul", inFeatures: 2, outFeatures: 3, groups: 1, kernel: [1, 1] };
    const model = oneLayer(shape, numbers(6, 1));
    const { layers } = findLayers(model);
    const layer: AdapterLayer = {
      component: "text_encoder",
      module: "block.layer",
      rank: 1,
      down: numbers(2, 2),
      up: numbers(3, 3),
    };
    for (const [bad, strength, message] of [
      [{ ...layer, module: "elsewhere" }, 1, /elsewhere: the model has no such layer.*text_encoder/],
      [{ ...layer, up: numbers(2, 3) }, 1, /block\.layer.*expected 2 values in down and 3 in up, got 2 and 2/],
      [layer, Number.NaN, /strength.*NaN/],
    ] as const) {
      expect(() => mergeAdapter(model, layers, [bad], strength)).toThrow(InputError);
      expect(() => mergeAdapter(model, layers, [bad], strength)).toThrow(message);
    }
  });
});

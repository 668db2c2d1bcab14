import { existsSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { InputError } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import { buildModel, rampTensor, randomTensor, temporaryFolder } from "../../../../test/helpers/models.ts";
import { loadModel } from "../io/load.ts";
import { saveModel } from "../io/save.ts";
import type { Model } from "../ir/model.ts";
import { type NumericDataType, Tensor } from "../ir/tensor.ts";
import { tensorType } from "../ir/value.ts";
import { bindShape, inferShapes, onesTensor } from "./concrete-shapes.ts";
import { runModel, runSession } from "./run.ts";
import { createSession, writeTemporary } from "./session.ts";
import { fromOrt, toOrt } from "./tensors.ts";

const folder = temporaryFolder();

/** `y = x W + x W`, with `x [rows, 3]` and rows left open. */
function twice(weight: Tensor): Model {
  return buildModel((graph) => {
    const x = graph.addInput("x", "float32", ["rows", 3]);
    const product = graph.apply("MatMul", [x, graph.addInitializer("w", weight)]);
    return { y: { value: graph.apply("Add", [product, product]) } };
  });
}

const weight = Tensor.float32([3, 2], Float32Array.of(1, 2, 3, 4, 5, 6));
const x = Tensor.float32([2, 3], Float32Array.of(1, 0, 0, 0, 1, 1));
const y = [2, 4, 16, 20];

describe("tensors", () => {
  test.each<NumericDataType>(["float32", "float64", "int64", "uint64", "int32", "int8", "uint8", "bool"])(
    "of %s come back from ONNX Runtime as they were",
    (dataType) => {
      const tensor = rampTensor(dataType, [2, 3]);
      const back = fromOrt(toOrt(tensor));
      expect([back.dataType, [...back.dims]]).toEqual([dataType, [2, 3]]);
      expect(back.bytes()).toEqual(tensor.bytes());
    },
  );

  test("of ones are ones of every type", () => {
    const types: NumericDataType[] = ["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"];
    for (const type of types) expect([...onesTensor(type, [2]).toNumbers()]).toEqual([1, 1]);
    expect(() => onesTensor("uint64", [1])).toThrow(TypeError);
  });
});

describe("running a model", () => {
  test("gives its outputs by name, or those that are asked for", async () => {
    const model = twice(weight);
    const outputs = await runModel(model, { x });
    expect([...outputs.keys()]).toEqual(["y"]);
    expect([...outputs.get("y")!.toNumbers()]).toEqual(y);
    const session = await createSession(model);
    expect([...(await runSession(session, { x }, ["y"])).keys()]).toEqual(["y"]);
    await session.release();
  });

  test("with weights in a file leaves nothing beside them", async () => {
    const path = join(folder, "external", "model.onnx");
    // Small constants stay in the model file: this one is a hundred times the weight.
    const large = Tensor.float32(
      [3, 200],
      Float32Array.from({ length: 600 }, (_, index) => weight.toNumbers()[index % 2]),
    );
    await saveModel(twice(large), path, { externalData: "always" });
    const model = loadModel(path);
    const before = readdirSync(dirname(path)).sort();
    expect(before).toEqual(["model.onnx", "model.onnx_data"]);
    const outputs = await runModel(model, { x });
    expect([...outputs.get("y")!.toNumbers()].slice(0, 2)).toEqual([2, 4]);
    expect(readdirSync(dirname(path)).sort()).toEqual(before);
    // The file that ONNX Runtime opens refers to the weights, so it lies beside them until it is removed.
    const temporary = await writeTemporary(model);
    expect(dirname(temporary.path)).toBe(dirname(path));
    temporary.remove();
    expect(existsSync(temporary.path)).toBe(false);
    expect(readdirSync(dirname(path)).sort()).toEqual(before);
  });

  test("without such a file uses a folder of its own, which goes away too", async () => {
    const temporary = await writeTemporary(twice(randomTensor([3, 2], 1)));
    expect(existsSync(temporary.path)).toBe(true);
    temporary.remove();
    expect(existsSync(dirname(temporary.path))).toBe(false);
  });
});

describe("shapes", () => {
  test("of inputs are bound by symbol or whole, and must fit what the graph says", () => {
    const model = twice(weight);
    const [input] = model.graph.inputs;
    expect(bindShape(model, input, { symbols: { rows: 5 } })).toEqual([5, 3]);
    expect(bindShape(model, input, { inputs: { x: [4, 3] } })).toEqual([4, 3]);
    expect(() => bindShape(model, input, {})).toThrow(/no length is given for dimension "rows"/);
    expect(() => bindShape(model, input, { inputs: { x: [4, 2] } })).toThrow(InputError);
    input.type = tensorType("float32", null);
    expect(() => bindShape(model, input, {})).toThrow(/declares none/);
  });

  test("of all values are what a run has, though layers are not computed", async () => {
    const model = buildModel((graph) => {
      const image = graph.addInput("image", "float32", ["batch", 3, 8, 6]);
      const kernel = graph.addInitializer("kernel", randomTensor([4, 3, 3, 3], 2));
      const attributes = { strides: [2, 2], pads: [1, 1, 1, 1] };
      const features = graph.apply("Conv", [image, kernel], { attributes });
      const flat = graph.apply("Flatten", [features]);
      const dense = graph.apply("MatMul", [flat, graph.addInitializer("dense", randomTensor([48, 5], 3))]);
      return { features: { value: features }, dense: { value: graph.apply("Softmax", [dense]) } };
    });
    const run = await runModel(model, { image: randomTensor([2, 3, 8, 6], 4) });
    await inferShapes(model, { symbols: { batch: 2 } });
    for (const output of model.graph.outputs) expect(output.concreteShape).toEqual([...run.get(output.name)!.dims]);
    expect([...model.graph.nodes].map((node) => node.output().concreteShape)).toEqual([
      [2, 4, 4, 3],
      [2, 48],
      [2, 5],
      [2, 5],
    ]);
  });

  test("that depend on content need the content", async () => {
    const model = buildModel((graph) => {
      const data = graph.addInput("data", "float32", [2, 3]);
      const shape = graph.addInput("shape", "int64", [2]);
      return { out: { value: graph.apply("Reshape", [data, shape]) } };
    });
    await inferShapes(model, {}, { shape: Tensor.int64([2], [3, 2]) });
    expect(model.graph.outputs[0].concreteShape).toEqual([3, 2]);
  });
});

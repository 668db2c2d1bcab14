import {
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { create, toBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema, TensorProto_DataLocation } from "onnx-buf";
import * as ort from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { buildModel, outputDifference, randomTensor, temporaryFolder } from "../../../../test/helpers/models.ts";
import { InputError, loadModel, type Model, runModel, saveModel, Tensor } from "../index.ts";

const root = temporaryFolder();
let count = 0;
function newFolder(): string {
  const folder = join(root, `case ${count++}`);
  mkdirSync(folder);
  return folder;
}

/** y = relu(x a) b + c, with weights large enough to be external and one constant that is not. */
function smallModel(): Model {
  return buildModel((graph) => {
    const x = graph.addInput("x", "float32", [3, 16]);
    const a = graph.addInitializer("a", randomTensor([16, 32], 1));
    const b = graph.addInitializer("b", randomTensor([32, 24], 2));
    const c = graph.addInitializer("c", randomTensor([24], 3));
    const hidden = graph.apply("Relu", [graph.apply("MatMul", [x, a])]);
    return { y: { value: graph.apply("Add", [graph.apply("MatMul", [hidden, b]), c]) } };
  });
}

const x = randomTensor([3, 16], 4);

test("sizes that shapes depend on stay in the file, however many: ONNX Runtime reads them before external data", async () => {
  const count = 300;
  const model = buildModel((graph) => {
    const vector = graph.addInput("x", "float32", [2 * count]);
    const sizes = graph.addInitializer("sizes", Tensor.int64([count], new Array(count).fill(2)));
    const weight = graph.addInitializer("weight", randomTensor([2, 600], 1));
    const { outputs } = graph.addNode("Split", [vector, sizes], { outputCount: count });
    return { y: { value: graph.apply("MatMul", [outputs[count - 1], weight]) } };
  });
  const path = join(newFolder(), "model.onnx");
  await saveModel(model, path, { externalData: "always" });
  const session = await ort.InferenceSession.create(path);
  await session.release();
  const external = [...loadModel(path).graph.initializers].filter(({ initializer }) => initializer!.source.file);
  expect(external.map(({ name }) => name)).toEqual(["weight"]);
});

/** A model file whose one weight is described by `external`; `data` is its file's content. */
function describedModel(external: Record<string, string>, data: Uint8Array | null = new Uint8Array(64)): string {
  const folder = newFolder();
  const path = join(folder, "model.onnx");
  const initializer = {
    name: "w",
    dims: [16n],
    dataType: 1,
    dataLocation: TensorProto_DataLocation.EXTERNAL,
    externalData: Object.entries(external).map(([key, value]) => ({ key, value })),
  };
  const graph = { name: "g", initializer: [initializer] };
  writeFileSync(path, toBinary(ModelProtoSchema, create(ModelProtoSchema, { irVersion: 8n, graph })));
  if (data) writeFileSync(join(folder, "weights.data"), data);
  return path;
}

function inputErrorOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(InputError);
    expect((error as Error).message).not.toContain("\n");
    return (error as Error).message;
  }
  throw new Error("nothing was thrown");
}

describe("saving and loading", () => {
  test("external to inline and back, with the same results and the same bytes again", async () => {
    const folder = newFolder();
    const model = smallModel();
    const expected = await runModel(model, { x });
    const [inline, external, again, back] = ["inline", "external", "again", "back"].map((name) =>
      join(folder, name, "model.onnx"),
    );
    await saveModel(model, inline, { externalData: "never" });
    await saveModel(loadModel(inline), external, { externalData: "always" });
    await saveModel(loadModel(external), again);
    await saveModel(loadModel(again), back, { externalData: "never" });
    expect(readdirSync(join(folder, "external")).sort()).toEqual(["model.onnx", "model.onnx_data"]);
    for (const path of [inline, external, again, back]) {
      expect(outputDifference(await runModel(loadModel(path), { x }), expected)).toBe(0);
    }
    for (const name of ["model.onnx", "model.onnx_data"]) {
      expect(
        Buffer.compare(readFileSync(join(folder, "external", name)), readFileSync(join(folder, "again", name))),
      ).toBe(0);
    }
    expect(Buffer.compare(readFileSync(inline), readFileSync(back))).toBe(0);
    // Opening a session beside the weights leaves nothing behind.
    expect(readdirSync(join(folder, "external")).sort()).toEqual(["model.onnx", "model.onnx_data"]);
  });

  test("tensors that share bytes share them in the file", async () => {
    const folder = newFolder();
    const data = randomTensor([16, 16], 5);
    writeFileSync(join(folder, "weights.data"), data.bytes());
    const path = join(folder, "model.onnx");
    const tensor = (name: string) => ({
      name,
      dims: [16n, 16n],
      dataType: 1,
      dataLocation: TensorProto_DataLocation.EXTERNAL,
      externalData: [{ key: "location", value: "./weights.data" }],
    });
    const proto = create(ModelProtoSchema, {
      irVersion: 8n,
      graph: { name: "g", initializer: [tensor("a"), tensor("b")] },
    });
    writeFileSync(path, toBinary(ModelProtoSchema, proto));
    const model = loadModel(path);
    const saved = join(folder, "saved", "model.onnx");
    await saveModel(model, saved);
    expect(statSync(`${saved}_data`).size).toBe(1024);
    for (const value of loadModel(saved).graph.initializers) {
      expect(value.initializer!.toNumbers()).toEqual(data.toNumbers());
    }
  });

  test("a session over weights from two folders", async () => {
    const folder = newFolder();
    const model = smallModel();
    const expected = await runModel(model, { x });
    await saveModel(model, join(folder, "one", "model.onnx"), { externalData: "always" });
    await saveModel(model, join(folder, "two", "model.onnx"), { externalData: "always" });
    const mixed = loadModel(join(folder, "one", "model.onnx"));
    const other = loadModel(join(folder, "two", "model.onnx")).graph.valuesByName();
    mixed.graph.valuesByName().get("b")!.initializer = other.get("b")!.initializer;
    expect(outputDifference(await runModel(mixed, { x }), expected)).toBe(0);
  });

  test("an abort leaves neither file", async () => {
    const folder = newFolder();
    const saving = saveModel(smallModel(), join(folder, "model.onnx"), {
      externalData: "always",
      signal: AbortSignal.abort(new Error("stop")),
    });
    await expect(saving).rejects.toThrow("stop");
    expect(readdirSync(folder)).toEqual([]);
  });

  test("saving over the files that the weights come from, and not reading the old offsets afterwards", async () => {
    const folder = newFolder();
    const path = join(folder, "model.onnx");
    await saveModel(smallModel(), path, { externalData: "always" });
    const expected = await runModel(smallModel(), { x });
    utimesSync(`${path}_data`, 1, 1); // a time that no new file can have
    const model = loadModel(path);
    await saveModel(model, path);
    expect(outputDifference(await runModel(loadModel(path), { x }), expected)).toBe(0);
    expect(inputErrorOf(() => model.graph.valuesByName().get("a")!.initializer!.bytes())).toContain("replaced");
  });

  test("memory stays small when a large external model is loaded", async () => {
    const folder = newFolder();
    const path = join(folder, "model.onnx");
    const size = 256 * 2 ** 20;
    const proto = create(ModelProtoSchema, {
      irVersion: 8n,
      graph: {
        name: "g",
        initializer: Array.from({ length: 16 }, (_, index) => ({
          name: `w${index}`,
          dims: [BigInt(size / 16 / 4)],
          dataType: 1,
          dataLocation: TensorProto_DataLocation.EXTERNAL,
          externalData: [
            { key: "location", value: "weights.data" },
            { key: "offset", value: String((index * size) / 16) },
          ],
        })),
      },
    });
    writeFileSync(path, toBinary(ModelProtoSchema, proto));
    writeFileSync(join(folder, "weights.data"), "");
    truncateSync(join(folder, "weights.data"), size);
    const before = process.memoryUsage().arrayBuffers;
    const model = loadModel(path);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(4 * 2 ** 20);
    let largest = 0;
    await saveModel(model, join(folder, "saved", "model.onnx"), {
      onProgress: () => {
        largest = Math.max(largest, process.memoryUsage().arrayBuffers - before);
      },
    });
    expect(statSync(join(folder, "saved", "model.onnx_data")).size).toBe(size);
    expect(largest).toBeLessThan(size / 2 + 64 * 2 ** 20);
    rmSync(folder, { recursive: true });
  });
});

describe("references that are refused", () => {
  test.each(["../outside.data", "../../outside.data", "a/../../outside.data", "/etc/hostname", "..", ""])(
    "location %o leaves the folder",
    (location) => {
      writeFileSync(join(root, "outside.data"), new Uint8Array(64));
      const path = describedModel({ location });
      expect(inputErrorOf(() => loadModel(path))).toMatch(
        /model\.onnx: tensor "w": external data path leaves the folder/,
      );
      expect(inputErrorOf(() => loadModel(path, { allowMissingExternalData: true }))).toContain("leaves the folder");
    },
  );

  test("a link to the outside", () => {
    const path = describedModel({ location: "weights.data" }, null);
    writeFileSync(join(root, "outside.data"), new Uint8Array(64));
    symlinkSync(join(root, "outside.data"), join(path, "../weights.data"));
    expect(inputErrorOf(() => loadModel(path))).toContain("through a link");
  });

  test("a linked folder that leads outside, and a link inside the folder that does not", () => {
    const outside = newFolder();
    writeFileSync(join(outside, "w.data"), new Uint8Array(64));
    const path = describedModel({ location: "sub/w.data" });
    symlinkSync(outside, join(path, "../sub"));
    expect(inputErrorOf(() => loadModel(path))).toContain("through a link");
    const inside = describedModel({ location: "link.data" });
    symlinkSync("weights.data", join(inside, "../link.data"));
    expect([...loadModel(inside).graph.initializers][0].initializer!.byteLength).toBe(64);
  });

  test("a link in a circle, a NUL in the name, a folder, a file for a folder", () => {
    const circle = describedModel({ location: "loop" });
    symlinkSync("loop", join(circle, "../loop"));
    expect(inputErrorOf(() => loadModel(circle))).toContain("ELOOP");
    expect(inputErrorOf(() => loadModel(describedModel({ location: "weights\0.data" })))).toContain("model.onnx");
    const directory = describedModel({ location: "folder" });
    mkdirSync(join(directory, "../folder"));
    expect(inputErrorOf(() => loadModel(directory))).toContain("missing");
    expect(inputErrorOf(() => loadModel(describedModel({ location: "weights.data/w" })))).toContain("missing");
  });

  test("a missing file, unless that is allowed: then reading the tensor fails", () => {
    const path = describedModel({ location: "none.data" });
    expect(inputErrorOf(() => loadModel(path))).toMatch(/none\.data.*external data file is missing/);
    const model = loadModel(path, { allowMissingExternalData: true });
    const [value] = model.graph.initializers;
    expect(value.initializer!.dims).toEqual([16]);
    expect(inputErrorOf(() => value.initializer!.bytes())).toMatch(/none\.data.*missing/);
  });

  test.each([
    [{ location: "weights.data", offset: "4" }, /weights\.data.*too short.*at least 68 bytes, got 64/],
    [
      { location: "weights.data", length: "60" },
      /model\.onnx: tensor "w".*expected 64 bytes for float32 \[16\], got 60/,
    ],
    [{ location: "weights.data", length: "68" }, /too short|64 bytes/],
    [{ location: "weights.data", offset: "-4" }, /offset is not a whole number.*"-4"/],
    [{ location: "weights.data", offset: "1e3" }, /offset is not a whole number/],
    [{ location: "weights.data", offset: "99999999999999999999" }, /offset is not a whole number/],
  ])("%o", (external, message) => {
    expect(inputErrorOf(() => loadModel(describedModel(external as Record<string, string>)))).toMatch(message);
  });

  test("a file that shrinks after loading", () => {
    const path = describedModel({ location: "weights.data" });
    const model = loadModel(path);
    truncateSync(join(path, "../weights.data"), 10);
    expect(inputErrorOf(() => [...model.graph.initializers][0].initializer!.bytes())).toMatch(/replaced|too short/);
  });
});

test("offsets are honoured, and parts can be read alone", () => {
  const data = Float32Array.from({ length: 20 }, (_, i) => i);
  const path = describedModel({ location: "weights.data", offset: "16", length: "64" }, new Uint8Array(data.buffer));
  const tensor = [...loadModel(path).graph.initializers][0].initializer!;
  expect(tensor.toNumbers()).toEqual([...data.subarray(4)]);
  expect([...tensor.source.read(4, 12)]).toEqual([...new Uint8Array(data.buffer, 20, 8)]);
});

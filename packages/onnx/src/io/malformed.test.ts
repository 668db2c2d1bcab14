import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { create, toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { type GraphProtoSchema, ModelProtoSchema } from "onnx-buf";
import { describe, expect, test } from "vitest";
import { buildModel, randomTensor, temporaryFolder } from "../../../../test/helpers/models.ts";
import { checkModel, decodeModel, encodeModel, InputError, loadModel } from "../index.ts";

const folder = temporaryFolder();
const pocket = fileURLToPath(new URL("../../../../models/pocket/", import.meta.url));

/** Loads and checks: true where the file is a legal model, false where an InputError says why not. Anything else is thrown. */
function isAccepted(bytes: Uint8Array): boolean {
  try {
    const model = decodeModel(bytes, { file: "broken.onnx" });
    checkModel(model);
    return true;
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    expect(error.message).toContain("broken.onnx");
    expect(error.message).not.toContain("\n");
    return false;
  }
}

const small = encodeModel(
  buildModel((graph) => {
    const x = graph.addInput("x", "float32", ["batch", 4]);
    const w = graph.addInitializer("w", randomTensor([4, 3], 1));
    const c = graph.addNode("Constant", [], { attributes: { value: randomTensor([3], 2) } }).output();
    return { y: { value: graph.apply("Add", [graph.apply("MatMul", [x, w], { name: "/fc/MatMul" }), c]) } };
  }),
);

describe("damaged files end in an InputError or in a legal model, never in another error", () => {
  test("every truncation of a small model", () => {
    expect(isAccepted(small)).toBe(true);
    for (let length = 0; length < small.length; length++) isAccepted(small.subarray(0, length));
    expect(isAccepted(small.subarray(0, small.length >> 1))).toBe(false);
  });

  test("truncations of the pocket UNet", () => {
    const bytes = readFileSync(join(pocket, "unet", "model.onnx"));
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: bytes.length - 1 }),
        (length) => void isAccepted(bytes.subarray(0, length)),
      ),
      { seed: 1, numRuns: 25 },
    );
  });

  test("changed bytes", () => {
    const change = fc.tuple(fc.integer({ min: 0, max: small.length - 1 }), fc.integer({ min: 0, max: 255 }));
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
        const bytes = small.slice();
        for (const [position, value] of changes) bytes[position] = value;
        isAccepted(bytes);
      }),
      { seed: 2, numRuns: 4000 },
    );
  });

  test("arbitrary bytes", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => void isAccepted(bytes)),
      { seed: 3, numRuns: 1000 },
    );
  });
});

describe("files that are not models", () => {
  test.each([
    ["an empty file", new Uint8Array(0)],
    ["a web page", new TextEncoder().encode("<!doctype html><title>404</title>")],
    [
      "a git LFS pointer",
      new TextEncoder().encode("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    ],
    ["a zip archive", Uint8Array.of(0x50, 0x4b, 3, 4, 20, 0, 0, 0)],
  ])("%s", (_, bytes) => {
    const path = join(folder, "page.onnx");
    writeFileSync(path, bytes);
    expect(() => loadModel(path)).toThrow(InputError);
    expect(() => loadModel(path)).toThrow(/page\.onnx: .*ONNX/);
  });

  test("a missing file and a folder", () => {
    mkdirSync(join(folder, "directory.onnx"));
    expect(() => loadModel(join(folder, "none.onnx"))).toThrow(/none\.onnx: cannot be read: ENOENT/);
    expect(() => loadModel(join(folder, "directory.onnx"))).toThrow(/directory\.onnx: cannot be read: EISDIR/);
  });
});

describe("what is wrong with a graph is named", () => {
  function messageOf(graph: MessageInitShape<typeof GraphProtoSchema>): string {
    const opsetImport = [{ domain: "", version: 17n }];
    const proto = create(ModelProtoSchema, { irVersion: 8n, opsetImport, graph });
    try {
      checkModel(decodeModel(toBinary(ModelProtoSchema, proto), { file: "m.onnx" }));
    } catch (error) {
      expect(error).toBeInstanceOf(InputError);
      return (error as Error).message;
    }
    throw new Error("the model was accepted");
  }
  const input = (name: string) => ({ name, type: { value: { case: "tensorType" as const, value: { elemType: 1 } } } });
  const relu = (from: string, to: string, name = "") => ({ opType: "Relu", input: [from], output: [to], name });
  const floats = (name: string, count: number, bytes = 4 * count) => ({
    name,
    dataType: 1,
    dims: [BigInt(count)],
    rawData: new Uint8Array(bytes),
  });

  test("an input that nothing defines", () => {
    expect(messageOf({ node: [relu("nowhere", "y", "act")] })).toMatch(
      /m\.onnx: Relu node "act": nothing defines .*"nowhere"/,
    );
    expect(messageOf({ output: [input("nowhere")] })).toMatch(/graph outputs: nothing defines .*"nowhere"/);
  });
  test("names defined twice", () => {
    expect(messageOf({ input: [input("x")], node: [relu("x", "y"), relu("x", "y")] })).toMatch(/"y".*reuses a name/);
    expect(messageOf({ input: [input("x"), input("x")] })).toMatch(/"x".*reuses a name/);
    expect(messageOf({ initializer: [floats("w", 1), floats("w", 1)] })).toMatch(/"w".*reuses a name/);
    expect(messageOf({ input: [input("w")], initializer: [floats("w", 1), floats("w", 1)] })).toMatch(
      /"w".*reuses a name/,
    );
    expect(messageOf({ input: [input("x")], initializer: [floats("w", 1)], node: [relu("x", "w")] })).toMatch(
      /"w".*reuses/,
    );
  });
  test("a circle, and a node that reads itself", () => {
    expect(messageOf({ node: [relu("b", "a", "first"), relu("a", "b", "second")] })).toMatch(
      /Relu node "(first|second)".*cycle/,
    );
    expect(messageOf({ node: [relu("a", "a", "self")] })).toMatch(/Relu node "self".*cycle/);
  });
  test("data of the wrong length", () => {
    expect(messageOf({ initializer: [floats("w", 3, 8)] })).toMatch(
      /tensor "w": data length does not fit.*expected 12 bytes for float32 \[3\], got 8/,
    );
    expect(messageOf({ initializer: [{ ...floats("w", 3), dims: [-3n] }] })).toMatch(/"w": negative dimension.*\[-3\]/);
    expect(messageOf({ initializer: [{ ...floats("w", 3), dims: [2n ** 62n, 4n] }] })).toMatch(/"w": data length/);
    expect(messageOf({ initializer: [{ ...floats("w", 3), dataType: 99 }] })).toMatch(/"w".*unknown ONNX data type 99/);
  });
  test("an operator set that is not declared", () => {
    expect(messageOf({ input: [input("x")], node: [{ ...relu("x", "y"), domain: "example.org" }] })).toMatch(
      /example\.org\.Relu node "y".*"example\.org" is used but not declared/,
    );
  });
});

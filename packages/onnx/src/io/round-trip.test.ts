import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import {
  AttributeProto_AttributeType as AttributeType,
  type GraphProtoSchema,
  type ModelProto,
  ModelProtoSchema,
} from "onnx-buf";
import { describe, expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { checkModel, decodeModel, encodeModel, loadModel, runModel, saveModel, Tensor } from "../index.ts";

const folder = temporaryFolder();
const pocket = fileURLToPath(new URL("../../../../models/pocket/", import.meta.url));
const text = (value: string) => new TextEncoder().encode(value);

const floatInfo = (name: string, ...dims: number[]) => ({
  name,
  type: {
    value: {
      case: "tensorType" as const,
      value: {
        elemType: 1,
        shape: { dim: dims.map((dim) => ({ value: { case: "dimValue" as const, value: BigInt(dim) } })) },
      },
    },
  },
});

function modelBytes(graph: MessageInitShape<typeof GraphProtoSchema>, rest: object = {}): Uint8Array {
  const opsetImport = [{ domain: "", version: 17n }];
  const fields = { irVersion: 8n, opsetImport, graph, ...rest } as MessageInitShape<typeof ModelProtoSchema>;
  return toBinary(ModelProtoSchema, create(ModelProtoSchema, fields));
}

function reencode(bytes: Uint8Array): { bytes: Uint8Array; proto: ModelProto } {
  const saved = encodeModel(decodeModel(bytes, { file: "model.onnx" }));
  return { bytes: saved, proto: fromBinary(ModelProtoSchema, saved) };
}

/** A message without fields that are absent or empty: the format does not tell the two apart. */
function content(value: unknown): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  if (Array.isArray(value)) return value.map(content);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).map(([key, field]) => [key, content(field)] as const);
  const isEmpty = (field: unknown) =>
    field === undefined || field === "" || (Array.isArray(field) && field.length === 0);
  return Object.fromEntries(entries.filter(([, field]) => !isEmpty(field)));
}

describe("models of the pocket pipeline", () => {
  test.each(["unet", "vae_encoder", "vae_decoder", "text_encoder"])("%s survives load and save", async (name) => {
    const path = join(pocket, name, "model.onnx");
    const model = loadModel(path);
    checkModel(model);
    const [first, second] = [join(folder, `${name}-1.onnx`), join(folder, `${name}-2.onnx`)];
    await saveModel(model, first);
    await saveModel(loadModel(first), second);
    expect(Buffer.compare(readFileSync(first), readFileSync(second))).toBe(0);

    const before = fromBinary(ModelProtoSchema, readFileSync(path)).graph!;
    const after = fromBinary(ModelProtoSchema, readFileSync(first)).graph!;
    expect(content(after)).toEqual(content(before));
  });
});

test("what the IR does not model comes back as it was", () => {
  const properties = [{ key: "origin", value: "test" }];
  const bytes = modelBytes(
    {
      name: "everything",
      docString: "the graph",
      metadataProps: properties,
      quantizationAnnotation: [{ tensorName: "x", quantParameterTensorNames: properties }],
      input: [
        {
          ...floatInfo("x", 2),
          docString: "the input",
          metadataProps: properties,
          type: {
            denotation: "TENSOR",
            value: {
              case: "tensorType",
              value: {
                elemType: 1,
                shape: { dim: [{ denotation: "DATA_BATCH", value: { case: "dimValue", value: 2n } }] },
              },
            },
          },
        },
      ],
      initializer: [
        {
          name: "w",
          dims: [2n],
          dataType: 1,
          rawData: new Uint8Array(8),
          docString: "zeros",
          metadataProps: properties,
        },
      ],
      sparseInitializer: [
        {
          values: { name: "s", dims: [1n], dataType: 1, rawData: new Uint8Array(4) },
          indices: { dims: [1n], dataType: 7, rawData: new Uint8Array(8) },
          dims: [4n],
        },
      ],
      node: [
        {
          opType: "Strange",
          domain: "example.org",
          name: "strange",
          overload: "second",
          docString: "the node",
          metadataProps: properties,
          input: ["x", "", "w", "s"],
          output: ["y", "", "z"],
          attribute: [
            { name: "f", type: AttributeType.FLOAT, f: 0.1, docString: "a tenth" },
            { name: "i", type: AttributeType.INT, i: -(2n ** 62n) },
            { name: "s", type: AttributeType.STRING, s: text("käse") },
            { name: "bytes", type: AttributeType.STRING, s: Uint8Array.of(0xff, 0x00) },
            { name: "fs", type: AttributeType.FLOATS, floats: [1.5, Number.POSITIVE_INFINITY] },
            { name: "is", type: AttributeType.INTS, ints: [1n, 2n ** 60n] },
            { name: "ss", type: AttributeType.STRINGS, strings: [text("a"), text("")] },
            {
              name: "t",
              type: AttributeType.TENSOR,
              t: { name: "inner", dims: [1n], dataType: 1, rawData: new Uint8Array(4), docString: "zero" },
            },
            { name: "type", type: AttributeType.TYPE_PROTO, tp: { denotation: "IMAGE" } },
            { name: "sparse", type: AttributeType.SPARSE_TENSOR, sparseTensor: { dims: [3n] } },
            { name: "gs", type: AttributeType.GRAPHS, graphs: [{ name: "one" }, { name: "two" }] },
            { name: "untyped", type: AttributeType.UNDEFINED, i: 3n },
          ],
        },
      ],
      output: [
        {
          name: "y",
          type: { value: { case: "sequenceType", value: { elemType: floatInfo("", 1).type } } },
        },
        floatInfo("z", 1),
      ],
    },
    {
      domain: "org.example",
      modelVersion: 3n,
      docString: "the model",
      producerName: "tester",
      producerVersion: "1.2",
      metadataProps: properties,
      opsetImport: [
        { domain: "", version: 17n },
        { domain: "example.org", version: 2n },
      ],
      functions: [
        {
          name: "Strange",
          domain: "example.org",
          input: ["a"],
          output: ["b"],
          attribute: ["alpha"],
          node: [
            {
              opType: "Elu",
              input: ["a"],
              output: ["b"],
              attribute: [{ name: "alpha", type: AttributeType.FLOAT, refAttrName: "alpha" }],
            },
          ],
        },
      ],
    },
  );
  const { bytes: saved, proto } = reencode(bytes);
  const original = fromBinary(ModelProtoSchema, bytes);
  expect(content(proto)).toEqual(content(original));
  expect(Buffer.compare(reencode(saved).bytes, saved)).toBe(0);
  checkModel(decodeModel(bytes, { file: "model.onnx" }));
});

test("fields of a newer format version are carried through", () => {
  // Field 900 (length-delimited) of the model, and of its graph through the last-one-wins merge of protobuf messages.
  const unknown = Uint8Array.of(0xa2, 0x38, 3, 1, 2, 3);
  const bytes = Buffer.concat([modelBytes({ name: "g" }), unknown]);
  expect(Buffer.from(reencode(bytes).bytes).includes(Buffer.from(unknown))).toBe(true);
});

describe("tensor contents, from whichever field holds them", () => {
  const raw = (array: ArrayBufferView) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  const cases: [string, number, Record<string, unknown>, bigint[], Uint8Array][] = [
    ["float32", 1, { floatData: [1.5, -2] }, [2n], raw(Float32Array.of(1.5, -2))],
    ["float64", 11, { doubleData: [1.1, -2] }, [2n], raw(Float64Array.of(1.1, -2))],
    ["complex64", 14, { floatData: [1, 2] }, [1n], raw(Float32Array.of(1, 2))],
    ["complex128", 15, { doubleData: [1, 2] }, [1n], raw(Float64Array.of(1, 2))],
    ["uint8", 2, { int32Data: [0, 255] }, [2n], Uint8Array.of(0, 255)],
    ["int8", 3, { int32Data: [-128, 127] }, [2n], raw(Int8Array.of(-128, 127))],
    ["uint16", 4, { int32Data: [65535, 1] }, [2n], raw(Uint16Array.of(65535, 1))],
    ["int16", 5, { int32Data: [-5, 7] }, [2n], raw(Int16Array.of(-5, 7))],
    ["int32", 6, { int32Data: [-(2 ** 31), 7] }, [2n], raw(Int32Array.of(-(2 ** 31), 7))],
    ["int64", 7, { int64Data: [-(2n ** 63n), 7n] }, [2n], raw(BigInt64Array.of(-(2n ** 63n), 7n))],
    ["uint32", 12, { uint64Data: [2n ** 32n - 1n] }, [1n], raw(Uint32Array.of(2 ** 32 - 1))],
    ["uint64", 13, { uint64Data: [2n ** 64n - 1n] }, [1n], raw(BigUint64Array.of(2n ** 64n - 1n))],
    ["bool", 9, { int32Data: [1, 0] }, [2n], Uint8Array.of(1, 0)],
    ["float16", 10, { int32Data: [0x3c00, 0xc000] }, [2n], raw(Uint16Array.of(0x3c00, 0xc000))],
    ["bfloat16", 16, { int32Data: [0x3f80] }, [1n], raw(Uint16Array.of(0x3f80))],
    ["float8e4m3fn", 17, { int32Data: [0x38, 0x40] }, [2n], Uint8Array.of(0x38, 0x40)],
    ["uint4", 21, { int32Data: [0x21, 0x03] }, [3n], Uint8Array.of(0x21, 0x03)],
    ["int4", 22, { int32Data: [0xf1] }, [2n], Uint8Array.of(0xf1)],
    ["int4", 22, { rawData: Uint8Array.of(0x21, 0x03) }, [3n], Uint8Array.of(0x21, 0x03)],
    ["int2", 26, { rawData: Uint8Array.of(0xe4) }, [4n], Uint8Array.of(0xe4)],
    ["float32", 1, { rawData: new Uint8Array(0) }, [0n, 3n], new Uint8Array(0)],
  ];
  test.each(cases)("%s (type %i, %o)", (dataType, code, data, dims, bytes) => {
    const file = modelBytes({ name: "g", initializer: [{ name: "w", dataType: code, dims, ...data }] });
    const tensor = [...decodeModel(file, { file: "m" }).graph.initializers][0].initializer!;
    expect(tensor.dataType).toBe(dataType);
    expect([...tensor.bytes()]).toEqual([...bytes]);
    const { bytes: saved, proto } = reencode(file);
    expect([...proto.graph!.initializer[0].rawData]).toEqual([...bytes]);
    expect(Buffer.compare(reencode(saved).bytes, saved)).toBe(0);
  });

  test("strings", async () => {
    const strings = [text("a"), Uint8Array.of(0xff), text("")];
    const file = modelBytes({ name: "g", initializer: [{ name: "w", dataType: 8, dims: [3n], stringData: strings }] });
    expect(reencode(file).proto.graph!.initializer[0].stringData).toEqual(strings);
    const tensor = new Tensor("string", [2], { byteLength: 0, read: () => new Uint8Array(0) }, [text("x"), text("ü")]);
    const echo = decodeModel(
      modelBytes({
        name: "g",
        input: [{ name: "in", type: { value: { case: "tensorType", value: { elemType: 8 } } } }],
        node: [{ opType: "Identity", input: ["in"], output: ["out"] }],
        output: [{ name: "out", type: { value: { case: "tensorType", value: { elemType: 8 } } } }],
      }),
      { file: "m" },
    );
    const { strings: returned } = (await runModel(echo, { in: tensor })).get("out")!;
    expect(returned?.map((bytes) => new TextDecoder().decode(bytes))).toEqual(["x", "ü"]);
  });
});

describe("subgraphs", () => {
  /** If(c): then x + w, else the outer x itself. */
  const bytes = modelBytes({
    name: "outer",
    input: [
      { name: "c", type: { value: { case: "tensorType", value: { elemType: 9, shape: {} } } } },
      floatInfo("x", 2),
    ],
    initializer: [{ name: "w", dims: [2n], dataType: 1, floatData: [10, 20] }],
    node: [
      { opType: "Neg", input: ["x"], output: ["negated"], name: "neg" },
      {
        opType: "If",
        input: ["c"],
        output: ["y"],
        attribute: [
          {
            name: "then_branch",
            type: AttributeType.GRAPH,
            docString: "with an attribute of its own",
            g: {
              name: "then",
              node: [{ opType: "Add", input: ["negated", "w"], output: ["inner"] }],
              output: [floatInfo("inner", 2)],
            },
          },
          {
            name: "else_branch",
            type: AttributeType.GRAPH,
            g: { name: "else", node: [], output: [floatInfo("negated", 2)] },
          },
        ],
      },
    ],
    output: [floatInfo("y", 2)],
  });

  test("read values around them, survive saving, and run", async () => {
    const path = join(folder, "if.onnx");
    writeFileSync(path, bytes);
    const model = loadModel(path);
    checkModel(model);
    const [neg, branch] = model.graph.sorted();
    expect(branch.opType).toBe("If");
    expect(
      neg
        .output()
        .consumers.map(({ opType }) => opType)
        .sort(),
    ).toEqual(["Add", "Identity"]);
    const saved = encodeModel(model);
    expect(Buffer.compare(encodeModel(decodeModel(saved, { file: path })), saved)).toBe(0);
    const x = Tensor.float32([2], [1, 2]);
    for (const [condition, expected] of [
      [1, [9, 18]],
      [0, [-1, -2]],
    ] as const) {
      const c = Tensor.of("bool", [], Uint8Array.of(condition));
      expect((await runModel(model, { c, x })).get("y")!.toNumbers()).toEqual(expected);
    }
  });
});

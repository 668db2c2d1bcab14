import { InputError } from "@quad-lora/base";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type OnnxAdapter, readOnnxAdapter, writeOnnxAdapter } from "./onnx-adapter.ts";

const bytesOf = (array: ArrayBufferView) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

const sample: OnnxAdapter = {
  adapterVersion: 7,
  modelVersion: 3,
  parameters: [
    {
      name: "unet.proj_in.lora_A",
      dataType: "float32",
      dims: [2, 3],
      data: bytesOf(Float32Array.of(1, -2, 3, 4, 5, 6)),
    },
    { name: "scale", dataType: "float32", dims: [], data: bytesOf(Float32Array.of(0.5)) },
    { name: "codes", dataType: "int8", dims: [5], data: bytesOf(Int8Array.of(1, -1, 127, -127, 0)) },
    { name: "rank 0, größe", dataType: "float16", dims: [4, 0], data: new Uint8Array(0) },
  ],
};

/** Written by hand from the schema and the FlatBuffers format, fields in the order that flatc's C++ code has them. */
function handWritten(): Uint8Array {
  const bytes = new Uint8Array(120);
  const view = new DataView(bytes.buffer);
  const u16 = (at: number, ...values: number[]) =>
    values.forEach((value, i) => {
      view.setUint16(at + 2 * i, value, true);
    });
  const u32 = (at: number, value: number) => view.setUint32(at, value, true);
  u32(0, 20); // root table
  bytes.set(new TextEncoder().encode("TORT"), 4);
  u16(8, 12, 20, 4, 8, 12, 16); // vtable: its size, the table's size, four fields
  u32(20, 12); // Adapter: distance back to its vtable
  u32(24, 1);
  u32(28, 11);
  u32(32, 22);
  u32(36, 4); // parameters, at 40
  u32(40, 1);
  u32(44, 16); // first parameter, at 60
  u16(48, 12, 20, 4, 8, 12, 16);
  u32(60, 12);
  u32(64, 16); // name, at 80
  u32(68, 20); // dims, at 88
  u32(72, 5); // int16
  u32(76, 32); // raw_data, at 108
  u32(80, 1);
  bytes[84] = "w".charCodeAt(0);
  u32(88, 2);
  view.setBigInt64(92, 1n, true);
  view.setBigInt64(100, 2n, true);
  u32(108, 4);
  view.setInt16(112, -300, true);
  view.setInt16(114, 5, true);
  return bytes;
}

describe("onnx adapters", () => {
  test("come back as written", () => {
    expect(readOnnxAdapter(writeOnnxAdapter(sample), "x.onnx_adapter")).toEqual(sample);
    const empty = { adapterVersion: 0, modelVersion: 0, parameters: [] };
    expect(readOnnxAdapter(writeOnnxAdapter(empty), "x.onnx_adapter")).toEqual(empty);
  });

  test("any parameters come back, all data on 8-byte boundaries", () => {
    const parameter = fc
      .record({
        name: fc.string({ minLength: 1, unit: "grapheme" }),
        dims: fc.array(fc.nat(4), { maxLength: 3 }),
        seed: fc.nat(255),
      })
      .map(({ name, dims, seed }) => {
        const count = dims.reduce((product, dim) => product * dim, 1);
        return { name, dims, dataType: "uint8" as const, data: Uint8Array.from({ length: count }, (_, i) => seed + i) };
      });
    const version = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 });
    const adapters = fc.record({
      adapterVersion: version,
      modelVersion: version,
      parameters: fc.uniqueArray(parameter, { selector: ({ name }) => name, maxLength: 6 }),
    });
    fc.assert(
      fc.property(adapters, (adapter) => {
        const bytes = writeOnnxAdapter(adapter);
        const read = readOnnxAdapter(bytes, "x");
        expect(read).toEqual(adapter);
        for (const { data } of read.parameters)
          if (data.byteLength > 0) expect((data.byteOffset - bytes.byteOffset) % 8).toBe(0);
      }),
      { seed: 1 },
    );
  });

  test("a buffer laid out by hand is read", () => {
    const adapter = readOnnxAdapter(handWritten(), "hand.onnx_adapter");
    expect(adapter).toEqual({
      adapterVersion: 11,
      modelVersion: 22,
      parameters: [{ name: "w", dataType: "int16", dims: [1, 2], data: bytesOf(Int16Array.of(-300, 5)) }],
    });
  });

  test("a file written by ONNX Runtime's own Python API (1.30, AdapterFormat.export_adapter) is read", () => {
    const file = Buffer.from(
      "CAAAAFRPUlSw////AQAAAAUAAAAGAAAABAAAAAIAAABEAAAABAAAAND///8kAAAAFAAAAAMAAAAEAAAAAwAAAAH+AwABAAAAAwAAAAAAAAABAAAAcQAAAAwAFAAEAAgADAAQAAwAAABAAAAAKAAAAAEAAAAEAAAAGAAAAAAAAAAAAIA/AAAAQAAAQEAAAIBAAACgQAIAAAACAAAAAAAAAAMAAAAAAAAACAAAAHgubG9yYV9BAAAAAA==",
      "base64",
    );
    expect(readOnnxAdapter(file, "x.onnx_adapter")).toEqual({
      adapterVersion: 5,
      modelVersion: 6,
      parameters: [
        { name: "x.lora_A", dataType: "float32", dims: [2, 3], data: bytesOf(Float32Array.of(0, 1, 2, 3, 4, 5)) },
        { name: "q", dataType: "int8", dims: [3], data: bytesOf(Int8Array.of(1, -2, 3)) },
      ],
    });
  });

  test("written bytes follow the schema when decoded by hand", () => {
    const bytes = writeOnnxAdapter(sample);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const follow = (at: number) => at + view.getUint32(at, true);
    const field = (table: number, slot: number) =>
      table + view.getUint16(table - view.getInt32(table, true) + 4 + 2 * slot, true);
    expect(new TextDecoder().decode(bytes.subarray(4, 8))).toBe("TORT");
    const root = follow(0);
    expect([0, 1, 2].map((slot) => view.getInt32(field(root, slot), true))).toEqual([1, 7, 3]);
    const list = follow(field(root, 3));
    expect(view.getUint32(list, true)).toBe(4);
    const codes = follow(list + 4 + 4 * 2);
    const name = follow(field(codes, 0));
    // FlatBuffers strings end in a zero byte that their length does not count.
    expect([view.getUint32(name, true), bytes[name + 4 + 5]]).toEqual([5, 0]);
    const dims = follow(field(codes, 1));
    expect([view.getUint32(dims, true), view.getBigInt64(dims + 4, true)]).toEqual([1, 5n]);
    expect(view.getInt32(field(codes, 2), true)).toBe(3);
    const data = follow(field(codes, 3));
    expect([...bytes.subarray(data + 4, data + 9)]).toEqual([1, 255, 127, 129, 0]);
    expect((dims + 4) % 8).toBe(0);
  });

  test("damaged files are refused: cut, or with any byte changed they never crash otherwise", () => {
    const bytes = writeOnnxAdapter(sample);
    for (let length = 0; length < 60; length++)
      expect(() => readOnnxAdapter(bytes.subarray(0, length), "cut")).toThrow(InputError);
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.nat(255), (at, value) => {
        const damaged = bytes.slice();
        damaged[at] = value;
        try {
          readOnnxAdapter(damaged, "damaged");
        } catch (error) {
          expect(error).toBeInstanceOf(InputError);
        }
      }),
      { seed: 2, numRuns: 1000 },
    );
  });

  test("other files, versions, types, and shapes are refused by name", () => {
    const hand = (change: (view: DataView) => void) => {
      const bytes = handWritten();
      change(new DataView(bytes.buffer));
      return () => readOnnxAdapter(bytes, "a.onnx_adapter");
    };
    expect(hand((view) => view.setUint8(4, 65))).toThrow(/a\.onnx_adapter: not an \.onnx_adapter file.*TORT.*AORT/);
    expect(hand((view) => view.setUint32(24, 2, true))).toThrow(/format version.*expected 1, got 2/);
    expect(hand((view) => view.setUint32(72, 8, true))).toThrow(/w: unsupported element type.*data type 8/);
    expect(hand((view) => view.setBigInt64(100, 3n, true))).toThrow(/w: .*6 bytes for int16 \[1, 3\], got 4 bytes/);
    expect(hand((view) => view.setBigInt64(100, -2n, true))).toThrow(/dimensions of 0 or more/);
    const [first] = sample.parameters;
    expect(() => writeOnnxAdapter({ ...sample, parameters: [first, first] })).toThrow(/unet\.proj_in\.lora_A/);
    expect(() => writeOnnxAdapter({ ...sample, parameters: [{ ...first, dims: [2, 2] }] })).toThrow(InputError);
  });
});

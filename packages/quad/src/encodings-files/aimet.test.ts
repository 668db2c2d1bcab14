import { InputError } from "@quad-lora/base";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { dequantize, type Encoding, encodingFromRange, weightEncoding } from "../quantization/encoding.ts";
import { type AimetVersion, type ModelEncodings, readAimet, writeAimet } from "./aimet.ts";

const perTensor = (bits: 4 | 8 | 16, signed: boolean, scale: number, zero: number): Encoding => ({
  bits,
  signed,
  symmetric: signed && zero === 0,
  scale: Float32Array.of(scale),
  zeroPoint: Int32Array.of(zero),
});

const write = (encoding: Encoding, version: AimetVersion, shape?: number[]) =>
  JSON.parse(
    writeAimet({ activations: new Map(), parameters: new Map([["w", encoding]]) }, version, { shapeOf: () => shape }),
  );
const read = (content: unknown) => readAimet(JSON.stringify(content), "model.encodings");
const options = { isParameter: (name: string) => name.endsWith("weight") };

describe("AIMET's own values", () => {
  // The cases of AIMET's unit tests for its encoding dictionaries: scale 0.1, offset 0, int8 and uint8.
  test("int8 of scale 0.1 spans -12.8 to 12.7 with offset -128", () => {
    const encoding = perTensor(8, true, 0.1, 0);
    const [entry] = write(encoding, "0.6.1").param_encodings.w;
    expect(entry).toMatchObject({ offset: -128, bitwidth: 8, dtype: "int", is_symmetric: "True" });
    expect(entry.min).toBeCloseTo(-12.8, 5);
    expect(entry.max).toBeCloseTo(12.7, 5);
    expect(entry.scale).toBeCloseTo(0.1, 7);
    expect(write(encoding, "1.0.0").param_encodings).toEqual([
      {
        name: "w",
        enc_type: "PER_TENSOR",
        dtype: "INT",
        bw: 8,
        is_sym: true,
        scale: [Math.fround(0.1)],
        offset: [-128],
      },
    ]);
    expect(write(encoding, "2.0.0").encodings).toEqual([
      { name: "w", output_dtype: "int8", y_scale: Math.fround(0.1) },
    ]);
  });

  test("uint8 of scale 0.1 spans 0 to 25.5 with offset 0", () => {
    const [entry] = write(perTensor(8, false, 0.1, 0), "0.6.1").param_encodings.w;
    expect(entry).toMatchObject({ offset: 0, is_symmetric: "False" });
    expect(entry.max).toBeCloseTo(25.5, 5);
    expect(entry.min + 0).toBe(0);
  });

  test("the specification's example: 8 bits, offset -114, of a version before dtype", () => {
    const { activations, version } = read({
      version: "0.4.0",
      activation_encodings: {
        "20": [
          {
            bitwidth: 8,
            is_symmetric: "False",
            max: 2.6086959838867188,
            min: -2.109158515930176,
            offset: -114.0,
            scale: 0.018501389771699905,
          },
        ],
      },
      param_encodings: {},
    });
    expect(version).toBe("0.6.1");
    const encoding = activations.get("20")!;
    expect(encoding).toEqual(perTensor(8, false, 0.018501389771699905, 114));
    const [min, max] = dequantize(Uint8Array.of(0, 255), [2], encoding);
    expect(min).toBeCloseTo(-2.109158515930176, 5);
    expect(max).toBeCloseTo(2.6086959838867188, 5);
  });

  test("strictly symmetric grids of older versions have offset -127", () => {
    const entry = { bitwidth: 8, dtype: "int", is_symmetric: "True", offset: -127, scale: 0.5, min: -63.5, max: 63.5 };
    expect(
      read({ version: "0.6.1", activation_encodings: {}, param_encodings: { w: [entry] } }).parameters.get("w"),
    ).toEqual(perTensor(8, true, 0.5, 0));
  });

  test("LPBQ becomes per-block scales: channel scale times integer scale", () => {
    const shared = { dtype: "INT", bw: 8, compressed_bw: 4, block_size: 2, is_sym: true };
    const entry = {
      name: "w",
      enc_type: "LPBQ",
      ...shared,
      scale: [0.5, 0.25],
      offset: [-128, -128],
      per_block_int_scale: [1, 2, 3, 4, 5, 6],
    };
    const encoding = read({ version: "1.0.0", activation_encodings: [], param_encodings: [entry] }).parameters.get(
      "w",
    )!;
    expect(encoding).toMatchObject({ bits: 4, signed: true, symmetric: true, axis: 1, blockSize: 2 });
    expect([...encoding.scale]).toEqual([0.5, 1, 1.5, 1, 1.25, 1.5]);
    const nested = {
      name: "w",
      output_dtype: "int4",
      per_channel_float_scale: [[0.5], [0.25]],
      per_block_int_scale: [
        [1, 2, 3],
        [4, 5, 6],
      ],
      axis: 1,
      block_size: 2,
    };
    expect(read({ version: "2.0.0", encodings: [nested] }).activations.get("w")).toEqual(encoding);
  });
});

describe("round trips", () => {
  const bits = fc.constantFrom(4, 8, 16) as fc.Arbitrary<4 | 8 | 16>;
  const scale = fc.float({ min: Math.fround(1e-6), max: 100, noNaN: true });
  const affine = fc
    .record({ bits, scale, zero: fc.nat(65535) })
    .map(({ bits, scale, zero }) => perTensor(bits, false, scale, zero % 2 ** bits));
  const symmetric = fc.record({ bits, scale }).map(({ bits, scale }) => perTensor(bits, true, scale, 0));
  const perChannel = fc.record({ bits, scales: fc.array(scale, { minLength: 2, maxLength: 5 }) }).map(
    ({ bits, scales }): Encoding => ({
      bits,
      signed: true,
      symmetric: true,
      scale: Float32Array.from(scales),
      zeroPoint: new Int32Array(scales.length),
      axis: 0,
    }),
  );
  const encodings: fc.Arbitrary<ModelEncodings> = fc
    .record({ acts: fc.array(fc.oneof(affine, symmetric)), params: fc.array(fc.oneof(symmetric, perChannel)) })
    .map(({ acts, params }) => ({
      activations: new Map(acts.map((encoding, i) => [`a/${i}`, encoding])),
      parameters: new Map(params.map((encoding, i) => [`${i}.weight`, encoding])),
    }));

  test("every version gives back what was written, through every other", () => {
    const versions: AimetVersion[] = ["0.6.1", "1.0.0", "2.0.0"];
    fc.assert(
      fc.property(encodings, fc.shuffledSubarray(versions, { minLength: 3 }), (original, order) => {
        let current = original;
        for (const version of order) {
          const file = readAimet(writeAimet(current, version), "x", options);
          expect(file.version).toBe(version);
          expect(file.skipped).toEqual([]);
          current = file;
        }
        expect(current.activations).toEqual(original.activations);
        expect(current.parameters).toEqual(original.parameters);
      }),
      { seed: 1 },
    );
  });

  test("an affine signed grid keeps its values everywhere, and its type in 2.0.0", () => {
    const encoding = encodingFromRange(-1, 3, { bits: 8, signed: true, symmetric: false });
    const model = { activations: new Map([["a", encoding]]), parameters: new Map() };
    const values = dequantize(Int8Array.of(-128, 0, 127), [3], encoding);
    for (const version of ["0.6.1", "1.0.0"] as const) {
      const back = readAimet(writeAimet(model, version), "x").activations.get("a")!;
      expect(back.signed).toBe(false);
      expect(dequantize(Uint8Array.of(0, 128, 255), [3], back)).toEqual(values);
    }
    expect(readAimet(writeAimet(model, "2.0.0"), "x").activations.get("a")).toEqual(encoding);
  });

  test.each([0, 1])("per block along axis %i", (axis) => {
    const shape = [6, 4];
    const values = Float32Array.from({ length: 24 }, (_, i) => Math.sin(i) * (i + 1));
    const encoding = weightEncoding(values, shape, { bits: 4, axis, blockSize: 2, method: "min-max" });
    const model = { activations: new Map(), parameters: new Map([["w.weight", encoding]]) };
    const facts = { shapeOf: () => shape, channelAxisOf: () => 1 - axis };
    for (const version of ["1.0.0", "2.0.0"] as const)
      expect(readAimet(writeAimet(model, version, facts), "x", { ...options, ...facts }).parameters).toEqual(
        model.parameters,
      );
    // 1.0.0 runs over output channels first: the list of the first channel's blocks stands at its start.
    const blocks = axis === 1 ? 2 : 3;
    const first = Array.from({ length: blocks }, (_, b) => encoding.scale[axis === 1 ? b : b * 4]);
    expect(write(encoding, "1.0.0", shape).param_encodings[0].scale.slice(0, blocks)).toEqual(first);
    const nested = write(encoding, "2.0.0", shape).encodings[0].y_scale;
    expect([nested.length, nested[0].length]).toEqual(axis === 1 ? [6, 2] : [3, 4]);
    expect(() => write(encoding, "0.6.1")).toThrow(/w: 0\.6\.1 has no per-block/);
    expect(() => write(encoding, "2.0.0")).toThrow(InputError);
  });
});

describe("files from elsewhere", () => {
  test("what stays floating point, and other widths, is listed with the reason", () => {
    const file = read({
      version: "1.0.0",
      activation_encodings: [{ name: "f", dtype: "FLOAT", bw: 16, enc_type: "PER_TENSOR" }],
      param_encodings: [
        { name: "b", dtype: "INT", bw: 32, enc_type: "PER_TENSOR", is_sym: true, scale: [1], offset: [0] },
      ],
      quantizer_args: {},
    });
    expect(file.skipped.map(({ name }) => name)).toEqual(["f", "b"]);
    expect(file.skipped[1].reason).toContain("32-bit");
  });

  test("MatMul weights have their channels where the caller says", () => {
    const entry = {
      name: "w",
      dtype: "INT",
      bw: 8,
      enc_type: "PER_CHANNEL",
      is_sym: true,
      scale: [1, 2],
      offset: [-128, -128],
    };
    const text = JSON.stringify({ activation_encodings: [], param_encodings: [entry] });
    expect(readAimet(text, "x", { channelAxisOf: () => 1 }).parameters.get("w")?.axis).toBe(1);
  });

  const flat = {
    name: "conv.weight",
    dtype: "INT",
    bw: 8,
    enc_type: "PER_TENSOR",
    is_sym: false,
    scale: [1],
    offset: [0],
  };
  const one = (change: object) => ({
    version: "1.0.0",
    activation_encodings: [],
    param_encodings: [{ ...flat, ...change }],
  });
  test.each([
    ["no scales", one({ scale: undefined }), /conv\.weight: needs as many offsets as scales/],
    ["negative scale", one({ scale: [-1] }), /conv\.weight: scale\.0/],
    ["scale under float32", one({ scale: [1e-60] }), /conv\.weight: .*positive float32/],
    ["zero point off the grid", one({ offset: [3] }), /conv\.weight: zero point -3 is outside 0 to 255/],
    ["unknown type", one({ enc_type: "PER_MOON" }), /conv\.weight: enc_type/],
    ["two scales per tensor", one({ scale: [1, 2], offset: [0, 0] }), /conv\.weight: PER_TENSOR with 2 scales/],
    ["same name twice", { activation_encodings: [], param_encodings: [flat, flat] }, /conv\.weight: has two entries/],
    ["nameless", { activation_encodings: [{ dtype: "INT" }], param_encodings: [] }, /activation_encodings\[0\]/],
    [
      "ragged blocks",
      { encodings: [{ name: "r", output_dtype: "int8", y_scale: [[1, 2], [3]], axis: 1, block_size: 2 }] },
      /r: nested lists/,
    ],
    [
      "channels without axis",
      { encodings: [{ name: "r", output_dtype: "int8", y_scale: [1, 2] }] },
      /r: 2 scales but no axis/,
    ],
    [
      "fractional offset",
      {
        activation_encodings: { x: [{ bitwidth: 8, dtype: "int", is_symmetric: "False", offset: 0.5, scale: 1 }] },
        param_encodings: {},
      },
      /: x: /,
    ],
    ["another version", { version: "3.0.0", encodings: [] }, /version 3\.0\.0/],
    [
      "a layout that is not its version's",
      { version: "2.0.0", activation_encodings: {}, param_encodings: {} },
      /known version/,
    ],
    ["something else", { hello: 1 }, /keys hello/],
    ["no object", [1], /model\.encodings/],
  ])("%s", (_, content, message) => {
    expect(() => read(content)).toThrow(InputError);
    expect(() => read(content)).toThrow(message);
  });

  test("text that is not JSON", () => {
    expect(() => readAimet("{", "a.encodings")).toThrow(/a\.encodings: is not valid JSON/);
  });
});

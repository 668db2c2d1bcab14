import { InputError } from "@quad-lora/base";
import { type DataType, Graph, Model, memorySource, runModel, Tensor } from "@quad-lora/onnx";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  type BitWidth,
  clippedShare,
  dequantize,
  type Encoding,
  encodingFromRange,
  encodingRange,
  fakeQuantize,
  type Grid,
  gridLimits,
  pack4,
  quantize,
  unpack4,
  weightEncoding,
} from "./encoding.ts";

const grids: Grid[] = ([4, 8, 16] as const).flatMap((bits) =>
  [true, false].flatMap((signed) => [true, false].map((symmetric) => ({ bits, signed, symmetric }))),
);
const anyGrid = fc.constantFrom(...grids);
const magnitude = fc.double({ min: -1e4, max: 1e4, noNaN: true });

/** Repeatable, roughly normal values. */
function normals(count: number, seed: number): Float32Array {
  let state = (seed * 2654435761 + 1) >>> 0;
  const uniform = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  return Float32Array.from({ length: count }, () => {
    return Math.sqrt(-2 * Math.log(uniform() + 1e-12)) * Math.cos(2 * Math.PI * uniform());
  });
}

const squaredError = (a: Float32Array, b: Float32Array) => a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0);

function typeName({ bits, signed }: Grid): DataType {
  return `${signed ? "" : "u"}int${bits}` as DataType;
}

function zeroPointTensor(encoding: Encoding, dims: number[]): Tensor {
  const { bits, signed, zeroPoint } = encoding;
  if (bits === 4) {
    return new Tensor(typeName(encoding), dims, memorySource(pack4(Uint8Array.from(zeroPoint))));
  }
  if (bits === 8) {
    return signed
      ? Tensor.of("int8", dims, Int8Array.from(zeroPoint))
      : Tensor.of("uint8", dims, Uint8Array.from(zeroPoint));
  }
  return signed
    ? Tensor.of("int16", dims, Int16Array.from(zeroPoint))
    : Tensor.of("uint16", dims, Uint16Array.from(zeroPoint));
}

/** QuantizeLinear and DequantizeLinear in ONNX Runtime; symmetric grids have the Clip that their limits ask for. */
async function runInOrt(values: Float32Array, dims: number[], encoding: Encoding): Promise<Float32Array> {
  const graph = new Graph();
  const model = new Model(graph);
  model.irVersion = 10;
  model.opsets.set("", 21);
  const x = graph.addInput("x", "float32", dims);
  const entryDims =
    encoding.axis === undefined
      ? []
      : dims.map((d, i) => (i === encoding.axis ? Math.ceil(d / (encoding.blockSize ?? 1)) : d));
  const scaleDims =
    encoding.blockSize === undefined ? entryDims.slice(encoding.axis ?? 0, (encoding.axis ?? 0) + 1) : entryDims;
  const scale = graph.addInitializer("scale", Tensor.float32(scaleDims, encoding.scale));
  const zero = graph.addInitializer("zero", zeroPointTensor(encoding, scaleDims));
  const attributes = {
    ...(encoding.axis !== undefined ? { axis: encoding.axis } : {}),
    ...(encoding.blockSize !== undefined ? { block_size: encoding.blockSize } : {}),
  };
  let input = x;
  if (encoding.symmetric && encoding.scale.length === 1) {
    const { min, max } = encodingRange(encoding);
    input = graph.apply("Clip", [
      x,
      graph.addInitializer("min", Tensor.scalar(min)),
      graph.addInitializer("max", Tensor.scalar(max)),
    ]);
  }
  const codes = graph.apply("QuantizeLinear", [input, scale, zero], { attributes });
  graph.outputs.push(graph.apply("DequantizeLinear", [codes, scale, zero], { attributes }));
  const outputs = await runModel(model, { x: Tensor.float32(dims, values) });
  return [...outputs.values()][0].toFloat32();
}

/** Normal values, exact halves of the step (ties), values around both ends of the grid, and far beyond. */
function difficultValues(encoding: Encoding, count: number, seed: number): Float32Array {
  const { min, max } = encodingRange(encoding);
  const step = encoding.scale[0];
  const spread = normals(count, seed);
  return spread.map((value, i) => {
    if (i % 4 === 0) return (Math.floor(value * 40) + 0.5) * step;
    if (i % 4 === 1) return (i % 8 === 1 ? min : max) + Math.round(value * 2) * 0.5 * step;
    if (i === 2) return 3e38;
    if (i === 3) return -3e38;
    return value * (max - min);
  });
}

describe("bit for bit as ONNX Runtime", () => {
  const cases = grids.filter(({ bits }) => bits > 4);
  test.each(cases)("per tensor, $bits bits, signed $signed, symmetric $symmetric", async (grid) => {
    for (const [seed, [min, max]] of [
      [-1.7, 3.1],
      [-0.003, 0.0005],
      [-900, 1.3],
      [0, 7.77],
    ].entries()) {
      const encoding = encodingFromRange(min, max, grid);
      const values = difficultValues(encoding, 4096, seed);
      expect(fakeQuantize(values, [64, 64], encoding)).toEqual(await runInOrt(values, [64, 64], encoding));
    }
  });

  test.each(cases.filter(({ symmetric }) => !symmetric))("per channel, $bits bits, signed $signed", async (grid) => {
    const channels = [
      [-1, 2],
      [-0.01, 0],
      [0, 300],
      [-5, 5.5],
      [-1e-3, 7],
    ].map(([min, max]) => encodingFromRange(min, max, grid));
    const encoding: Encoding = {
      ...grid,
      scale: Float32Array.from(channels, ({ scale }) => scale[0]),
      zeroPoint: Int32Array.from(channels, ({ zeroPoint }) => zeroPoint[0]),
      axis: 1,
    };
    const values = normals(3 * 5 * 14, 7);
    const dims = [3, 5, 14];
    for (let i = 0; i < values.length; i++) values[i] *= 100 * channels[Math.floor(i / 14) % 5].scale[0];
    expect(fakeQuantize(values, dims, encoding)).toEqual(await runInOrt(values, dims, encoding));
  });

  test.each([0, 1])("per block of 16 along axis %i, 4 bits", async (axis) => {
    const dims = [32, 48];
    const values = normals(32 * 48, 3);
    const encoding = weightEncoding(values, dims, { bits: 4, axis, blockSize: 16, method: "min-max" });
    expect(encoding.scale.length).toBe((32 * 48) / 16);
    expect(fakeQuantize(values, dims, encoding)).toEqual(await runInOrt(values, dims, encoding));
  });
});

describe("encodingFromRange", () => {
  test("textbook values", () => {
    const affine = encodingFromRange(-1, 1.55, { bits: 8, signed: false, symmetric: false });
    expect(affine.scale[0]).toBe(Math.fround(0.01));
    expect(affine.zeroPoint[0]).toBe(100);
    expect(encodingFromRange(-1, 1.55, { bits: 8, signed: true, symmetric: false }).zeroPoint[0]).toBe(-28);
    const symmetric = encodingFromRange(-1, 12.7, { bits: 8, signed: true, symmetric: true });
    expect(symmetric.scale[0]).toBe(Math.fround(0.1));
    expect(symmetric.zeroPoint[0]).toBe(0);
    expect(encodingFromRange(2, 5.1, { bits: 8, signed: false, symmetric: false })).toMatchObject({
      scale: Float32Array.of(0.02),
      zeroPoint: Int32Array.of(0),
    });
  });

  test("zero is exact, every value of the range comes back within half a step", () => {
    fc.assert(
      fc.property(anyGrid, magnitude, magnitude, fc.double({ min: 0, max: 1, noNaN: true }), (grid, a, b, share) => {
        const [min, max] = [Math.min(a, b), Math.max(a, b)];
        const encoding = encodingFromRange(min, max, grid);
        const values = Float32Array.of(0, min, max, min + share * (max - min));
        const result = fakeQuantize(values, [4], encoding);
        expect(result[0]).toBe(0);
        const { low, high } = gridLimits(grid);
        // Beyond half a step: the scale's own rounding to float32, over the whole grid.
        const slack = 0.5 + (high - low) * 2 ** -22;
        for (let i = 0; i < 4; i++)
          expect(Math.abs(result[i] - values[i])).toBeLessThanOrEqual(slack * encoding.scale[0]);
        expect(encoding.scale[0]).toBeGreaterThan(0);
      }),
      { seed: 1, numRuns: 500 },
    );
  });

  test("degenerate ranges", () => {
    for (const grid of grids) {
      expect(encodingFromRange(0, 0, grid).scale[0]).toBe(1);
      const tiny = encodingFromRange(-1e-45, 1e-45, grid);
      expect(tiny.scale[0]).toBe(2 ** -126);
      expect(fakeQuantize(Float32Array.of(0), [1], tiny)[0]).toBe(0);
      expect(Number.isFinite(encodingFromRange(-3.4e38, 3.4e38, grid).scale[0])).toBe(true);
      for (const [min, max] of [
        [Number.NaN, 1],
        [0, Number.POSITIVE_INFINITY],
        [2, 1],
        [-1e39, 0],
      ])
        expect(() => encodingFromRange(min, max, grid)).toThrow(InputError);
    }
  });
});

test("codes stay inside the grid, symmetric ones without the lone lowest code", () => {
  expect(gridLimits({ bits: 8, signed: true, symmetric: true })).toEqual({ low: -127, high: 127 });
  expect(gridLimits({ bits: 8, signed: true, symmetric: false })).toEqual({ low: -128, high: 127 });
  expect(gridLimits({ bits: 16, signed: false, symmetric: false })).toEqual({ low: 0, high: 65535 });
  expect(gridLimits({ bits: 4, signed: true, symmetric: true })).toEqual({ low: -7, high: 7 });
  const grid: Grid = { bits: 8, signed: true, symmetric: true };
  const encoding = encodingFromRange(-1.27, 1.27, grid);
  expect(
    [...quantize(Float32Array.of(-9, 9, -0.015, 0.025, Number.NaN), [5], encoding)].map((code) => code + 0),
  ).toEqual([-127, 127, -2, 2, 0]);
});

test("dequantize(quantize) is idempotent", () => {
  fc.assert(
    fc.property(anyGrid, magnitude, fc.array(magnitude, { minLength: 1, maxLength: 20 }), (grid, limit, list) => {
      const encoding = encodingFromRange(Math.min(limit, 0), Math.max(limit, 0), grid);
      const once = fakeQuantize(Float32Array.from(list), [list.length], encoding);
      expect(fakeQuantize(once, [list.length], encoding)).toEqual(once);
    }),
    { seed: 2, numRuns: 300 },
  );
});

describe("weightEncoding", () => {
  test("per channel: each channel's peak is the grid's end", () => {
    const values = normals(6 * 35, 11);
    const encoding = weightEncoding(values, [6, 5, 7], { bits: 8, axis: 1, method: "min-max" });
    for (let channel = 0; channel < 5; channel++) {
      const own = values.filter((_, i) => Math.floor(i / 7) % 5 === channel).map(Math.abs);
      expect(encoding.scale[channel]).toBe(Math.fround(Math.max(...own) / 127));
    }
    const codes = quantize(values, [6, 5, 7], encoding);
    expect(Math.max(...codes.map((code) => Math.abs(code)))).toBe(127);
  });

  test("a block size that does not divide the axis leaves a short last block", () => {
    const values = normals(10 * 3, 12);
    const encoding = weightEncoding(values, [10, 3], { bits: 4, axis: 0, blockSize: 4, method: "min-max" });
    expect(encoding.scale.length).toBe(9);
    const lastOfColumn1 = [8, 9].map((row) => Math.abs(values[row * 3 + 1]));
    expect(encoding.scale[2 * 3 + 1]).toBe(Math.fround(Math.max(...lastOfColumn1) / 7));
  });

  test("the least squared error is never over that of min-max, and well under it at 4 bits with outliers", () => {
    for (const bits of [4, 8, 16] as BitWidth[]) {
      for (const axis of [null, 0]) {
        const values = normals(8 * 500, bits).map((value, i) => (i % 499 === 0 ? value * 4 : value));
        const errorOf = (method: "min-max" | "mse") =>
          squaredError(
            values,
            fakeQuantize(values, [8, 500], weightEncoding(values, [8, 500], { bits, axis, method })),
          );
        expect(errorOf("mse")).toBeLessThanOrEqual(errorOf("min-max"));
        if (bits === 4) expect(errorOf("mse")).toBeLessThan(0.6 * errorOf("min-max"));
      }
    }
  });

  test("zero and broken weights", () => {
    expect(weightEncoding(new Float32Array(4), [2, 2], { bits: 8, axis: 0, method: "mse" }).scale).toEqual(
      Float32Array.of(1, 1),
    );
    for (const bad of [Number.NaN, Number.NEGATIVE_INFINITY])
      expect(() =>
        weightEncoding(Float32Array.of(1, bad, 2, 3), [4], { bits: 8, axis: null, method: "min-max" }),
      ).toThrow(InputError);
  });
});

test("clippedShare counts what lies beyond the ends", () => {
  const encoding = encodingFromRange(-1.28, 1.27, { bits: 8, signed: true, symmetric: false });
  expect(clippedShare(Float32Array.of(-1.28, 1.27, 1.2749, 0, 1.29, -1.3, 5, -5), encoding)).toBe(0.5);
  const perChannel = weightEncoding(Float32Array.of(1, 2, 10, 20), [2, 2], { bits: 8, axis: 0, method: "min-max" });
  expect(clippedShare(Float32Array.of(1, 3, 10, 20), perChannel, [2, 2])).toBe(0.25);
});

test("4-bit codes pack low half first and come back", () => {
  expect(pack4(Int8Array.of(1, -1, 7))).toEqual(Uint8Array.of(0xf1, 0x07));
  expect(unpack4(Uint8Array.of(0xf1, 0x07), 3, true)).toEqual(Int8Array.of(1, -1, 7));
  fc.assert(
    fc.property(fc.boolean(), fc.array(fc.integer({ min: 0, max: 15 })), (signed, list) => {
      const codes = signed ? Int8Array.from(list, (code) => code - 8) : Uint8Array.from(list);
      expect(unpack4(pack4(codes), list.length, signed)).toEqual(codes);
    }),
    { seed: 3 },
  );
});

test("a tensor that does not belong to the encoding is refused", () => {
  const encoding = weightEncoding(normals(6, 1), [2, 3], { bits: 8, axis: 0, method: "min-max" });
  expect(() => quantize(normals(6, 1), [3, 2], encoding)).toThrow(RangeError);
  expect(() => dequantize(new Int8Array(5), [2, 3], encoding)).toThrow(RangeError);
});

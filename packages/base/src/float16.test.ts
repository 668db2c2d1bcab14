import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  bfloat16BitsToFloat32,
  decodeBfloat16,
  decodeFloat16,
  encodeBfloat16,
  encodeFloat16,
  float16BitsToFloat32,
  float32ToBfloat16Bits,
  float32ToFloat16Bits,
} from "./float16.ts";

/** Nearest of an ascending list of the non-negative finite values, ties to the even index, overflow past the midpoint. */
function nearest(values: readonly number[], spacingAtTop: number, value: number): number {
  const magnitude = Math.abs(value);
  const top = values.length - 1;
  if (magnitude >= values[top] + spacingAtTop / 2) return values.length;
  let low = 0;
  let high = top;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (values[middle] <= magnitude) low = middle;
    else high = middle - 1;
  }
  if (low === top) return low;
  const below = magnitude - values[low];
  const above = values[low + 1] - magnitude;
  return below < above || (below === above && low % 2 === 0) ? low : low + 1;
}

const float32 = fc.oneof(
  fc.float(),
  fc.float({ min: -70000, max: 70000 }),
  fc.float({ min: Math.fround(-(2 ** -13)), max: Math.fround(2 ** -13) }),
  // Midpoints between neighbours in either format, and their neighbours in float32.
  fc.tuple(fc.nat(0xffffffff), fc.constantFrom(-1, 0, 1), fc.constantFrom(12, 15)).map(([seed, nudge, shift]) => {
    const bits = ((seed & ~((1 << (shift + 1)) - 1)) | (1 << shift)) + nudge;
    return new Float32Array(new Uint32Array([bits]).buffer)[0];
  }),
);
const options = { seed: 7, numRuns: 5000 };

describe("float16", () => {
  // From the definition of binary16: 5 exponent bits with bias 15, 10 fraction bits.
  const finite = Array.from({ length: 0x7c00 }, (_, bits) => {
    const exponent = bits >> 10;
    return exponent === 0 ? bits / 2 ** 24 : (1024 + (bits & 1023)) * 2 ** (exponent - 25);
  });

  test("well-known values", () => {
    const known: [number, number][] = [
      [0x0000, 0],
      [0x8000, -0],
      [0x0001, 2 ** -24],
      [0x03ff, 1023 * 2 ** -24],
      [0x0400, 2 ** -14],
      [0x3c00, 1],
      [0xc000, -2],
      [0x3555, 0.333251953125],
      [0x7bff, 65504],
      [0x7c00, Number.POSITIVE_INFINITY],
      [0xfc00, Number.NEGATIVE_INFINITY],
    ];
    for (const [bits, value] of known) {
      expect(float16BitsToFloat32(bits)).toBe(value);
      expect(float32ToFloat16Bits(value)).toBe(bits);
    }
    expect(float32ToFloat16Bits(65519.996)).toBe(0x7bff);
    expect(float32ToFloat16Bits(65520)).toBe(0x7c00);
    expect(float32ToFloat16Bits(Number.NaN) & 0x7fff).toBeGreaterThan(0x7c00);
  });

  test("all 65,536 patterns survive a round trip; NaNs stay NaNs", () => {
    const bits = Uint16Array.from({ length: 0x10000 }, (_, i) => i);
    const back = encodeFloat16(decodeFloat16(bits));
    for (let i = 0; i < bits.length; i++) {
      if ((i & 0x7fff) > 0x7c00) expect(float16BitsToFloat32(i)).toBeNaN();
      else if (back[i] !== i) expect.fail(`pattern ${i} became ${back[i]}`);
      if ((i & 0x7fff) > 0x7c00 && (back[i] & 0x7fff) <= 0x7c00) expect.fail(`NaN ${i} became ${back[i]}`);
      if (i < 0x7c00 && float16BitsToFloat32(i) !== finite[i]) expect.fail(`pattern ${i} decodes wrongly`);
    }
  });

  test("encoding gives the nearest value, ties to even", () => {
    fc.assert(
      fc.property(float32, (value) => {
        if (Number.isNaN(value)) {
          expect(float16BitsToFloat32(float32ToFloat16Bits(value))).toBeNaN();
          return;
        }
        const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
        expect(float32ToFloat16Bits(value)).toBe(sign | nearest(finite, 32, value));
      }),
      options,
    );
  });
});

describe("bfloat16", () => {
  const finite = Array.from({ length: 0x7f80 }, (_, bits) => {
    const exponent = bits >> 7;
    return exponent === 0 ? bits * 2 ** -133 : (128 + (bits & 127)) * 2 ** (exponent - 134);
  });

  test("all 65,536 patterns survive a round trip; NaNs stay NaNs", () => {
    const bits = Uint16Array.from({ length: 0x10000 }, (_, i) => i);
    const values = decodeBfloat16(bits);
    const back = encodeBfloat16(values);
    for (let i = 0; i < bits.length; i++) {
      const isNaNPattern = (i & 0x7fff) > 0x7f80;
      if (isNaNPattern ? !Number.isNaN(values[i]) || (back[i] & 0x7fff) <= 0x7f80 : back[i] !== i)
        expect.fail(`pattern ${i} became ${back[i]}`);
      if (i < 0x7f80 && (values[i] !== finite[i] || bfloat16BitsToFloat32(i) !== finite[i]))
        expect.fail(`pattern ${i} decodes wrongly`);
    }
    expect(bfloat16BitsToFloat32(0xff80)).toBe(Number.NEGATIVE_INFINITY);
  });

  test("encoding gives the nearest value, ties to even", () => {
    fc.assert(
      fc.property(float32, (value) => {
        if (Number.isNaN(value)) {
          expect(bfloat16BitsToFloat32(float32ToBfloat16Bits(value))).toBeNaN();
          return;
        }
        if (!Number.isFinite(value)) {
          expect(bfloat16BitsToFloat32(float32ToBfloat16Bits(value))).toBe(value);
          return;
        }
        const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
        expect(float32ToBfloat16Bits(value)).toBe(sign | nearest(finite, 2 ** 120, value));
      }),
      options,
    );
  });
});

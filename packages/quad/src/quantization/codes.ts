/**
 * Values to codes and back with the arithmetic of ONNX Runtime's QuantizeLinear and DequantizeLinear: the quotient
 * rounded to float32, then to the nearest integer with ties to even, then saturated; the product rounded to float32.
 * Symmetric grids saturate at -(2^(bits-1) - 1), QuantizeLinear itself one code lower: a graph reproduces them with a
 * Clip at `gridLimits(grid).low * scale` in front of its QuantizeLinear.
 */
import { assertFits, type Encoding, forEachRun, type Grid, gridLimits } from "./grid.ts";

/** One element per code, in the type's own array; 4-bit codes take a byte each, see {@link pack4}. */
export type Codes = Int8Array | Uint8Array | Int16Array | Uint16Array;

/** Adding and subtracting 1.5 * 2^52 leaves a double rounded to an integer, ties to even. */
const roundingConstant = 6755399441055744;

function codeArray({ bits, signed }: Grid, length: number): Codes {
  if (bits === 16) return signed ? new Int16Array(length) : new Uint16Array(length);
  return signed ? new Int8Array(length) : new Uint8Array(length);
}

/** Codes of a tensor. NaN becomes the zero point. */
export function quantize(values: Float32Array, dims: readonly number[], encoding: Encoding): Codes {
  assertFits(values.length, dims, encoding);
  const { low, high } = gridLimits(encoding);
  const { scale, zeroPoint } = encoding;
  const codes = codeArray(encoding, values.length);
  forEachRun(dims, encoding, (start, end, entry, step) => {
    for (let i = start, e = entry; i < end; i++, e += step) {
      const zero = zeroPoint[e];
      const quotient = Math.fround(values[i] / scale[e]);
      const clamped = quotient > low - zero ? Math.min(quotient, high - zero) : low - zero;
      codes[i] = Number.isNaN(quotient) ? zero : clamped + roundingConstant - roundingConstant + zero;
    }
  });
  return codes;
}

/** Values of codes: `(code - zeroPoint) * scale` in float32. */
export function dequantize(codes: Codes, dims: readonly number[], encoding: Encoding): Float32Array<ArrayBuffer> {
  assertFits(codes.length, dims, encoding);
  const { scale, zeroPoint } = encoding;
  const values = new Float32Array(codes.length);
  forEachRun(dims, encoding, (start, end, entry, step) => {
    for (let i = start, e = entry; i < end; i++, e += step) values[i] = (codes[i] - zeroPoint[e]) * scale[e];
  });
  return values;
}

/** What is left of a tensor after quantization: `dequantize(quantize(values))`. */
export function fakeQuantize(
  values: Float32Array,
  dims: readonly number[],
  encoding: Encoding,
): Float32Array<ArrayBuffer> {
  return dequantize(quantize(values, dims, encoding), dims, encoding);
}

/**
 * Share of the values, 0 to 1, that lie beyond the grid's ends by more than rounding explains.
 * @param dims - needed unless the encoding is per tensor
 */
export function clippedShare(
  values: Float32Array,
  encoding: Encoding,
  dims: readonly number[] = [values.length],
): number {
  assertFits(values.length, dims, encoding);
  if (values.length === 0) return 0;
  const { low, high } = gridLimits(encoding);
  const { scale, zeroPoint } = encoding;
  let clipped = 0;
  forEachRun(dims, encoding, (start, end, entry, step) => {
    for (let i = start, e = entry; i < end; i++, e += step) {
      const code = Math.fround(values[i] / scale[e]) + roundingConstant - roundingConstant + zeroPoint[e];
      if (code < low || code > high) clipped++;
    }
  });
  return clipped / values.length;
}

/** 4-bit codes two to a byte, the first in the low half, as ONNX stores INT4 and UINT4; an odd end is filled with 0. */
export function pack4(codes: Int8Array | Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(Math.ceil(codes.length / 2));
  for (let i = 0; i < codes.length; i++) bytes[i >> 1] |= (codes[i] & 15) << ((i & 1) * 4);
  return bytes;
}

/**
 * Undoes {@link pack4}.
 * @param count - number of codes
 */
export function unpack4(bytes: Uint8Array, count: number, signed: boolean): Int8Array | Uint8Array {
  if (bytes.length !== Math.ceil(count / 2)) throw new RangeError(`${count} codes in ${bytes.length} bytes`);
  const codes = signed ? new Int8Array(count) : new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    const code = (bytes[i >> 1] >> ((i & 1) * 4)) & 15;
    codes[i] = signed && code > 7 ? code - 16 : code;
  }
  return codes;
}

/**
 * IEEE 754 binary16 ("half", fp16) and bfloat16 to and from float32. Encoding rounds to nearest, ties to even;
 * subnormals, signed zeros and infinities are kept, every NaN becomes a quiet NaN of the same sign.
 */

const scratchFloat = new Float32Array(1);
const scratchBits = new Uint32Array(scratchFloat.buffer);

let float16Table: Float32Array | undefined;

/** All 65,536 binary16 values; decoding by table is several times faster than bit arithmetic on large weights. */
function float16Values(): Float32Array {
  if (float16Table) return float16Table;
  const table = new Float32Array(0x10000);
  for (let bits = 0; bits < table.length; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    if (exponent === 0x1f) table[bits] = fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    else if (exponent === 0) table[bits] = sign * fraction * 2 ** -24;
    else table[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  float16Table = table;
  return table;
}

/** Value of the binary16 number with these 16 bits. */
export function float16BitsToFloat32(bits: number): number {
  return float16Values()[bits & 0xffff];
}

/** Bits of the binary16 number nearest to `value` (taken as float32); magnitudes of 65520 and more become infinite. */
export function float32ToFloat16Bits(value: number): number {
  scratchFloat[0] = value;
  const bits = scratchBits[0];
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x47800000) return sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00);
  if (magnitude < 0x38800000) {
    // Below 2^-14 halves are multiples of 2^-24, which is the spacing of float32 in [0.5, 1):
    // storing 0.5 + |value| as float32 rounds to that grid, ties to even, and leaves the result in the low bits.
    scratchBits[0] = magnitude;
    scratchFloat[0] = scratchFloat[0] + 0.5;
    return sign | (scratchBits[0] - 0x3f000000);
  }
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}

/** Value of the bfloat16 number with these 16 bits: the upper half of a float32. */
export function bfloat16BitsToFloat32(bits: number): number {
  scratchBits[0] = (bits & 0xffff) << 16;
  return scratchFloat[0];
}

/** Bits of the bfloat16 number nearest to `value` (taken as float32). */
export function float32ToBfloat16Bits(value: number): number {
  scratchFloat[0] = value;
  const bits = scratchBits[0];
  if ((bits & 0x7fffffff) > 0x7f800000) return ((bits >>> 16) & 0x8000) | 0x7fc0;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** Decodes binary16 bits into a new array. */
export function decodeFloat16(bits: Uint16Array): Float32Array<ArrayBuffer> {
  const table = float16Values();
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) values[i] = table[bits[i]];
  return values;
}

/** Encodes into binary16 bits, a new array. */
export function encodeFloat16(values: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = new Uint16Array(values.length);
  for (let i = 0; i < values.length; i++) bits[i] = float32ToFloat16Bits(values[i]);
  return bits;
}

/** Decodes bfloat16 bits into a new array. */
export function decodeBfloat16(bits: Uint16Array): Float32Array<ArrayBuffer> {
  const words = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) words[i] = bits[i] << 16;
  return new Float32Array(words.buffer);
}

/** Encodes into bfloat16 bits, a new array. */
export function encodeBfloat16(values: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = new Uint16Array(values.length);
  for (let i = 0; i < values.length; i++) bits[i] = float32ToBfloat16Bits(values[i]);
  return bits;
}

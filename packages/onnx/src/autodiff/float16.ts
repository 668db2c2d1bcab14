const float32View = new Float32Array(1);
const bitsView = new Uint32Array(float32View.buffer);

/** Bit pattern of the float16 nearest to `value`, ties to even. */
export function float16Bits(value: number): number {
  float32View[0] = value;
  const bits = bitsView[0];
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = Math.abs(float32View[0]);
  if (Number.isNaN(magnitude)) return sign | 0x7e00;
  if (magnitude >= 65520) return sign | 0x7c00;
  // Below the smallest normal number the spacing is 2^-24 throughout.
  if (magnitude < 2 ** -14) return sign | roundHalfEven(magnitude * 2 ** 24);
  const exponent = Math.floor(Math.log2(magnitude));
  const steps = roundHalfEven(magnitude * 2 ** (10 - exponent));
  // steps lies in [1024, 2048]; 2048 carries into the exponent by plain addition.
  return sign | ((exponent + 15) * 1024 + (steps - 1024));
}

function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

/** Bits of an integer grid. */
export type BitWidth = 4 | 8 | 16;

/** The integers a tensor is quantized to. */
export interface Grid {
  bits: BitWidth;
  signed: boolean;
  /** Zero point in the middle of the grid: 0 for signed types, `2^(bits-1)` for unsigned ones. */
  symmetric: boolean;
}

/**
 * Quantization parameters in ONNX's convention: `value = (code - zeroPoint) * scale`, the zero point on the type's own
 * grid (https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html).
 * - per tensor: `scale` and `zeroPoint` of length 1;
 * - per channel: `axis`, one entry per index along that axis;
 * - per block: `axis` and `blockSize`, entries row-major in the tensor's shape with the axis divided by `blockSize`
 *   (rounded up), the blocked layout of DequantizeLinear-21.
 */
export interface Encoding extends Grid {
  scale: Float32Array;
  zeroPoint: Int32Array;
  axis?: number;
  blockSize?: number;
}

/**
 * Smallest and largest code of a grid. Affine grids use every code. Symmetric ones leave out the code that has no
 * counterpart of the other sign (int8: -127..127): largest magnitudes of both signs are reproduced alike, negating a
 * tensor negates its codes, and kernels that sum pairs of 8-bit products in 16 bits cannot overflow on -128 * -128.
 */
export function gridLimits({ bits, signed, symmetric }: Grid): { low: number; high: number } {
  const half = 2 ** (bits - 1);
  const low = (signed ? -half : 0) + (symmetric ? 1 : 0);
  return { low, high: signed ? half - 1 : 2 * half - 1 };
}

/** The zero point of a symmetric grid. */
export function middleOf({ bits, signed }: Grid): number {
  return signed ? 0 : 2 ** (bits - 1);
}

/** How the elements of a tensor share the entries of an encoding: loop bounds for {@link forEachRun}. */
interface Layout {
  outer: number;
  /** Length of the axis; 1 per tensor. */
  size: number;
  inner: number;
  /** Blocks along the axis; 0 per tensor and per channel. */
  blocks: number;
  blockSize: number;
}

/** Entries an encoding of this granularity has for a tensor of this shape. */
export function entryCount(dims: readonly number[], axis?: number, blockSize?: number): number {
  const { outer, size, inner, blocks } = layoutOf(dims, axis, blockSize);
  return blocks > 0 ? outer * blocks * inner : size;
}

function layoutOf(dims: readonly number[], axis?: number, blockSize?: number): Layout {
  const product = (sizes: readonly number[]) => sizes.reduce((total, size) => total * size, 1);
  if (axis === undefined) return { outer: 1, size: 1, inner: product(dims), blocks: 0, blockSize: 1 };
  const index = axis < 0 ? axis + dims.length : axis;
  const size = dims[index];
  if (size === undefined) throw new RangeError(`axis ${axis} of a tensor with shape [${dims}]`);
  if (blockSize !== undefined && !(Number.isInteger(blockSize) && blockSize > 0))
    throw new RangeError(`block size ${blockSize}`);
  return {
    outer: product(dims.slice(0, index)),
    size,
    inner: product(dims.slice(index + 1)),
    blocks: blockSize === undefined ? 0 : Math.ceil(size / blockSize),
    blockSize: blockSize ?? 1,
  };
}

/**
 * Walks a tensor in memory order in runs: `run(start, end, entry, step)` covers the elements `[start, end)`, of which
 * element `start + i` uses the encoding's entry `entry + i * step`.
 */
export function forEachRun(
  dims: readonly number[],
  granularity: { axis?: number; blockSize?: number },
  run: (start: number, end: number, entry: number, step: 0 | 1) => void,
): void {
  const { outer, size, inner, blocks, blockSize } = layoutOf(dims, granularity.axis, granularity.blockSize);
  let start = 0;
  for (let o = 0; o < outer; o++) {
    for (let c = 0; c < size; c++, start += inner) {
      if (blocks === 0) run(start, start + inner, c, 0);
      else run(start, start + inner, (o * blocks + Math.floor(c / blockSize)) * inner, 1);
    }
  }
}

/** @throws RangeError where tensor, shape and encoding do not belong together (a mistake in the program) */
export function assertFits(length: number, dims: readonly number[], encoding: Encoding): void {
  const count = dims.reduce((total, size) => total * size, 1);
  if (count !== length) throw new RangeError(`tensor [${dims}] needs ${count} elements, got ${length}`);
  const entries = entryCount(dims, encoding.axis, encoding.blockSize);
  if (encoding.scale.length !== entries || encoding.zeroPoint.length !== entries)
    throw new RangeError(
      `encoding of a tensor [${dims}] needs ${entries} entries, got ${encoding.scale.length} scales and ${encoding.zeroPoint.length} zero points`,
    );
}

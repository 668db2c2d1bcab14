/** Contents of the tensors that adapters consist of: floats, the bits of float16, or integer codes. */
export type NumberArray = Float32Array | Uint16Array | Int8Array | Int16Array;

/**
 * Resizes one axis of a row-major tensor: cuts its end off, or pads it with zeros. The same array when nothing changes.
 *
 * @param values - of shape `dims`
 * @param size - wanted along `axis`
 */
export function sliceAlong<Values extends NumberArray>(
  values: Values,
  dims: readonly number[],
  axis: number,
  size: number,
): Values {
  const current = dims[axis];
  if (current === size) return values;
  const inner = product(dims.slice(axis + 1));
  const outer = product(dims.slice(0, axis));
  const kept = Math.min(current, size) * inner;
  const result = like(values, outer * size * inner);
  for (let row = 0; row < outer; row++) {
    const from = row * current * inner;
    result.set(values.subarray(from, from + kept), row * size * inner);
  }
  return result;
}

/**
 * Joins row-major tensors along one axis.
 *
 * @param parts - each of shape `dims`, except for its length along `axis`, which follows from its size
 * @param dims - the common shape; the entry at `axis` is not read
 */
export function concatenateAlong<Values extends NumberArray>(
  parts: readonly Values[],
  dims: readonly number[],
  axis: number,
): Values {
  const outer = product(dims.slice(0, axis));
  const result = like(
    parts[0],
    parts.reduce((sum, part) => sum + part.length, 0),
  );
  let at = 0;
  for (let row = 0; row < outer; row++) {
    for (const part of parts) {
      const length = part.length / outer;
      result.set(part.subarray(row * length, (row + 1) * length), at);
      at += length;
    }
  }
  return result;
}

function product(sizes: readonly number[]): number {
  return sizes.reduce((result, size) => result * size, 1);
}

function like<Values extends NumberArray>(values: Values, length: number): Values {
  return new (values.constructor as new (length: number) => Values)(length);
}

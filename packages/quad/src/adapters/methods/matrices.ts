import { targetModules } from "../names/target.ts";
import { composeTucker } from "./factors.ts";
import type { LayerKey, LayerTensors, Mismatch } from "./method.ts";

/** Row-major. */
export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly values: Float32Array;
}

/** A matrix as `up down`, of any inner size. */
export interface Product {
  /** `[out, rank]` */
  readonly up: Matrix;
  /** `[rank, in x positions]` */
  readonly down: Matrix;
}

function transposed({ rows, columns, values }: Matrix): Matrix {
  const result = new Float32Array(values.length);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) result[j * rows + i] = values[i * columns + j];
  return { rows: columns, columns: rows, values: result };
}

/**
 * Sizes of the weight that a target's layers have together.
 * @returns `outputs` is undefined for parts of a fused layer, whose size the file has to show.
 */
export function targetSizes({ target }: Pick<LayerTensors, "target">) {
  const modules = targetModules(target);
  const { inFeatures, groups = 1, kernel = [1, 1] } = modules[0];
  return {
    outputs: target.kind === "slice" ? undefined : modules.reduce((sum, { outFeatures }) => sum + outFeatures, 0),
    inputs: inFeatures / groups,
    kernel,
    positions: kernel[0] * kernel[1],
  };
}

/** Two matrices of a file whose product is meant: `a [out, r]`, `b [r, in x positions]`, with trailing axes counted as columns. */
export async function matrixFactors(layer: LayerTensors, a: string, b: string): Promise<Product | Mismatch> {
  const [rows, rank, ...ones] = layer.shape(a);
  const [inner, ...rest] = layer.shape(b);
  const columns = rest.reduce((x, y) => x * y, 1);
  if (!(rows > 0 && rank > 0 && columns > 0) || rank !== inner || ones.some((size) => size !== 1) || rest.length === 0)
    return {
      expected: `${a} [out, r] and ${b} [r, in]`,
      got: `[${layer.shape(a).join(", ")}] and [${layer.shape(b).join(", ")}]`,
    };
  return {
    up: { rows, columns: rank, values: await layer.read(a) },
    down: { rows: rank, columns, values: await layer.read(b) },
  };
}

/** Factors of `sum over i, j of core[i, j, h, w] a[i, out] b[j, in]`. */
export async function tuckerFactors(
  layer: LayerTensors,
  a: string,
  b: string,
  core: string,
  inputs: number,
  kernel: readonly number[],
): Promise<Product | Mismatch> {
  const [outer, inner, ...size] = layer.shape(core);
  const [aShape, bShape] = [layer.shape(a), layer.shape(b)];
  if (
    !(outer > 0 && inner > 0 && aShape[1] > 0) ||
    aShape.length !== 2 ||
    aShape[0] !== outer ||
    bShape.join() !== [inner, inputs].join() ||
    size.join() !== kernel.join()
  )
    return {
      expected: `${core} [r, r, ${kernel.join(", ")}], ${a} [r, out] and ${b} [r, ${inputs}]`,
      got: `[${layer.shape(core).join(", ")}], [${aShape.join(", ")}] and [${bShape.join(", ")}]`,
    };
  const down = composeTucker(await layer.read(core), await layer.read(b), outer, inner, inputs);
  layer.assertFinite(down, core);
  return {
    up: transposed({ rows: outer, columns: aShape[1], values: await layer.read(a) }),
    down: { rows: outer, columns: down.length / outer, values: down },
  };
}

/** A matrix as a product with the identity, of the least rank that always suffices. */
export function dense(values: Float32Array, rows: number, columns: number): Product {
  const size = Math.min(rows, columns);
  const identity = { rows: size, columns: size, values: new Float32Array(size * size) };
  for (let i = 0; i < size; i++) identity.values[i * size + i] = 1;
  const matrix = { rows, columns, values };
  return rows <= columns ? { up: identity, down: matrix } : { up: matrix, down: identity };
}

/** A key of LyCORIS' or PEFT's, which puts the adapter's name behind it: `conv_in.lokr_w1`, `conv_in.lokr_w1.default`. */
export function lycorisKey(key: string, start: string, parts: readonly string[]): LayerKey | undefined {
  const place = key.lastIndexOf(`.${start}`);
  if (place <= 0) return undefined;
  const [name, ...rest] = key.slice(place + 1).split(".");
  if (!parts.includes(name.slice(start.length)) || rest.length > 1) return undefined;
  return { part: name, module: key.slice(0, place), format: key.startsWith("base_model.") ? "peft" : "lycoris" };
}

import { dense, lycorisKey, matrixFactors, type Product, targetSizes, tuckerFactors } from "./matrices.ts";
import type { AdapterMethod, LayerTensors, Mismatch } from "./method.ts";
import { lowRank } from "./truncate.ts";

/**
 * LoHa (FedPara, Hyeon-Woo et al. 2021, arXiv:2108.06098; LyCORIS): `delta = alpha / rank * (w1_a w1_b) * (w2_a w2_b)`, the
 * product in the middle entry by entry. With `w1_a w1_b = sum of u_i x_i^T` and `w2_a w2_b = sum of v_j y_j^T` it is the sum
 * over i, j of `(u_i * v_j) (x_i * y_j)^T`: of rank r1 r2 at most, exactly.
 */
export const loha: AdapterMethod = {
  name: "LoHa",
  parse: (key) => lycorisKey(key, "hada_", ["w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"]),
  accepts: (parts) => [...parts].some((part) => part.startsWith("hada_")),
  async read(layer, maximumRank) {
    const { outputs, inputs, positions, kernel } = targetSizes(layer);
    const missing = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"].find((part) => !layer.has(part));
    if (missing) return { expected: "hada_w1_a, hada_w1_b, hada_w2_a and hada_w2_b", got: `no ${missing} in the file` };
    if (layer.has("hada_t1") !== layer.has("hada_t2"))
      return { expected: "hada_t1 and hada_t2", got: `no ${layer.has("hada_t1") ? "hada_t2" : "hada_t1"} in the file` };
    const first = await readHalf(layer, 1, inputs, kernel);
    if ("expected" in first) return first;
    const second = await readHalf(layer, 2, inputs, kernel);
    if ("expected" in second) return second;
    const rows = outputs ?? first.up.rows;
    const columns = inputs * positions;
    for (const { up, down } of [first, second])
      if (up.rows !== rows || down.columns !== columns)
        return { expected: `products of [${rows}, ${columns}]`, got: `[${up.rows}, ${down.columns}]` };
    const scale = await layer.scale(layer.shape("hada_w1_b")[0]);
    if (typeof scale !== "number") return scale;
    const factors = lowRank(faceSplit(first, second), scale, maximumRank);
    layer.assertFinite(factors.up, "hada_w2_a");
    layer.assertFinite(factors.down, "hada_w2_b");
    return factors;
  },
};

/** One of the two products. With a core it is `sum over i, j of t[i, j, h, w] w_a[i, out] w_b[j, in]` (`rebuild_tucker` in LyCORIS). */
async function readHalf(
  layer: LayerTensors,
  which: 1 | 2,
  inputs: number,
  kernel: readonly number[],
): Promise<Product | Mismatch> {
  const [a, b, core] = [`hada_w${which}_a`, `hada_w${which}_b`, `hada_t${which}`];
  if (!layer.has(core)) return matrixFactors(layer, a, b);
  return tuckerFactors(layer, a, b, core, inputs, kernel);
}

/**
 * The entrywise product of two products as one: columns of `up` are the products of all pairs of columns, rows of `down` of
 * all pairs of rows (the face-splitting product). Where there would be more pairs than the result has rows or columns, the
 * result itself, with the identity on its narrow side.
 */
function faceSplit(first: Product, second: Product): Product {
  const [rows, columns] = [first.up.rows, first.down.columns];
  const [r1, r2] = [first.up.columns, second.up.columns];
  if (r1 * r2 > Math.min(rows, columns)) return dense(multiplied(product(first), product(second)), rows, columns);
  const up = new Float32Array(rows * r1 * r2);
  const down = new Float32Array(r1 * r2 * columns);
  for (let i = 0, pair = 0; i < r1; i++)
    for (let j = 0; j < r2; j++, pair++) {
      for (let o = 0; o < rows; o++)
        up[o * r1 * r2 + pair] = first.up.values[o * r1 + i] * second.up.values[o * r2 + j];
      for (let c = 0; c < columns; c++)
        down[pair * columns + c] = first.down.values[i * columns + c] * second.down.values[j * columns + c];
    }
  return { up: { rows, columns: r1 * r2, values: up }, down: { rows: r1 * r2, columns, values: down } };
}

function product({ up, down }: Product): Float64Array {
  const { rows, columns: rank } = up;
  const { columns } = down;
  const result = new Float64Array(rows * columns);
  for (let o = 0; o < rows; o++)
    for (let k = 0; k < rank; k++) {
      const weight = up.values[o * rank + k];
      for (let c = 0; c < columns; c++) result[o * columns + c] += weight * down.values[k * columns + c];
    }
  return result;
}

const multiplied = (a: Float64Array, b: Float64Array) => Float32Array.from(a, (value, i) => value * b[i]);

import { dense, lycorisKey, matrixFactors, type Product, targetSizes, tuckerFactors } from "./matrices.ts";
import type { AdapterMethod, LayerTensors, Mismatch } from "./method.ts";
import { kroneckerLowRank } from "./truncate.ts";

/**
 * LoKr (LyCORIS, Yeh et al. 2023, arXiv:2309.14859): `delta = scale * w1 (x) w2`, a Kronecker product whose sides are full
 * matrices or products themselves. Its rank is the product of theirs.
 */
export const lokr: AdapterMethod = {
  name: "LoKr",
  parse: (key) => lycorisKey(key, "lokr_", ["w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"]),
  accepts: (parts) => [...parts].some((part) => part.startsWith("lokr_")),
  async read(layer, maximumRank) {
    const { outputs, inputs, positions, kernel } = targetSizes(layer);
    const first = await readSide(layer, "lokr_w1", 1, []);
    if ("expected" in first) return first;
    const secondInputs = inputs / first.down.columns;
    const second = await readSide(layer, "lokr_w2", secondInputs, kernel);
    if ("expected" in second) return second;
    const rows = first.up.rows * second.up.rows;
    const columns = first.down.columns * second.down.columns;
    if (rows !== (outputs ?? rows) || columns !== inputs * positions)
      return {
        expected: `a Kronecker product of [${outputs ?? rows}, ${inputs * positions}]`,
        got: `[${rows}, ${columns}]`,
      };
    const scale = await layer.scale(rankOf(layer));
    if (typeof scale !== "number") return scale;
    const factors = kroneckerLowRank(first, second, scale, maximumRank);
    layer.assertFinite(factors.up, layer.has("lokr_w2") ? "lokr_w2" : "lokr_w2_a");
    layer.assertFinite(factors.down, layer.has("lokr_w2") ? "lokr_w2" : "lokr_w2_b");
    return factors;
  },
};

/** Rank that alpha is divided by; full matrices on both sides have none, and LyCORIS then scales by 1. */
function rankOf(layer: LayerTensors): number | undefined {
  const part = ["lokr_w2_b", "lokr_w1_b"].find((name) => layer.has(name));
  return part === undefined ? undefined : layer.shape(part)[0];
}

/** One side as a product. */
async function readSide(
  layer: LayerTensors,
  name: string,
  inputs: number,
  kernel: readonly number[],
): Promise<Product | Mismatch> {
  if (layer.has(name)) {
    const [rows, ...rest] = layer.shape(name);
    const columns = rest.reduce((a, b) => a * b, 1);
    if (!(rows > 0 && columns > 0 && rest.length > 0))
      return { expected: `${name} [out, in]`, got: `[${layer.shape(name).join(", ")}]` };
    return dense(await layer.read(name), rows, columns);
  }
  const [a, b, core] = [`${name}_a`, `${name}_b`, "lokr_t2"];
  const missing = [a, b].find((part) => !layer.has(part));
  if (missing) return { expected: `${name}, or ${a} and ${b}`, got: `no ${missing} in the file` };
  return name === "lokr_w2" && layer.has(core)
    ? tuckerFactors(layer, a, b, core, inputs, kernel)
    : matrixFactors(layer, a, b);
}

import { checkFactors } from "./factors.ts";
import { lora } from "./lora.ts";
import { type AdapterMethod, type LayerTensors, scaled } from "./method.ts";

/**
 * AdaLoRA (Zhang et al. 2023, arXiv:2303.10512), as PEFT has it: `delta = alpha / (ranknum + 1e-5) * B diag(E) A`. Ranks whose
 * singular value training gave up are zeros in E, or left out of the file.
 */
export const adalora: AdapterMethod = {
  name: "AdaLoRA",
  parse(key) {
    const [, module, part] = /^(.+)\.(lora_E|ranknum)(?:\.[^.]+)??(?:\.weight)?$/.exec(key) ?? [];
    return module ? { part, module, format: "peft" } : undefined;
  },
  accepts: (parts) => parts.has("lora_E"),
  async read(layer, maximumRank) {
    if (!layer.has("down") || !layer.has("up")) return lora.read(layer, maximumRank);
    const check = checkFactors({ down: layer.shape("down"), up: layer.shape("up") }, layer.target);
    if ("expected" in check) return check;
    const { rank } = check;
    const singular = await layer.read("lora_E");
    if (singular.length !== rank)
      return { expected: `lora_E [${rank}, 1]`, got: `[${layer.shape("lora_E").join(", ")}]` };
    const scale = await scaleOf(layer, rank);
    if (typeof scale !== "number") return scale;
    const up = scaled(
      (await layer.read("up")).map((value, i) => value * singular[i % rank]),
      scale,
    );
    layer.assertFinite(up, "lora_E");
    return { rank, down: await layer.read("down"), up };
  },
};

async function scaleOf(layer: LayerTensors, rank: number) {
  const alpha = await layer.alpha();
  if (typeof alpha === "object") return alpha;
  const [count] = layer.has("ranknum") ? await layer.read("ranknum") : [rank];
  if (!(count > 0)) return { expected: "a rank above 0 as ranknum", got: String(count) };
  // As in PEFT: an alpha that is not positive stands for the rank.
  return (alpha !== undefined && alpha > 0 ? alpha : rank) / (count + 1e-5);
}

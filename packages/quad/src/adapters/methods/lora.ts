import type { AdapterFormat } from "../types.ts";
import { checkFactors, composeTucker } from "./factors.ts";
import { type AdapterMethod, type LayerKey, type LayerTensors, scaled } from "./method.ts";

/**
 * LoRA (Hu et al. 2021, arXiv:2106.09685): `delta = alpha / rank * up down`; for convolutions LoCon, whose core `mid` a
 * Tucker decomposition adds (LyCORIS).
 */
export const lora: AdapterMethod = {
  name: "LoRA",
  parse,
  accepts: (parts) => ["down", "up", "mid"].some((part) => parts.has(part)),
  async read(layer) {
    if (!layer.has("down") || !layer.has("up"))
      return { expected: "a down and an up weight", got: `no ${layer.has("down") ? "up" : "down"} weight in the file` };
    const mid = layer.has("mid") ? layer.shape("mid") : undefined;
    const check = checkFactors({ down: layer.shape("down"), up: layer.shape("up"), mid }, layer.target);
    if ("expected" in check) return check;
    const { rank, scaleRank } = check;
    const scale = await layer.scale(scaleRank);
    if (typeof scale !== "number") return scale;
    const down = mid ? await composed(layer, rank, scaleRank) : await layer.read("down");
    const up = scaled(await layer.read("up"), scale);
    layer.assertFinite(up, "up");
    return { rank, down, up };
  },
};

async function composed(layer: LayerTensors, outerRank: number, innerRank: number): Promise<Float32Array> {
  const down = await layer.read("down");
  const composedDown = composeTucker(await layer.read("mid"), down, outerRank, innerRank, down.length / innerRank);
  layer.assertFinite(composedDown, "mid");
  return composedDown;
}

function parse(key: string): LayerKey | undefined {
  const [, kohya, kohyaPart] = /^(.+)\.lora_(down|up|mid)\.weight$/.exec(key) ?? [];
  if (kohya) {
    const format: AdapterFormat = key.startsWith("lycoris_") ? "lycoris" : "kohya";
    return { part: kohyaPart, module: kohya, format };
  }
  // PEFT puts the adapter's name in between unless it was saved for sharing: `.lora_A.default.weight`.
  const [, peft, side] = /^(.+)\.lora_([AB])(?:\.[^.]+)??(?:\.weight)?$/.exec(key) ?? [];
  if (peft && !key.endsWith(".bias")) return { part: side === "A" ? "down" : "up", module: peft, format: "peft" };

  const [, diffusers, part] = /^(.+)\.lora(?:_linear_layer)?\.(down|up)\.weight$/.exec(key) ?? [];
  if (diffusers) return { part, module: diffusers, format: "diffusers" };
  // Attention processors: `attn1.processor.to_q_lora.down.weight` adapts `attn1.to_q`; XLabs' number theirs.
  const [, processor, processorPart] = /^(.+_lora[12]?)\.(down|up)\.weight$/.exec(key) ?? [];
  if (processor) return { part: processorPart, module: withoutProcessor(processor), format: "diffusers" };
  return parseAlpha(key);
}

/** The layer that an attention processor's `processor.to_q_lora` adapts. */
function withoutProcessor(path: string): string {
  const dot = path.lastIndexOf(".") + 1;
  const last = path.slice(dot);
  if (!last.endsWith("_lora")) return path;
  const parent = path.slice(0, dot);
  const owner = parent.endsWith(".processor.") ? parent.slice(0, -"processor.".length) : parent;
  return owner + last.slice(0, -"_lora".length);
}

/** Alphas stand beside the weights' names (`to_q.alpha`, `processor.to_q_lora.alpha`) or behind them (`to_q.lora.down.weight.alpha`). */
function parseAlpha(key: string): LayerKey | undefined {
  if (!key.endsWith(".alpha") || key.length === ".alpha".length) return undefined;
  const path = key.slice(0, -".alpha".length);
  const weight = path.endsWith(".alpha") ? undefined : parse(path);
  const owner = weight?.module ?? withoutProcessor(path.replace(/\.(processor|lora|lora_linear_layer)$/, ""));
  return { part: "alpha", module: owner };
}

import { type Alias, isTextEncoder, type NamingConvention } from "./convention.ts";

/**
 * Names of UNet layers in the original Stable Diffusion code (`sgm` / `ldm`), which SDXL LoRAs from kohya's scripts
 * use. There, the blocks of all levels are counted through: with L residual blocks a level, a level takes L + 1 places.
 */
export const sgm: NamingConvention = {
  name: "original Stable Diffusion",
  *aliases({ component, modules, targets }): Generator<Alias> {
    if (isTextEncoder(component)) return;
    const blocks = residualBlocksPerLevel(modules.keys());
    for (const [name, target] of targets) for (const alias of sgmNames(name, blocks)) yield [alias, target];
  },
};

const residualBlockLayers: Readonly<Record<string, string>> = {
  conv1: "in_layers.2",
  conv2: "out_layers.3",
  time_emb_proj: "emb_layers.1",
  conv_shortcut: "skip_connection",
};

const single: Readonly<Record<string, string>> = {
  conv_in: "input_blocks.0.0",
  conv_out: "out.2",
  "time_embedding.linear_1": "time_embed.0",
  "time_embedding.linear_2": "time_embed.2",
  "add_embedding.linear_1": "label_emb.0.0",
  "add_embedding.linear_2": "label_emb.0.2",
};

/** Residual blocks in each down level: up levels have one more. 2 where the names do not show it, as in SD and SDXL. */
function residualBlocksPerLevel(names: Iterable<string>): number {
  let count = 0;
  for (const name of names) {
    const match = /^(down|up)_blocks\.\d+\.(?:resnets|attentions)\.(\d+)\./.exec(name);
    if (match) count = Math.max(count, Number(match[2]) + (match[1] === "down" ? 1 : 0));
  }
  return count || 2;
}

/** The original names of a diffusers UNet layer: none for what the original lacks, two where the place may vary. */
function sgmNames(name: string, blocksPerLevel: number): string[] {
  const known = single[name];
  if (known) return [known];
  const middle = /^mid_block\.(resnets|attentions)\.(\d+)\.(.+)$/.exec(name);
  if (middle) {
    const [, kind, index, rest] = middle as unknown as [string, string, string, string];
    // Residual block, attention, residual block.
    const place = 2 * Number(index) + (kind === "attentions" ? 1 : 0);
    return inner(kind, rest).map((layer) => `middle_block.${place}.${layer}`);
  }
  const block = /^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)$/.exec(name);
  if (!block) return [];
  const [, side, level, kind, index, rest] = block as unknown as [string, string, string, string, string, string];
  const levelStart = Number(level) * (blocksPerLevel + 1);
  if (kind === "downsamplers") return rest === "conv" ? [`input_blocks.${1 + levelStart + blocksPerLevel}.0.op`] : [];
  if (kind === "upsamplers") {
    const last = `output_blocks.${levelStart + blocksPerLevel}`;
    // After residual block and attention, or after the residual block alone.
    return [`${last}.2.${rest}`, `${last}.1.${rest}`];
  }
  const place = levelStart + Number(index);
  const outer = side === "down" ? `input_blocks.${1 + place}` : `output_blocks.${place}`;
  return inner(kind, rest).map((layer) => `${outer}.${kind === "attentions" ? 1 : 0}.${layer}`);
}

function inner(kind: string, rest: string): string[] {
  if (kind === "attentions") return [rest];
  const layer = residualBlockLayers[rest];
  return layer ? [layer] : [];
}

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import { decodeModel, type Model } from "@quad-lora/onnx";
import { SeededRandom } from "@quad-lora/runtime";

const reference = fileURLToPath(new URL("../reference/sd15/", import.meta.url));
export const generateScript = `${reference}generate.mjs`;

/** Stable Diffusion 1.5's UNet as exported, its weights missing. */
export function loadSd15Graph(): Model {
  const bytes = gunzipSync(readFileSync(`${reference}model.onnx.gz`));
  return decodeModel(new Uint8Array(bytes), { file: `${reference}model.onnx`, allowMissingExternalData: true });
}

/** One LoRA layer of a kohya file. */
export interface KohyaLayer {
  /** As in the file: `lora_unet_down_blocks_0_...`. */
  key: string;
  inputs: number;
  outputs: number;
  /** Convolutions only. */
  kernel?: number;
}

/**
 * The layers that kohya's sd-scripts train in Stable Diffusion 1.5's UNet (attention with its feed-forward network and
 * projections), and one residual block's convolution as LoCon adds it. Written from the architecture: 320, 640 and 1280
 * channels, text features of width 768, GEGLU with factor 4.
 */
export function kohyaLayers(): KohyaLayer[] {
  const blocks: [string, number][] = [];
  const widths = [320, 640, 1280];
  widths.forEach((width, level) => {
    for (let index = 0; index < 2; index++) blocks.push([`down_blocks_${level}_attentions_${index}`, width]);
  });
  blocks.push(["mid_block_attentions_0", 1280]);
  [1280, 640, 320].forEach((width, index) => {
    for (let attention = 0; attention < 3; attention++)
      blocks.push([`up_blocks_${index + 1}_attentions_${attention}`, width]);
  });
  const layers = blocks.flatMap(([block, width]): KohyaLayer[] => {
    const linear = (name: string, inputs = width, outputs = width) => ({
      key: `lora_unet_${block}_${name}`,
      inputs,
      outputs,
    });
    const inner = (name: string, inputs?: number, outputs?: number) =>
      linear(`transformer_blocks_0_${name}`, inputs, outputs);
    return [
      linear("proj_in"),
      ...["to_q", "to_k", "to_v", "to_out_0"].map((name) => inner(`attn1_${name}`)),
      ...["to_q", "to_out_0"].map((name) => inner(`attn2_${name}`)),
      ...["to_k", "to_v"].map((name) => inner(`attn2_${name}`, 768)),
      inner("ff_net_0_proj", width, 8 * width),
      inner("ff_net_2", 4 * width),
      linear("proj_out"),
    ];
  });
  return [...layers, { key: "lora_unet_down_blocks_1_resnets_0_conv1", inputs: 320, outputs: 640, kernel: 3 }];
}

/** A kohya file's tensors for these layers: rank 4, alpha 2. */
export function kohyaTensors(layers: readonly KohyaLayer[], scale = 0.02) {
  const random = new SeededRandom(15);
  const rank = 4;
  const values = (count: number) => Float32Array.from({ length: count }, () => random.normal() * scale);
  return layers.flatMap(({ key, inputs, outputs, kernel }) => {
    const square = kernel ? [kernel, kernel] : [];
    const tensor = (name: string, shape: number[]) => ({
      name: `${key}.${name}`,
      dtype: "F32" as const,
      shape,
      data: values(shape.reduce((product, size) => product * size, 1)),
    });
    return [
      tensor("lora_down.weight", [rank, inputs, ...square]),
      tensor("lora_up.weight", [outputs, rank, ...square.map(() => 1)]),
      { name: `${key}.alpha`, dtype: "F32" as const, shape: [], data: Float32Array.of(2) },
    ];
  });
}

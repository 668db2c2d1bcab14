import { join } from "node:path";
import { fromFloat32, InputError } from "@quad-lora/base";
import { writeFileAtomically } from "../files/atomic.ts";
import { type LazySafetensorsInput, writeSafetensors } from "../files/safetensors.ts";
import type { AdaptableModule, AdapterComponent, AdapterLayer } from "./types.ts";

/** Element type and metadata of a written adapter. */
export interface WriteAdapterOptions {
  /** Type of the weights; F32 by default, which reads back exactly. */
  readonly dtype?: "F32" | "F16" | "BF16";
  /** Added to the file's metadata. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/**
 * Writes a kohya / A1111 LoRA file. The scale is part of the factors, so alpha equals the rank.
 * @param modules - Modules of the model, for the shapes of convolutions.
 * @throws InputError for layers of unknown modules or other shapes, and for values that F16 cannot hold.
 */
export async function writeKohya(
  path: string,
  layers: readonly AdapterLayer[],
  modules: readonly AdaptableModule[],
  options: WriteAdapterOptions = {},
): Promise<void> {
  const hasSecondEncoder = modules.some(({ component }) => component === "text_encoder_2");
  const prefixes: Record<AdapterComponent, string> = {
    unet: "lora_unet_",
    transformer: "lora_transformer_",
    text_encoder: hasSecondEncoder ? "lora_te1_" : "lora_te_",
    text_encoder_2: "lora_te2_",
    text_encoder_3: "lora_te3_",
    controlnet: "lora_controlnet_",
  };
  const find = moduleFinder(modules);
  const tensors = layers.flatMap((layer): LazySafetensorsInput[] => {
    const name = prefixes[layer.component] + layer.module.replaceAll(".", "_");
    const { down, up } = factorTensors(layer, find(layer), options.dtype ?? "F32");
    return [
      { name: `${name}.lora_down.weight`, ...down },
      { name: `${name}.lora_up.weight`, ...up },
      { name: `${name}.alpha`, dtype: "F32", shape: [], data: Float32Array.of(layer.rank) },
    ];
  });
  const ranks = new Set(layers.map(({ rank }) => rank));
  const rank = ranks.size === 1 ? String([...ranks][0]) : "Dynamic";
  await writeSafetensors(path, tensors, {
    format: "pt",
    ss_network_module: "networks.lora",
    ss_network_dim: rank,
    ss_network_alpha: rank,
    ...options.metadata,
  });
}

/**
 * Writes a PEFT adapter: `adapter_model.safetensors` and `adapter_config.json`. The scale is part of the factors, so
 * alpha equals the rank everywhere.
 * @param folder - Created if missing.
 * @throws InputError as {@link writeKohya}.
 */
export async function writePeft(
  folder: string,
  layers: readonly AdapterLayer[],
  modules: readonly AdaptableModule[],
  options: WriteAdapterOptions = {},
): Promise<void> {
  const find = moduleFinder(modules);
  const tensors = layers.flatMap((layer): LazySafetensorsInput[] => {
    const { down, up } = factorTensors(layer, find(layer), options.dtype ?? "F32");
    const name = `${layer.component}.${layer.module}`;
    return [
      { name: `${name}.lora_A.weight`, ...down },
      { name: `${name}.lora_B.weight`, ...up },
    ];
  });
  await writeSafetensors(join(folder, "adapter_model.safetensors"), tensors, { format: "pt", ...options.metadata });
  const config = peftConfigOf(layers);
  await writeFileAtomically(join(folder, "adapter_config.json"), `${JSON.stringify(config, undefined, 2)}\n`);
}

function peftConfigOf(layers: readonly AdapterLayer[]) {
  const counts = new Map<number, number>();
  for (const { rank } of layers) counts.set(rank, (counts.get(rank) ?? 0) + 1);
  const rank = [...counts].reduce((best, entry) => (entry[1] > best[1] ? entry : best), [8, 0])[0];
  const severalComponents = new Set(layers.map(({ component }) => component)).size > 1;
  // PEFT takes the first pattern that fits the end of a module's path. Where ranks differ every layer gets one, longer
  // paths first, so that no layer falls to a pattern meant for another whose path is the end of its own.
  const patterns =
    counts.size > 1 ? layers.map((layer) => [patternOf(layer, severalComponents), layer.rank] as const) : [];
  const pattern = Object.fromEntries(patterns.sort(([a], [b]) => b.length - a.length || (a < b ? -1 : 1)));
  return {
    peft_type: "LORA",
    r: rank,
    lora_alpha: rank,
    target_modules: [...new Set(layers.map(({ module }) => module))].sort(),
    bias: "none",
    use_rslora: false,
    use_dora: false,
    rank_pattern: pattern,
    alpha_pattern: pattern,
  };
}

function patternOf({ component, module }: AdapterLayer, withComponent: boolean): string {
  return (withComponent ? `${component}.${module}` : module).replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

function moduleFinder(modules: readonly AdaptableModule[]): (layer: AdapterLayer) => AdaptableModule {
  const byName = new Map(modules.map((module) => [`${module.component}/${module.name}`, module]));
  return ({ component, module: name }) => {
    const module = byName.get(`${component}/${name}`);
    if (!module) throw new InputError({ what: `the model's ${component} has no such module`, where: name });
    return module;
  };
}

function factorTensors(layer: AdapterLayer, module: AdaptableModule, dtype: "F32" | "F16" | "BF16") {
  const { rank } = layer;
  const isConvolution = module.kind === "conv";
  const kernel = isConvolution ? [...(module.kernel ?? [1, 1])] : [];
  const downShape = [rank, module.inFeatures / (module.groups ?? 1), ...kernel];
  const upShape = [module.outFeatures, rank, ...kernel.map(() => 1)];
  const tensor = (values: Float32Array, shape: number[]) => {
    const size = shape.reduce((a, b) => a * b, 1);
    if (values.length !== size)
      throw new InputError({
        what: "the layer's factors do not fit its module",
        where: layer.module,
        expected: `${size} values for [${shape.join(", ")}]`,
        got: `${values.length}`,
      });
    // Half precision ends at 65504; what lies above would become infinite without a word.
    if (dtype === "F16" && values.some((value) => Math.abs(value) >= 65520))
      throw new InputError({
        what: "the layer's factors exceed the range of F16",
        where: layer.module,
        fix: "Write it as F32 or BF16.",
      });
    return { dtype, shape, data: () => fromFloat32(values, dtype) };
  };
  return { down: tensor(layer.down, downShape), up: tensor(layer.up, upShape) };
}

/** Fixtures of the adapter readers' tests: modules of a small UNet, and files with adapters for them. */
import { join } from "node:path";
import { fromFloat32, InputError, type SafetensorsDtype } from "@quad-lora/base";
import { expect } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { writeSafetensors } from "../files/safetensors.ts";
import { type ImportAdapterOptions, importAdapter } from "./import.ts";
import type { AdaptableModule, ImportedAdapter } from "./types.ts";

/** For the files of one test file. */
export const folder = temporaryFolder();
let count = 0;

export const block = "down_blocks.0.attentions.0.transformer_blocks.0";
export const modules: AdaptableModule[] = [
  ...["to_q", "to_k", "to_v", "to_out.0"].map((name) => ({
    component: "unet" as const,
    name: `${block}.attn1.${name}`,
    kind: "linear" as const,
    inFeatures: 4,
    outFeatures: name === "to_v" ? 6 : 4,
  })),
  { component: "unet", name: "down_blocks.0.attentions.0.proj_in", kind: "conv", inFeatures: 3, outFeatures: 4 },
  { component: "unet", name: "down_blocks.0.attentions.0.proj_out", kind: "linear", inFeatures: 4, outFeatures: 3 },
  { component: "unet", name: "conv_in", kind: "conv", inFeatures: 2, outFeatures: 3, kernel: [3, 3] },
];
export const q = `${block}.attn1.to_q`;
export const flatQ = `lora_unet_${q.replaceAll(".", "_")}`;

/** Small distinct values, so that products and sums of them are exact in every dtype. */
export const ramp = (length: number, start = 1) => Float32Array.from({ length }, (_, i) => ((start + i * 3) % 7) - 3);
export type Spec = [name: string, shape: number[], values?: Float32Array, dtype?: "F32" | "F16" | "BF16" | "F64"];

export async function writeFileOf(specs: Spec[], metadata?: Record<string, string>, at?: string): Promise<string> {
  const path = at ?? join(folder, `adapter-${count++}.safetensors`);
  await writeSafetensors(
    path,
    specs.map(([name, shape, values = ramp(shape.reduce((a, b) => a * b, 1)), dtype = "F32"]) => ({
      name,
      shape,
      dtype: dtype as SafetensorsDtype,
      data: dtype === "F64" ? Float64Array.from(values) : fromFloat32(values, dtype),
    })),
    metadata,
  );
  return path;
}

export const importSpecs = async (
  specs: Spec[],
  options: { metadata?: Record<string, string>; of?: AdaptableModule[] } & ImportAdapterOptions = {},
) => importAdapter(await writeFileOf(specs, options.metadata), options.of ?? modules, options);
export const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => expect.fail("did not throw"),
    (error: unknown) => {
      expect(error).toBeInstanceOf(InputError);
      expect((error as Error).message).not.toContain("\n");
      return (error as Error).message;
    },
  );
export const layerOf = (adapter: ImportedAdapter, module: string) =>
  adapter.layers.find((layer) => layer.module === module)!;
export const scaled = (values: Float32Array, scale: number) => values.map((value) => value * scale);
/** As `toEqual`, which takes seconds for large arrays. */
export const areEqual = (a: Float32Array, b: Float32Array) =>
  a.length === b.length && a.every((value, i) => value === b[i]);
export const reported = ({ report }: ImportedAdapter) =>
  [...report.matched, ...report.unmatched, ...report.mismatched].map(({ key }) => key).sort();

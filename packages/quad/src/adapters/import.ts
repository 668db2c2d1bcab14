import { openSafetensors, type SafetensorsReader } from "../files/safetensors.ts";
import { Claims } from "./claims.ts";
import { groupKeys } from "./group-keys.ts";
import { nothingFits } from "./import-errors.ts";
import type { KeyGroup } from "./layer-tensors.ts";
import { type AdapterPartFiles, locateAdapter, readPeftConfig } from "./locate.ts";
import { alphaFromMetadata, scaleFromMetadata } from "./metadata-scale.ts";
import { ModuleIndex } from "./module-index.ts";
import { denoisers } from "./names/prefixes.ts";
import type { ScaleSource } from "./peft-config.ts";
import { readLayers } from "./read-layers.ts";
import { addReport, emptyReport, type ReportBuilder } from "./report-builder.ts";
import type { AdaptableModule, AdapterComponent, AdapterFormat, AdapterLayer, ImportedAdapter } from "./types.ts";

/** Largest rank of a layer whose change has to be shortened, where nothing else is said. */
const defaultMaximumRank = 256;

/** How {@link importAdapter} reads a file. */
export interface ImportAdapterOptions {
  /** Name of the adapter; that of the file or folder by default. */
  readonly name?: string;
  /**
   * Largest rank that a LoHa's or LoKr's layer may take. A change of a larger one is replaced by the nearest of this rank, with
   * the error in the report's warnings. 256 by default. LoRA layers keep their rank.
   */
  readonly maximumRank?: number;
  /** Layers of the model's graphs that carry no module name, so that no key can mean them: for messages. */
  readonly unnamedLayers?: number;
}

/**
 * Reads an adapter of any common format and naming: kohya / A1111 with LoCon, LyCORIS' LoHa and LoKr, diffusers, PEFT with
 * AdaLoRA, and the names of original code (Stable Diffusion, SDXL, SD 3, Flux, PixArt) beside diffusers'.
 * @param path - A .safetensors file, or the folder of a PEFT or diffusers adapter.
 * @param modules - The model's adaptable modules: names in the file are looked up among names derived from theirs.
 * @returns Layers with all scaling folded in, and a report of every key in the file.
 * @throws InputError for malformed files, for methods whose change is not a product of two factors (DoRA, OFT, ...), for
 * values that are not finite, and where no layer at all or none of the denoiser's fits the model.
 */
export async function importAdapter(
  path: string,
  modules: readonly AdaptableModule[],
  options: ImportAdapterOptions = {},
): Promise<ImportedAdapter> {
  const { parts, defaultName } = await locateAdapter(path);
  const index = new ModuleIndex(modules);
  const claims = new Claims();
  const report = emptyReport();
  const layers: AdapterLayer[] = [];
  const groups: KeyGroup[] = [];
  const keys: string[] = [];
  let denoiserPath: string | undefined;
  for (const part of parts) {
    const partReport = emptyReport();
    const reader = await openSafetensors(part.weights);
    try {
      const own = groupKeys(reader, partReport);
      const sourceOf = await scaleSources(part, reader, own, partReport);
      const context = { index, component: part.component, sourceOf, claims, report: partReport };
      const read = await readLayers(reader, own, {
        ...context,
        maximumRank: options.maximumRank ?? defaultMaximumRank,
      });
      layers.push(...read.layers);
      denoiserPath ??= read.denoiserPath;
      groups.push(...own);
      keys.push(...reader.entries.keys());
    } finally {
      await reader.close();
    }
    addReport(report, partReport, parts.length > 1 ? part.component : undefined);
  }
  const hasDenoiserLayer = layers.some(({ component }) => denoisers.includes(component));
  if (layers.length === 0 || (denoiserPath !== undefined && !hasDenoiserLayer))
    throw nothingFits({ file: parts[0].weights, keys, denoiserPath, modules, report, unnamed: options.unnamedLayers });
  warn(report, layers, options.unnamedLayers);
  const ranks = layers.map(({ rank }) => rank);
  return {
    name: options.name ?? defaultName,
    source: path,
    format: mostFrequent(groups.flatMap(({ format }) => format ?? [])),
    layers,
    report: {
      ...report,
      rankMin: ranks.reduce((a, b) => Math.min(a, b)),
      rankMax: ranks.reduce((a, b) => Math.max(a, b)),
    },
  };
}

type SourceOf = (component: AdapterComponent, format: AdapterFormat | undefined) => ScaleSource | undefined;

/**
 * Where layers without an alpha of their own take it from: PEFT's and diffusers' from the configuration beside the file or from
 * its metadata. kohya's and LyCORIS' have the alpha beside the weights, and without one it is the rank.
 */
async function scaleSources(
  part: AdapterPartFiles,
  reader: SafetensorsReader,
  groups: readonly KeyGroup[],
  report: ReportBuilder,
): Promise<SourceOf> {
  const formats = new Set(groups.map(({ format }) => format));
  const fileConfig = part.config && formats.has("peft") ? await readPeftConfig(part.config) : undefined;
  const fromMetadata = scaleFromMetadata(reader.metadata, reader.path);
  const alpha = alphaFromMetadata(reader.metadata, reader.path);
  const isOwn = groups.some(({ format, keys }) => (format === "kohya" || format === "lycoris") && !keys.has("alpha"));
  if (alpha && isOwn)
    report.warnings.push(
      `the metadata's ${alpha.key} of ${alpha.value} is not used for layers in kohya's names: without an alpha beside their weights they run at strength 1 (alpha = rank)`,
    );
  return (component, format) => {
    if (format === "peft") return fileConfig ?? fromMetadata(component);
    return format === "diffusers" ? fromMetadata(component) : undefined;
  };
}

/** What a user has to know although the file can be used. */
function warn(report: ReportBuilder, layers: readonly AdapterLayer[], unnamed: number | undefined): void {
  const alphas = report.unmatched.filter(({ reason }) => reason.startsWith("an alpha without"));
  if (alphas.length > 0)
    report.warnings.push(
      `${alphas.length === 1 ? "an alpha belongs" : `${alphas.length} alphas belong`} to no layer of the file: layers without an alpha of their own run at the strength of the adapter's configuration, or at 1 (alpha = rank) where it has none`,
    );
  if (layers.every(isZero)) report.warnings.push("every layer's product is zero: the adapter changes nothing");
  if (unnamed && report.unmatched.length > 0)
    report.warnings.push(
      `${unnamed === 1 ? "a layer" : `${unnamed} layers`} of the model's graph without a module name, which no key can mean: export the model again, without tools that rename or drop names of nodes`,
    );
}

/** Whether a layer's product is zero because in every rank one of the factors is. */
function isZero({ rank, down, up }: AdapterLayer): boolean {
  const columns = down.length / rank;
  const rows = up.length / rank;
  for (let k = 0; k < rank; k++) {
    const hasDown = down.subarray(k * columns, (k + 1) * columns).some((value) => value !== 0);
    if (!hasDown) continue;
    for (let row = 0; row < rows; row++) if (up[row * rank + k] !== 0) return false;
  }
  return true;
}

function mostFrequent(formats: readonly AdapterFormat[]): AdapterFormat {
  const counts = new Map<AdapterFormat, number>();
  for (const format of formats) counts.set(format, (counts.get(format) ?? 0) + 1);
  return [...counts].reduce((best, entry) => (entry[1] > best[1] ? entry : best))[0];
}

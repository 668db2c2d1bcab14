import type { SafetensorsReader } from "../files/safetensors.ts";
import type { Claims } from "./claims.ts";
import { FileLayer, type KeyGroup } from "./layer-tensors.ts";
import { mergeProjections, type ProjectionFactors, swapHalves } from "./methods/factors.ts";
import { methods } from "./methods/index.ts";
import type { LayerFactors, Mismatch } from "./methods/method.ts";
import type { ModuleIndex, Resolution } from "./module-index.ts";
import { denoisers } from "./names/prefixes.ts";
import { type AdapterTarget, targetModules } from "./names/target.ts";
import type { ScaleSource } from "./peft-config.ts";
import type { ReportBuilder } from "./report-builder.ts";
import type { AdapterComponent, AdapterFormat, AdapterLayer } from "./types.ts";

/** What reading a file's layers needs besides the file. */
export interface LayerContext {
  readonly index: ModuleIndex;
  /** The only component of the file's layers, where its place says so. */
  readonly component?: AdapterComponent;
  readonly sourceOf: (component: AdapterComponent, format: AdapterFormat | undefined) => ScaleSource | undefined;
  readonly claims: Claims;
  readonly maximumRank: number;
  readonly report: ReportBuilder;
}

/** A file's layers, and the first of its paths that belongs to a denoiser. */
export interface FileLayers {
  readonly layers: AdapterLayer[];
  readonly denoiserPath?: string;
}

/** A group and what the model has for it. */
interface PlacedGroup {
  readonly group: KeyGroup;
  readonly resolution: Resolution;
}

type Slice = AdapterTarget & { readonly kind: "slice" };
type Slices = Map<
  Slice["module"],
  { readonly target: Slice; readonly parts: ProjectionFactors[]; readonly groups: KeyGroup[] }
>;

/** Reads a file's groups into layers of the model; every key ends up in the report. */
export async function readLayers(
  reader: SafetensorsReader,
  groups: readonly KeyGroup[],
  context: LayerContext,
): Promise<FileLayers> {
  const { report, claims } = context;
  const placed = placeGroups(groups, context);
  const layers: AdapterLayer[] = [];
  const slices: Slices = new Map();
  for (const { group, resolution } of placed) {
    const keys = [...group.keys.values()];
    if ("reason" in resolution) {
      for (const key of keys) report.unmatched.push({ key, reason: resolution.reason });
      continue;
    }
    const { target } = resolution;
    const module = targetModules(target)
      .map(({ name }) => name)
      .join(" + ");
    const factors = claims.conflict(target) ?? (await readFactors(reader, group, target, context));
    if ("expected" in factors) {
      for (const key of keys) report.mismatched.push({ key, module, ...factors });
      continue;
    }
    claims.claim(target, group.path);
    if (factors.error !== undefined && factors.error > 1e-6) report.warnings.push(shortened(module, factors));
    if (target.kind === "slice") {
      const slice = slices.get(target.module) ?? { target, parts: [], groups: [] };
      slices.set(target.module, slice);
      slice.parts.push({ index: target.index, ...factors });
      slice.groups.push(group);
      continue;
    }
    const { component } = targetModules(target)[0];
    for (const key of keys) report.matched.push({ key, module, component });
    layers.push(...layersOf(target, factors));
  }
  layers.push(...mergedSlices(slices, report));
  const ofDenoiser = placed.find(({ resolution }) => isOfDenoiser(resolution));
  return { layers, denoiserPath: ofDenoiser?.group.path };
}

/**
 * Looks every group's module up. Alphas without weights go to the weights that mean the same module by another name, and
 * otherwise into the report.
 */
function placeGroups(groups: readonly KeyGroup[], { index, component, report }: LayerContext): PlacedGroup[] {
  const isAlpha = (group: KeyGroup) => group.keys.size === 1 && group.keys.has("alpha");
  const placed = groups
    .filter((group) => !isAlpha(group))
    .map((group) => ({ group, resolution: index.resolve(group.path, component) }));
  for (const { path, keys } of groups.filter(isAlpha)) {
    const key = keys.get("alpha")!;
    const resolution = index.resolve(path, component);
    const owner = placed.find((other) => "target" in resolution && isSame(other.resolution, resolution.target));
    if (owner && !owner.group.keys.has("alpha")) owner.group.keys.set("alpha", key);
    else report.unmatched.push({ key, reason: "an alpha without LoRA weights" });
  }
  return placed;
}

function isSame(resolution: Resolution, target: AdapterTarget): boolean {
  if ("reason" in resolution) return false;
  const { target: other } = resolution;
  return other === target || (other.kind === "whole" && target.kind === "whole" && other.module === target.module);
}

function isOfDenoiser(resolution: Resolution): boolean {
  const components =
    "target" in resolution ? targetModules(resolution.target).map(({ component }) => component) : resolution.components;
  return components.some((component) => denoisers.includes(component));
}

async function readFactors(
  reader: SafetensorsReader,
  group: KeyGroup,
  target: AdapterTarget,
  { sourceOf, maximumRank }: LayerContext,
): Promise<LayerFactors | Mismatch> {
  const parts = new Set(group.keys.keys());
  const fitting = methods.filter(({ accepts }) => accepts(parts));
  const method = fitting[0];
  if (!method) return { expected: "a layer's factors", got: [...parts].join(", ") };
  // AdaLoRA's layers are LoRA's with a tensor more.
  const isMixed = method.name !== "AdaLoRA" && fitting.length > 1;
  if (isMixed) return { expected: "one method for a layer", got: fitting.map(({ name }) => name).join(" and ") };
  const source = sourceOf(targetModules(target)[0].component, group.format);
  return method.read(new FileLayer(reader, group, target, source), maximumRank);
}

/** One layer for every module of the target. */
function layersOf(target: AdapterTarget, { rank, down, up }: LayerFactors): AdapterLayer[] {
  let row = 0;
  return targetModules(target).map(({ component, name, outFeatures }) => {
    const own = target.kind === "swapped" ? swapHalves(up) : up.subarray(row * rank, (row + outFeatures) * rank);
    row += outFeatures;
    return { component, module: name, rank, down, up: own };
  });
}

function mergedSlices(slices: Slices, report: ReportBuilder): AdapterLayer[] {
  const layers: AdapterLayer[] = [];
  for (const [{ component, name: module, outFeatures }, { target, parts, groups }] of slices) {
    const merged = mergeProjections(parts, target.count, outFeatures, target.sizes);
    const keys = groups.flatMap((group) => [...group.keys.values()]);
    if ("expected" in merged) for (const key of keys) report.mismatched.push({ key, module, ...merged });
    else {
      for (const key of keys) report.matched.push({ key, module, component });
      layers.push({ component, module, ...merged });
    }
  }
  return layers;
}

function shortened(module: string, { rank, error }: LayerFactors): string {
  return `${module}: its change is shortened to rank ${rank}, which leaves out ${(100 * error!).toPrecision(2)} % of it (Frobenius norm)`;
}

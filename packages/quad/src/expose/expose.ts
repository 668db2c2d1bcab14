import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import { checkModel, type Model, saveModel } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { importAdapter } from "../adapters/import.ts";
import type { AdaptableModule, AdapterComponent, AdapterReport, ImportedAdapter } from "../adapters/types.ts";
import { bindAdapter } from "../factors/bind-adapter.ts";
import { factorMetadata, factorPath } from "../factors/factor-file.ts";
import { writeRecord } from "../files/json.ts";
import { refuseForeignFolder } from "../files/overwrite.ts";
import { replaceFolder } from "../files/replace-folder.ts";
import { writeSafetensors } from "../files/safetensors.ts";
import { findLayers, type Layer, type SkippedNode, unnamed } from "../layers/find-layers.ts";
import { keepModuleNames } from "../layers/module-names.ts";
import { componentFile } from "../model/graph-files.ts";
import { loadComponent, type ModelFolder, openModelFolder } from "../model/model-folder.ts";
import { keepTasks } from "../tasks/keep-tasks.ts";
import type { StageOptions } from "../work/progress.ts";
import { copyOtherFiles, scatteredGraphs } from "./copy-files.ts";
import { exposeGraph, type SlotRank } from "./expose-graph.ts";

/** What {@link expose} writes, and which layers it opens. */
export interface ExposeOptions extends StageOptions {
  /** Folder to create. */
  out: string;
  /** Adapter files or PEFT folders by task name. */
  adapters: Readonly<Record<string, string>>;
  rank?: SlotRank;
  /**
   * Which layers get slots: those that the given adapters touch, all, or those whose name matches. Without adapters
   * "used" means all.
   */
  slots?: "used" | "all" | RegExp;
}

/** What an inspected or exposed component looks like. */
export interface ComponentSummary {
  component: AdapterComponent;
  nodes: number;
  layers: Layer[];
  skipped: SkippedNode[];
}

/** What {@link expose} wrote: the folder, its slots, and what became of each adapter. */
export interface ExposeResult {
  out: string;
  /** Adapters of the exposed folder that was there before; null where there was none. */
  replaced: string[] | null;
  slots: SlotsFile;
  adapters: { name: string; format: string; rank: number; layers: number; report: AdapterReport }[];
}

/** The layers of every adaptable component, and the adapters as they fit them. Reads only. */
export async function inspectModel(
  folder: ModelFolder,
  adapters: Readonly<Record<string, string>>,
): Promise<{ models: Map<AdapterComponent, Model>; components: ComponentSummary[]; adapters: ImportedAdapter[] }> {
  const models = new Map<AdapterComponent, Model>();
  const components: ComponentSummary[] = [];
  for (const component of folder.adaptable) {
    const model = loadComponent(folder, component);
    checkModel(model);
    models.set(component, model);
    components.push({ component, nodes: model.graph.nodes.size, ...findLayers(model) });
  }
  const modules = components.flatMap(({ component, layers }) => layers.map((layer) => toModule(component, layer)));
  const unnamedLayers = components.flatMap(({ skipped }) => skipped).filter(({ reason }) => reason === unnamed).length;
  const imported: ImportedAdapter[] = [];
  for (const [name, path] of Object.entries(adapters)) {
    imported.push(await importAdapter(resolveAdapter(path, folder.path), modules, { name, unnamedLayers }));
  }
  return { models, components, adapters: imported };
}

/** A layer as the adapter readers see it: without its graph. */
export function toModule(component: AdapterComponent, layer: Layer): AdaptableModule {
  const { name, kind, inFeatures, outFeatures, kernel, groups } = layer;
  return {
    component,
    name,
    kind: kind === "conv" ? "conv" : "linear",
    inFeatures,
    outFeatures,
    ...(kernel ? { kernel } : {}),
    ...(groups ? { groups } : {}),
  };
}

/** A path as given, or one below the model's own `adapters/`; a bare name means the latter wherever that exists. */
export function resolveAdapter(path: string, modelFolder: string): string {
  const own = [join(modelFolder, "adapters", path), join(modelFolder, "adapters", `${path}.safetensors`)];
  const candidates = /^[\w-]+$/.test(path) ? [...own, path] : [path, ...own];
  return candidates.find((candidate) => existsSync(candidate)) ?? path;
}

/**
 * Stage: model folder and adapter files -> exposed folder (graph with adapter inputs, `slots.json`, `adapters/`, and
 * the components that stay as they are). The folder appears under its name only when complete.
 * @throws InputError when an input is broken, no adapter key fits, or `out` exists and is not an exposed folder
 */
export async function expose(modelPath: string, options: ExposeOptions): Promise<ExposeResult> {
  const out = resolve(options.out);
  const folder = await openModelFolder(modelPath);
  const replaced = await replacedAdapters(out, folder);
  if (existsSync(join(folder.path, "slots.json"))) {
    throw new InputError({
      what: "the model has adapter inputs already",
      file: folder.path,
      fix: "Expose the original model folder, with all adapters at once.",
    });
  }
  const { models, components, adapters } = await inspectModel(folder, options.adapters);
  const rank = options.rank ?? { kind: "dynamic" };
  refuseLargeRanks(adapters, rank);
  const exposed: SlotsFile["components"] = {};
  for (const { component, layers } of components) {
    const chosen = layersToOpen(component, layers, adapters, options.slots ?? "used", component === folder.denoiser);
    if (chosen.length === 0) continue;
    keepModuleNames(layers);
    exposed[component] = exposeGraph(models.get(component)!, component, chosen, rank);
    checkModel(models.get(component)!);
  }
  if (Object.keys(exposed).length === 0) {
    throw new InputError({ what: "no layer matches the chosen slots", file: modelPath, fix: "Check --slots." });
  }
  const slots: SlotsFile = { format: "quad-slots", version: 1, rank, components: exposed };
  await replaceFolder(out, async (temporary) => {
    const written = new Map<string, Model>([
      ...Object.keys(exposed).map((component) => [component, models.get(component as AdapterComponent)!] as const),
      ...scatteredGraphs(folder, Object.keys(exposed)),
    ]);
    await copyOtherFiles(folder, [...written.values()], temporary);
    await keepTasks(temporary, Object.keys(options.adapters));
    for (const [component, model] of written) {
      await saveModel(model, componentFile(temporary, component), {
        signal: options.signal,
        onProgress: (done, total) => options.onProgress?.(`writing ${component}`, done, total),
      });
    }
    for (const adapter of adapters) {
      options.signal?.throwIfAborted();
      const { rank: adapterRank, tensors } = bindAdapter(adapter.layers, exposed);
      const metadata = factorMetadata(adapterRank, basename(adapter.source));
      await writeSafetensors(factorPath(temporary, adapter.name), tensors, metadata);
    }
    await writeRecord(join(temporary, "slots.json"), slots);
    options.signal?.throwIfAborted();
  });
  return {
    out: options.out,
    slots,
    replaced,
    adapters: adapters.map(({ name, format, layers, report }) => ({
      name,
      format,
      rank: report.rankMax,
      layers: layers.length,
      report,
    })),
  };
}

/**
 * The adapters of the exposed folder that will be replaced; null where there is none.
 * @throws InputError if `out` is something else, or holds something besides
 */
async function replacedAdapters(out: string, { entries }: ModelFolder): Promise<string[] | null> {
  const own = new Set([...entries, "slots.json", "adapters"]);
  await refuseForeignFolder(out, {
    mark: "slots.json",
    otherwise: "exists and was not written by quad expose",
    other: { mark: "manifest.json", what: "is a bundle, and not a folder that quad expose wrote" },
    isOwn: (entry) => own.has(entry),
  });
  if (!existsSync(join(out, "slots.json"))) return null;
  const suffix = ".safetensors";
  const files = (await readdir(join(out, "adapters")).catch(() => [])).filter((name) => name.endsWith(suffix));
  return files.map((name) => name.slice(0, -suffix.length)).sort();
}

function refuseLargeRanks(adapters: readonly ImportedAdapter[], rank: SlotRank): void {
  if (rank.kind === "dynamic") return;
  for (const { name, source, report } of adapters) {
    if (report.rankMax <= rank.rank) continue;
    throw new InputError({
      what: `adapter "${name}" has a larger rank than the graph would take`,
      file: source,
      expected: `at most ${rank.rank}`,
      got: String(report.rankMax),
      fix: `Use --rank ${report.rankMax} or --rank dynamic.`,
    });
  }
}

function layersToOpen(
  component: AdapterComponent,
  layers: readonly Layer[],
  adapters: readonly ImportedAdapter[],
  which: "used" | "all" | RegExp,
  isDenoiser: boolean,
): Layer[] {
  const used = new Set(
    adapters.flatMap((adapter) =>
      adapter.layers.filter((layer) => layer.component === component).map((layer) => layer.module),
    ),
  );
  // Text encoders only when an adapter speaks of them, unless they are asked for by pattern.
  if (which === "all" || (which === "used" && adapters.length === 0))
    return isDenoiser || used.size > 0 ? [...layers] : [];
  if (which === "used") return layers.filter(({ name }) => used.has(name));
  return layers.filter(({ name }) => used.has(name) || which.test(`${component}.${name}`));
}

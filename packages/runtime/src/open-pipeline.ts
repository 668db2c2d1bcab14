import { InputError } from "@quad-lora/base";
import type { InferenceSession } from "onnxruntime-common";
import { AdapterBank } from "./adapters.ts";
import { Autoencoder } from "./autoencoder.ts";
import { type SlotsFile, slotsFileSchema } from "./configs.ts";
import { readDefaultSize } from "./default-size.ts";
import { openTextEncoders, readSchedulerConfig } from "./encoders.ts";
import { chooseFamily, denoiserFolder, readModelIndex } from "./families/index.ts";
import { type FolderFiles, readJson } from "./files.ts";
import { identityOf } from "./manifest.ts";
import { openBundle, type TrustOptions } from "./open-bundle.ts";
import { Component, type OrtModule } from "./ort.ts";
import { Pipeline } from "./pipeline.ts";
import { adaptersOfTask, type Task, tasksFileSchema } from "./tasks.ts";

/** Options of {@link openPipeline}. */
export interface OpenOptions extends TrustOptions {
  /** `onnxruntime-node`, `onnxruntime-web/wasm` or `onnxruntime-web/webgpu`. */
  ort: OrtModule;
  /** The bundle or exposed folder, or a plain ONNX folder of diffusers or Optimum (which then has only the base task). */
  files: FolderFiles;
  /** ONNX Runtime's options, for all graphs or by the graph's folder. */
  sessionOptions?: InferenceSession.SessionOptions | ((component: string) => InferenceSession.SessionOptions);
}

/**
 * Opens a model folder: every graph once, no adapter yet.
 *
 * @throws InputError when files are missing, broken, of an unknown version, do not fit each other, or are not those that a
 *   bundle's manifest describes
 */
export async function openPipeline(options: OpenOptions): Promise<Pipeline> {
  const { ort, sessionOptions } = options;
  const bundle = await openBundle(options.files, options);
  const files = bundle?.files ?? options.files;
  const optionsFor = (name: string) => (typeof sessionOptions === "function" ? sessionOptions(name) : sessionOptions);
  const slots = (await files.exists("slots.json")) ? await readJson(files, "slots.json", slotsFileSchema) : undefined;
  if (slots && !bundle && options.verify !== false) refuseIntegerSlots(slots, files);
  const tasks = new Map([...(bundle?.tasks ?? []), ...(await readTasks(files, slots !== undefined))]);
  const { index, candidates } = await readModelIndex(files);
  const schedulerConfig = await readSchedulerConfig(files);
  const open = (name: string) => Component.open(ort, files, name, optionsFor(name));
  const denoiserName = await denoiserFolder(files, candidates);
  const denoiser = await open(denoiserName);
  const family = chooseFamily(candidates, denoiserName, denoiser.inputs.keys(), denoiser.file);
  const components = new Map([[denoiserName, denoiser]]);
  if (family.companion) components.set(family.companion.component, await open(family.companion.component));
  const textEncoders = await openTextEncoders({ ort, files, open, family, index, schedulerConfig });
  for (const [name, { component }] of textEncoders) components.set(name, component);
  const autoencoder = await Autoencoder.open(ort, files, optionsFor);
  const bank =
    slots &&
    new AdapterBank(ort, slots, components, files.describe("slots.json"), bundle && identityOf(bundle.manifest));
  return new Pipeline({
    ort,
    files,
    components,
    family,
    index,
    autoencoder,
    textEncoders,
    schedulerConfig,
    defaultSize: await readDefaultSize(files, family, denoiser.input(family.sample).shape),
    tasks,
    bank,
    manifest: bundle?.manifest,
    adapterPaths: bank ? await findAdapters(files, tasks) : new Map(),
  });
}

/** Codes mean nothing without the bundle that says what they stand for: a folder that lost its manifest is damaged. */
function refuseIntegerSlots({ components }: SlotsFile, files: FolderFiles): void {
  if (Object.values(components).every(({ elementType = "float32" }) => elementType === "float32")) return;
  throw new InputError({
    what: "is missing, and the graph takes the integer codes of a bundle's adapters",
    file: files.describe("manifest.json"),
    fix: "Copy the whole bundle again.",
  });
}

/** Without adapter inputs only the tasks that need no adapter. */
async function readTasks(files: FolderFiles, exposed: boolean): Promise<Map<string, Task>> {
  if (!(await files.exists("tasks.json"))) return new Map();
  const { tasks } = await readJson(files, "tasks.json", tasksFileSchema);
  return new Map(Object.entries(tasks).filter(([, task]) => exposed || task.adapter == null));
}

async function findAdapters(files: FolderFiles, tasks: ReadonlyMap<string, Task>): Promise<Map<string, string>> {
  const suffix = ".safetensors";
  const listed = (await files.list("adapters")).filter((name) => name.endsWith(suffix)).sort();
  const names = new Set(listed.map((name) => name.slice(0, -suffix.length)));
  for (const [task, settings] of tasks)
    for (const name of Object.keys(adaptersOfTask(task, settings, []))) names.add(name);
  return new Map([...names].map((name) => [name, `adapters/${name}${suffix}`]));
}

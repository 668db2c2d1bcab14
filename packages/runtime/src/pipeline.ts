// For applications whose lib has no Symbol.asyncDispose: it is in the declarations of a public class.
/// <reference lib="esnext.disposable" preserve="true" />
import { InputError } from "@quad-lora/base";
import type { InferenceSession, Tensor } from "onnxruntime-common";
import { AdapterBank, type AdapterFeeds } from "./adapters.ts";
import { Autoencoder } from "./autoencoder.ts";
import { type SlotsFile, slotsFileSchema } from "./configs.ts";
import { type PictureSize, readDefaultSize } from "./default-size.ts";
import type { EncoderDefinition, Family } from "./families/family.ts";
import { readFamily } from "./families/index.ts";
import { type FolderFiles, readJson, readRequired } from "./files.ts";
import { type GeneratedImage, type GenerateOptions, generateImage } from "./generate.ts";
import { type BundleManifest, identityOf } from "./manifest.ts";
import { openBundle, type TrustOptions } from "./open-bundle.ts";
import { Component, type OrtModule, type TensorData, tensorData, tensorFrom } from "./ort.ts";
import { parseSchedulerConfigText } from "./schedulers/config.ts";
import { adaptersOfTask, type Task, tasksFileSchema } from "./tasks.ts";
import { TextEncoder } from "./text-encoder.ts";
import { loadTokenizer } from "./tokenizer.ts";

/** Options of {@link openPipeline}. */
export interface OpenOptions extends TrustOptions {
  /** `onnxruntime-node`, `onnxruntime-web/wasm` or `onnxruntime-web/webgpu`. */
  ort: OrtModule;
  /** The bundle or exposed folder, or a plain ONNX folder of diffusers or Optimum (which then has only the base task). */
  files: FolderFiles;
  /** ONNX Runtime's options, for all graphs or by the graph's folder. */
  sessionOptions?: InferenceSession.SessionOptions | ((component: string) => InferenceSession.SessionOptions);
}

/** A task's name, one adapter's name, adapters with their strengths, or null for the base model. */
export type Selection = string | Readonly<Record<string, number>> | null;

/** What is in use: the adapter tensors and the defaults that come with a task. */
interface Use {
  key: string;
  task: Task;
  feeds: AdapterFeeds | undefined;
}

interface PipelineParts {
  ort: OrtModule;
  files: FolderFiles;
  components: ReadonlyMap<string, Component>;
  autoencoder: Autoencoder;
  family: Family;
  /** By component, those that the folder has. */
  encoders: ReadonlyMap<string, TextEncoder>;
  schedulerConfig: Record<string, unknown>;
  defaultSize: PictureSize;
  tasks: ReadonlyMap<string, Task>;
  bank: AdapterBank | undefined;
  manifest: BundleManifest | undefined;
  /** Adapters in the folder, by name; read when first used. */
  adapterPaths: ReadonlyMap<string, string>;
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
  const schedulerPath = "scheduler/scheduler_config.json";
  const schedulerText = new TextDecoder().decode(await readRequired(files, schedulerPath));
  const schedulerFile = files.describe(schedulerPath);
  const schedulerConfig = parseSchedulerConfigText(schedulerText, schedulerFile) as Record<string, unknown>;
  const family = await readFamily(files);

  const components = new Map<string, Component>();
  const encoders = new Map<string, TextEncoder>();
  for (const definition of family.encoders) {
    const { component: name } = definition;
    if (definition.optional && !(await files.exists(`${name}/model.onnx`))) continue;
    const component = await Component.open(ort, files, name, optionsFor(name));
    components.set(name, component);
    encoders.set(name, await openEncoder(options, files, component, definition, schedulerConfig));
  }
  for (const name of [family.denoiser, ...(family.control ? [family.control] : [])]) {
    components.set(name, await Component.open(ort, files, name, optionsFor(name)));
  }
  const autoencoder = await Autoencoder.open(ort, files, optionsFor);
  const denoiser = components.get(family.denoiser)!;
  const bank =
    slots &&
    new AdapterBank(ort, slots, components, files.describe("slots.json"), bundle && identityOf(bundle.manifest));
  return new Pipeline({
    ort,
    files,
    components,
    autoencoder,
    family,
    encoders,
    schedulerConfig,
    defaultSize: await readDefaultSize(files, family, denoiser.input(family.sample).shape),
    tasks,
    bank,
    manifest: bundle?.manifest,
    adapterPaths: bank ? await findAdapters(files, tasks) : new Map(),
  });
}

/**
 * One opened model. Switching among tasks and adapters opens nothing again and copies nothing of the base:
 * it passes other tensors to the same graph.
 */
export class Pipeline {
  readonly #parts: PipelineParts;
  readonly #loading = new Map<string, Promise<void>>();
  /** Inputs that stay the same whatever is selected, by component. */
  readonly #bound = new Map<string, Record<string, Tensor>>();
  #use: Use;
  #uses = 0;
  #isDisposed = false;

  /** Made by {@link openPipeline}. */
  constructor(parts: PipelineParts) {
    this.#parts = parts;
    this.#use = {
      key: "",
      task: parts.tasks.get("base") ?? {},
      feeds: parts.bank?.select(new Map()),
    };
  }

  /** Names that {@link use} takes: the tasks of `tasks.json`, `base`, and adapters that no task is named after. */
  get tasks(): string[] {
    return [...new Set(["base", ...this.#parts.tasks.keys(), ...this.adapters])];
  }

  /** Names of all adapters, loaded or not. */
  get adapters(): string[] {
    return [...new Set([...this.#parts.adapterPaths.keys(), ...(this.#parts.bank?.names ?? [])])];
  }

  /** The manifest of a bundle; undefined for other folders. */
  get manifest(): BundleManifest | undefined {
    return this.#parts.manifest;
  }

  /** Size in pixels that the model was trained with: what {@link generate} draws when nothing says otherwise. */
  get defaultSize(): PictureSize {
    return { ...this.#parts.defaultSize };
  }

  /** Inputs of one graph that {@link runComponent} has to be given: all but the adapter inputs. */
  async inputsOf(component: string): Promise<{ name: string; type: string }[]> {
    const bound = this.#feedsOf(component);
    return [...(await this.#component(component)).inputs.values()]
      .filter(({ name }) => !(name in bound))
      .map(({ name, type }) => ({ name, type }));
  }

  /** The defaults of a task; empty for adapters and for a base without any. */
  task(name: string): Readonly<Task> {
    return this.#parts.tasks.get(name) ?? {};
  }

  /**
   * Chooses what later calls of {@link generate} and {@link runComponent} run with; those under way are not affected.
   * An adapter is read the first time it is chosen. Of several calls under way the last one decides.
   *
   * @throws InputError for an unknown name, a broken adapter, or more ranks than a graph of fixed rank takes
   */
  async use(selection: Selection): Promise<void> {
    const { task, strengths } = this.#resolve(selection);
    const { bank } = this.#parts;
    const turn = ++this.#uses;
    for (const [name, strength] of strengths) if (strength !== 0) await this.#load(name);
    if (turn !== this.#uses) return;
    this.#use = {
      key: JSON.stringify([...strengths].filter(([, strength]) => strength !== 0).sort()),
      task,
      feeds: bank?.select(strengths),
    };
  }

  /**
   * Binds inputs that a graph has beyond the usual ones and the adapters', for all later runs: the encodings of a
   * simulated quantization, say. Replaces what was bound before.
   */
  bind(component: string, inputs: Readonly<Record<string, TensorData>>): void {
    const { ort } = this.#parts;
    this.#bound.set(
      component,
      Object.fromEntries(Object.entries(inputs).map(([name, data]) => [name, tensorFrom(ort, data)])),
    );
  }

  #feedsOf(component: string): Record<string, Tensor> {
    return { ...this.#bound.get(component), ...this.#use.feeds?.get(component) };
  }

  /**
   * Makes one picture with the selection in use.
   *
   * A UNet with 9 input channels (inpainting) takes an image and a mask, an image alone as conditioning, or neither;
   * one with 8 an image (InstructPix2Pix); one with 4 neither, or an image to start from.
   *
   * @throws InputError for options that do not fit the model or the task
   * @throws the signal's reason (an `AbortError` by default) when aborted
   */
  async generate(options: GenerateOptions): Promise<GeneratedImage> {
    this.#refuseDisposed();
    const { ort, files, components, family, autoencoder, encoders, schedulerConfig, defaultSize } = this.#parts;
    // A later selection does not disturb a picture that is under way.
    const { key, task, feeds } = this.#use;
    const bound = new Map(this.#bound);
    return generateImage(
      {
        ...{ ort, family, autoencoder, encoders, schedulerConfig, defaultSize, task },
        denoiser: components.get(family.denoiser)!,
        control: family.control === undefined ? undefined : components.get(family.control),
        schedulerFile: files.describe("scheduler/scheduler_config.json"),
        adapters: (component) => ({ ...bound.get(component), ...feeds?.get(component) }),
        // Without slots of its own a text encoder gives the same for every adapter.
        adapterKey: (component) => (feeds?.get(component) ? key : ""),
      },
      options,
    );
  }

  /**
   * Runs one graph once on given tensors: for measurements, calibration and tests. The adapter inputs come from the
   * selection in use unless given.
   *
   * @param component - folder of a graph, such as `unet`, `text_encoder`, `vae_encoder` or `vae_decoder`
   * @throws InputError when the component is unknown, or inputs are missing, unknown or do not fit
   */
  async runComponent(
    component: string,
    inputs: Readonly<Record<string, TensorData>>,
  ): Promise<Record<string, TensorData>> {
    this.#refuseDisposed();
    const { ort } = this.#parts;
    const graph = await this.#component(component);
    const feeds = this.#feedsOf(component);
    for (const [name, data] of Object.entries(inputs)) feeds[name] = tensorFrom(ort, data);
    const outputs = await graph.run(feeds);
    return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensorData(tensor)]));
  }

  async #component(name: string): Promise<Component> {
    const { components, autoencoder } = this.#parts;
    if (name === "vae_decoder") return autoencoder.decoder;
    if (name === "vae_encoder") return autoencoder.encoder();
    const component = components.get(name);
    if (component) return component;
    const known = [...components.keys(), "vae_encoder", "vae_decoder"];
    throw new InputError({ what: `no component ${name}`, expected: `one of ${known.join(", ")}` });
  }

  /**
   * Adds an adapter that is not in the folder, or replaces one.
   *
   * @param bytes - safetensors with the graph inputs' names, as `quad expose` writes them
   * @throws InputError when the folder has no slots, or the adapter does not fit them
   */
  addAdapter(name: string, bytes: Uint8Array): void {
    this.#bank(name).add(name, bytes, `adapter ${name}`);
    this.#loading.set(name, Promise.resolve());
  }

  /** Frees all sessions; again, it does nothing. What is called afterwards throws an InputError. */
  async dispose(): Promise<void> {
    if (this.#isDisposed) return;
    this.#isDisposed = true;
    for (const component of this.#parts.components.values()) await component.release();
    await this.#parts.autoencoder.release();
  }

  /** As {@link dispose}, for `await using pipeline = ...`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #refuseDisposed(): void {
    if (!this.#isDisposed) return;
    throw new InputError({ what: "the pipeline was disposed of", fix: "Open it again." });
  }

  #resolve(selection: Selection): { task: Task; strengths: Map<string, number> } {
    const { tasks } = this.#parts;
    if (selection === null) return { task: tasks.get("base") ?? {}, strengths: new Map() };
    if (typeof selection !== "string") return { task: {}, strengths: new Map(Object.entries(selection)) };
    const task = tasks.get(selection);
    if (!task && selection === "base") return { task: {}, strengths: new Map() };
    if (!task && !this.adapters.includes(selection)) {
      throw new InputError({
        what: `no task or adapter ${selection}`,
        expected: `one of ${this.tasks.join(", ")}`,
        ...(this.#parts.bank ? {} : { fix: "Adapters need adapter inputs: run quad expose on the model." }),
      });
    }
    const strengths = adaptersOfTask(selection, task ?? {}, this.adapters);
    return { task: task ?? {}, strengths: new Map(Object.entries(strengths)) };
  }

  #load(name: string): Promise<void> {
    const bank = this.#bank(name);
    let loading = this.#loading.get(name);
    if (!loading) {
      const path = this.#parts.adapterPaths.get(name);
      if (path === undefined) {
        throw new InputError({ what: `no adapter ${name}`, expected: `one of ${this.adapters.join(", ") || "none"}` });
      }
      loading = readRequired(this.#parts.files, path).then((bytes) =>
        bank.add(name, bytes, this.#parts.files.describe(path)),
      );
      this.#loading.set(name, loading);
      // A failed download may be tried again.
      loading.catch(() => this.#loading.delete(name));
    }
    return loading;
  }

  #bank(name: string): AdapterBank {
    const { bank, files } = this.#parts;
    if (bank) return bank;
    throw new InputError({
      what: `adapter ${name} cannot be used: the graphs have no adapter inputs`,
      file: files.describe("slots.json"),
      fix: "Run quad expose on the model first.",
    });
  }
}

async function openEncoder(
  { ort }: OpenOptions,
  files: FolderFiles,
  component: Component,
  definition: EncoderDefinition,
  schedulerConfig: Readonly<Record<string, unknown>>,
): Promise<TextEncoder> {
  const tokens = component.input("input_ids").shape[1];
  const tokenizer = await loadTokenizer(files, typeof tokens === "number" ? tokens : 77, {
    folder: definition.tokenizer,
    tokens: definition.tokens?.(schedulerConfig),
  });
  return new TextEncoder(ort, component, tokenizer, definition);
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

// For applications whose lib has no Symbol.asyncDispose: it is in the declarations of a public class.
/// <reference lib="esnext.disposable" preserve="true" />
import { InputError } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import type { AdapterBank, AdapterFeeds } from "./adapters.ts";
import type { Autoencoder } from "./autoencoder.ts";
import type { PictureSize } from "./default-size.ts";
import { type EncodedImage, encodeImage, encodePrompt } from "./encoders.ts";
import type { Conditions, Family } from "./families/family.ts";
import { type FolderFiles, readRequired } from "./files.ts";
import { generateImage } from "./generate.ts";
import type { GeneratedImage, GenerateOptions } from "./generate-options.ts";
import type { Mask, RgbImage } from "./images.ts";
import type { BundleManifest } from "./manifest.ts";
import { type Component, disposedError, type OrtModule, type TensorData, tensorData, tensorFrom } from "./ort.ts";
import { adaptersOfTask, type Task } from "./tasks.ts";
import type { TextEncoder } from "./text-encoder.ts";

/** A task's name, one adapter's name, adapters with their strengths, or null for the base model. */
export type Selection = string | Readonly<Record<string, number>> | null;

/** What is in use: the adapter tensors and the defaults that come with a task. */
interface Use {
  key: string;
  task: Task;
  feeds: AdapterFeeds | undefined;
}

/** What an opened folder consists of. */
export interface PipelineParts {
  ort: OrtModule;
  files: FolderFiles;
  components: ReadonlyMap<string, Component>;
  family: Family;
  /** Content of `model_index.json`. */
  index: Readonly<Record<string, unknown>>;
  autoencoder: Autoencoder;
  textEncoders: ReadonlyMap<string, TextEncoder>;
  schedulerConfig: Record<string, unknown>;
  defaultSize: PictureSize;
  tasks: ReadonlyMap<string, Task>;
  bank: AdapterBank | undefined;
  manifest: BundleManifest | undefined;
  /** Adapters in the folder, by name; read when first used. */
  adapterPaths: ReadonlyMap<string, string>;
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
  #bindings = 0;
  #disposal: Promise<void> | undefined;
  #use: Use;
  #uses = 0;

  /** Made by `openPipeline`. */
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

  /** What kind of model this is: its graphs, and how they work together. */
  get family(): Family {
    return this.#parts.family;
  }

  /** Size in pixels that the model was trained with: what {@link generate} draws when nothing says otherwise. */
  get defaultSize(): PictureSize {
    return { ...this.#parts.defaultSize };
  }

  /** Inputs of one graph that {@link runComponent} has to be given: all but the adapter inputs. */
  async inputsOf(component: string): Promise<{ name: string; type: string }[]> {
    this.#refuseDisposed();
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
    this.#refuseDisposed();
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
    this.#refuseDisposed();
    const { ort } = this.#parts;
    this.#bindings++;
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
   * What an image is for says the denoiser:
   * - 9 input channels (inpainting): an image and a mask, an image alone as a condition, or neither;
   * - 8 (InstructPix2Pix): an image;
   * - as many as there are in latents: neither, or an image to start from.
   *
   * @throws InputError for options that do not fit the model or the task
   * @throws the signal's reason (an `AbortError` by default) when aborted
   */
  async generate(options: GenerateOptions): Promise<GeneratedImage> {
    this.#refuseDisposed();
    const { ort, files, components, family, index, autoencoder, schedulerConfig, defaultSize } = this.#parts;
    const network = (name: string) => ({ graph: components.get(name)!, adapters: this.#feedsOf(name) });
    return generateImage(
      {
        ort,
        family,
        index,
        denoiser: network(family.denoiser),
        companion: family.companion && network(family.companion.component),
        autoencoder,
        encodePrompt: this.#promptEncoder(),
        schedulerConfig,
        schedulerFile: files.describe("scheduler/scheduler_config.json"),
        defaultSize,
        task: this.#use.task,
      },
      options,
    );
  }

  /**
   * The denoiser's inputs that a prompt makes, with the selection in use: hidden states and what else the family has, without
   * a batch axis. `generate` takes them as `conditions`.
   *
   * @throws InputError when the folder has no text encoder
   */
  async encodePrompt(prompt: string): Promise<Conditions> {
    this.#refuseDisposed();
    return this.#promptEncoder()(prompt);
  }

  /**
   * The mean of a picture's encoding, shifted and scaled as the denoiser takes it: `[latent channels, height / factor,
   * width / factor]`. Pixels under the mask become mid-grey first.
   *
   * @throws InputError when the folder has no encoder, or the picture holds another number of bytes than its size says
   */
  async encodeImage(image: RgbImage, mask?: Mask): Promise<EncodedImage> {
    this.#refuseDisposed();
    return encodeImage(this.#parts.autoencoder, image, mask);
  }

  /** Encodes prompts with the selection that is in use now, whatever is chosen later. */
  #promptEncoder(): (prompt: string) => Promise<Conditions> {
    const { family, textEncoders, components } = this.#parts;
    const { key, feeds } = this.#use;
    const encoders = [...textEncoders].map(([name, encoder]) => {
      const isSame = !feeds?.get(name) && !this.#bound.get(name);
      // Without slots of its own a text encoder gives the same for every adapter.
      return { name, encoder, adapters: this.#feedsOf(name), key: isSame ? "" : `${this.#bindings} ${key}` };
    });
    const width = components.get(family.denoiser)!.inputs.get("encoder_hidden_states")?.shape[2];
    return (prompt) => encodePrompt(family, encoders, prompt, typeof width === "number" ? width : undefined);
  }

  /**
   * Runs one graph once on given tensors: for measurements, calibration and tests. The adapter inputs come from the
   * selection in use unless given.
   *
   * @param component - folder of the graph: the family's, `vae_encoder` or `vae_decoder`
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
    throw new InputError({
      what: `no component ${name}`,
      expected: `one of ${[...components.keys(), "vae_encoder", "vae_decoder"].join(", ")}`,
    });
  }

  /**
   * Adds an adapter that is not in the folder, or replaces one.
   *
   * @param bytes - safetensors with the graph inputs' names, as `quad expose` writes them
   * @throws InputError when the folder has no slots, or the adapter does not fit them
   */
  addAdapter(name: string, bytes: Uint8Array): void {
    this.#refuseDisposed();
    this.#bank(name).add(name, bytes, `adapter ${name}`);
    this.#loading.set(name, Promise.resolve());
  }

  /**
   * Frees all sessions, each after its run under way; again, it only waits for that. What is called afterwards throws an
   * InputError, and so does a picture under way at its next run of a graph.
   */
  dispose(): Promise<void> {
    return (this.#disposal ??= this.#release());
  }

  async #release(): Promise<void> {
    const { components, autoencoder } = this.#parts;
    await Promise.all([...components.values(), autoencoder].map((part) => part.release()));
  }

  /** As {@link dispose}, for `await using pipeline = ...`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #refuseDisposed(): void {
    if (this.#disposal) throw disposedError();
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

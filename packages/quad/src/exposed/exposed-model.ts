import { InputError, type SafetensorsInput } from "@quad-lora/base";
import { loadModel, type Model } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import type { AdapterFactors } from "../factors/encode-factors.ts";
import { factorPath } from "../factors/factor-file.ts";
import { loadFactors } from "../factors/load-factors.ts";
import { otherFactors } from "../factors/other-factors.ts";
import type { DenoiserShape } from "../model/denoiser.ts";
import { componentFile, graphIdentity } from "../model/graph-files.ts";
import { denoiserSlots } from "../model/slots.ts";
import { prepareGraph } from "../quantizable/prepare-graph.ts";
import type { Profile } from "../records/profile.ts";

/** Factors of an exposed folder's adapters, all of one rank. */
export interface ModelFactors {
  rank: number;
  /** The denoiser's, by adapter. */
  factors: Map<string, AdapterFactors>;
  /** Those of other components, by adapter. */
  others: Map<string, SafetensorsInput[]>;
}

/** An exposed folder and its denoiser: what everything between `expose` and a bundle works on. */
export class ExposedModel {
  readonly folder: string;
  /** The denoiser. */
  readonly component: "unet" | "transformer";
  /** The denoiser's slots. */
  readonly slots: SlotsFile["components"][string];
  /** The slots of all components. */
  readonly slotsFile: SlotsFile;
  #identity: Promise<string> | undefined;

  private constructor(folder: string, { component, slots, file }: Awaited<ReturnType<typeof denoiserSlots>>) {
    this.folder = folder;
    this.component = component;
    this.slots = slots;
    this.slotsFile = file;
  }

  /** @throws InputError if the folder is not an exposed folder, or its denoiser has no slots */
  static async open(folder: string): Promise<ExposedModel> {
    return new ExposedModel(folder, await denoiserSlots(folder));
  }

  /** The denoiser's graph as it is; its weights stay on disk. */
  load(): Model {
    return loadModel(componentFile(this.folder, this.component));
  }

  /** The denoiser's graph as it is observed, simulated, trained and compiled, see `prepareGraph`; a new one at every call. */
  prepare(shape: DenoiserShape, rank?: number): Promise<Model> {
    return prepareGraph(this.load(), this.slots, shape, rank);
  }

  /** What stands for the denoiser's graph with its weights. The files are read once. */
  identity(): Promise<string> {
    return (this.#identity ??= graphIdentity(this.folder, this.component));
  }

  /** Whether a profile was made from this graph, weights included. */
  async isOf({ component, graph }: Profile): Promise<boolean> {
    return component === this.component && graph === (await this.identity());
  }

  /**
   * @param file - the profile's, for the message
   * @throws InputError if the profile was made from another graph
   */
  async refuse(profile: Profile, file: string, fix = "Make the profile from this exposed folder."): Promise<void> {
    if (await this.isOf(profile)) return;
    throw new InputError({
      what: "the profile belongs to another graph",
      file,
      where: "graph",
      expected: `${await this.identity()}, of ${this.folder}`,
      got: profile.graph,
      fix,
    });
  }

  /** Where an adapter's factors are. */
  factorPath(adapter: string): string {
    return factorPath(this.folder, adapter);
  }

  /**
   * Factors of the named adapters, padded to one rank: the largest among them. Names without a file (the base) are left out.
   * @param leastRank - rank to pad to where all are smaller
   * @returns the denoiser's as matrices, and those of other components, which stay as they are, by graph input
   */
  async factors(names: readonly string[], leastRank?: number): Promise<ModelFactors> {
    const { files, ...loaded } = await loadFactors(this.folder, this.slots, names, undefined, leastRank);
    const others = [...files].map(
      ([name, file]) => [name, otherFactors(this.slotsFile, this.component, file, loaded.rank)] as const,
    );
    return { ...loaded, others: new Map(others) };
  }
}

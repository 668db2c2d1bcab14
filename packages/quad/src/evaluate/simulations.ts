import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { InputError, type SafetensorsInput, toFloat32 } from "@quad-lora/base";
import { cloneModel } from "@quad-lora/onnx";
import { adapterMetadata, type Task } from "@quad-lora/runtime";
import { ExposedModel } from "../exposed/exposed-model.ts";
import type { SlotScales } from "../factors/encode-factors.ts";
import { factorPath } from "../factors/factor-file.ts";
import { hashFile } from "../files/hash.ts";
import { openSafetensors } from "../files/safetensors.ts";
import { widthsOf } from "../profile/activation-encodings.ts";
import { Bench, type EncodedFactors, mixedProfile, ownProfile, sharedProfile } from "../profile/bench.ts";
import { layerInputPoints, type QuantizationPoint, withoutPlace } from "../quantizable/points.ts";
import { findQuantizable } from "../quantizable/quantizable.ts";
import type { Encoding } from "../quantization/index.ts";
import type { Observations } from "../records/observations.ts";
import { type Profile, pointEncoding } from "../records/profile.ts";
import type { Policy } from "../settings/policy.ts";
import type { SimulatedPipeline } from "../simulate/simulated-pipeline.ts";
import type { Placement } from "../simulate/simulation-graph.ts";
import { adaptersOf } from "./cases.ts";
import type { Drawer, OpenedDrawer } from "./pictures.ts";

/** What simulated pictures and measurements are made from. */
export interface SimulationSources {
  /** Full-precision exposed folder, the one that the profile was made for. */
  folder: string;
  profile: Profile;
  observations: Observations | null;
  /** Hash of the observations' file. */
  observationsHash: string | null;
  /** Definition of every task that takes part. */
  tasks: ReadonlyMap<string, Readonly<Task>>;
}

/**
 * Quantization in simulation on an exposed folder, for what a bundle alone cannot show: the profile without training, each
 * task on a profile of its own, everything at 8 bits, other shares of narrow layers.
 */
export class Simulations {
  readonly sources: SimulationSources;
  readonly #bench: Bench;
  /** The profile's scales. */
  readonly #scales: ReadonlyMap<string, SlotScales>;
  /** Of the adapters' files. */
  readonly #hashes: ReadonlyMap<string, string>;

  private constructor(sources: SimulationSources, bench: Bench, hashes: ReadonlyMap<string, string>) {
    this.sources = sources;
    this.#bench = bench;
    this.#scales = new Map(Object.entries(sources.profile.slots));
    this.#hashes = hashes;
  }

  static async open(sources: SimulationSources): Promise<Simulations> {
    const { folder, profile, tasks, observations } = sources;
    const model = await ExposedModel.open(folder);
    const names = [...new Set([...tasks].flatMap(([name, task]) => Object.keys(adaptersOf(name, task))))];
    const bench = await Bench.open(model, profile.shape, names, observations);
    const hashes = new Map<string, string>();
    for (const name of bench.factors.keys()) hashes.set(name, await hashFile(model.factorPath(name)));
    return new Simulations(sources, bench, hashes);
  }

  /** Opens a pipeline whose denoiser quantizes as the target places it. */
  simulate(placement: Placement = this.sources.profile.placement): Promise<SimulatedPipeline> {
    const { weightBits, weightMethod } = this.sources.profile.policy;
    return this.#bench.simulate({ placement, weightBits, weightMethod });
  }

  /** What a task's simulation depends on besides the observations, as JSON. */
  identityOf(task: string): unknown {
    const { profile, tasks } = this.sources;
    const used = Object.entries(adaptersOf(task, tasks.get(task) ?? {}));
    return { profile, adapters: used.map(([name, strength]) => [name, strength, this.#hashes.get(name)]) };
  }

  /** The points at layers' inputs, and which observed values they hold. */
  layerInputs(): QuantizationPoint[] {
    const { layers } = findQuantizable(cloneModel(this.#bench.prepared), this.#bench.model.slots);
    return layerInputPoints(layers).map(withoutPlace);
  }

  /** The profile's own encodings. */
  profileEncodings(points: readonly QuantizationPoint[]): Encoding[] {
    const { profile } = this.sources;
    return points.map(({ name }) => {
      const point = profile.points[name];
      if (point) return pointEncoding(point);
      throw new InputError({
        what: "the profile has no encoding for a point of this graph",
        where: name,
        fix: "Give the exposed folder or model that the profile was built from.",
      });
    });
  }

  /** Encodings from what the named tasks were seen to need; null without observations of one of them. */
  encodingsOf(
    points: readonly QuantizationPoint[],
    tasks: readonly string[],
    narrow: ReadonlySet<string>,
    policy: Policy = this.sources.profile.policy,
  ): Encoding[] | null {
    if (!this.#bench.hasSeen(tasks)) return null;
    const share = this.sources.profile.strategy.kind === "mixed" ? mixedProfile : sharedProfile;
    return this.#bench.encodings(points, share(tasks, policy), widthsOf(policy, narrow));
  }

  /** Tasks that the profile's ranges come from. */
  get members(): string[] {
    const { profile, observations } = this.sources;
    const { kind, anchor } = profile.strategy;
    return kind === "anchor" && anchor !== null ? [anchor] : (observations?.tasks.map(({ task }) => task) ?? []);
  }

  /** A task's adapters on the profile's scales, or on scales of their own. */
  encoded(task: string, scales: "shared" | "own"): Map<string, EncodedFactors> {
    const { profile, tasks } = this.sources;
    const result = new Map<string, EncodedFactors>();
    for (const name of Object.keys(adaptersOf(task, tasks.get(task) ?? {}))) {
      const used = scales === "shared" ? this.#scales : this.#bench.scales(ownProfile(name, profile.policy));
      const encoded = this.#bench.encoded(name, used, profile.policy);
      if (encoded) result.set(name, encoded);
    }
    return result;
  }

  /** A task's adapters as they are. */
  async original(task: string): Promise<Map<string, Uint8Array>> {
    const { factors, model } = this.#bench;
    const names = Object.keys(adaptersOf(task, this.sources.tasks.get(task) ?? {})).filter((name) => factors.has(name));
    const read = async (name: string) => new Uint8Array(await readFile(model.factorPath(name)));
    return new Map(await Promise.all(names.map(async (name) => [name, await read(name)] as const)));
  }

  /** A bundle's own adapters, codes turned back into values; null where it lacks one. */
  async bundled(bundle: string, task: string): Promise<Map<string, EncodedFactors> | null> {
    const { profile, tasks } = this.sources;
    const result = new Map<string, EncodedFactors>();
    for (const name of Object.keys(adaptersOf(task, tasks.get(task) ?? {}))) {
      const path = factorPath(bundle, name);
      if (!existsSync(path)) return null;
      const file = await openSafetensors(path);
      try {
        const steps = new Map(
          this.#bench.model.slots.slots.flatMap(({ name: slot, inputA, inputB }) => [
            [inputA, profile.slots[slot]?.a ?? 1] as const,
            [inputB, profile.slots[slot]?.b ?? 1] as const,
          ]),
        );
        const values: SafetensorsInput[] = [];
        for (const [key, { dtype, shape }] of file.entries) {
          const step = dtype === "I8" || dtype === "I16" ? (steps.get(key) ?? 1) : 1;
          const codes = await readNumbers(file, key, dtype);
          values.push({ name: key, dtype: "F32", shape, data: codes.map((code) => code * step) });
        }
        result.set(name, { rank: Number(file.metadata[adapterMetadata.rank]), values });
      } finally {
        await file.close();
      }
    }
    return result;
  }

  /** A drawer of simulated pictures; `encodings` null means that the task cannot be drawn. */
  drawer(settings: {
    identity: unknown;
    /** Whether the encodings come from the observations. */
    isObserved: boolean;
    placement?: Placement;
    scales: "shared" | "own";
    encodings: (points: readonly QuantizationPoint[], task: string) => Encoding[] | null;
  }): Drawer {
    const { tasks } = this.sources;
    return {
      identity: (task) => {
        if (settings.encodings([], task) === null) return null;
        return [settings.identity, this.identityOf(task), settings.isObserved ? this.sources.observationsHash : null];
      },
      open: async (): Promise<OpenedDrawer> => {
        const simulated = await this.simulate(settings.placement);
        const { pipeline } = simulated;
        return {
          pipeline,
          use: async (task) => {
            simulated.setEncodings(settings.encodings(simulated.points, task)!);
            for (const [name, values] of this.encoded(task, settings.scales)) simulated.setAdapter(name, values);
            await pipeline.use(adaptersOf(task, tasks.get(task) ?? {}));
          },
          dispose: () => simulated.dispose(),
        };
      },
    };
  }
}

async function readNumbers(
  file: Awaited<ReturnType<typeof openSafetensors>>,
  name: string,
  dtype: string,
): Promise<Float32Array> {
  const tensor = await file.read(name);
  if (dtype === "I8") return Float32Array.from(new Int8Array(tensor.bytes.slice().buffer));
  if (dtype === "I16") return Float32Array.from(new Int16Array(tensor.bytes.slice().buffer));
  return toFloat32(tensor, file.path);
}

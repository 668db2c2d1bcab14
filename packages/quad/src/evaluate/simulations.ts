import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError, type SafetensorsInput, toFloat32 } from "@quad-lora/base";
import { cloneModel, loadModel, type Model } from "@quad-lora/onnx";
import type { Task } from "@quad-lora/runtime";
import { type AdapterFactors, encodeAdapter, type SlotScales, slotScales } from "../factors/adapter-encodings.ts";
import { loadFactors } from "../factors/exposed-adapters.ts";
import { hashFile } from "../files/hash.ts";
import { openSafetensors } from "../files/safetensors.ts";
import { componentFile } from "../model/model-folder.ts";
import { denoiserSlots } from "../model/slots.ts";
import { chooseEncodings, widthsOf } from "../profile/activation-encodings.ts";
import { layerInputPoints, type QuantizationPoint, withoutPlace } from "../quantizable/points.ts";
import { prepareGraph } from "../quantizable/prepare-graph.ts";
import { findQuantizable } from "../quantizable/quantizable.ts";
import type { Encoding } from "../quantization/index.ts";
import type { Observations } from "../records/observations.ts";
import { type Profile, pointEncoding } from "../records/profile.ts";
import type { Policy } from "../settings/policy.ts";
import { SimulatedPipeline } from "../simulate/simulated-pipeline.ts";
import type { Placement } from "../simulate/simulation-graph.ts";
import { adaptersOf } from "./cases.ts";
import type { Drawer, OpenedDrawer } from "./pictures.ts";

type Slots = Awaited<ReturnType<typeof denoiserSlots>>["slots"];
type EncodedValues = { rank: number; values: SafetensorsInput[] };

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
  readonly slots: Slots;
  readonly component: string;
  readonly #prepared: Model;
  readonly #factors: ReadonlyMap<string, AdapterFactors>;
  /** Factors of other components, such as a text encoder: they stay as they are. */
  readonly #others: ReadonlyMap<string, RankTensor[]>;
  /** Of the adapters' files. */
  readonly #hashes: ReadonlyMap<string, string>;

  private constructor(
    sources: SimulationSources,
    parts: Pick<Simulations, "slots" | "component"> & {
      prepared: Model;
      factors: ReadonlyMap<string, AdapterFactors>;
      others: ReadonlyMap<string, RankTensor[]>;
      hashes: ReadonlyMap<string, string>;
    },
  ) {
    this.sources = sources;
    this.slots = parts.slots;
    this.component = parts.component;
    this.#prepared = parts.prepared;
    this.#factors = parts.factors;
    this.#others = parts.others;
    this.#hashes = parts.hashes;
  }

  static async open(sources: SimulationSources): Promise<Simulations> {
    const { folder, profile, tasks } = sources;
    const { component, slots, file } = await denoiserSlots(folder);
    const prepared = await prepareGraph(loadModel(componentFile(folder, component)), slots, profile.shape);
    const names = [...new Set([...tasks].flatMap(([name, task]) => Object.keys(adaptersOf(name, task))))];
    const { factors } = await loadFactors(folder, slots, names);
    const axes = new Map<string, number>();
    for (const [name, { slots: list }] of Object.entries(file.components)) {
      if (name === component) continue;
      for (const { inputA, shapeA, inputB, shapeB } of list) {
        axes.set(inputA, shapeA.indexOf("rank")).set(inputB, shapeB.indexOf("rank"));
      }
    }
    const others = new Map<string, RankTensor[]>();
    for (const name of names)
      others.set(name, await readTensors(join(folder, "adapters", `${name}.safetensors`), axes));
    const hashes = new Map<string, string>();
    for (const name of factors.keys())
      hashes.set(name, await hashFile(join(folder, "adapters", `${name}.safetensors`)));
    return new Simulations(sources, { component, slots, prepared, factors, others, hashes });
  }

  /** Opens a pipeline whose denoiser quantizes as the target places it. */
  simulate(placement: Placement = this.sources.profile.placement): Promise<SimulatedPipeline> {
    const { folder, profile } = this.sources;
    const { weightBits, weightMethod } = profile.policy;
    return SimulatedPipeline.open(folder, this.component, this.#prepared, this.slots, {
      placement,
      weightBits,
      weightMethod,
    });
  }

  /** What a task's simulation depends on besides the observations, as JSON. */
  identityOf(task: string): unknown {
    const { profile, tasks } = this.sources;
    const used = Object.entries(adaptersOf(task, tasks.get(task) ?? {}));
    return { profile, adapters: used.map(([name, strength]) => [name, strength, this.#hashes.get(name)]) };
  }

  /** The points at layers' inputs, and which observed values they hold. */
  layerInputs(): QuantizationPoint[] {
    const { layers } = findQuantizable(cloneModel(this.#prepared), this.slots);
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
    const { observations } = this.sources;
    if (!observations || !tasks.every((task) => observations.tasks.some((seen) => seen.task === task))) return null;
    return chooseEncodings(points, observations, tasks, widthsOf(policy, narrow), policy);
  }

  /** Tasks that the profile's ranges come from. */
  get members(): string[] {
    const { profile, observations } = this.sources;
    const { kind, anchor } = profile.strategy;
    return kind === "anchor" && anchor !== null ? [anchor] : (observations?.tasks.map(({ task }) => task) ?? []);
  }

  /** A task's adapters on the profile's scales, or on scales of their own. */
  encoded(task: string, scales: "shared" | "own"): Map<string, EncodedValues> {
    const { profile, tasks } = this.sources;
    const { adapterBits, align } = profile.policy;
    const shared = new Map<string, SlotScales>(Object.entries(profile.slots));
    const result = new Map<string, EncodedValues>();
    for (const name of Object.keys(adaptersOf(task, tasks.get(task) ?? {}))) {
      const factors = this.#factors.get(name);
      if (!factors) continue;
      const used = scales === "shared" ? shared : slotScales([factors], this.slots.slots, adapterBits, 1, align);
      const { rank, values } = encodeAdapter(factors, this.slots.slots, used, adapterBits, align);
      const others = (this.#others.get(name) ?? []).map((tensor) => padTo(tensor, rank));
      result.set(name, { rank, values: [...values, ...others] });
    }
    return result;
  }

  /** A task's adapters as they are. */
  async original(task: string): Promise<Map<string, Uint8Array>> {
    const { folder, tasks } = this.sources;
    const names = Object.keys(adaptersOf(task, tasks.get(task) ?? {})).filter((name) => this.#factors.has(name));
    const read = async (name: string) =>
      new Uint8Array(await readFile(join(folder, "adapters", `${name}.safetensors`)));
    return new Map(await Promise.all(names.map(async (name) => [name, await read(name)] as const)));
  }

  /** A bundle's own adapters, codes turned back into values; null where it lacks one. */
  async bundled(bundle: string, task: string): Promise<Map<string, EncodedValues> | null> {
    const { profile, tasks } = this.sources;
    const result = new Map<string, EncodedValues>();
    for (const name of Object.keys(adaptersOf(task, tasks.get(task) ?? {}))) {
      const path = join(bundle, "adapters", `${name}.safetensors`);
      if (!existsSync(path)) return null;
      const file = await openSafetensors(path);
      try {
        const steps = new Map(
          this.slots.slots.flatMap(({ name: slot, inputA, inputB }) => [
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
        result.set(name, { rank: Number(file.metadata["quad.rank"]), values });
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

/** A tensor of an adapter and the axis that is its rank. */
interface RankTensor {
  tensor: { name: string; shape: readonly number[]; data: Float32Array };
  axis: number;
}

async function readTensors(path: string, axes: ReadonlyMap<string, number>): Promise<RankTensor[]> {
  if (!existsSync(path)) return [];
  const file = await openSafetensors(path);
  try {
    const tensors: RankTensor[] = [];
    for (const [name, { shape }] of file.entries) {
      const axis = axes.get(name);
      if (axis !== undefined) tensors.push({ tensor: { name, shape, data: await file.readFloat32(name) }, axis });
    }
    return tensors;
  } finally {
    await file.close();
  }
}

/** Fills the rank's axis up with zeros: an adapter file has one rank. */
function padTo({ tensor: { name, shape, data }, axis }: RankTensor, rank: number): SafetensorsInput {
  const inner = shape.slice(axis + 1).reduce((product, size) => product * size, 1);
  const given = shape[axis] * inner;
  const wanted = rank * inner;
  const padded = new Float32Array((data.length / given) * wanted);
  for (let row = 0; row * given < data.length; row++) {
    padded.set(data.subarray(row * given, (row + 1) * given), row * wanted);
  }
  return { name, dtype: "F32", shape: shape.map((size, index) => (index === axis ? rank : size)), data: padded };
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

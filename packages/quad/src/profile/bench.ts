import type { SafetensorsInput } from "@quad-lora/base";
import type { Model } from "@quad-lora/onnx";
import type { ExposedModel } from "../exposed/exposed-model.ts";
import { type AdapterFactors, encodeAdapter, type SlotScales, slotScales } from "../factors/encode-factors.ts";
import type { DenoiserShape } from "../model/denoiser.ts";
import type { QuantizationPoint } from "../quantizable/points.ts";
import type { Encoding } from "../quantization/index.ts";
import type { Observations } from "../records/observations.ts";
import type { Trajectory } from "../records/trajectory.ts";
import type { Policy } from "../settings/policy.ts";
import { SimulatedPipeline } from "../simulate/simulated-pipeline.ts";
import type { SimulationOptions } from "../simulate/simulation-graph.ts";
import { encodingChooser, type RangeChoice, type Widths } from "./activation-encodings.ts";
import type { Scores } from "./scores.ts";
import { scoreTask } from "./sensitivity.ts";

/** A profile that could be: whose needs its ranges and scales come from, and by which policy. */
export interface Candidate {
  /** Tasks; those without an adapter count for the ranges alone. */
  members: readonly string[];
  policy: Policy;
  /** Room above what the members need, on the product of the factors: 1 is none. */
  headroom: number;
  /** How ranges come from several members: of all values together, or of whichever member serves the worst one best. */
  ranges?: RangeChoice;
}

/** The profile that a task has for itself: it needs no room for others. */
export function ownProfile(task: string, policy: Policy): Candidate {
  return { members: [task], policy, headroom: 1 };
}

/** A profile that its members share with adapters that come later. */
export function sharedProfile(members: readonly string[], policy: Policy): Candidate {
  return { members, policy, headroom: policy.headroom };
}

/** A shared profile whose ranges are, point by point, those that serve the worst of its members best. */
export function mixedProfile(members: readonly string[], policy: Policy): Candidate {
  return { ...sharedProfile(members, policy), ranges: "mixed" };
}

/** An adapter's factors rounded to a grid, all of one rank, and those of other components as they are. */
export interface EncodedFactors {
  rank: number;
  values: SafetensorsInput[];
}

/**
 * Where candidates for a profile are tried: an exposed folder's denoiser prepared for one size, the factors of its adapters,
 * and what the tasks were seen to need. Scales, encodings and rounded adapters that candidates have in common are made once.
 */
export class Bench {
  readonly model: ExposedModel;
  /** The denoiser's graph; stays as it is. */
  readonly prepared: Model;
  /** Factors by adapter, all of rank {@link rank}. */
  readonly factors: ReadonlyMap<string, AdapterFactors>;
  /** The largest among the adapters. */
  readonly rank: number;
  readonly #observations: Observations | null;
  /** Factors of other components, such as text encoders. */
  readonly #others: ReadonlyMap<string, SafetensorsInput[]>;
  readonly #scales = new Map<string, ReadonlyMap<string, SlotScales>>();
  readonly #encoded = new WeakMap<ReadonlyMap<string, SlotScales>, Map<string, EncodedFactors>>();
  readonly #choosers = new Map<string, (widths: Widths) => Encoding[]>();

  private constructor(
    model: ExposedModel,
    prepared: Model,
    { factors, others, rank }: Awaited<ReturnType<ExposedModel["factors"]>>,
    observations: Observations | null,
  ) {
    this.model = model;
    this.prepared = prepared;
    this.factors = factors;
    this.rank = rank;
    this.#others = others;
    this.#observations = observations;
  }

  /**
   * @param adapters - names; those without a file, such as the base, are left out
   * @param observations - null where encodings are not asked for
   */
  static async open(
    model: ExposedModel,
    shape: DenoiserShape,
    adapters: readonly string[],
    observations: Observations | null,
  ): Promise<Bench> {
    const factors = await model.factors(adapters);
    return new Bench(model, await model.prepare(shape), factors, observations);
  }

  /** Opens the folder's pipeline with a denoiser that quantizes in simulation. @param options.threads - per graph */
  simulate(options: SimulationOptions & { threads?: number | undefined }): Promise<SimulatedPipeline> {
    const { folder, component, slots } = this.model;
    return SimulatedPipeline.open(folder, component, this.prepared, slots, options);
  }

  /** Scales of the adapter inputs that a candidate's members need. */
  scales({ members, policy, headroom }: Candidate): ReadonlyMap<string, SlotScales> {
    const { adapterBits, align } = policy;
    return remember(this.#scales, JSON.stringify([members, adapterBits, align, headroom]), () => {
      const adapters = members.map((member) => this.factors.get(member)).filter((factors) => factors !== undefined);
      return slotScales(adapters, this.model.slots.slots, adapterBits, headroom, align);
    });
  }

  /** An adapter on given scales; null if there is none of that name. */
  encoded(
    adapter: string,
    scales: ReadonlyMap<string, SlotScales>,
    { adapterBits, align }: Pick<Policy, "adapterBits" | "align">,
  ): EncodedFactors | null {
    const factors = this.factors.get(adapter);
    if (!factors) return null;
    const known = this.#encoded.get(scales) ?? new Map<string, EncodedFactors>();
    this.#encoded.set(scales, known);
    return remember(known, JSON.stringify([adapter, adapterBits, align]), () => {
      const { values } = encodeAdapter(factors, this.model.slots.slots, scales, adapterBits, align);
      return { rank: this.rank, values: [...values, ...(this.#others.get(adapter) ?? [])] };
    });
  }

  /** Whether all of the tasks were observed: their ranges can be chosen. */
  hasSeen(tasks: readonly string[]): boolean {
    const seen = new Set(this.#observations?.tasks.map(({ task }) => task));
    return this.#observations !== null && tasks.every((task) => seen.has(task));
  }

  /** Encodings of the points from what a candidate's members were seen to need. */
  encodings(points: readonly QuantizationPoint[], candidate: Candidate, widths: Widths): Encoding[] {
    const observations = this.#observations;
    if (!observations) throw new Error("a bench without observations has no encodings");
    const { members, policy, ranges = "merged" } = candidate;
    const { wideRange, wideHeadroom, narrowRange, balanceSteps } = policy;
    const names = points.map(({ name }) => name).join();
    const key = JSON.stringify([names, members, ranges, wideRange, wideHeadroom, narrowRange, balanceSteps]);
    const choose = remember(this.#choosers, key, () => encodingChooser(points, observations, members, policy, ranges));
    return choose(widths);
  }

  /** Puts an adapter, rounded to a candidate's scales, in place of the original. The base has none. */
  bind(simulated: SimulatedPipeline, adapter: string, candidate: Candidate): void {
    const encoded = this.encoded(adapter, this.scales(candidate), candidate.policy);
    if (encoded) simulated.setAdapter(adapter, encoded);
  }

  /** How far a task on a candidate is from full precision, over its recorded calls. */
  score(
    simulated: SimulatedPipeline,
    trajectory: Trajectory,
    candidate: Candidate,
    widths: Widths,
    signal?: AbortSignal,
  ): Promise<Scores> {
    this.bind(simulated, trajectory.task, candidate);
    return scoreTask(simulated, trajectory, this.encodings(simulated.points, candidate, widths), signal);
  }
}

function remember<Value>(known: Map<string, Value>, key: string, make: () => Value): Value {
  const value = known.get(key) ?? make();
  known.set(key, value);
  return value;
}

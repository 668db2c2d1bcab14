import { existsSync } from "node:fs";
import { join } from "node:path";
import type { SafetensorsInput } from "@quad-lora/base";
import { loadModel, type Model } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { alignBatches, shapeOf } from "../calibrate/calibrate.ts";
import { heldOutCases, type PreparedCase, prepareCase } from "../evaluate/cases.ts";
import { imageQuality } from "../evaluate/image-quality.ts";
import { type AdapterFactors, encodeAdapter, slotScales } from "../factors/encode-factors.ts";
import { loadFactors } from "../factors/load-factors.ts";
import { readImage, writeImage } from "../files/images.ts";
import { openSafetensors } from "../files/safetensors.ts";
import { componentFile } from "../model/model-folder.ts";
import { openFolder } from "../model/open-folder.ts";
import { denoiserSlots } from "../model/slots.ts";
import { encodingChooser, widthsOf } from "../profile/activation-encodings.ts";
import { allocateShare, layerSensitivity, scoreTask, thin } from "../profile/sensitivity.ts";
import { prepareGraph } from "../quantizable/prepare-graph.ts";
import type { Figures } from "../records/ablation.ts";
import { type Observations, readObservations } from "../records/observations.ts";
import { readTrajectory, type Trajectory } from "../records/trajectory.ts";
import type { BuildConfig } from "../settings/config.ts";
import { type Policy, policySchema } from "../settings/policy.ts";
import { SimulatedPipeline } from "../simulate/simulated-pipeline.ts";
import type { Placement } from "../simulate/simulation-graph.ts";
import type { ProfileKind, Variant } from "./variants.ts";

/** What variants are measured on: paths and settings, so that it crosses to other processes as JSON. */
export interface BenchSources {
  /** Exposed folder. */
  exposed: string;
  trajectories: string[];
  observations: string;
  /** Folder of full-precision pictures. */
  references: string;
  tasks: BuildConfig["tasks"];
  policy: Policy;
  placement: Placement;
  /** Held-out pictures per task. */
  pictures: number;
  /** Recorded calls per task that SQNR and QSS are taken over. */
  calls: number;
  /** CPU threads per graph. */
  threads?: number | undefined;
}

/** What is found once and holds for all variants. */
export interface Groundwork {
  /** The most sensitive adapter on its own profile. */
  anchor: string;
  /** Signal to noise with only this layer's inputs at 8 bits on the merged profile, dB; empty where no variant needs it. */
  sensitivity: Record<string, number>;
}

export interface MeasureOptions {
  signal?: AbortSignal | undefined;
  /** Called after every picture, or every layer. */
  onStep?: ((done: number, total: number) => void) | undefined;
}

type Slots = SlotsFile["components"][string];
type EncodedValues = { rank: number; values: SafetensorsInput[] };

/** File name of a full-precision picture. */
function referenceName(task: string, index: number): string {
  return `${encodeURIComponent(task)}-${index}.png`;
}

/** The held-out cases of all tasks, by task. */
async function casesOf(
  { tasks, pictures }: Pick<BenchSources, "tasks" | "pictures">,
  pipeline: Awaited<ReturnType<typeof openFolder>>,
): Promise<Map<string, PreparedCase[]>> {
  const cases = new Map<string, PreparedCase[]>();
  for (const [task, settings] of Object.entries(tasks)) {
    const { cases: picked } = heldOutCases(settings, pictures);
    const prepare = (request: (typeof picked)[number]) =>
      prepareCase(task, settings, request, pipeline.task(task), pipeline.defaultSize);
    cases.set(task, await Promise.all(picked.map(prepare)));
  }
  return cases;
}

/** Draws the held-out cases in full precision into a folder. */
export async function drawReferences(
  sources: Omit<BenchSources, "references">,
  folder: string,
  { signal, onStep }: MeasureOptions,
): Promise<void> {
  const { exposed, threads } = sources;
  const pipeline = await openFolder(exposed, threads ? { threads } : {});
  try {
    const cases = await casesOf(sources, pipeline);
    const total = [...cases.values()].reduce((sum, list) => sum + list.length, 0);
    let done = 0;
    for (const [task, list] of cases) {
      await pipeline.use(task);
      for (const [index, { sourcePrompt: _, ...request }] of list.entries()) {
        const picture = await pipeline.generate({ ...request, signal });
        await writeImage(join(folder, referenceName(task, index)), picture);
        onStep?.(++done, total);
      }
    }
  } finally {
    await pipeline.dispose();
  }
}

/** Measures variants of quantization in simulation, one after another. */
export class AblationBench {
  readonly #sources: BenchSources;
  readonly #component: string;
  readonly #slots: Slots;
  readonly #prepared: Model;
  readonly #trajectories: Trajectory[];
  readonly #observations: Observations;
  readonly #factors: ReadonlyMap<string, AdapterFactors>;
  #cases: Map<string, PreparedCase[]> | undefined;
  /** Choosers and adapters that variants have in common, by what they depend on. */
  readonly #choosers = new Map<string, ReturnType<typeof encodingChooser>>();
  readonly #encoded = new Map<string, EncodedValues>();
  #opened: { roundPhases: boolean; simulated: SimulatedPipeline } | undefined;

  private constructor(
    sources: BenchSources,
    parts: { component: string; slots: Slots; prepared: Model },
    data: {
      trajectories: Trajectory[];
      observations: Observations;
      factors: ReadonlyMap<string, AdapterFactors>;
    },
  ) {
    this.#sources = sources;
    this.#component = parts.component;
    this.#slots = parts.slots;
    this.#prepared = parts.prepared;
    this.#trajectories = data.trajectories;
    this.#observations = data.observations;
    this.#factors = data.factors;
  }

  static async open(sources: BenchSources): Promise<AblationBench> {
    const { exposed } = sources;
    const { component, slots } = await denoiserSlots(exposed);
    const trajectories = alignBatches(await Promise.all(sources.trajectories.map(readTrajectory)));
    const { factors } = await loadFactors(exposed, slots, Object.keys(sources.tasks));
    const model = loadModel(componentFile(exposed, component));
    const prepared = await prepareGraph(model, slots, shapeOf(trajectories));
    const observations = await readObservations(sources.observations);
    return new AblationBench(sources, { component, slots, prepared }, { trajectories, observations, factors });
  }

  /** The most sensitive adapter, each on its own profile with 16-bit activations. */
  async anchor({ signal, onStep }: MeasureOptions = {}): Promise<string> {
    const simulated = await this.#simulate(false);
    const policy = this.#widePolicy();
    const wide = widthsOf(policy, new Set());
    const adapted = this.#trajectories.filter(({ task }) => this.#factors.has(task));
    let most = { task: "", qss: -1 };
    for (const [index, trajectory] of adapted.entries()) {
      const { task } = trajectory;
      await this.#bindAdapter(simulated, task, [task], policy, 1);
      const encodings = this.#chooser(simulated, [task], policy)(wide);
      const { qss } = await scoreTask(simulated, thin(trajectory, this.#sources.calls), encodings, signal);
      if (qss > most.qss) most = { task, qss };
      onStep?.(index + 1, adapted.length);
    }
    return most.task;
  }

  /** Signal to noise with one layer's inputs narrow, dB, for every layer; on the merged profile. */
  async sensitivity({ signal, onStep }: MeasureOptions = {}): Promise<Record<string, number>> {
    const simulated = await this.#simulate(false);
    const policy = this.#widePolicy();
    const tasks = this.#trajectories.map(({ task }) => task);
    for (const task of tasks) await this.#bindAdapter(simulated, task, tasks, policy, policy.headroom);
    const choose = this.#chooser(simulated, tasks, policy);
    const encodingsFor = (narrow: ReadonlySet<string>) => choose(widthsOf(policy, narrow));
    return layerSensitivity(simulated, this.#trajectories, encodingsFor, {
      calls: 8,
      signal,
      onProgress: (_, done, total) => onStep?.(done, total),
    });
  }

  /** Quality of one variant, by task. */
  async measure(
    variant: Variant,
    { anchor, sensitivity }: Groundwork,
    { signal, onStep }: MeasureOptions = {},
  ): Promise<{ narrowLayers: number; tasks: Record<string, Figures> }> {
    const simulated = await this.#simulate(variant.roundPhases ?? false);
    const policy = policySchema.parse({ ...this.#sources.policy, ...plainWidths, ...variant.policy });
    const keepWide = policy.keepWide.map((pattern) => new RegExp(pattern));
    const layers = Object.fromEntries(simulated.layers.map(({ name }) => [name, sensitivity[name] ?? 0]));
    const narrow = allocateShare(layers, policy.narrowShare, keepWide);
    const widths = widthsOf(policy, narrow);
    this.#cases ??= await casesOf(this.#sources, simulated.pipeline);
    const everyTask = this.#trajectories.map(({ task }) => task);
    const membersOf = (task: string): Record<ProfileKind, string[]> => ({
      own: [task],
      anchor: [anchor],
      unified: everyTask,
    });
    const total = [...this.#cases.values()].reduce((sum, list) => sum + list.length, 0);
    let done = 0;
    const tasks: Record<string, Figures> = {};
    for (const trajectory of this.#trajectories) {
      const { task } = trajectory;
      const isOwn = variant.profile === "own";
      const members = membersOf(task)[variant.profile];
      await this.#bindAdapter(simulated, task, members, policy, isOwn ? 1 : policy.headroom);
      const encodings = this.#chooser(simulated, members, policy)(widths);
      const scores = await scoreTask(simulated, thin(trajectory, this.#sources.calls), encodings, signal);
      const qualities = [];
      for (const [index, { sourcePrompt: _, ...request }] of this.#cases.get(task)!.entries()) {
        const picture = await simulated.generate(task, request, signal);
        const reference = await readImage(join(this.#sources.references, referenceName(task, index)));
        qualities.push(imageQuality([reference], [picture]));
        onStep?.(++done, total);
      }
      const [psnr, ssim] = [qualities.map((quality) => quality.psnr), qualities.map((quality) => quality.ssim)];
      tasks[task] = {
        pictures: qualities.length,
        psnr: mean(psnr),
        psnrMin: Math.min(...psnr),
        psnrDeviation: Math.sqrt(mean(psnr.map((value) => (value - mean(psnr)) ** 2))),
        ssim: mean(ssim),
        ...scores,
      };
    }
    return { narrowLayers: narrow.size / simulated.layers.length, tasks };
  }

  async dispose(): Promise<void> {
    await this.#opened?.simulated.dispose();
    this.#opened = undefined;
  }

  #widePolicy(): Policy {
    return policySchema.parse({ ...this.#sources.policy, ...plainWidths });
  }

  async #simulate(roundPhases: boolean): Promise<SimulatedPipeline> {
    if (this.#opened?.roundPhases === roundPhases) return this.#opened.simulated;
    await this.dispose();
    const { exposed, policy, placement, threads } = this.#sources;
    const { weightBits, weightMethod } = policy;
    const options = { placement, weightBits, weightMethod, roundPhases, threads };
    const simulated = await SimulatedPipeline.open(exposed, this.#component, this.#prepared, this.#slots, options);
    this.#opened = { roundPhases, simulated };
    return simulated;
  }

  #chooser({ points }: SimulatedPipeline, members: readonly string[], policy: Policy) {
    const { wideRange, wideHeadroom, narrowRange, balanceSteps } = policy;
    const key = JSON.stringify([points.length, members, wideRange, wideHeadroom, narrowRange, balanceSteps]);
    const chooser = this.#choosers.get(key) ?? encodingChooser(points, this.#observations, members, policy);
    this.#choosers.set(key, chooser);
    return chooser;
  }

  /** Puts a task's adapter, rounded to the members' scales, in place of the original. */
  async #bindAdapter(
    simulated: SimulatedPipeline,
    task: string,
    members: readonly string[],
    { adapterBits, align }: Policy,
    headroom: number,
  ): Promise<void> {
    const factors = this.#factors.get(task);
    if (!factors) return;
    const key = JSON.stringify([task, members, adapterBits, align, headroom]);
    let encoded = this.#encoded.get(key);
    if (!encoded) {
      const from = members.map((member) => this.#factors.get(member)).filter((member) => member !== undefined);
      const scales = slotScales(from, this.#slots.slots, adapterBits, headroom, align);
      const { rank, values } = encodeAdapter(factors, this.#slots.slots, scales, adapterBits, align);
      encoded = { rank, values: [...values, ...(await this.#otherFactors(task, rank))] };
      this.#encoded.set(key, encoded);
    }
    simulated.setAdapter(task, encoded);
  }

  /** An adapter's factors for other components, such as the text encoder: they stay in full precision. */
  async #otherFactors(task: string, rank: number): Promise<SafetensorsInput[]> {
    const path = join(this.#sources.exposed, "adapters", `${task}.safetensors`);
    if (!existsSync(path)) return [];
    const own = new Set(this.#slots.slots.flatMap(({ inputA, inputB }) => [inputA, inputB]));
    const file = await openSafetensors(path);
    try {
      const given = Number(file.metadata["quad.rank"]);
      const tensors: SafetensorsInput[] = [];
      for (const [name, { shape }] of file.entries) {
        if (own.has(name)) continue;
        // Linear layers: A is [in, rank], B [rank, out].
        const axis = name.endsWith(".lora_A") ? shape.length - 1 : 0;
        tensors.push({ name, dtype: "F32", ...padAxis(await file.readFloat32(name), shape, axis, given, rank) });
      }
      return tensors;
    } finally {
      await file.close();
    }
  }
}

/** What a configuration says about widths is what variants vary. */
const plainWidths = { narrowShare: 0, narrowFloor: undefined, narrowEverything: false, keepWide: [] };

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Fills an axis up with zeros. */
function padAxis(data: Float32Array, shape: readonly number[], axis: number, from: number, to: number) {
  const padded = shape.map((size, index) => (index === axis ? to : size));
  const inner = shape.slice(axis + 1).reduce((product, size) => product * size, 1);
  const result = new Float32Array((data.length / from) * to);
  for (let row = 0; row * from * inner < data.length; row++) {
    result.set(data.subarray(row * from * inner, (row + 1) * from * inner), row * to * inner);
  }
  return { shape: padded, data: result };
}

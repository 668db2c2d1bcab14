import { join } from "node:path";
import { heldOutCases, type PreparedCase, prepareCase } from "../evaluate/cases.ts";
import { imageQuality } from "../evaluate/image-quality.ts";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { readImage, writeImage } from "../files/images.ts";
import { mean } from "../metrics/mean.ts";
import { alignBatches, shapeOf } from "../model/denoiser-calls.ts";
import { openFolder } from "../model/open-folder.ts";
import { widthsOf } from "../profile/activation-encodings.ts";
import { Bench, type Candidate, ownProfile, sharedProfile } from "../profile/bench.ts";
import { allocateShare, layerSensitivity, thin } from "../profile/sensitivity.ts";
import type { Figures } from "../records/ablation.ts";
import { readObservations } from "../records/observations.ts";
import { readTrajectory, type Trajectory } from "../records/trajectory.ts";
import type { BuildConfig } from "../settings/config.ts";
import { type Policy, policySchema } from "../settings/policy.ts";
import type { SimulatedPipeline } from "../simulate/simulated-pipeline.ts";
import type { Placement } from "../simulate/simulation-graph.ts";
import type { StageOptions } from "../work/progress.ts";
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
  threads?: number;
}

/** What is found once and holds for all variants. */
export interface Groundwork {
  /** The most sensitive adapter on its own profile. */
  anchor: string;
  /** Signal to noise with only this layer's inputs at 8 bits on the merged profile, dB; empty where no variant needs it. */
  sensitivity: Record<string, number>;
}

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
    const { steps, guidance } = pipeline.family.defaults;
    const defaults = { steps, guidance, ...pipeline.task(task) };
    const prepare = (request: (typeof picked)[number]) =>
      prepareCase(task, settings, request, defaults, pipeline.defaultSize);
    cases.set(task, await Promise.all(picked.map(prepare)));
  }
  return cases;
}

/** Draws the held-out cases in full precision into a folder. */
export async function drawReferences(
  sources: Omit<BenchSources, "references">,
  folder: string,
  { signal, onProgress }: StageOptions,
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
        onProgress?.("full precision", ++done, total);
      }
    }
  } finally {
    await pipeline.dispose();
  }
}

/** Measures variants of quantization in simulation, one after another. */
export class AblationBench {
  readonly #sources: BenchSources;
  readonly #bench: Bench;
  readonly #trajectories: Trajectory[];
  #cases: Map<string, PreparedCase[]> | undefined;
  #opened: { roundPhases: boolean; simulated: SimulatedPipeline } | undefined;

  private constructor(sources: BenchSources, bench: Bench, trajectories: Trajectory[]) {
    this.#sources = sources;
    this.#bench = bench;
    this.#trajectories = trajectories;
  }

  static async open(sources: BenchSources): Promise<AblationBench> {
    const model = await ExposedModel.open(sources.exposed);
    const trajectories = alignBatches(await Promise.all(sources.trajectories.map(readTrajectory)));
    const observations = await readObservations(sources.observations);
    const bench = await Bench.open(model, shapeOf(trajectories), Object.keys(sources.tasks), observations);
    return new AblationBench(sources, bench, trajectories);
  }

  /** The most sensitive adapter, each on its own profile with 16-bit activations. */
  async anchor({ signal, onProgress }: StageOptions = {}): Promise<string> {
    const simulated = await this.#simulate(false);
    const policy = this.#widePolicy();
    const wide = widthsOf(policy, new Set());
    const adapted = this.#trajectories.filter(({ task }) => this.#bench.factors.has(task));
    let most = { task: "", qss: -1 };
    for (const [index, trajectory] of adapted.entries()) {
      const { task } = trajectory;
      const calls = thin(trajectory, this.#sources.calls);
      const { qss } = await this.#bench.score(simulated, calls, ownProfile(task, policy), wide, signal);
      if (qss > most.qss) most = { task, qss };
      onProgress?.("sensitivity of adapters", index + 1, adapted.length);
    }
    return most.task;
  }

  /** Signal to noise with one layer's inputs narrow, dB, for every layer; on the merged profile. */
  async sensitivity({ signal, onProgress }: StageOptions = {}): Promise<Record<string, number>> {
    const simulated = await this.#simulate(false);
    const policy = this.#widePolicy();
    const tasks = this.#trajectories.map(({ task }) => task);
    const merged = sharedProfile(tasks, policy);
    for (const task of tasks) this.#bench.bind(simulated, task, merged);
    const encodingsFor = (narrow: ReadonlySet<string>) =>
      this.#bench.encodings(simulated.points, merged, widthsOf(policy, narrow));
    return layerSensitivity(simulated, this.#trajectories, encodingsFor, {
      calls: 8,
      signal,
      onProgress,
    });
  }

  /** Quality of one variant, by task. @param options.onStep - called after every picture */
  async measure(
    variant: Variant,
    { anchor, sensitivity }: Groundwork,
    { signal, onStep }: { signal?: AbortSignal; onStep?: () => void } = {},
  ): Promise<{ narrowLayers: number; tasks: Record<string, Figures> }> {
    const simulated = await this.#simulate(variant.roundPhases ?? false);
    const policy = policySchema.parse({ ...this.#sources.policy, ...plainWidths, ...variant.policy });
    const keepWide = policy.keepWide.map((pattern) => new RegExp(pattern));
    const layers = Object.fromEntries(simulated.layers.map(({ name }) => [name, sensitivity[name] ?? 0]));
    const narrow = allocateShare(layers, policy.narrowShare, keepWide);
    const widths = widthsOf(policy, narrow);
    this.#cases ??= await casesOf(this.#sources, simulated.pipeline);
    const everyTask = this.#trajectories.map(({ task }) => task);
    const candidates: Record<ProfileKind, (task: string) => Candidate> = {
      own: (task) => ownProfile(task, policy),
      anchor: () => sharedProfile([anchor], policy),
      unified: () => sharedProfile(everyTask, policy),
    };
    const tasks: Record<string, Figures> = {};
    for (const trajectory of this.#trajectories) {
      const { task } = trajectory;
      const candidate = candidates[variant.profile](task);
      const calls = thin(trajectory, this.#sources.calls);
      const scores = await this.#bench.score(simulated, calls, candidate, widths, signal);
      const qualities = [];
      for (const [index, { sourcePrompt: _, ...request }] of this.#cases.get(task)!.entries()) {
        const picture = await simulated.generate(task, request, signal);
        const reference = await readImage(join(this.#sources.references, referenceName(task, index)));
        qualities.push(imageQuality([reference], [picture]));
        onStep?.();
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
    const { policy, placement, threads } = this.#sources;
    const { weightBits, weightMethod } = policy;
    const simulated = await this.#bench.simulate({ placement, weightBits, weightMethod, roundPhases, threads });
    this.#opened = { roundPhases, simulated };
    return simulated;
  }
}

/** What a configuration says about widths is what variants vary. */
const plainWidths = { narrowShare: 0, narrowFloor: undefined, narrowEverything: false, keepWide: [] };

import type { Encoding } from "../quantization/index.ts";
import type { Trajectory } from "../records/trajectory.ts";
import type { SimulatedPipeline } from "../simulate/simulated-pipeline.ts";
import type { StageOptions } from "../work/progress.ts";
import { ScoreKeeper, type Scores } from "./scores.ts";

/** Scores of one task on given encodings, over its recorded calls. */
export async function scoreTask(
  simulated: SimulatedPipeline,
  { task, calls }: Trajectory,
  encodings: readonly Encoding[],
  signal?: AbortSignal,
): Promise<Scores> {
  simulated.setEncodings(encodings);
  await simulated.pipeline.use(task);
  const keeper = new ScoreKeeper();
  for (const call of calls) {
    signal?.throwIfAborted();
    keeper.add(call, await simulated.predict(call));
  }
  return keeper.scores();
}

/** `count` calls of a trajectory, in order: spread evenly over the time steps, and over the pictures in turn. */
export function thin({ task, calls }: Trajectory, count: number): Trajectory {
  if (calls.length <= count) return { task, calls };
  const pictures = new Map([...new Set(calls.map(({ caseIndex }) => caseIndex))].map((index, rank) => [index, rank]));
  // Every step starts with another picture: else a stride that divides the numbers of both would always meet the same.
  const rank = ({ step, caseIndex }: Trajectory["calls"][number]) =>
    step * pictures.size + ((pictures.get(caseIndex)! + step) % pictures.size);
  const ordered = calls.map((_, index) => index).sort((a, b) => rank(calls[a]) - rank(calls[b]));
  const picked = Array.from({ length: count }, (_, i) => ordered[Math.floor(((i + 0.5) * calls.length) / count)]);
  return { task, calls: picked.sort((a, b) => a - b).map((index) => calls[index]) };
}

export interface SensitivityOptions extends StageOptions {
  /** Calls per layer. */
  calls: number;
}

/**
 * Signal to noise with one layer's inputs at 8 bits and everything else wide, dB, for every layer; noise is that of all
 * tasks together. The calls are few: what counts is the order of the layers.
 * @param encodingsFor - encodings of all points for the layers that are narrow
 */
export async function layerSensitivity(
  simulated: SimulatedPipeline,
  trajectories: readonly Trajectory[],
  encodingsFor: (narrow: ReadonlySet<string>) => Encoding[],
  options: SensitivityOptions,
): Promise<Record<string, number>> {
  const perTask = Math.max(1, Math.floor(options.calls / trajectories.length));
  const samples = trajectories.map((trajectory) => thin(trajectory, perTask));
  const result: Record<string, number> = {};
  for (const [index, layer] of simulated.layers.entries()) {
    simulated.setEncodings(encodingsFor(new Set([layer.name])));
    const keeper = new ScoreKeeper();
    for (const { task, calls } of samples) {
      await simulated.pipeline.use(task);
      for (const call of calls) {
        options.signal?.throwIfAborted();
        keeper.add(call, await simulated.predict(call));
      }
    }
    result[layer.name] = keeper.scores().sqnr;
    options.onProgress?.("measuring layers", index + 1, simulated.layers.length);
  }
  return result;
}

/**
 * Layers to make narrow: the given share of all layers, those that lose least first.
 * @param sensitivity - signal to noise of each layer alone, dB: higher loses less
 * @param keepWide - layers that stay wide whatever the share
 */
export function allocateShare(
  sensitivity: Readonly<Record<string, number>>,
  share: number,
  keepWide: readonly RegExp[] = [],
): Set<string> {
  const names = Object.keys(sensitivity);
  const count = Math.round(share * names.length);
  const candidates = names.filter((name) => !keepWide.some((pattern) => pattern.test(name)));
  candidates.sort((a, b) => sensitivity[b] - sensitivity[a] || (a < b ? -1 : 1));
  return new Set(candidates.slice(0, count));
}

/**
 * As many narrow layers as a floor allows: layers are taken by what they gain (multiplications) per noise power they add,
 * until the sum of their noise powers would fall below the floor. Noise of layers adds up to first order.
 * @param floor - signal to noise of the whole, dB
 * @param gains - what each layer gains by being narrow, in any one unit
 */
export function allocateFloor(
  sensitivity: Readonly<Record<string, number>>,
  floor: number,
  gains: Readonly<Record<string, number>>,
  keepWide: readonly RegExp[] = [],
): Set<string> {
  const noise = (name: string) => 10 ** (-sensitivity[name] / 10);
  const budget = 10 ** (-floor / 10);
  const candidates = Object.keys(sensitivity).filter((name) => !keepWide.some((pattern) => pattern.test(name)));
  candidates.sort((a, b) => (gains[b] ?? 1) / noise(b) - (gains[a] ?? 1) / noise(a) || (a < b ? -1 : 1));
  const chosen = new Set<string>();
  let spent = 0;
  for (const name of candidates) {
    if (spent + noise(name) > budget) continue;
    spent += noise(name);
    chosen.add(name);
  }
  return chosen;
}

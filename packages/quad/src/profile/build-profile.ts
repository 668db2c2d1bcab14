import { InputError } from "@quad-lora/base";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { alignBatches, shapeOf } from "../model/denoiser-calls.ts";
import type { Encoding } from "../quantization/index.ts";
import { readObservations } from "../records/observations.ts";
import { type Profile, writeProfile } from "../records/profile.ts";
import { readTrajectory, type Trajectory } from "../records/trajectory.ts";
import type { Policy } from "../settings/policy.ts";
import type { SimulatedPipeline } from "../simulate/simulated-pipeline.ts";
import type { Placement } from "../simulate/simulation-graph.ts";
import type { StageOptions } from "../work/progress.ts";
import { widthsOf } from "./activation-encodings.ts";
import { Bench, type Candidate, mixedProfile, ownProfile, sharedProfile } from "./bench.ts";
import type { Scores } from "./scores.ts";
import { allocateFloor, allocateShare, layerSensitivity, thin } from "./sensitivity.ts";
import { chooseStrategy } from "./strategy.ts";

/** What {@link buildProfile} reads, writes and measures on. */
export interface ProfileOptions extends StageOptions {
  exposed: string;
  /** Trajectory files of all tasks that share the profile, the base among them if it is to be used. */
  trajectories: readonly string[];
  observations: string;
  out: string;
  policy: Policy;
  placement: Placement;
  /** Calls per task that scores are taken over. */
  scoreCalls?: number;
  /** Calls per layer that the sensitivity of layers is taken over. */
  sensitivityCalls?: number;
}

/**
 * Stage: exposed folder, trajectories and observations -> profile. Scores every task on its own profile (QSS), takes the
 * most sensitive one as anchor, merges all (Unified-LoRA) or takes each point's range from whom the worst task needs, and fixes
 * the encodings that every adapter shares.
 */
export async function buildProfile(options: ProfileOptions): Promise<Profile> {
  const model = await ExposedModel.open(options.exposed);
  const trajectories = alignBatches(await Promise.all(options.trajectories.map(readTrajectory)));
  const shape = shapeOf(trajectories);
  const names = trajectories.map(({ task }) => task);
  const bench = await Bench.open(model, shape, names, await readObservations(options.observations));
  if (bench.factors.size === 0) {
    const what = "none of the tasks has an adapter";
    throw new InputError({ what, file: options.exposed, fix: "Calibrate at least one." });
  }
  const { policy, placement } = options;
  const { weightBits, weightMethod } = policy;
  const simulated = await bench.simulate({ placement, weightBits, weightMethod });
  try {
    const calls = trajectories.map((trajectory) => thin(trajectory, options.scoreCalls ?? 32));
    const trial: Trial = { bench, simulated, trajectories: calls, options };
    const { scores, shared, strategy, candidate } = await chooseCandidate(trial);
    const { sensitivity, narrow } = await chooseNarrow(trial, candidate);
    const encodings = bench.encodings(simulated.points, candidate, widthsOf(policy, narrow));
    const profile: Profile = {
      format: "quad-profile",
      version: 1,
      component: model.component,
      graph: await model.identity(),
      placement,
      shape,
      rank: bench.rank,
      policy,
      strategy,
      scores,
      shared,
      narrowLayers: simulated.layers.map(({ name }) => name).filter((name) => narrow.has(name)),
      layerSensitivity: sensitivity,
      points: Object.fromEntries(simulated.points.map(({ name }, index) => [name, toJson(encodings[index])])),
      slots: Object.fromEntries(bench.scales(candidate)),
    };
    await writeProfile(options.out, profile);
    return profile;
  } finally {
    await simulated.dispose();
  }
}

/** What candidates for the shared profile are measured with. */
interface Trial {
  bench: Bench;
  simulated: SimulatedPipeline;
  /** The calls that scores are taken over. */
  trajectories: readonly Trajectory[];
  options: ProfileOptions;
}

/** Scores all tasks on profiles of their own and on the shared ones, and says which of these it is to be. */
async function chooseCandidate(trial: Trial) {
  const { bench, trajectories, options } = trial;
  const { policy } = options;
  const scores = await scoreTasks(trial, "scoring sensitivity", (task) => ownProfile(task, policy));
  const ranking = Object.entries(scores).sort(([, a], [, b]) => b.qss - a.qss);
  const anchor = ranking.find(([name]) => bench.factors.has(name))![0];
  const all = trajectories.map(({ task }) => task);
  const candidates = {
    anchor: sharedProfile([anchor], policy),
    unified: sharedProfile(all, policy),
    mixed: mixedProfile(all, policy),
  };
  const shared: Profile["shared"] = {};
  for (const [kind, candidate] of Object.entries(candidates)) {
    shared[kind] = await scoreTasks(trial, `scoring ${kind}`, () => candidate);
  }
  const strategy = chooseStrategy(policy, { scores, shared, anchor });
  return { scores, shared, strategy, candidate: candidates[strategy.kind] };
}

/** Every task on the profile that `candidateOf` gives it, with 16-bit activations: the paper's sensitivity score. */
async function scoreTasks(
  { bench, simulated, trajectories, options: { policy, signal, onProgress } }: Trial,
  stage: string,
  candidateOf: (task: string) => Candidate,
): Promise<Record<string, Scores>> {
  const wide = widthsOf(policy, new Set());
  const scores: Record<string, Scores> = {};
  for (const [index, trajectory] of trajectories.entries()) {
    const { task } = trajectory;
    scores[task] = await bench.score(simulated, trajectory, candidateOf(task), wide, signal);
    onProgress?.(stage, index + 1, trajectories.length);
  }
  return scores;
}

/** The layers whose inputs have 8 bits; they are measured only where the policy asks for some of them. */
async function chooseNarrow(
  { bench, simulated, trajectories, options }: Trial,
  candidate: Candidate,
): Promise<{ sensitivity: Record<string, number>; narrow: Set<string> }> {
  const { policy, sensitivityCalls = 8, signal, onProgress } = options;
  const { narrowFloor, narrowShare } = policy;
  const keepWide = policy.keepWide.map((pattern) => new RegExp(pattern));
  if (narrowFloor === undefined && (narrowShare <= 0 || narrowShare >= 1)) {
    const equal = Object.fromEntries(simulated.layers.map(({ name }) => [name, 0]));
    return { sensitivity: {}, narrow: allocateShare(equal, narrowShare, keepWide) };
  }
  for (const name of bench.factors.keys()) bench.bind(simulated, name, candidate);
  const encodingsFor = (chosen: ReadonlySet<string>) =>
    bench.encodings(simulated.points, candidate, widthsOf(policy, chosen));
  const sensitivity = await layerSensitivity(simulated, trajectories, encodingsFor, {
    calls: sensitivityCalls,
    signal,
    onProgress,
  });
  const narrow =
    narrowFloor === undefined
      ? allocateShare(sensitivity, narrowShare, keepWide)
      : allocateFloor(sensitivity, narrowFloor, gainsOf(simulated), keepWide);
  return { sensitivity, narrow };
}

function toJson({ bits, scale, zeroPoint }: Encoding): Profile["points"][string] {
  return { bits: bits === 16 ? 16 : 8, scale: scale[0], zeroPoint: zeroPoint[0] };
}

/** Multiplications are about proportional to weights within one resolution; products of activations count as the median. */
function gainsOf(simulated: SimulatedPipeline): Record<string, number> {
  const weighted = simulated.layers.map(({ parameters }) => parameters).filter(Boolean);
  const median = weighted.sort((a, b) => a - b)[weighted.length >> 1] ?? 1;
  return Object.fromEntries(simulated.layers.map(({ name, parameters }) => [name, parameters || median]));
}

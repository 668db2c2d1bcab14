import { InputError } from "@quad-lora/base";
import { loadModel } from "@quad-lora/onnx";
import { alignBatches, shapeOf } from "../calibrate/calibrate.ts";
import { type AdapterFactors, encodeAdapter, type SlotScales, slotScales } from "../factors/encode-factors.ts";
import { graphIdentity, loadFactors } from "../factors/load-factors.ts";
import { componentFile } from "../model/model-folder.ts";
import { denoiserSlots } from "../model/slots.ts";
import { prepareGraph } from "../quantizable/prepare-graph.ts";
import type { Encoding } from "../quantization/index.ts";
import { type Observations, readObservations } from "../records/observations.ts";
import { type Profile, writeProfile } from "../records/profile.ts";
import { readTrajectory, type Trajectory } from "../records/trajectory.ts";
import type { Policy } from "../settings/policy.ts";
import { SimulatedPipeline } from "../simulate/simulated-pipeline.ts";
import type { Placement } from "../simulate/simulation-graph.ts";
import { chooseEncodings, encodingChooser, type Widths, widthsOf } from "./activation-encodings.ts";
import type { Scores } from "./scores.ts";
import { allocateFloor, allocateShare, layerSensitivity, scoreTask, thin } from "./sensitivity.ts";

/** What {@link buildProfile} reads, writes and measures on. */
export interface ProfileOptions {
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
  signal?: AbortSignal;
  onProgress?: (stage: string, done: number, total: number) => void;
}

/** What all candidates for the shared profile are made from. */
interface Workbench {
  simulated: SimulatedPipeline;
  observations: Observations;
  trajectories: Trajectory[];
  factors: Map<string, AdapterFactors>;
  slots: Awaited<ReturnType<typeof denoiserSlots>>["slots"];
  policy: Policy;
  signal?: AbortSignal;
}

/**
 * Stage: exposed folder, trajectories and observations -> profile. Scores every task on its own profile (QSS), takes the
 * most sensitive one as anchor or merges all (Unified-LoRA) when they are about equal, and fixes the encodings that every
 * adapter shares.
 */
export async function buildProfile(options: ProfileOptions): Promise<Profile> {
  const { exposed, policy, placement, signal, onProgress } = options;
  const { component, slots } = await denoiserSlots(exposed);
  const trajectories = alignBatches(await Promise.all(options.trajectories.map(readTrajectory)));
  const shape = shapeOf(trajectories);
  const observations = await readObservations(options.observations);
  const names = trajectories.map(({ task }) => task);
  const { factors, rank } = await loadFactors(exposed, slots, names);
  if (factors.size === 0) {
    throw new InputError({ what: "none of the tasks has an adapter", file: exposed, fix: "Calibrate at least one." });
  }
  const prepared = await prepareGraph(loadModel(componentFile(exposed, component)), slots, shape);
  const { weightBits, weightMethod } = policy;
  const simulated = await SimulatedPipeline.open(exposed, component, prepared, slots, {
    placement,
    weightBits,
    weightMethod,
  });
  try {
    const scored = trajectories.map((trajectory) => thin(trajectory, options.scoreCalls ?? 32));
    const bench: Workbench = {
      simulated,
      observations,
      trajectories: scored,
      factors,
      slots,
      policy,
      signal,
    };
    const wide = widthsOf(policy, new Set());
    const scores = await scoreOwn(bench, wide, onProgress);
    const ranking = [...Object.entries(scores)].sort(([, a], [, b]) => b.qss - a.qss);
    const anchor = ranking.find(([name]) => factors.has(name))![0];
    const shared: Profile["shared"] = {};
    const members = { anchor: [anchor], unified: names };
    for (const [kind, tasks] of Object.entries(members)) {
      shared[kind] = await scoreShared(bench, tasks, wide, (done, total) =>
        onProgress?.(`scoring ${kind}`, done, total),
      );
    }
    const strategy = chooseStrategy(policy, scores, anchor);
    const tasks = members[strategy.kind];
    const scales = sharedScales(bench, tasks);
    const needsOrder = policy.narrowFloor !== undefined || (policy.narrowShare > 0 && policy.narrowShare < 1);
    for (const [name, given] of needsOrder ? factors : []) {
      simulated.setAdapter(name, encodeAdapter(given, slots.slots, scales, policy.adapterBits, policy.align));
    }
    const keepWide = policy.keepWide.map((pattern) => new RegExp(pattern));
    const encodingsFor = encodingChooser(simulated.points, observations, tasks, policy);
    const sensitivity = needsOrder
      ? await layerSensitivity(simulated, scored, (narrow) => encodingsFor(widthsOf(policy, narrow)), {
          calls: options.sensitivityCalls ?? 8,
          signal,
          onProgress,
        })
      : {};
    const narrow = needsOrder
      ? policy.narrowFloor !== undefined
        ? allocateFloor(sensitivity, policy.narrowFloor, gainsOf(simulated), keepWide)
        : allocateShare(sensitivity, policy.narrowShare, keepWide)
      : allocateShare(Object.fromEntries(simulated.layers.map(({ name }) => [name, 0])), policy.narrowShare, keepWide);
    const encodings = encodingsFor(widthsOf(policy, narrow));
    const profile: Profile = {
      format: "quad-profile",
      version: 1,
      component,
      graph: await graphIdentity(exposed, component),
      placement,
      shape,
      rank,
      policy,
      strategy,
      scores,
      shared,
      narrowLayers: simulated.layers.map(({ name }) => name).filter((name) => narrow.has(name)),
      layerSensitivity: sensitivity,
      points: Object.fromEntries(simulated.points.map(({ name }, index) => [name, toJson(encodings[index])])),
      slots: Object.fromEntries(scales),
    };
    await writeProfile(options.out, profile);
    return profile;
  } finally {
    await simulated.dispose();
  }
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

/** Scales of the adapter factors, with headroom, from the adapters among the tasks that define the profile. */
function sharedScales({ factors, slots, policy }: Workbench, tasks: readonly string[]): Map<string, SlotScales> {
  const members = tasks.map((task) => factors.get(task)).filter((member) => member !== undefined);
  return slotScales(members, slots.slots, policy.adapterBits, policy.headroom, policy.align);
}

/** Every task on the profile it would have on its own: the upper bound, and the paper's sensitivity score. */
async function scoreOwn(
  bench: Workbench,
  widths: Widths,
  onProgress?: ProfileOptions["onProgress"],
): Promise<Record<string, Scores>> {
  const { simulated, observations, policy, slots } = bench;
  const scores: Record<string, Scores> = {};
  for (const [index, trajectory] of bench.trajectories.entries()) {
    const given = bench.factors.get(trajectory.task);
    if (given) {
      const scales = slotScales([given], slots.slots, policy.adapterBits, 1, policy.align);
      simulated.setAdapter(
        trajectory.task,
        encodeAdapter(given, slots.slots, scales, policy.adapterBits, policy.align),
      );
    }
    const encodings = chooseEncodings(simulated.points, observations, [trajectory.task], widths, policy);
    scores[trajectory.task] = await scoreTask(simulated, trajectory, encodings, bench.signal);
    onProgress?.("scoring sensitivity", index + 1, bench.trajectories.length);
  }
  return scores;
}

/** Every task on a profile taken from `members`. */
async function scoreShared(
  bench: Workbench,
  members: readonly string[],
  widths: Widths,
  onProgress: (done: number, total: number) => void,
): Promise<Record<string, Scores>> {
  const { simulated, observations, policy, slots } = bench;
  const encodings = chooseEncodings(simulated.points, observations, members, widths, policy);
  const scales = sharedScales(bench, members);
  const scores: Record<string, Scores> = {};
  for (const [index, trajectory] of bench.trajectories.entries()) {
    const given = bench.factors.get(trajectory.task);
    if (given) {
      simulated.setAdapter(
        trajectory.task,
        encodeAdapter(given, slots.slots, scales, policy.adapterBits, policy.align),
      );
    }
    scores[trajectory.task] = await scoreTask(simulated, trajectory, encodings, bench.signal);
    onProgress(index + 1, bench.trajectories.length);
  }
  return scores;
}

/** The profile that all share: the most sensitive adapter's, or all merged when scores are about equal. */
export function chooseStrategy(policy: Policy, scores: Record<string, Scores>, anchor: string): Profile["strategy"] {
  const values = Object.values(scores).map(({ qss }) => qss);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const spread = most > 0 ? (most - least) / most : 0;
  const percent = (share: number) => `${(100 * share).toFixed(0)} %`;
  if (policy.strategy !== "auto") {
    const kind = policy.strategy;
    return {
      kind,
      anchor: kind === "anchor" ? anchor : null,
      reason: `forced by the policy; scores spread by ${percent(spread)}`,
    };
  }
  if (spread < policy.unifiedThreshold) {
    const reason = `scores spread by ${percent(spread)}, less than ${percent(policy.unifiedThreshold)}: all are merged`;
    return { kind: "unified", anchor: null, reason };
  }
  const reason = `"${anchor}" is the most sensitive adapter and scores spread by ${percent(spread)}, at least ${percent(policy.unifiedThreshold)}`;
  return { kind: "anchor", anchor, reason };
}

import type { Evaluation, ResultSummary, TaskNoise } from "../records/evaluation.ts";
import type { Profile } from "../records/profile.ts";
import { fixed, listed, percent } from "./format.ts";

/** `good`: holds; `fair`: differences can be seen; `poor`: suffers. */
export type Level = "good" | "fair" | "poor";

/** What the report says of one task, in sentences. */
export interface Finding {
  task: string;
  level: Level;
  psnr: number;
  ssim: number;
  /** One sentence with the figures. */
  verdict: string;
  /** The largest single cause and its remedy in one sentence, where causes were measured. */
  brief: string;
  causes: string[];
  advice: string[];
}

/** The rules' limits; the report prints them. */
export const limits = {
  /** dB; what the paper reports for object removal after training is 33.04. */
  goodPsnr: 33,
  goodSsim: 0.95,
  poorPsnr: 25,
  poorSsim: 0.85,
  /** dB between variants that count as a difference. */
  difference: 1,
  /** Share of a task's values at a layer that counts as clipping. */
  clipped: 0.001,
  /** Layers that a sentence names. */
  layers: 3,
} as const;

/** What each cause adds to a task's error, as shares of their sum, largest first. */
export interface CauseShare {
  cause: "weights" | "adapter" | "between" | "layer";
  /** For `layer`. */
  layer?: string;
  share: number;
}

export function causeShares({ weights, adapter, between, layers }: TaskNoise): CauseShare[] {
  const parts: { cause: CauseShare["cause"]; layer?: string; noise: number }[] = [
    { cause: "weights", noise: weights },
    { cause: "adapter", noise: adapter },
    { cause: "between", noise: between ?? 0 },
    ...Object.entries(layers).map(([layer, noise]) => ({ cause: "layer" as const, layer, noise })),
  ];
  const total = parts.reduce((sum, { noise }) => sum + noise, 0) || 1;
  return parts
    .map(({ noise, ...part }) => ({ ...part, share: noise / total }))
    .sort((a, b) => b.share - a.share || (a.layer ?? "").localeCompare(b.layer ?? ""));
}

/** Findings of all tasks, the worst first. */
export function findAll(evaluation: Evaluation, profile: Profile | null, trained: ReadonlySet<string>): Finding[] {
  return evaluation.tasks
    .flatMap(({ task, adapters, results }) => {
      const summary = results.candidate?.summary;
      if (!summary) return [];
      const canTrain = Object.keys(adapters).length > 0;
      return [findTask(task, summary, { evaluation, profile, canTrain, isTrained: trained.has(task) })];
    })
    .sort((a, b) => a.psnr - b.psnr);
}

interface Context {
  evaluation: Evaluation;
  profile: Profile | null;
  /** Whether the task has an adapter. */
  canTrain: boolean;
  isTrained: boolean;
}

export function levelOf(psnr: number, ssim: number): Level {
  if (psnr < limits.poorPsnr || ssim < limits.poorSsim) return "poor";
  return psnr >= limits.goodPsnr && ssim >= limits.goodSsim ? "good" : "fair";
}

function findTask(task: string, { metrics }: ResultSummary, context: Context): Finding {
  const psnr = metrics.psnr.mean;
  const ssim = metrics.ssim.mean;
  const level = levelOf(psnr, ssim);
  const verdict = `PSNR ${fixed(psnr, 1)} dB (worst picture ${fixed(metrics.psnr.worst, 1)}), SSIM ${fixed(ssim, 3)}`;
  const finding: Finding = { task, level, psnr, ssim, verdict, brief: "", causes: [], advice: [] };
  compareVariants(finding, context);
  const noise = context.evaluation.noise?.tasks[task];
  if (noise) explainNoise(finding, noise, context);
  if (level === "good") finding.advice = ["Nothing to do."];
  else if (finding.advice.length === 0) {
    finding.advice.push(
      noise
        ? "No single cause stands out: distil what can be trained."
        : "Measure the layers: run quad eval on a bundle, without --no-simulate.",
    );
  }
  return finding;
}

/** What sharing costs and training brings, from the simulated variants. */
function compareVariants(finding: Finding, { evaluation, profile, canTrain, isTrained }: Context): void {
  const { task, psnr } = finding;
  const results = evaluation.tasks.find((entry) => entry.task === task)!.results;
  const psnrOf = (variant: string) => results[variant]?.summary?.metrics.psnr.mean;
  const [untrained, own] = [psnrOf("untrained"), psnrOf("own")];
  if (untrained !== undefined && isTrained) {
    const gain = psnr - untrained;
    finding.causes.push(
      `Training ${gain >= 0 ? "brought" : "cost"} ${fixed(Math.abs(gain), 1)} dB against the shared profile without it.`,
    );
  }
  if (untrained === undefined || own === undefined) return;
  const sharing = own - untrained;
  if (sharing < limits.difference) {
    finding.causes.push("Sharing one profile costs it nothing that counts: a profile of its own would be no better.");
    return;
  }
  finding.causes.push(`Sharing one profile costs it ${fixed(sharing, 1)} dB against a profile of its own.`);
  if (own - psnr < limits.difference) return;
  if (canTrain) {
    finding.advice.push(
      isTrained ? "Train longer: its own profile is still better." : "Distil this adapter on the shared profile.",
    );
  }
  if (!profile) return;
  const sqnrOf = (kind: string) => profile.shared[kind]?.[task]?.sqnr ?? Number.NaN;
  const gains = Object.keys(profile.shared).map((kind) => ({
    kind,
    gain: sqnrOf(kind) - sqnrOf(profile.strategy.kind),
  }));
  const [best] = gains.filter(({ gain }) => gain >= limits.difference).sort((a, b) => b.gain - a.gain);
  if (best) {
    finding.advice.push(
      `Share ranges in another way, \`policy.strategy: "${best.kind}"\`: calibration found ${fixed(best.gain, 1)} dB more for this task.`,
    );
  }
}

function explainNoise(finding: Finding, noise: TaskNoise, context: Context): void {
  const { ranges } = context.evaluation;
  const shares = causeShares(noise);
  const layers = shares.filter(({ cause }) => cause === "layer");
  const ofLayers = layers.reduce((sum, { share }) => sum + share, 0);
  const shareOf = (cause: CauseShare["cause"]) => shares.find((part) => part.cause === cause)?.share ?? 0;
  const worst = layers.slice(0, limits.layers).filter(({ share }) => share > 0);
  const others = { weights: shareOf("weights"), adapter: shareOf("adapter"), between: shareOf("between") };
  const [largest, largestShare] = Object.entries(others).sort(([, a], [, b]) => b - a)[0];
  const named = (list: readonly CauseShare[]) =>
    listed(list.map(({ layer, share }) => `\`${layer}\` (${percent(share)})`));
  if (ofLayers < largestShare) {
    const { cause, advice } = words(largest as keyof typeof others, context.canTrain);
    const alone = worst[0] ? ` The layer that costs most is ${named(worst.slice(0, 1))}.` : "";
    finding.brief = `${percent(largestShare)} of its error comes from ${cause}. ${advice}`;
    finding.causes.push(`${percent(largestShare)} of its error comes from ${cause}.${alone}`);
    if (!finding.advice.includes(advice)) finding.advice.push(advice);
    return;
  }
  finding.causes.push(
    `${percent(ofLayers)} of its error comes from rounding the inputs of layers, most of it at ${named(worst)}.`,
  );
  if (worst.length === 0) return;
  const [{ layer, share }] = worst;
  const remedy = clippedAt(finding.task, layer!, ranges) >= limits.clipped ? "widen its range" : "keep it at 16 bits";
  finding.brief = `The layer that costs most is \`${layer}\`, with ${percent(share)} of the error: ${remedy}.`;
  const clipping = worst.filter(({ layer }) => clippedAt(finding.task, layer!, ranges) >= limits.clipped);
  if (clipping.length > 0) {
    const clipped = clipping.map(
      ({ layer }) => `\`${layer}\` (${percent(clippedAt(finding.task, layer!, ranges))} clipped)`,
    );
    finding.advice.push(
      `Widen the ranges of ${listed(clipped)}: calibrate with more cases of this task, or let all tasks define the profile.`,
    );
  }
  const narrow = worst.filter(({ layer }) => context.profile?.narrowLayers.includes(layer!) ?? true);
  if (narrow.length > 0) {
    const left = 1 - narrow.reduce((sum, { share }) => sum + share, 0);
    const patterns = narrow.map(({ layer }) => `"^${layer}$"`).join(", ");
    finding.advice.push(
      `Keep the worst layers at 16 bits: \`policy.keepWide: [${patterns}]\` takes away about ${fixed(-10 * Math.log10(Math.max(left, 1e-6)), 1)} dB of the denoiser's error.`,
    );
  }
}

function words(cause: "weights" | "adapter" | "between", canTrain: boolean): { cause: string; advice: string } {
  if (cause === "weights") {
    return {
      cause: "rounding the base's weights, which all tasks share",
      advice: canTrain
        ? "Distil this adapter: training can make up for rounded weights."
        : 'Find other weight scales (`policy.weightMethod: "mse"`): there is no adapter here to train.',
    };
  }
  if (cause === "adapter") {
    return {
      cause: "rounding the adapter's own factors",
      advice: "Set `policy.adapterBits` to 16, lower `policy.headroom`, or distil this adapter.",
    };
  }
  return {
    cause: "rounding values between the layers",
    advice:
      "Leave values between the layers at 16 bits (`policy.narrowEverything: false`), with a larger `policy.wideHeadroom` if they clip.",
  };
}

/** Largest share of a task's values, over groups of time steps, that the shared grid clips at a layer's inputs. */
export function clippedAt(task: string, layer: string, ranges: Evaluation["ranges"]): number {
  const points = ranges?.points.filter((point) => point.layer === layer) ?? [];
  return Math.max(0, ...points.flatMap(({ tasks }) => tasks[task] ?? []).map(({ clipped }) => clipped));
}

/** The report's first sentences. */
export function overview(findings: readonly Finding[]): string {
  const good = findings.filter(({ level }) => level === "good").length;
  const all = findings.length;
  if (all === 0) return "No task was compared.";
  if (good === all) return all === 1 ? "The task holds." : `All ${all} tasks hold.`;
  const { task, verdict, brief, advice } = findings[0];
  return `${good} of ${all} tasks hold. The worst is ${task}: ${verdict}. ${brief || advice[0]}`;
}

import type { Profile } from "../records/profile.ts";
import type { Policy } from "../settings/policy.ts";
import type { Scores } from "./scores.ts";

/** What a choice is made from. */
export interface Scored {
  /** Every task on a profile of its own. */
  scores: Readonly<Record<string, Scores>>;
  /** Every task on each of the shared profiles, by strategy. */
  shared: Profile["shared"];
  /** The most sensitive adapter. */
  anchor: string;
}

type Kind = Profile["strategy"]["kind"];

/** The shared profile that a policy asks for, and why. */
export function chooseStrategy(policy: Policy, scored: Scored): Profile["strategy"] {
  const { strategy } = policy;
  if (strategy === "auto") return measured(scored);
  if (strategy === "paper") return byThePaper(policy, scored);
  return { kind: strategy, anchor: anchorOf(strategy, scored), reason: "forced by the policy" };
}

function anchorOf(kind: Kind, { anchor }: Scored): string | null {
  return kind === "anchor" ? anchor : null;
}

/** The one under which the worst task is nearest to full precision, before distillation; the first among equals. */
function measured(scored: Scored): Profile["strategy"] {
  const worst = Object.entries(scored.shared).map(([kind, scores]) => {
    const [[task, { sqnr }]] = Object.entries(scores).sort(([, a], [, b]) => decibels(a.sqnr) - decibels(b.sqnr));
    return { kind: kind as Kind, task, sqnr: decibels(sqnr) };
  });
  const best = worst.reduce((chosen, other) => (other.sqnr > chosen.sqnr ? other : chosen));
  const others = worst.filter(({ kind }) => kind !== best.kind);
  const shown = (value: number) => (value === Number.POSITIVE_INFINITY ? "exact" : `${value.toFixed(1)} dB`);
  const reason =
    `measured: its worst task, "${best.task}", has ${shown(best.sqnr)}; ` +
    others.map(({ kind, task, sqnr }) => `${kind} would leave "${task}" at ${shown(sqnr)}`).join(", ");
  return { kind: best.kind, anchor: anchorOf(best.kind, scored), reason };
}

/** No noise at all is written as null. */
function decibels(sqnr: number | null): number {
  return sqnr ?? Number.POSITIVE_INFINITY;
}

/** The most sensitive adapter's, or all merged when scores are about equal (section 3 of the paper). */
function byThePaper({ unifiedThreshold }: Policy, scored: Scored): Profile["strategy"] {
  const values = Object.values(scored.scores).map(({ qss }) => qss);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const spread = most > 0 ? (most - least) / most : 0;
  const percent = (share: number) => `${(100 * share).toFixed(0)} %`;
  if (spread < unifiedThreshold) {
    const reason = `scores spread by ${percent(spread)}, less than ${percent(unifiedThreshold)}: all are merged`;
    return { kind: "unified", anchor: null, reason };
  }
  const reason = `"${scored.anchor}" is the most sensitive adapter and scores spread by ${percent(spread)}, at least ${percent(unifiedThreshold)}`;
  return { kind: "anchor", anchor: scored.anchor, reason };
}

import { InputError } from "@quad-lora/base";
import type { QuantizationPoint } from "../quantizable/points.ts";
import type { Profile } from "../records/profile.ts";

/** Points that share a scale, and so one trained factor. */
export interface RangeGroup {
  /** Names of the points. */
  points: string[];
  /** Their scale before training. */
  scale: number;
}

/**
 * The 8-bit points of a profile, by what they have in common: points that read the same value with the same encoding stay
 * equal, so that a compiled graph still quantizes that value once.
 * @throws InputError where the profile has no 8-bit point
 */
export function rangeGroups(points: readonly QuantizationPoint[], profile: Profile): RangeGroup[] {
  const groups = new Map<string, RangeGroup>();
  for (const { name, observed } of points) {
    const point = profile.points[name];
    if (point?.bits !== 8) continue;
    const { scale, zeroPoint } = point;
    const key = JSON.stringify([observed, scale, zeroPoint]);
    const group = groups.get(key) ?? { points: [], scale };
    groups.set(key, group);
    group.points.push(name);
  }
  if (groups.size > 0) return [...groups.values()];
  throw new InputError({
    what: "the profile has no 8-bit activations whose ranges could be trained",
    fix: "Set policy.narrowShare or policy.narrowFloor, or leave tuning out.",
  });
}

/**
 * The profile with `scale exp(factor)` for every group. Zero points and widths stay, so the range
 * `[-z scale, (255 - z) scale]` grows and shrinks as a whole.
 * @param factors - logarithms, by group; where one is 0 the scale stays exactly what it was
 */
export function withFactors(profile: Profile, groups: readonly RangeGroup[], factors: Float32Array): Profile {
  const points = { ...profile.points };
  groups.forEach(({ points: names, scale }, index) => {
    const trained = factors[index] === 0 ? scale : Math.fround(Math.fround(scale) * Math.exp(factors[index]));
    for (const name of names) points[name] = { ...points[name], scale: trained };
  });
  return { ...profile, points };
}

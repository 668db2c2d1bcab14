import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Task } from "@quad-lora/runtime";
import { ExposedModel } from "../exposed/exposed-model.ts";
import { hashFile } from "../files/hash.ts";
import { allocateShare } from "../profile/sensitivity.ts";
import type { Evaluation, VariantInfo } from "../records/evaluation.ts";
import { readObservations } from "../records/observations.ts";
import { type Profile, readProfile } from "../records/profile.ts";
import type { BuildConfig } from "../settings/config.ts";
import { findObservations } from "../stages/build.ts";
import { strictestTarget } from "../targets/index.ts";
import type { HashCache } from "../work/hash-tree.ts";
import type { StageOptions } from "../work/progress.ts";
import type { Drawer } from "./pictures.ts";
import { exposeCached, findExposed } from "./reference.ts";
import { Simulations } from "./simulations.ts";

export interface FindOptions extends StageOptions {
  against: string;
  config: BuildConfig;
  profile?: string | undefined;
  observations?: string | undefined;
  simulate?: false | readonly SimulatedVariant[] | undefined;
  cache: string;
  hashes: HashCache;
  /** With false, a folder that would have to be exposed first counts as none. */
  mayExpose?: boolean;
}

/** What simulation needs, where it is all there; what is missing goes into the notes. */
export async function findSimulation(
  candidate: string,
  reference: { folder: string; adapters: Readonly<Record<string, string>> },
  tasks: ReadonlyMap<string, Readonly<Task>>,
  options: FindOptions,
  notes: string[],
): Promise<Simulations | null> {
  if (options.simulate === false) return null;
  const profilePath = options.profile ?? join(candidate, "profile.json");
  if (!existsSync(profilePath)) {
    notes.push("Nothing was simulated: the evaluated folder has no profile.json; give --profile.");
    return null;
  }
  const profile = await readProfile(profilePath);
  const folder = await matchingFolder(profile, reference, options);
  if (!folder) {
    notes.push(
      "Nothing was simulated: the profile was made for another graph than the reference's with these adapters.",
    );
    return null;
  }
  const observationsPath = options.observations ?? (await findObservations(options.config));
  const observations = observationsPath ? await readObservations(observationsPath) : null;
  const observationsHash = observationsPath ? await hashFile(observationsPath) : null;
  if (!observations) {
    notes.push(
      "There are no observations of the configuration as it is now: own profiles, everything at 8 bits, other shares and clipped ranges are left out; give --observations.",
    );
  }
  return Simulations.open({ folder, profile, observations, observationsHash, tasks });
}

/** The exposed folder whose graph the profile names: the reference, or one without adapters that came later. */
async function matchingFolder(
  profile: Profile,
  reference: { folder: string; adapters: Readonly<Record<string, string>> },
  options: FindOptions,
): Promise<string | null> {
  if (await (await ExposedModel.open(reference.folder)).isOf(profile)) return reference.folder;
  if (existsSync(join(options.against, "slots.json"))) return null;
  const find = options.mayExpose === false ? findExposed : exposeCached;
  const folder = await find(options.against, options.config.adapters, options);
  if (!folder) return null;
  return (await (await ExposedModel.open(folder)).isOf(profile)) ? folder : null;
}

/** One column of the contact sheet, or one row of the ablation table. */
export interface DrawnVariant {
  info: VariantInfo;
  drawer: Drawer;
  /** For the ablation table. */
  ablation?: { share: number | null; narrowLayers: number };
}

/** A share of layers to make narrow, and which these are. */
export interface NarrowShare {
  share: number;
  layers: ReadonlySet<string>;
}

/**
 * The layers that each share makes narrow: those that lose least, by the profile's own measurement or, where it has none, by
 * the noise that each layer was found to add.
 */
export function sharesOf(
  { sources: { profile } }: Simulations,
  noise: Evaluation["noise"],
  shares: readonly number[] = [],
  notes: string[],
): NarrowShare[] {
  if (shares.length === 0) return [];
  const sensitivity: Record<string, number> = { ...profile.layerSensitivity };
  if (Object.keys(sensitivity).length === 0) {
    const sums: Record<string, number> = {};
    for (const { layers } of Object.values(noise?.tasks ?? {})) {
      for (const [layer, value] of Object.entries(layers)) sums[layer] = (sums[layer] ?? 0) + value;
    }
    for (const [layer, sum] of Object.entries(sums)) sensitivity[layer] = -10 * Math.log10(Math.max(sum, 1e-30));
  }
  if (Object.keys(sensitivity).length === 0) {
    notes.push("Shares of 8-bit layers are left out: layers were not measured; leave out --layer-calls 0.");
    return [];
  }
  const keepWide = profile.policy.keepWide.map((pattern) => new RegExp(pattern));
  return shares.map((share) => ({ share, layers: allocateShare(sensitivity, share, keepWide) }));
}

/** Alternatives by name: the shared profile without training, a profile per task, every activation at 8 bits. */
export type SimulatedVariant = "untrained" | "own" | "all8";

/** The alternatives that a bundle is shown beside. */
export function simulatedVariants(
  simulations: Simulations,
  shares: readonly NarrowShare[],
  wanted: readonly SimulatedVariant[] = ["untrained", "own", "all8"],
): DrawnVariant[] {
  const known = alternatives(simulations, shares.length > 0);
  const chosen = known.filter(({ info }) => wanted.some((name) => name === info.name));
  return [...chosen, ...shareVariants(simulations, shares)];
}

function alternatives(simulations: Simulations, isInTable: boolean): DrawnVariant[] {
  const { profile, observations } = simulations.sources;
  const variants: DrawnVariant[] = [
    {
      info: {
        name: "untrained",
        label: "shared, without training",
        description: "Every adapter on the shared profile as it is, in simulation.",
        kind: "simulated",
      },
      drawer: simulations.drawer({
        identity: "untrained",
        isObserved: false,
        scales: "shared",
        encodings: (points) => simulations.profileEncodings(points),
      }),
    },
  ];
  if (!observations) return variants;
  const narrow = new Set(profile.narrowLayers);
  const everything = { ...profile.policy, narrowEverything: true };
  variants.push(
    {
      info: {
        name: "own",
        label: "own profile",
        description:
          "Every task on a profile of its own, which one graph cannot have: what sharing costs shows against it.",
        kind: "simulated",
      },
      drawer: simulations.drawer({
        identity: "own",
        isObserved: true,
        scales: "own",
        encodings: (points, task) => simulations.encodingsOf(points, [task], narrow),
      }),
    },
    {
      info: {
        name: "all8",
        label: "all 8-bit",
        description: "Every activation at 8 bits, between the layers too.",
        kind: "simulated",
      },
      drawer: simulations.drawer({
        identity: "all8",
        isObserved: true,
        placement: strictestTarget,
        scales: "shared",
        encodings: (points) => simulations.encodingsOf(points, simulations.members, new Set(), everything),
      }),
      ...(isInTable ? { ablation: { share: null, narrowLayers: 0 } } : {}),
    },
  );
  return variants;
}

function shareVariants(simulations: Simulations, shares: readonly NarrowShare[]): DrawnVariant[] {
  const { profile, observations } = simulations.sources;
  if (!observations) return [];
  const policy = { ...profile.policy, narrowEverything: false };
  return shares.map(({ share, layers: chosen }) => ({
    info: {
      name: `share ${share}`,
      label: `${Math.round(100 * share)} % of layers at 8 bits`,
      description: "",
      kind: "simulated",
    },
    drawer: simulations.drawer({
      identity: ["share", [...chosen].sort()],
      isObserved: true,
      scales: "shared",
      encodings: (points) => simulations.encodingsOf(points, simulations.members, chosen, policy),
    }),
    ablation: { share, narrowLayers: chosen.size },
  }));
}

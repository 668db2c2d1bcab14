import { join } from "node:path";
import { buildProfile } from "../profile/build-profile.ts";
import type { BuildConfig } from "../settings/config.ts";
import { tuneProfile } from "../tune/tune-profile.ts";
import type { Stage } from "../work/stage.ts";

/** File in the results of {@link profileStage} and {@link tuneStage}. */
export const profileFile = "profile.json";

/** Exposed folder, trajectories and observations -> the profile that all tasks share. */
export const profileStage: Stage<{
  exposed: string;
  trajectories: string[];
  observations: string;
  policy: BuildConfig["policy"];
  placement: BuildConfig["target"];
}> = {
  name: "profile",
  version: 1,
  async run(input, folder, { signal, onProgress }) {
    await buildProfile({ ...input, out: join(folder, profileFile), signal, onProgress });
  },
};

/** Profile and trajectories -> the profile with trained 8-bit ranges. */
export const tuneStage: Stage<{
  exposed: string;
  profile: string;
  trajectories: string[];
  settings: BuildConfig["tune"];
}> = {
  name: "tune",
  version: 1,
  async run(input, folder, { checkpoints, signal, onProgress }) {
    await tuneProfile({ ...input, out: join(folder, profileFile), checkpoints, signal, onProgress });
  },
};

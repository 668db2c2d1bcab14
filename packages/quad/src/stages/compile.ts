import { setAsideFolder } from "../bundle/added-adapters.ts";
import { isBundleAsWritten, noteBundle } from "../bundle/bundle-state.ts";
import { compileBundle } from "../compile/compile-bundle.ts";
import type { BuildConfig } from "../settings/config.ts";
import type { Stage } from "../work/stage.ts";

/**
 * Exposed folder, profile and distilled adapters -> the bundle at `out`. The result notes what it consists of: the bundle lies
 * outside the work folder and may have been removed or replaced since.
 */
export const compileStage: Stage<{
  exposed: string;
  profile: string;
  trajectories: string[];
  /** Folders of distilled factors. */
  adapters: string[];
  target: BuildConfig["target"];
  out: string;
}> = {
  name: "compile",
  version: 1,
  async run(input, folder, { signal, onProgress, onWarning }) {
    const { lost, adapters } = await compileBundle({ ...input, signal, onProgress });
    if (lost.length > 0) {
      onWarning?.(
        `${input.out}: the graph or the profile changed, and ${lost.join(", ")} had been added for the old one: run quad add again (their files are in ${setAsideFolder(input.out)})`,
      );
    }
    await noteBundle(
      folder,
      input.out,
      adapters.map(({ name }) => name),
    );
  },
  isCurrent: ({ out }, folder) => isBundleAsWritten(folder, out),
};

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomically } from "../files/atomic.ts";
import { type Ablation, type AblationRow, readAblation, writeAblation } from "../records/ablation.ts";
import type { BuildConfig } from "../settings/config.ts";
import { type BuildOptions, calibrateConfigured } from "../stages/build.ts";
import { strictestTarget, type TargetName } from "../targets/index.ts";
import { runStage } from "../work/stage.ts";
import { AblationBench, type BenchSources, drawReferences, type MeasureOptions } from "./bench.ts";
import { ablationVariants, type Variant } from "./variants.ts";
import { measureAll } from "./workers.ts";

/** Changes whenever the same variant is measured otherwise. */
const ablationVersion = 1;

/** What {@link ablate} measures, and where the table goes. */
export interface AblateOptions extends Pick<BuildOptions, "signal" | "onProgress" | "onStage"> {
  /** File to write; rows that it holds already are kept where nothing they depend on has changed. */
  out: string;
  /** Held-out pictures per task; default 32. */
  pictures?: number;
  /** Default: all of `ablationVariants()`. */
  variants?: readonly Variant[];
  /** Default: the target that quantizes every activation, as in the paper. */
  placement?: TargetName;
  /** Recorded calls per task for SQNR and QSS; default 32. */
  calls?: number;
  /** Processes that measure, one thread each; default 1: this process, with two threads. More need the built package. */
  processes?: number;
  /** Told of every row when it is measured or found measured. */
  onRow?: (row: AblationRow, reused: boolean) => void;
}

/**
 * Stage: configuration -> `ablation.json`. Draws held-out pictures with many ways to quantize, in simulation, and sets them
 * against full precision with the same noise. Shares the calibration of `quad build`; every finished row is kept, so an
 * interrupted run continues with the first that is missing.
 */
export async function ablate(config: BuildConfig, options: AblateOptions): Promise<Ablation> {
  const { signal, onProgress, out, placement = strictestTarget, pictures = 32, calls = 32, processes = 1 } = options;
  const { exposed, trajectories, observations, observed, hashes } = await calibrateConfigured(config, options);
  const { tasks, policy } = config;
  const folder = join(config.work!, "ablation");
  const shared = { exposed, trajectories, observations, tasks, policy, placement, pictures, calls };
  const stage = async (name: string, inputs: unknown, run: (folder: string) => Promise<void>) => {
    signal?.throwIfAborted();
    const result = await runStage(folder, name, [ablationVersion, observed.key, inputs], run);
    options.onStage?.(name, result);
    return result;
  };

  const files = Object.values(tasks).flatMap(({ evaluation, calibration }) =>
    [...(evaluation ?? []), ...calibration].flatMap(({ image, mask }) => [image, mask]),
  );
  const contents = await Promise.all(files.filter((path) => path !== undefined).map((path) => hashes.hash(path)));
  await hashes.save();
  const references = await stage("references", { tasks, contents, pictures }, (into) =>
    drawReferences(shared, into, { signal, onStep: (done, total) => onProgress?.("full precision", done, total) }),
  );
  const sources: BenchSources = { ...shared, references: references.folder };
  /** A stage whose result is a JSON value found on a bench. */
  const find = async <T>(
    name: string,
    label: string,
    measure: (bench: AblationBench, options: MeasureOptions) => Promise<T>,
  ): Promise<T> => {
    const { folder: found } = await stage(name, { policy, placement, calls }, async (into) => {
      const bench = await AblationBench.open(sources);
      try {
        const onStep = (done: number, total: number) => onProgress?.(label, done, total);
        await writeFileAtomically(join(into, "found.json"), JSON.stringify(await measure(bench, { signal, onStep })));
      } finally {
        await bench.dispose();
      }
    });
    return JSON.parse(await readFile(join(found, "found.json"), "utf8"));
  };
  const anchor = await find("anchor", "sensitivity of adapters", (bench, settings) => bench.anchor(settings));

  const variants = options.variants ?? ablationVariants();
  // A run of a few variants keeps what an earlier one found about the others.
  const known = [...new Map([...ablationVariants(), ...variants].map((variant) => [variant.name, variant])).values()];
  const inputs = [ablationVersion, observed.key, tasks, contents, policy, placement, pictures, calls];
  const keyOf = (variant: Variant) =>
    createHash("sha256")
      .update(JSON.stringify([...inputs, variant]))
      .digest("hex");
  const earlier = new Map((await readAblation(out))?.rows.map((row) => [row.key, row]));
  const rows = new Map<string, AblationRow>();
  for (const variant of known) {
    const row = earlier.get(keyOf(variant));
    if (!row) continue;
    rows.set(row.key, row);
    if (variants.includes(variant)) options.onRow?.(row, true);
  }
  const table = (): Ablation => ({
    format: "quad-ablation",
    version: 1,
    placement,
    pictures,
    anchor,
    rows: known.map((variant) => rows.get(keyOf(variant))).filter((row) => row !== undefined),
  });
  const missing = variants.filter((variant) => !rows.has(keyOf(variant)));
  const total = missing.length * Object.keys(tasks).length * pictures;
  let done = 0;
  if (missing.length > 0) {
    const needsOrder = missing.some(({ policy: { narrowShare = 0 } }) => narrowShare > 0 && narrowShare < 1);
    const sensitivity = needsOrder
      ? await find("order", "sensitivity of layers", (bench, settings) => bench.sensitivity(settings))
      : {};
    await measureAll(sources, { anchor, sensitivity }, missing, {
      processes,
      signal,
      onStep: () => onProgress?.("variants", ++done, total),
      onResult: async (variant, measured) => {
        const { name, study, profile, policy: differences, roundPhases = false } = variant;
        const row = { key: keyOf(variant), name, study, profile, policy: differences, roundPhases, ...measured };
        rows.set(row.key, row);
        await writeAblation(out, table());
        options.onRow?.(row, false);
      },
    });
  }
  await writeAblation(out, table());
  return table();
}

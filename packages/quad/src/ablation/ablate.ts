import { createHash } from "node:crypto";
import { join } from "node:path";
import { z } from "zod";
import { readRecord, writeRecord } from "../files/json.ts";
import { type Ablation, type AblationRow, readAblation, writeAblation } from "../records/ablation.ts";
import type { BuildConfig } from "../settings/config.ts";
import { type Calibration, calibrateConfigured } from "../stages/build.ts";
import type { BuildOptions } from "../stages/run.ts";
import { strictestTarget, type TargetName } from "../targets/index.ts";
import { keyOf, Results } from "../work/results.ts";
import { AblationBench, type BenchSources, drawReferences, type Groundwork } from "./bench.ts";
import { ablationVariants, type Variant } from "./variants.ts";
import { type Measured, measureAll } from "./workers.ts";

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
  const { signal, onProgress, placement = strictestTarget, pictures = 32, calls = 32, processes = 1 } = options;
  const calibration = await calibrateConfigured(config, options);
  const { exposed, trajectories, observations, observed } = calibration;
  const { tasks, policy } = config;
  const contents = await hashPictures(config, calibration);
  const ground = new GroundStages(config, observed.key, options);
  const shared = { exposed, trajectories, observations, tasks, policy, placement, pictures, calls };
  const references = await ground.run("references", { tasks, contents, pictures }, (folder) =>
    drawReferences(shared, folder, { signal, onProgress }),
  );
  const sources: BenchSources = { ...shared, references };
  const anchor = await ground.find("anchor", z.string(), sources, (bench) => bench.anchor({ signal, onProgress }));

  const variants = options.variants ?? ablationVariants();
  const inputs = [ablationVersion, observed.key, tasks, contents, policy, placement, pictures, calls];
  const table = await AblationTable.open(options.out, variants, { placement, pictures, anchor }, inputs);
  for (const row of table.rowsOf(variants)) options.onRow?.(row, true);
  const missing = table.missing(variants);
  if (missing.length > 0) {
    const groundwork: Groundwork = { anchor, sensitivity: {} };
    if (missing.some(({ policy: { narrowShare = 0 } }) => narrowShare > 0 && narrowShare < 1)) {
      const measure = (bench: AblationBench) => bench.sensitivity({ signal, onProgress });
      groundwork.sensitivity = await ground.find("order", sensitivitySchema, sources, measure);
    }
    const total = missing.length * Object.keys(tasks).length * pictures;
    let done = 0;
    await measureAll(sources, groundwork, missing, {
      processes,
      signal,
      onStep: () => onProgress?.("variants", ++done, total),
      onResult: async (variant, measured) => {
        options.onRow?.(await table.add(variant, measured), false);
      },
    });
  }
  await table.write();
  return table.value();
}

/** JSON has no number for a layer that adds no noise at all. */
const sensitivitySchema = z.record(
  z.string(),
  z
    .number()
    .nullable()
    .transform((decibels) => decibels ?? Number.POSITIVE_INFINITY),
);

/** Hashes of all pictures that the tasks name. */
async function hashPictures({ tasks }: BuildConfig, { hashes }: Calibration): Promise<unknown[]> {
  const files = Object.values(tasks)
    .flatMap(({ evaluation, calibration }) => [...(evaluation ?? []), ...calibration])
    .flatMap(({ image, mask }) => [image, mask])
    .filter((path) => path !== undefined);
  const contents = await Promise.all(files.map((path) => hashes.hash(path)));
  await hashes.save();
  return contents;
}

/** The stages whose results hold for all variants. */
class GroundStages {
  readonly #results: Results;
  /** Hash of everything that calibration depends on. */
  readonly #key: string;
  readonly #options: AblateOptions;

  constructor({ work }: BuildConfig, key: string, options: AblateOptions) {
    this.#results = new Results(join(work!, "ablation"));
    this.#key = key;
    this.#options = options;
  }

  /** @returns the folder with what `run` wrote, now or earlier */
  async run(name: string, inputs: unknown, run: (folder: string) => Promise<void>): Promise<string> {
    const { signal, onStage } = this.#options;
    signal?.throwIfAborted();
    const key = keyOf(name, ablationVersion, [this.#key, inputs]);
    const reused = this.#results.find(name, key) !== null;
    const folder = await this.#results.make(name, key, run);
    onStage?.(name, { folder, key, reused });
    return folder;
  }

  /** A stage whose result is a value found on a bench. */
  async find<Value>(
    name: string,
    schema: z.ZodType<Value>,
    sources: BenchSources,
    measure: (bench: AblationBench) => Promise<Value>,
  ): Promise<Value> {
    const { policy, placement, calls } = sources;
    const folder = await this.run(name, { policy, placement, calls }, async (into) => {
      const bench = await AblationBench.open(sources);
      try {
        await writeRecord(join(into, "found.json"), await measure(bench));
      } finally {
        await bench.dispose();
      }
    });
    return readRecord(join(folder, "found.json"), schema);
  }
}

type TableHead = Pick<Ablation, "placement" | "pictures" | "anchor">;

/** The table as it grows: rows of an earlier run stay where nothing they depend on has changed. */
class AblationTable {
  readonly #path: string;
  /** All rows that the table may have, in its order. */
  readonly #variants: readonly Variant[];
  readonly #head: TableHead;
  /** Everything that rows depend on besides the variant. */
  readonly #inputs: unknown[];
  readonly #rows = new Map<string, AblationRow>();

  private constructor(path: string, variants: readonly Variant[], head: TableHead, inputs: unknown[]) {
    this.#path = path;
    this.#variants = variants;
    this.#head = head;
    this.#inputs = inputs;
  }

  /** A run of a few variants keeps what an earlier one found about the others. */
  static async open(
    path: string,
    variants: readonly Variant[],
    head: TableHead,
    inputs: unknown[],
  ): Promise<AblationTable> {
    const known = new Map([...ablationVariants(), ...variants].map((variant) => [variant.name, variant]));
    const table = new AblationTable(path, [...known.values()], head, inputs);
    const earlier = new Map((await readAblation(path))?.rows.map((row) => [row.key, row]));
    for (const variant of table.#variants) {
      const row = earlier.get(table.#keyOf(variant));
      if (row) table.#rows.set(row.key, row);
    }
    return table;
  }

  rowsOf(variants: readonly Variant[]): AblationRow[] {
    return variants.map((variant) => this.#rows.get(this.#keyOf(variant))).filter((row) => row !== undefined);
  }

  missing(variants: readonly Variant[]): Variant[] {
    return variants.filter((variant) => !this.#rows.has(this.#keyOf(variant)));
  }

  /** Adds a row and writes the table. */
  async add(variant: Variant, measured: Measured): Promise<AblationRow> {
    const { name, study, profile, policy, roundPhases = false } = variant;
    const row = { key: this.#keyOf(variant), name, study, profile, policy, roundPhases, ...measured };
    this.#rows.set(row.key, row);
    await this.write();
    return row;
  }

  value(): Ablation {
    return { format: "quad-ablation", version: 1, ...this.#head, rows: this.rowsOf(this.#variants) };
  }

  write(): Promise<void> {
    return writeAblation(this.#path, this.value());
  }

  #keyOf(variant: Variant): string {
    return createHash("sha256")
      .update(JSON.stringify([...this.#inputs, variant]))
      .digest("hex");
  }
}

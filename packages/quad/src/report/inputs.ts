import { existsSync } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { InputError } from "@quad-lora/base";
import { z } from "zod";
import { type Ablation, readAblation } from "../records/ablation.ts";

const curveSchema = z.looseObject({
  format: z.literal("quad-training-curve"),
  losses: z.array(z.number()),
  evaluations: z.array(z.looseObject({ step: z.number(), value: z.number() })).default([]),
});

const figureSchema = z.looseObject({
  name: z.string(),
  value: z.number(),
  unit: z.string(),
  runs: z.number().optional(),
  baseline: z.string().optional(),
});

const benchmarksSchema = z.looseObject({
  format: z.literal("quad-benchmarks"),
  machine: z.looseObject({ cpu: z.string(), cores: z.number() }),
  results: z.record(
    z.string(),
    z.looseObject({ title: z.string(), figures: z.array(figureSchema), notes: z.array(z.string()).default([]) }),
  ),
});

const ablationFileSchema = z.looseObject({ format: z.literal("quad-ablation") });

export interface Curve {
  name: string;
  losses: number[];
  evaluations: { step: number; value: number }[];
}
export type Benchmarks = z.infer<typeof benchmarksSchema>;

/** What a report shows besides the evaluation. */
export interface ReportInputs {
  curves: Curve[];
  benchmarks: Benchmarks[];
  ablations: Ablation[];
}

/**
 * Reads curves, benchmark results and ablation tables: files, or folders that are searched for them; other JSON files in
 * folders are passed over.
 *
 * @throws InputError for a path that does not exist, or a given file that is none of them
 */
export async function readInputs(paths: readonly string[]): Promise<ReportInputs> {
  const inputs: ReportInputs = { curves: [], benchmarks: [], ablations: [] };
  for (const path of paths) {
    if (!existsSync(path)) throw new InputError({ what: "there is no such file or folder", file: path });
    const isFolder = (await stat(path)).isDirectory();
    for (const file of isFolder ? await jsonFiles(path) : [path]) {
      if ((await take(file, inputs)) || isFolder) continue;
      throw new InputError({
        what: "holds nothing that a report shows",
        file,
        expected: "a quad-training-curve, quad-benchmarks or quad-ablation file",
      });
    }
  }
  return inputs;
}

async function jsonFiles(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile() && entry.name.endsWith(".json"))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

/** A curve is about as long as its run; anything much larger is something else. */
const largestFile = 16e6;

async function take(file: string, inputs: ReportInputs): Promise<boolean> {
  if ((await stat(file)).size > largestFile) return false;
  let value: unknown;
  try {
    value = JSON.parse(await readFile(file, "utf8"));
  } catch {
    return false;
  }
  const curve = curveSchema.safeParse(value);
  if (curve.success) {
    inputs.curves.push({ name: curveName(file), ...curve.data });
    return true;
  }
  const benchmarks = benchmarksSchema.safeParse(value);
  if (benchmarks.success) {
    inputs.benchmarks.push(benchmarks.data);
    return true;
  }
  if (!ablationFileSchema.safeParse(value).success) return false;
  inputs.ablations.push((await readAblation(file))!);
  return true;
}

/** `flat.loss.json` -> `flat`, `distill-flat-0123456789abcdef/loss.json` -> `flat`. */
function curveName(file: string): string {
  const own = basename(file, ".json").replace(/[.-]?(loss|(training-)?curve)$/, "");
  const folder = basename(dirname(file)).replace(/-[0-9a-f]{16}$/, "");
  return (own || folder).replace(/^(distill|train)-/, "");
}

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { InputError } from "@quad-lora/base";
import type { Pipeline } from "@quad-lora/runtime";
import { recordTrajectory } from "../calibrate/record-trajectory.ts";
import type { BoundAdapter } from "../factors/bind-adapter.ts";
import { factorMetadata, readFactorFile } from "../factors/factor-file.ts";
import { writeSafetensors } from "../files/safetensors.ts";
import { decibels } from "../metrics/index.ts";
import { type TaskCase, writeTrajectory } from "../records/trajectory.ts";
import type { DistillSettings } from "../settings/distill.ts";
import type { StageOptions } from "../work/progress.ts";
import { distillAdapter } from "./distill-adapter.ts";
import { teacherCases } from "./teacher.ts";

/** What {@link distillNew} tunes, with which teacher, and to which profile. */
export interface DistillNewOptions extends StageOptions {
  /** The exposed folder that the profile was made from. */
  exposed: string;
  profile: string;
  name: string;
  bound: BoundAdapter;
  /** The teacher: a full-precision pipeline that has the adapter; opened only when needed. */
  openTeacher: () => Promise<Pipeline>;
  /** What to ask for; seeds are replaced. */
  cases: readonly TaskCase[];
  settings: DistillSettings;
}

/**
 * Tunes an adapter that joins a finished bundle to its frozen profile. Work is kept in the system's temporary folder until it
 * is done, so that the same call goes on after an interruption.
 * @returns factors on the profile's grids, to be encoded without alignment
 */
export async function distillNew(
  options: DistillNewOptions,
): Promise<{ rank: number; tensors: Map<string, Float32Array> }> {
  const { exposed, profile, name, bound, cases, settings, signal, onProgress } = options;
  if (!existsSync(join(exposed, "slots.json"))) {
    throw new InputError({
      what: "distillation needs the exposed folder that the bundle was compiled from",
      file: exposed,
      expected: "a folder written by quad expose",
      fix: "Give that folder with --against, or add the adapter without --distill.",
    });
  }
  const asked = teacherCases(cases, settings);
  const key = createHash("sha256").update(JSON.stringify([resolve(exposed), resolve(profile), name]));
  for (const { image, mask, ...rest } of asked) {
    key.update(JSON.stringify(rest));
    for (const picture of [image, mask]) if (picture) key.update(Uint8Array.from(picture.data));
  }
  for (const { data } of bound.tensors) key.update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  const work = join(tmpdir(), `quad-distill-${key.digest("hex").slice(0, 16)}`);
  const adapters = join(work, "adapters");
  await writeSafetensors(join(adapters, `${name}.safetensors`), bound.tensors, factorMetadata(bound.rank));
  const trajectory = join(work, "teacher.safetensors");
  if (!existsSync(trajectory)) {
    const teacher = await options.openTeacher();
    try {
      const recorded = await recordTrajectory(teacher, name, asked, {
        stage: "drawing for distillation",
        signal,
        onProgress,
      });
      await writeTrajectory(trajectory, recorded);
    } finally {
      await teacher.dispose();
    }
  }
  const { file } = await distillAdapter({
    ...{ exposed, profile, adapter: name, adapters, trajectory, settings, out: join(work, "out") },
    signal,
    onStep: ({ step, steps, loss }) => onProgress?.("distilling", step, steps, `${decibels(loss).toFixed(1)} dB`),
  });
  const { rank, tensors } = await readFactorFile(file);
  await rm(work, { recursive: true, force: true });
  return { rank, tensors };
}

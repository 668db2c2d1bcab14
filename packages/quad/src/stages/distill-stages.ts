import { rm } from "node:fs/promises";
import { join } from "node:path";
import { distillAdapters, recordTeacher } from "../distill/index.ts";
import type { Profile } from "../records/profile.ts";
import type { TaskCase } from "../records/trajectory.ts";
import type { BuildConfig } from "../settings/config.ts";
import type { StageOptions } from "../work/progress.ts";
import type { StageResult } from "../work/stage.ts";

/** The adapters that a configuration wants tuned to a profile. */
export function adaptersToDistill(config: Pick<BuildConfig, "adapters" | "distill">, profile: Profile): string[] {
  const names = Object.keys(config.adapters);
  if (config.distill.adapters === "none") return [];
  return config.distill.adapters === "all" ? names : names.filter((name) => name !== profile.strategy.anchor);
}

export interface DistillStagesOptions extends StageOptions {
  exposed: string;
  /** Profile file, and what it says. */
  profile: string;
  names: readonly string[];
  /** A task's calibration cases. */
  cases: (task: string) => Promise<TaskCase[]>;
  /** Hash of everything that the exposed folder and the profile depend on. */
  key: string;
  /** By task, what the teacher draws from: hash of the exposed folder, the task's settings and its pictures. */
  recordKeys: Readonly<Record<string, string>>;
  stage: (label: string, name: string, inputs: unknown, run: (folder: string) => Promise<void>) => Promise<StageResult>;
}

/** Stages: the teacher of every adapter, then the distillation of all. The result's folder holds the adapters' files. */
export async function distillStages(
  config: Pick<BuildConfig, "distill"> & { work: string },
  { exposed, profile, names, cases, key, recordKeys, stage, signal, onProgress }: DistillStagesOptions,
): Promise<StageResult> {
  const settings = config.distill;
  const { pictures, seed } = settings;
  const common = { signal, onProgress };
  const teachers: StageResult[] = [];
  for (const name of names) {
    teachers.push(
      await stage(
        `teacher ${name}`,
        `teacher-${name}`,
        { recorded: recordKeys[name], pictures, seed },
        async (folder) => {
          const file = join(folder, "trajectory.safetensors");
          await recordTeacher(exposed, name, await cases(name), file, settings, common);
        },
      ),
    );
  }
  const checkpoints = join(config.work, "checkpoints");
  const inputs = { key, teachers: teachers.map((teacher) => teacher.key), settings };
  return stage("distill", "distill", inputs, async (folder) => {
    const jobs = names.map((adapter, index) => ({
      ...{ exposed, profile, adapter, settings, checkpoints, out: folder },
      trajectory: join(teachers[index].folder, "trajectory.safetensors"),
    }));
    await distillAdapters(jobs, common);
    await rm(checkpoints, { recursive: true, force: true });
  });
}

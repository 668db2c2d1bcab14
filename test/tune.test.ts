import { readFileSync } from "node:fs";
import { join } from "node:path";
import { loadModel } from "@quad-lora/onnx";
import {
  build,
  expose,
  type Profile,
  readProfile,
  type TuneProfileOptions,
  tuneProfile,
  writeProfile,
} from "quad-lora";
import { beforeAll, describe, expect, test } from "vitest";
import { observeTasks } from "../packages/quad/src/calibrate/calibrate.ts";
import { componentFile } from "../packages/quad/src/model/graph-files.ts";
import { denoiserSlots } from "../packages/quad/src/model/slots.ts";
import { buildProfile } from "../packages/quad/src/profile/build-profile.ts";
import { movedFrom } from "../packages/quad/src/quantizable/movements.ts";
import { prepareGraph } from "../packages/quad/src/quantizable/prepare-graph.ts";
import { findQuantizable } from "../packages/quad/src/quantizable/quantizable.ts";
import type { BuildConfig, BuildConfigInput } from "../packages/quad/src/settings/config.ts";
import { recordConfigured } from "../packages/quad/src/stages/calibrate.ts";
import { type TuneSettingsInput, tuneSchema } from "../packages/quad/src/tune/index.ts";
import { pocketFolder } from "./helpers/exposed-pocket.ts";
import { loadSmallBuild, scratchFolder } from "./helpers/small-build.ts";

const prompts = ["crab animal marine", "tulip plant flower"];
const pictures = (image?: string) =>
  prompts.map((prompt, seed) => ({ prompt, seed, ...(image ? { image: join(pocketFolder, "samples", image) } : {}) }));
const tasks: BuildConfigInput["tasks"] = {
  base: { calibration: pictures(), steps: 2 },
  flat: { calibration: pictures(), steps: 2, guidance: 1 },
  sketch: { calibration: pictures("sketch-crab.png"), steps: 2 },
};
// A convolution and the layers at the ends stay at 16 bits.
const policy = { narrowShare: 1, keepWide: ["^conv_(in|out)$", "mid_block.resnets.0.conv1"] };

const settings = (input: TuneSettingsInput = {}) =>
  tuneSchema.parse({
    ...{ steps: 12, batch: 2, learningRate: 0.1, warmup: 1, averageDecay: 0.5, validateEvery: 4, checkpointEvery: 4 },
    ...input,
  });

let folder: string;
let config: BuildConfig;
let exposed: string;
let trajectories: string[];
let chosen: string;
let spoiled: string;

beforeAll(async () => {
  folder = await scratchFolder();
  config = await loadSmallBuild(folder, { tasks, policy });
  exposed = join(folder, "exposed");
  chosen = join(folder, "chosen.json");
  spoiled = join(folder, "spoiled.json");
  await expose(config.model, { out: exposed, adapters: config.adapters });
  trajectories = [];
  for (const [task, taskSettings] of Object.entries(config.tasks)) {
    const file = join(folder, `${task}.trajectory.safetensors`);
    await recordConfigured(exposed, task, taskSettings, file, {});
    trajectories.push(file);
  }
  const observations = join(folder, "observations.safetensors");
  await observeTasks(exposed, trajectories, observations, { bins: 256, stepGroups: 1 });
  const profile = await buildProfile({
    ...{ exposed, trajectories, observations, policy: config.policy },
    ...{ out: chosen, placement: "cpu", scoreCalls: 1 },
  });
  // Ranges four times as wide as they should be: a quarter of the resolution.
  const points = Object.entries(profile.points).map(([name, point]) => [
    name,
    point.bits === 8 ? { ...point, scale: Math.fround(4 * point.scale) } : point,
  ]);
  await writeProfile(spoiled, { ...profile, points: Object.fromEntries(points) });
}, 600_000);

const tune = (out: string, options: Partial<TuneProfileOptions> = {}) =>
  tuneProfile({ exposed, profile: spoiled, trajectories, out: join(folder, out), settings: settings(), ...options });

describe("training the 8-bit ranges", () => {
  let before: Profile;
  let after: Profile;
  beforeAll(async () => {
    before = await readProfile(spoiled);
    await tune("whole.json");
    after = await readProfile(join(folder, "whole.json"));
  }, 300_000);

  test("finds back from ranges that are too wide, for every task", () => {
    expect(Object.keys(after.tuned!.tasks)).toEqual(["base", "flat", "sketch"]);
    for (const { sqnrBefore, sqnrAfter } of Object.values(after.tuned!.tasks)) {
      expect(sqnrAfter).toBeGreaterThan(sqnrBefore + 1);
    }
    expect(after.tuned!.bestStep).toBeGreaterThan(0);
  });

  test("changes nothing but scales of 8-bit points", () => {
    const { points: was, tuned: _before, ...rest } = before;
    const { points: is, tuned: _after, ...same } = after;
    expect(same).toEqual(rest);
    expect(Object.keys(is)).toEqual(Object.keys(was));
    let [changed, wide] = [0, 0];
    for (const [name, { bits, scale, zeroPoint }] of Object.entries(is)) {
      expect([bits, zeroPoint]).toEqual([was[name].bits, was[name].zeroPoint]);
      if (bits === 16) expect(scale).toBe(was[name].scale);
      if (bits === 16) wide++;
      else if (scale !== was[name].scale) changed++;
    }
    expect(wide).toBe(3);
    expect(changed).toBeGreaterThan(100);
  });

  test("layers that read the same value go on sharing an encoding", async () => {
    const { slots } = await denoiserSlots(exposed);
    const prepared = await prepareGraph(loadModel(componentFile(exposed, "unet")), slots, before.shape);
    const byValue = new Map<string, string[]>();
    for (const { name, activations } of findQuantizable(prepared, slots).layers) {
      activations.forEach(({ node, index }, position) => {
        const value = movedFrom(node.input(index)).name;
        byValue.set(value, [...(byValue.get(value) ?? []), `${name}#${position}`]);
      });
    }
    const shared = [...byValue.values()].filter((names) => names.length > 1);
    // Queries, keys and values of attention.
    expect(shared.length).toBeGreaterThan(5);
    for (const names of shared) {
      const narrow = names.filter((name) => after.points[name].bits === 8);
      expect(new Set(narrow.map((name) => after.points[name].scale)).size).toBeLessThanOrEqual(1);
    }
  });

  test("gives the same bytes again, also when it was interrupted and went on", async () => {
    const controller = new AbortController();
    const onProgress = (_: string, step: number) => step === 5 && controller.abort(new Error("stopped"));
    await expect(tune("again.json", { signal: controller.signal, onProgress })).rejects.toThrow("stopped");
    const resumed = await tune("again.json");
    expect(resumed.resumedFrom).toBe(5);
    expect(readFileSync(join(folder, "again.json"))).toEqual(readFileSync(join(folder, "whole.json")));
  });

  test("keeps the start where no step is better", async () => {
    // A rate that no range survives.
    const { profile } = await tune("kept.json", {
      ...{ profile: chosen, settings: settings({ steps: 2, learningRate: 3, averageDecay: 0 }) },
    });
    expect(profile.tuned!.bestStep).toBe(0);
    expect(profile.points).toEqual((await readProfile(chosen)).points);
  });
});

test("what does not fit is refused by name", async () => {
  const wide = join(folder, "wide.json");
  const profile = await readProfile(chosen);
  const points = Object.entries(profile.points).map(([name, point]) => [name, { ...point, bits: 16 as const }]);
  await writeProfile(wide, { ...profile, points: Object.fromEntries(points) });
  await expect(tune("none.json", { profile: wide })).rejects.toThrow(/no 8-bit activations/);
  const other = join(folder, "other.json");
  await writeProfile(other, { ...profile, graph: "another" });
  await expect(tune("none.json", { profile: other })).rejects.toThrow(/another graph/);
  const single = join(folder, "single.trajectory.safetensors");
  const task = { ...config.tasks.base, calibration: config.tasks.base.calibration.slice(1) };
  await recordConfigured(exposed, "base", task, single, {});
  await expect(tune("none.json", { trajectories: [single] })).rejects.toThrow(/"base".*two calibration pictures/);
}, 120_000);

test("as a stage of quad build it is off unless asked for, and then what follows builds on it", async () => {
  const { base, flat } = config.tasks;
  const few = { ...config, adapters: { flat: config.adapters.flat }, tasks: { base, flat } };
  const off = await build(few);
  expect(Object.keys(off.stages)).not.toContain("tune");
  expect(off.profile.tuned).toBeUndefined();
  const on = await build({ ...few, tune: settings({ steps: 2, learningRate: 0.01 }) });
  expect(on.stages.profile).toEqual({ ...off.stages.profile, reused: true });
  expect(Object.keys(on.profile.tuned!.tasks)).toEqual(["base", "flat"]);
  expect(on.stages.compile.key).not.toBe(off.stages.compile.key);
  expect(await readProfile(join(config.out, "profile.json"))).toEqual(on.profile);
}, 600_000);

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseSafetensors, toFloat32 } from "@quad-lora/base";
import { addToBundle, distillAdapter, distillSchema } from "quad-lora";
import { beforeAll, describe, expect, test } from "vitest";
import { loadConfig } from "../../packages/quad/src/settings/config.ts";
import { loadCases } from "../../packages/quad/src/tasks/cases.ts";
import { scratchFolder, writeSmallBuild } from "../helpers/small-build.ts";

const quad = fileURLToPath(new URL("../../packages/quad/bin/quad.js", import.meta.url));

function run(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, [quad, ...args], { encoding: "utf8" });
  expect({ status, stderr: status === 0 ? "" : stderr }).toEqual({ status: 0, stderr: "" });
  return stdout;
}

function tensorsOf(path: string): Map<string, Float32Array> {
  const { tensors } = parseSafetensors(readFileSync(path), path);
  return new Map(
    [...tensors.values()].map((tensor) => [
      tensor.name,
      tensor.dtype === "I8" ? Float32Array.from(new Int8Array(tensor.bytes)) : toFloat32(tensor, path),
    ]),
  );
}

// Builds and trainings, each in a process of its own: minutes.
describe.skipIf(process.env.QUAD_FULL_TESTS !== "1")("distillation", { timeout: 1_800_000 }, () => {
  const distill = {
    adapters: "all",
    steps: 6,
    pictures: 3,
    validationPictures: 1,
    batch: 2,
    learningRate: 0.5,
  } as const;
  let folder: string;
  let config: string;
  let work: string;
  const stage = (name: string) => join(work, readdirSync(work).find((entry) => entry.startsWith(`${name}-`))!);

  beforeAll(async () => {
    folder = await scratchFolder();
    config = writeSmallBuild(folder, { distill });
    work = join(folder, "work");
    run("build", config);
  }, 900_000);

  test("a build compiles the very codes that were trained", () => {
    const profile = JSON.parse(readFileSync(join(stage("profile"), "profile.json"), "utf8"));
    const slots = JSON.parse(readFileSync(join(stage("expose"), "exposed/slots.json"), "utf8")).components.unet.slots;
    for (const name of ["flat", "sketch"]) {
      const trained = tensorsOf(join(stage(`distill-${name}`), `${name}.safetensors`));
      const codes = tensorsOf(join(folder, "bundle/adapters", `${name}.safetensors`));
      expect([...codes.keys()].sort()).toEqual([...trained.keys()].sort());
      for (const { name: slot, inputA, inputB } of slots) {
        for (const [input, scale] of [
          [inputA, profile.slots[slot].a],
          [inputB, profile.slots[slot].b],
        ] as const) {
          if (trained.has(input)) expect(codes.get(input)!.map((code) => code * scale)).toEqual(trained.get(input));
        }
      }
    }
    expect(existsSync(join(work, "checkpoints"))).toBe(false);
    const again = run("build", config);
    expect(again).not.toMatch(/^done/m);
    expect(again).toMatch(/^unchanged +distill flat$/m);
  });

  test("adapters that train side by side in processes become what they become alone", async () => {
    const exposed = join(stage("expose"), "exposed");
    const profile = join(stage("profile"), "profile.json");
    const together = join(folder, "together");
    run("distill", exposed, "--profile", profile, "--config", config, "--out", together, "--adapter", "flat", "sketch");
    expect(readdirSync(together).sort()).toEqual([
      ...["flat.loss.json", "flat.safetensors", "sketch.loss.json", "sketch.safetensors"],
    ]);
    for (const adapter of ["flat", "sketch"]) {
      const trajectory = join(stage(`teacher-${adapter}`), "trajectory.safetensors");
      const alone = await distillAdapter({
        ...{
          exposed,
          profile,
          adapter,
          trajectory,
          out: join(folder, "alone"),
          settings: distillSchema.parse(distill),
        },
      });
      const bytes = readFileSync(alone.file);
      expect(readFileSync(join(together, `${adapter}.safetensors`)).equals(bytes)).toBe(true);
      expect(readFileSync(join(stage(`distill-${adapter}`), `${adapter}.safetensors`)).equals(bytes)).toBe(true);
    }
  });

  test("a new adapter is tuned to the frozen profile and lies on its grids", async () => {
    const exposed = join(stage("expose"), "exposed");
    const file = join(folder, "flat.safetensors");
    const settings = await loadConfig(config);
    const cases = await loadCases(exposed, settings.tasks.flat);
    const record = await addToBundle({
      ...{ bundle: join(folder, "bundle"), adapter: file, name: "late", against: exposed, cases },
      distill: distillSchema.parse(distill),
    });
    expect(record.fit.alignmentError).toBeLessThan(1e-6);
    expect(record.fit.clipped).toBe(0);
    expect(record.fit.measured!.sqnr).toBeGreaterThan(15);
    await expect(
      addToBundle({
        bundle: join(folder, "bundle"),
        adapter: file,
        name: "later",
        distill: distillSchema.parse(distill),
      }),
    ).rejects.toThrow("distillation needs the full-precision model");
  });
});

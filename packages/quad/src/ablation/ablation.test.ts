import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { beforeAll, describe, expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { loadSmallBuild } from "../../../../test/helpers/small-build.ts";
import type { BuildConfig } from "../settings/config.ts";
import { policySchema } from "../settings/policy.ts";
import {
  type Ablation,
  type AblationRow,
  ablate,
  ablationTable,
  ablationVariants,
  readAblation,
  writeAblation,
} from "./index.ts";

const folder = temporaryFolder();

const figures = { pictures: 2, psnr: 40, psnrMin: 38, psnrDeviation: 2, ssim: 0.99, sqnr: 35, qss: 1e-4 };
const row: AblationRow = {
  key: "a",
  name: "own, W8A16",
  study: "profiles",
  profile: "own",
  policy: { narrowShare: 0 },
  roundPhases: false,
  narrowLayers: 0,
  tasks: { base: figures, flat: { ...figures, psnr: 30, ssim: 0.97, sqnr: 33 } },
  seconds: 1,
};
const ablation: Ablation = {
  format: "quad-ablation",
  version: 1,
  placement: "npu",
  pictures: 2,
  anchor: "flat",
  rows: [row],
};

describe("variants", () => {
  test("have names of their own and policies that are valid", () => {
    const variants = ablationVariants();
    expect(new Set(variants.map(({ name }) => name)).size).toBe(variants.length);
    for (const { policy } of variants) expect(policySchema.safeParse(policy).success).toBe(true);
  });

  test("hold every profile with every share, the shared ones aligned and not", () => {
    for (const profile of ["own", "anchor", "unified"]) {
      const shares = ablationVariants().filter(
        (variant) => variant.profile === profile && variant.study === "profiles",
      );
      const aligned = shares.filter(({ policy }) => policy.align).map(({ policy }) => policy.narrowShare);
      expect(aligned).toEqual([0, 0.4, 0.8, 1]);
      const plain = shares.filter(({ policy }) => policy.align === false).map(({ policy }) => policy.narrowShare);
      expect(plain).toEqual(profile === "own" ? [] : [0, 1]);
    }
  });
});

describe("ablation.json", () => {
  const path = join(folder, "file.json");

  test("is read back; a missing file is none", async () => {
    await writeAblation(path, ablation);
    expect(await readAblation(path)).toEqual(ablation);
    expect(await readAblation(join(folder, "none.json"))).toBeNull();
  });

  test.each([
    ["version", { ...ablation, version: 2 }, /version: unknown version/],
    ["format", { ...ablation, format: "other" }, /format: /],
    [
      "figures",
      { ...ablation, rows: [{ ...row, tasks: { base: { ...figures, psnr: "x" } } }] },
      /rows\.0\.tasks\.base\.psnr: /,
    ],
  ])("a wrong %s is refused by name", async (_, value, message) => {
    await writeFile(path, JSON.stringify(value));
    const error = await readAblation(path).catch((reason) => reason);
    expect(error).toBeInstanceOf(InputError);
    expect(error.message).toMatch(message);
  });

  test("its table has means over tasks", () => {
    expect(ablationTable(ablation)).toEqual([
      ["variant", "base", "flat", "mean", "SQNR dB"],
      ["own, W8A16", "40.0 / 0.990", "30.0 / 0.970", "35.0 / 0.980", "34.0"],
    ]);
  });
});

describe("an ablation of the pocket model", () => {
  const out = join(folder, "ablation.json");
  const variants = ablationVariants().filter(({ name }) => /^(own|unified), W8A(16|8 100 %)$/.test(name));
  const settings = { out, pictures: 1, calls: 2, placement: "cpu" as const };
  let config: BuildConfig;
  const measured: [string, boolean][] = [];
  const run = (some: typeof variants, signal?: AbortSignal) => {
    measured.length = 0;
    return ablate(config, {
      ...settings,
      variants: some,
      signal,
      onRow: ({ name }, reused) => measured.push([name, reused]),
    });
  };

  beforeAll(async () => {
    const task = (seed: number) => ({
      steps: 2,
      calibration: [{ prompt: "crab animal marine", seed }],
      evaluation: [{ prompt: "owl animal bird", seed: seed + 100 }],
    });
    config = await loadSmallBuild(folder, {
      adapters: { flat: "flat.safetensors" },
      tasks: { base: task(0), flat: task(1) },
      observe: { stepGroups: 1, bins: 64, sampled: 512 },
    });
  });

  test("measures variants, and 8-bit layers lose against 16-bit ones", async () => {
    const result = await run(variants.slice(0, 2));
    expect(result.anchor).toBe("flat");
    expect(result.rows.map(({ name }) => name)).toEqual(["own, W8A16", "own, W8A8 100 %"]);
    for (const { tasks } of result.rows) {
      expect(Object.keys(tasks)).toEqual(["base", "flat"]);
      for (const { psnr, psnrMin, ssim, pictures } of Object.values(tasks)) {
        expect([psnrMin, pictures]).toEqual([psnr, 1]);
        expect(psnr).toBeGreaterThan(10);
        expect(ssim).toBeLessThanOrEqual(1);
      }
    }
    const [wide, narrow] = result.rows;
    expect([wide.narrowLayers, narrow.narrowLayers]).toEqual([0, 1]);
    for (const task of ["base", "flat"]) {
      expect(wide.tasks[task].psnr).toBeGreaterThan(25);
      expect(wide.tasks[task].sqnr).toBeGreaterThan(narrow.tasks[task].sqnr + 3);
    }
    expect(measured).toEqual([
      ["own, W8A16", false],
      ["own, W8A8 100 %", false],
    ]);
  });

  test("goes on where it was interrupted, and keeps other rows", async () => {
    const before = JSON.parse(await readFile(out, "utf8")).rows;
    const controller = new AbortController();
    controller.abort(new Error("interrupted"));
    await expect(run(variants, controller.signal)).rejects.toThrow("interrupted");
    const result = await run([variants[0], variants[2]]);
    expect(measured).toEqual([
      [variants[0].name, true],
      [variants[2].name, false],
    ]);
    expect(result.rows.length).toBe(3);
    expect(result.rows.slice(0, 2)).toEqual(before);
    expect(await readAblation(out)).toEqual(result);
  });

  test("a changed policy is measured again", async () => {
    config = { ...config, policy: { ...config.policy, adapterBits: 16 } };
    await run([variants[0]]);
    expect(measured).toEqual([[variants[0].name, false]]);
  });
});

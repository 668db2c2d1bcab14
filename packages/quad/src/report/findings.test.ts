import { describe, expect, test } from "vitest";
import type { Evaluation, TaskNoise } from "../records/evaluation.ts";
import type { Profile } from "../records/profile.ts";
import { causeShares, findAll, levelOf, overview } from "./findings.ts";

const result = (psnr: number, ssim: number) => ({
  pictures: ["a.png"],
  metrics: [{ psnr, ssim, msssim: ssim, ssimulacra2: 80 }],
  summary: {
    pictures: 1,
    metrics: { psnr: { mean: psnr, worst: psnr - 1 }, ssim: { mean: ssim, worst: ssim } },
    frechetVae: null,
  },
});

function evaluationOf(
  tasks: Record<string, Record<string, number>>,
  noise: Record<string, TaskNoise> = {},
  extra: Partial<Evaluation> = {},
): Evaluation {
  return {
    tasks: Object.entries(tasks).map(([task, variants]) => ({
      task,
      adapters: task === "base" ? {} : { [task]: 1 },
      steps: 4,
      guidance: 1,
      cases: [],
      results: Object.fromEntries(Object.entries(variants).map(([name, psnr]) => [name, result(psnr, 0.97)])),
    })),
    noise: { calls: 1, tasks: noise },
    ranges: null,
    ...extra,
  } as unknown as Evaluation;
}

const noiseOf = (layers: Record<string, number>, rest: Partial<TaskNoise> = {}): TaskNoise => ({
  total: 0.1,
  weights: 0.001,
  adapter: 0.001,
  between: null,
  layers,
  ...rest,
});

const profileOf = (narrowLayers: string[], shared: Profile["shared"] = {}) =>
  ({ narrowLayers, shared, strategy: { kind: "anchor", anchor: "flat", reason: "" } }) as unknown as Profile;

describe("levels", () => {
  test("the worse of the two measures decides", () => {
    expect(levelOf(34, 0.97)).toBe("good");
    expect(levelOf(34, 0.94)).toBe("fair");
    expect(levelOf(30, 0.99)).toBe("fair");
    expect(levelOf(24.9, 0.99)).toBe("poor");
    expect(levelOf(40, 0.84)).toBe("poor");
  });
});

describe("causes", () => {
  test("are shares of their sum, the largest first", () => {
    const shares = causeShares(noiseOf({ a: 0.006, b: 0.002 }));
    expect(shares.map(({ cause, layer }) => layer ?? cause)).toEqual(["a", "b", "weights", "adapter", "between"]);
    expect(shares.reduce((sum, { share }) => sum + share, 0)).toBeCloseTo(1, 12);
    expect(shares[0].share).toBeCloseTo(0.6, 12);
  });

  test("nothing at all divides by nothing", () => {
    const shares = causeShares(noiseOf({ a: 0 }, { weights: 0, adapter: 0 }));
    expect(shares.every(({ share }) => share === 0)).toBe(true);
    const evaluation = evaluationOf({ flat: { candidate: 20 } }, { flat: noiseOf({}, { weights: 0, adapter: 0 }) });
    expect(findAll(evaluation, null, new Set())[0].advice).toHaveLength(1);
  });
});

describe("what the report says", () => {
  test("the worst task comes first, and its worst narrow layer is to be kept wide", () => {
    const evaluation = evaluationOf(
      { sketch: { candidate: 36 }, flat: { candidate: 24 } },
      { flat: noiseOf({ "up.0.conv": 0.09, "down.0.conv": 0.008 }), sketch: noiseOf({ "up.0.conv": 0.0001 }) },
    );
    const findings = findAll(evaluation, profileOf(["up.0.conv"]), new Set());
    expect(findings.map(({ task, level }) => [task, level])).toEqual([
      ["flat", "poor"],
      ["sketch", "good"],
    ]);
    expect(findings[0].causes.at(-1)).toContain("98 % of its error comes from rounding the inputs of layers");
    // 0.09 of 0.1 is gone: 10 dB.
    expect(findings[0].advice).toEqual([
      'Keep the worst layers at 16 bits: `policy.keepWide: ["^up.0.conv$"]` takes away about 10.0 dB of the denoiser\'s error.',
    ]);
    expect(findings[1].advice).toEqual(["Nothing to do."]);
    const sentence = overview(findings);
    for (const part of ["1 of 2 tasks hold", "worst is flat", "`up.0.conv`, with 90 %", "16 bits"]) {
      expect(sentence).toContain(part);
    }
  });

  test("a layer whose range clips this task's values is to get a wider one", () => {
    const point = { layer: "conv", point: "conv#0", bits: 8, low: -1, high: 1 };
    const groups = (clipped: number) => [
      { min: -2, max: 2, clipped: 0 },
      { min: -2, max: 2, clipped },
    ];
    const evaluation = evaluationOf(
      { flat: { candidate: 28 } },
      { flat: noiseOf({ conv: 0.05 }) },
      { ranges: { stepGroups: 2, points: [{ ...point, tasks: { flat: groups(0.04) } }] } },
    );
    const [{ advice }] = findAll(evaluation, profileOf([]), new Set());
    expect(advice).toHaveLength(1);
    expect(advice[0]).toContain("Widen the ranges of `conv` (4.0 % clipped)");
  });

  test("sharing, training and strategy are told from the variants", () => {
    const shared = {
      anchor: { flat: { qss: 0, sqnr: 30 } },
      unified: { flat: { qss: 0, sqnr: 35 } },
    };
    const variants = { flat: { candidate: 29, untrained: 26, own: 33 } };
    const untrained = findAll(evaluationOf(variants), profileOf([], shared), new Set());
    expect(untrained[0].causes).toEqual(["Sharing one profile costs it 7.0 dB against a profile of its own."]);
    expect(untrained[0].advice[0]).toBe("Distil this adapter on the shared profile.");
    expect(untrained[0].advice[1]).toContain("5.0 dB more");
    const trained = findAll(evaluationOf(variants), null, new Set(["flat"]));
    expect(trained[0].causes[0]).toBe("Training brought 3.0 dB against the shared profile without it.");
    expect(trained[0].advice[0]).toContain("Train longer");
  });

  test("nobody is told to distil the base", () => {
    const evaluation = evaluationOf(
      { base: { candidate: 20, untrained: 20, own: 30 } },
      { base: noiseOf({}, { weights: 0.2 }) },
    );
    const [{ advice }] = findAll(evaluation, null, new Set());
    expect(advice.join(" ")).not.toMatch(/distil/i);
    expect(advice.join(" ")).toContain("weightMethod");
  });

  test("one sentence when all is well", () => {
    const all = findAll(evaluationOf({ a: { candidate: 40 }, b: { candidate: 35 } }), null, new Set());
    expect(overview(all)).toBe("All 2 tasks hold.");
  });
});

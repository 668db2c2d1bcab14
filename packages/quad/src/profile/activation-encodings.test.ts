import { describe, expect, test } from "vitest";
import type { QuantizationPoint } from "../quantizable/points.ts";
import { addValues, createHistogram, encodingRange, expectedSquaredError } from "../quantization/index.ts";
import type { Observations } from "../records/observations.ts";
import { policySchema } from "../settings/policy.ts";
import { chooseEncodings, encodingChooser, mergeTasks, servingWorst, widthsOf } from "./activation-encodings.ts";

const bins = 8;

/**
 * Two values, two tasks, two groups of time steps. Task `small` lies in [-1, 1], task `large` in [-1, 7]; in `large` the second
 * group of the first value has a tenth of the spread and a tenth of the samples.
 */
function observations(): Observations {
  const counts = (...groups: number[][]) => Float64Array.from(groups.flat());
  return {
    names: ["x", "y"],
    stepGroups: 2,
    bins,
    low: Float32Array.of(-1, 0),
    high: Float32Array.of(7, 8),
    tasks: [
      {
        task: "small",
        minima: Float32Array.of(-1, 0, -0.5, 0),
        maxima: Float32Array.of(1, 2, 0.5, 1),
        counts: counts(
          [6, 4, 0, 0, 0, 0, 0, 0],
          [9, 1, 0, 0, 0, 0, 0, 0],
          [5, 5, 0, 0, 0, 0, 0, 0],
          [4, 0, 0, 0, 0, 0, 0, 0],
        ),
      },
      {
        task: "large",
        minima: Float32Array.of(0, 0, -0.25, 0),
        maxima: Float32Array.of(7, 8, 0.25, 8),
        counts: counts(
          [0, 0, 0, 0, 0, 0, 0, 10],
          [0, 0, 0, 0, 0, 0, 0, 9],
          [1, 0, 0, 0, 0, 0, 0, 0],
          [0, 0, 0, 0, 0, 0, 0, 1],
        ),
      },
    ],
  };
}

const points: QuantizationPoint[] = [
  { name: "x", kind: "activation", observed: "x" },
  { name: "layer#0", kind: "layer-input", observed: "x", layer: "layer" },
  { name: "other#0", kind: "layer-input", observed: "y", layer: "other" },
];
const policy = policySchema.parse({ narrowRange: { kind: "min-max" }, wideHeadroom: 1 });
const narrow = widthsOf(policy, new Set(["layer"]));

describe("encodings from observations", () => {
  test("one task gives its own ranges, several the merged ones", () => {
    const rangeOf = (tasks: string[]) => {
      const [encoding] = chooseEncodings(points, observations(), tasks, () => 16, policy);
      return encodingRange(encoding);
    };
    const step = 8 / 65535;
    for (const [tasks, min, max] of [
      [["small"], -1, 1],
      [["large"], -0.25, 7],
      [["small", "large"], -1, 7],
    ] as const) {
      const range = rangeOf([...tasks]);
      expect(Math.abs(range.min - min)).toBeLessThanOrEqual(step);
      expect(Math.abs(range.max - max)).toBeLessThanOrEqual(step);
    }
  });

  test("have the width of their point, zero on the grid, and room where they are wide", () => {
    const encodings = chooseEncodings(points, observations(), ["small", "large"], narrow, policy);
    expect(encodings.map(({ bits }) => bits)).toEqual([16, 8, 16]);
    for (const { signed, symmetric, zeroPoint, bits, scale } of encodings) {
      expect([signed, symmetric, scale.length]).toEqual([false, false, 1]);
      expect(Number.isInteger(zeroPoint[0]) && zeroPoint[0] >= 0 && zeroPoint[0] < 2 ** bits).toBe(true);
    }
    const roomy = chooseEncodings(points, observations(), ["small"], narrow, { ...policy, wideHeadroom: 4 });
    const tight = chooseEncodings(points, observations(), ["small"], narrow, policy);
    expect(roomy[0].scale[0] / tight[0].scale[0]).toBeCloseTo(4, 4);
    expect(roomy[1]).toEqual(tight[1]);
  });

  test("a chooser gives what a single choice gives", () => {
    const choose = encodingChooser(points, observations(), ["large"], policy);
    for (const widths of [narrow, () => 16 as const, () => 8 as const, narrow]) {
      expect(choose(widths)).toEqual(chooseEncodings(points, observations(), ["large"], widths, policy));
    }
  });

  test("a value that was not observed is a fault", () => {
    const unknown: QuantizationPoint[] = [{ name: "z", kind: "activation", observed: "z" }];
    expect(() => chooseEncodings(unknown, observations(), ["small"], narrow, policy)).toThrow('"z" was not observed');
  });
});

describe("widths", () => {
  test("everything at 8 bits, except what is kept wide", () => {
    const everything = widthsOf({ narrowEverything: true, keepWide: ["^x$", "^other$"] }, new Set());
    expect(points.map(everything)).toEqual([16, 8, 16]);
  });

  test("patterns that are not regular expressions are refused", () => {
    expect(policySchema.safeParse({ keepWide: ["("] }).error?.issues[0].path).toEqual(["keepWide", 0]);
  });
});

describe("merged tasks", () => {
  test("counts add up, over the exact range", () => {
    const merged = mergeTasks(observations(), 0, ["small", "large"], false);
    expect([merged.low, merged.high, merged.min, merged.max]).toEqual([-1, 7, -1, 7]);
    expect([...merged.counts]).toEqual([12, 9, 0, 0, 0, 0, 0, 10]);
  });

  test("balanced groups each bring the same second moment", () => {
    const { counts, low, high } = mergeTasks(observations(), 0, ["large"], true);
    const centre = (bin: number) => low + ((bin + 0.5) * (high - low)) / bins;
    // Bins 0 (group 2) and 7 (group 1) come from one group each: their mean squares weighed by samples.
    expect(counts[7] * centre(7) ** 2).toBeCloseTo(10, 9);
    expect(counts[0] * centre(0) ** 2).toBeCloseTo(1, 9);
    const plain = mergeTasks(observations(), 0, ["large"], false).counts;
    expect(counts[0] / counts[7]).toBeGreaterThan(plain[0] / plain[7]);
  });
});

test("the mixed range is the one whose largest relative error over tasks is least", () => {
  const grid = { bits: 8, signed: false, symmetric: false } as const;
  const uniform = (reach: number) => {
    const histogram = createHistogram(-8, 8, 512);
    addValues(
      histogram,
      Float32Array.from({ length: 4000 }, (_, index) => reach * ((2 * (index + 0.5)) / 4000 - 1)),
    );
    return histogram;
  };
  const seen = [uniform(0.5), uniform(4)];
  const ranges = [0.5, 2, 4, 8].map((reach) => ({ min: -reach, max: reach }));
  // Power of a uniform variable in [-r, r] is r^2 / 3.
  const relative = (range: (typeof ranges)[0]) =>
    [0.5, 4].map((reach, task) => expectedSquaredError(seen[task], range, grid) / (reach ** 2 / 3));
  // The narrow range clips the second task, the wide ones are coarse for the first: 4 just fits both.
  expect(servingWorst(seen, ranges, grid)).toEqual({ min: -4, max: 4 });
  const worst = ranges.map((range) => Math.max(...relative(range)));
  expect(Math.min(...worst)).toBeCloseTo(worst[2], 12);
  expect(worst[0]).toBeGreaterThan(100 * worst[2]);
  // A task that has no such value, as the base has none in an adapter's branch, has no say.
  expect(servingWorst([...seen, createHistogram(-8, 8, 512)], ranges, grid)).toEqual({ min: -4, max: 4 });
  expect(servingWorst([createHistogram(-8, 8, 512)], ranges, grid)).toEqual(ranges[0]);
});

import type { Task } from "@quad-lora/runtime";
import { expect, test } from "vitest";
import { adaptersOf, heldOutCases, sayingAdapters } from "./cases.ts";

const calibration = [{ prompt: "crab", seed: 3 }, { prompt: "tulip" }];
const evaluation = [{ prompt: "penguin", seed: 11 }, { prompt: "octopus" }];

test("evaluation cases are taken in turn, again with other seeds when more are wanted", () => {
  const { cases, note } = heldOutCases({ calibration, evaluation }, 4);
  expect(note).toBeUndefined();
  expect(cases.map(({ prompt, seed }) => [prompt, seed])).toEqual([
    ["penguin", 11],
    ["octopus", 1_000_001],
    ["penguin", 1_000_011],
    ["octopus", 1_000_003],
  ]);
  expect(heldOutCases({ calibration, evaluation }).cases).toHaveLength(2);
});

test("without evaluation cases calibration's prompts stand in, with seeds it never had", () => {
  const { cases, note } = heldOutCases({ calibration }, 3);
  expect(cases.map(({ prompt }) => prompt)).toEqual(["crab", "tulip", "crab"]);
  expect(new Set(cases.map(({ seed }) => seed)).size).toBe(3);
  for (const { seed } of cases) expect([0, 1, 3]).not.toContain(seed);
  expect(note).toContain("other seeds");
  expect(heldOutCases({ calibration }).cases).toHaveLength(8);
});

test("cases that calibration has seen are told", () => {
  expect(heldOutCases({ calibration, evaluation: [{ prompt: "crab", seed: 3 }] }).note).toContain("1 of 1");
  // Calibration's second case has no seed: it counts from 0.
  expect(heldOutCases({ calibration, evaluation: [{ prompt: "tulip", seed: 1 }] }).note).toContain("calibrated on");
  expect(heldOutCases({ calibration, evaluation: [{ prompt: "crab", seed: 4 }] }).note).toBeUndefined();
});

test("a task selects in an evaluation what the runtime selects in the evaluated folder", () => {
  const selected = (name: string, task: Task) => adaptersOf(name, sayingAdapters(name, task, ["flat"]));
  expect(selected("base", {})).toEqual({});
  expect(selected("flat", {})).toEqual({ flat: 1 });
  expect(selected("sketch", {})).toEqual({});
  expect(selected("flat", { adapter: null })).toEqual({});
  expect(selected("both", { adapter: { flat: 0.7, sketch: 0.5 } })).toEqual({ flat: 0.7, sketch: 0.5 });
});

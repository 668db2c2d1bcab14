import { expect, test } from "vitest";
import type { Evaluation } from "../records/evaluation.ts";
import { sharesOf } from "./simulated-variants.ts";
import type { Simulations } from "./simulations.ts";

const simulationsOf = (layerSensitivity: Record<string, number>, keepWide: string[] = []) =>
  ({ sources: { profile: { layerSensitivity, policy: { keepWide } } } }) as unknown as Simulations;

const noise = {
  calls: 1,
  tasks: {
    flat: { layers: { a: 0.1, b: 0.001, c: 0.02, d: 0.0001 } },
    sketch: { layers: { a: 0.1, b: 0.5, c: 0.02, d: 0.0001 } },
  },
} as unknown as Evaluation["noise"];

const names = (shares: ReturnType<typeof sharesOf>) => shares.map(({ layers }) => [...layers].sort().join(""));

test("a share takes the layers that lose least over all tasks", () => {
  expect(names(sharesOf(simulationsOf({}), noise, [0, 0.25, 0.5, 1], []))).toEqual(["", "d", "cd", "abcd"]);
});

test("the profile's own measurement counts first, and layers to keep wide stay wide", () => {
  const measured = { a: 60, b: 50, c: 40, d: 30 };
  expect(names(sharesOf(simulationsOf(measured), noise, [0.5], []))).toEqual(["ab"]);
  expect(names(sharesOf(simulationsOf(measured, ["^a$"]), noise, [0.5, 1], []))).toEqual(["bc", "bcd"]);
});

test("without any measurement there are none, and the reader is told", () => {
  const notes: string[] = [];
  expect(sharesOf(simulationsOf({}), null, [0.5], notes)).toEqual([]);
  expect(notes).toHaveLength(1);
  expect(sharesOf(simulationsOf({}), null, [], notes)).toEqual([]);
  expect(notes).toHaveLength(1);
});

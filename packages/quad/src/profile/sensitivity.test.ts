import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { ModelCall } from "../records/trajectory.ts";
import { allocateFloor, allocateShare, thin } from "./sensitivity.ts";

const sensitivities = fc.dictionary(fc.stringMatching(/^[a-f]\d{1,2}$/), fc.double({ min: 10, max: 80, noNaN: true }), {
  minKeys: 1,
  maxKeys: 40,
});
const power = (decibels: number) => 10 ** (-decibels / 10);

describe("a share of narrow layers", () => {
  test("has the asked size and takes those that lose least", () => {
    fc.assert(
      fc.property(sensitivities, fc.double({ min: 0, max: 1, noNaN: true }), (sensitivity, share) => {
        const names = Object.keys(sensitivity);
        const chosen = allocateShare(sensitivity, share);
        expect(chosen.size).toBe(Math.round(share * names.length));
        const left = names.filter((name) => !chosen.has(name));
        const worst = Math.min(...[...chosen].map((name) => sensitivity[name]));
        for (const name of left) expect(sensitivity[name]).toBeLessThanOrEqual(worst);
      }),
    );
  });

  test("grows by adding layers, and does not depend on their order", () => {
    fc.assert(
      fc.property(sensitivities, fc.double({ min: 0, max: 1, noNaN: true }), (sensitivity, share) => {
        const smaller = allocateShare(sensitivity, share / 2);
        const larger = allocateShare(sensitivity, share);
        for (const name of smaller) expect(larger.has(name)).toBe(true);
        const reversed = Object.fromEntries(Object.entries(sensitivity).reverse());
        expect([...allocateShare(reversed, share)]).toEqual([...larger]);
      }),
    );
  });

  test("leaves out what stays wide, whatever the share", () => {
    const sensitivity = { conv_in: 90, "up.0": 50, "up.1": 40, conv_out: 95 };
    expect(allocateShare(sensitivity, 1, [/^conv_/])).toEqual(new Set(["up.0", "up.1"]));
    expect(allocateShare(sensitivity, 0.25, [/^conv_/])).toEqual(new Set(["up.0"]));
  });
});

describe("a floor of quality", () => {
  test("is kept, and no layer that still fits is left out", () => {
    fc.assert(
      fc.property(sensitivities, fc.double({ min: 5, max: 60, noNaN: true }), (sensitivity, floor) => {
        const chosen = allocateFloor(sensitivity, floor, {});
        const spent = [...chosen].reduce((sum, name) => sum + power(sensitivity[name]), 0);
        expect(spent).toBeLessThanOrEqual(power(floor) * (1 + 1e-9));
        for (const name of Object.keys(sensitivity)) {
          if (!chosen.has(name)) expect(spent + power(sensitivity[name])).toBeGreaterThan(power(floor) * (1 - 1e-9));
        }
      }),
    );
  });

  test("prefers layers that gain more for the same noise", () => {
    const chosen = allocateFloor({ small: 30, large: 30, other: 30 }, 29.9, { small: 1, large: 100, other: 10 });
    expect(chosen).toEqual(new Set(["large"]));
    expect(allocateFloor({ small: 30, large: 30 }, 20, { small: 1, large: 2 }, [/large/])).toEqual(new Set(["small"]));
  });
});

describe("thinned trajectories", () => {
  const calls = Array.from({ length: 64 }, (_, index) => ({ caseIndex: index >> 3, step: index & 7 }) as ModelCall);
  const pick = (count: number) => thin({ task: "a", calls }, count).calls;

  test("keep the order and repeat nothing", () => {
    const indices = pick(20).map((call) => calls.indexOf(call));
    expect(indices).toEqual([...new Set(indices)].sort((a, b) => a - b));
    expect(pick(64)).toEqual(calls);
    expect(pick(99)).toEqual(calls);
  });

  test.each([2, 4, 8, 12, 16, 32])("%i calls meet as many steps and pictures as they can", (count) => {
    const picked = pick(count);
    expect(picked.length).toBe(count);
    expect(new Set(picked.map(({ step }) => step)).size).toBe(Math.min(8, count));
    expect(new Set(picked.map(({ caseIndex }) => caseIndex)).size).toBeGreaterThanOrEqual(Math.min(8, count) / 2);
  });
});

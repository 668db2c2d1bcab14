import fc from "fast-check";
import { expect, test } from "vitest";
import { classifierFree, combineRows, rescale } from "./guidance.ts";

const values = (length: number) =>
  fc.array(fc.double({ min: -4, max: 4, noNaN: true }), { minLength: length, maxLength: length });
const strength = fc.double({ min: -2, max: 12, noNaN: true });

/** As good as float32 is for sums of such numbers. */
const close = 1e-5 * 4 * 12;

test("rows of prompt and image are guided as the papers' equations say", () => {
  fc.assert(
    fc.property(values(6), values(6), values(6), strength, strength, (neither, image, both, towardsImage, guidance) => {
      const rows = [neither, image, both].map((row) => Float32Array.from(row));
      const out = new Float32Array(6);
      combineRows(rows.slice(1), [guidance], out);
      // Ho and Salimans, in the form of the implementations.
      out.forEach((value, i) => {
        expect(Math.abs(value - (image[i] + guidance * (both[i] - image[i])))).toBeLessThan(close);
      });
      combineRows(rows, [towardsImage, guidance], out);
      // Brooks et al., equation 3.
      out.forEach((value, i) => {
        const expected = neither[i] + towardsImage * (image[i] - neither[i]) + guidance * (both[i] - image[i]);
        expect(Math.abs(value - expected)).toBeLessThan(close);
      });
      combineRows(rows.slice(2), [], out);
      expect(out).toEqual(rows[2]);
    }),
    { seed: 1, numRuns: 100 },
  );
});

test("a rescaled prediction has the spread of the last row's, by the share asked for", () => {
  const spread = (of: Float32Array) => {
    const mean = of.reduce((sum, value) => sum + value, 0) / of.length;
    return Math.sqrt(of.reduce((sum, value) => sum + (value - mean) ** 2, 0) / of.length);
  };
  const guided = Float32Array.of(4, -8, 2, 6, -1);
  const conditional = Float32Array.of(1, -1, 0.5, 0.25, 0.125);
  for (const share of [0, 0.7, 1]) {
    const rescaled = guided.slice();
    rescale(rescaled, conditional, share);
    const expected = share * spread(conditional) + (1 - share) * spread(guided);
    expect(spread(rescaled)).toBeCloseTo(expected, 5);
    expect(rescaled[1] / rescaled[0]).toBeCloseTo(-2, 5);
  }
});

test("at and below 1 the negative prompt is not even encoded", async () => {
  let encoded = 0;
  const prompt = { states: { dims: [1], values: [1] } };
  const negative = async () => {
    encoded++;
    return { states: { dims: [1], values: [0] } };
  };
  for (const guidance of [1, 0.5, 0, -1]) {
    const { rows, strengths } = await classifierFree({ prompt, negative }, guidance);
    expect([rows.map(({ conditions }) => conditions), strengths]).toEqual([[prompt], []]);
  }
  expect(encoded).toBe(0);
  const { rows, strengths } = await classifierFree({ prompt, negative }, 1.5);
  expect(rows.map(({ conditions }) => conditions)).toEqual([await negative(), prompt]);
  expect(strengths).toEqual([1.5]);
});

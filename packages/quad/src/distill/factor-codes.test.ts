import { expect, test } from "vitest";
import { packFactors, unpackFactors } from "./factor-codes.ts";

test("packed factors round as the student does, ties to even and ends clipped", () => {
  const layout = [{ name: "a", offset: 0, dims: [6] }];
  const inputs = [{ name: "a", scale: 0.5 }];
  const [eight] = unpackFactors(Float32Array.of(0.5, 1.5, -2.5, 300, -300, 7.4), layout, inputs, 8);
  expect([...(eight.data as Float32Array)]).toEqual([0, 1, -1, 63.5, -63.5, 3.5]);
  const [sixteen] = unpackFactors(Float32Array.of(0.5, 1 / 256, 3 / 512, 300, -300, 0), layout, inputs, 16);
  expect([...(sixteen.data as Float32Array)]).toEqual([64, 0.5, 1, 16383.5, -16383.5, 0]);
  expect([...packFactors([sixteen], layout, inputs, 16)]).toEqual([
    0.5,
    1 / 256,
    1 / 128,
    32767 / 256,
    -32767 / 256,
    0,
  ]);
});

import { expect, test } from "vitest";
import { storageTable } from "./storage.ts";

test("storage grows by a graph per task where adapters are merged, and by an adapter in a bundle", () => {
  const sizes = { fullPrecisionGraph: 1000, quantizedGraph: 250, adapter: 10, shared: 100 };
  expect(storageTable(sizes, [1, 4])).toEqual([
    { tasks: 1, mergedFullPrecision: 1100, mergedQuantized: 350, bundle: 360 },
    { tasks: 4, mergedFullPrecision: 4100, mergedQuantized: 1100, bundle: 390 },
  ]);
  expect(storageTable(sizes).map(({ tasks }) => tasks)).toEqual([1, 2, 5, 10]);
});

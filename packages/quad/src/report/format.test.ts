import { expect, test } from "vitest";
import { decibels, formatBytes, listed, percent, significant } from "./format.ts";

test("bytes are in decimal units, with a digit after the point below 100", () => {
  expect([0, 999, 1000, 64_340, 999_999, 1_400_000_000].map(formatBytes)).toEqual([
    "0 B",
    "999 B",
    "1.0 kB",
    "64.3 kB",
    "1000 kB",
    "1.4 GB",
  ]);
});

test("shares, noise and lists are as people read them", () => {
  expect([0, 0.00005, 0.0003, 0.024, 0.37].map(percent)).toEqual(["0 %", "< 0.01 %", "0.03 %", "2.4 %", "37 %"]);
  expect([decibels(0.001), decibels(0)]).toEqual(["30.0 dB", "exact"]);
  expect([listed([]), listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])]).toEqual([
    "",
    "a",
    "a and b",
    "a, b and c",
  ]);
  expect([significant(1234.5), significant(0.00012345), significant(null)]).toEqual(["1230", "0.000123", ""]);
});

import { expect, test } from "vitest";
import { distillSchema } from "../settings/distill.ts";
import { teacherCases } from "./teacher.ts";

test("the teacher draws each picture with new prompts and seeds, and mirrored", () => {
  const pixels = (first: number) => Uint8Array.from({ length: 12 }, (_, index) => first + index);
  const picture = (first: number) => ({ width: 2, height: 2, data: pixels(first) });
  const cases = [
    { prompt: "a", image: picture(0), mask: { width: 2, height: 2, data: Uint8Array.of(1, 2, 3, 4) }, seed: 1 },
    { prompt: "b", image: picture(100), seed: 2 },
  ];
  const drawn = teacherCases(cases, distillSchema.parse({ pictures: 5 }));
  expect(drawn.map(({ prompt }) => prompt).join("")).toBe("abbaa");
  expect(new Set(drawn.map(({ seed }) => seed)).size).toBe(5);
  expect(drawn[0].image).toEqual(picture(0));
  expect([...drawn[2].image!.data]).toEqual([3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]);
  expect([...drawn[2].mask!.data]).toEqual([2, 1, 4, 3]);
  expect(drawn[4].image).toEqual(picture(0));
  expect(teacherCases([{ prompt: "text" }], distillSchema.parse({ pictures: 2 })).map(({ prompt }) => prompt)).toEqual([
    "text",
    "text",
  ]);
});

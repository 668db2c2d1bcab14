import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { cloneModel } from "@quad-lora/onnx";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Bench, encodingsFor, pocketBench } from "../compile/testing.ts";
import { CodeNodes } from "../quantizable/code-nodes.ts";
import { layerInputPoint, layerOfPoint } from "../quantizable/points.ts";
import { findQuantizable } from "../quantizable/quantizable.ts";
import { WeightCodes } from "../quantizable/weight-codes.ts";
import { defaultTarget, strictestTarget, targetNamed, targetNames } from "./index.ts";

/** Places a target's graph and says which encodings it asked for, and what it could have asked for. */
function place({ prepared, slots, ...bench }: Bench, name: string, isNarrow: boolean) {
  const target = targetNamed(name);
  const model = cloneModel(prepared);
  const quantizable = findQuantizable(model, slots);
  const points = target.points(quantizable);
  const narrowLayers = new Set(isNarrow ? quantizable.layers.map((layer) => layer.name) : []);
  const encodings = encodingsFor({ prepared, slots, ...bench }, points, narrowLayers);
  const asked = new Set<string>();
  target.place(model, quantizable, {
    codes: new CodeNodes(model.graph),
    weights: new WeightCodes(model.graph, { bits: 8, method: "min-max" }),
    narrowLayers,
    encodingOf: (point) => {
      asked.add(point);
      return encodings.get(point)!;
    },
  });
  return { target, model, asked, offered: new Set(points.map((point) => point.name)) };
}

describe("targets", async () => {
  const bench = await pocketBench();

  test.each([...targetNames])(
    "%s: its graph asks for encodings of the points that it declares, and of no others",
    (name) => {
      const { asked, offered } = place(bench, name, true);
      expect(asked).toEqual(offered);
      const wide = place(bench, name, false);
      for (const point of wide.asked) expect(wide.offered).toContain(point);
    },
  );

  test.each([...targetNames])(
    "%s: its graph has no operators beyond the standard but those that it declares",
    (name) => {
      for (const isNarrow of [true, false]) {
        const { model, target } = place(bench, name, isNarrow);
        const beyond = [...model.graph.nodes].filter(({ domain }) => domain !== "").map(({ operator }) => operator);
        expect(beyond.length).toBeGreaterThan(0);
        for (const operator of beyond) expect(target.operators).toContain(operator);
      }
    },
  );

  test("the strictest one declares every point of the others", () => {
    const { offered } = place(bench, strictestTarget, true);
    for (const name of targetNames)
      for (const point of place(bench, name, true).offered) expect(offered).toContain(point);
  });

  test("an unknown name is refused with those there are", () => {
    expect(() => targetNamed("gpu")).toThrow(InputError);
    expect(() => targetNamed("gpu")).toThrow(defaultTarget);
  });

  test("their names are written in their folders alone", () => {
    const root = join(import.meta.dirname, "..");
    const sources = readdirSync(root, { recursive: true, encoding: "utf8" }).filter(
      (path) => path.endsWith(".ts") && !/(\.test|testing)\.ts$/.test(path) && !path.startsWith("targets"),
    );
    expect(sources.length).toBeGreaterThan(100);
    const literal = new RegExp(`["'\`](${targetNames.join("|")})["'\`]`);
    expect(sources.filter((path) => literal.test(readFileSync(join(root, path), "utf8")))).toEqual([]);
  });
});

test("the layer of a point is the one that the point was named after", () => {
  fc.assert(
    fc.property(
      fc.string({ minLength: 1 }).filter((name) => !name.includes("\n")),
      fc.nat(9),
      (layer, position) => {
        expect(layerOfPoint(layerInputPoint(layer, position))).toBe(layer);
      },
    ),
    { seed: 5 },
  );
  expect(layerOfPoint("/conv_in/Conv_output_0")).toBeNull();
});

import { SeededRandom } from "@quad-lora/runtime";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { failure, importSpecs, type Spec } from "../testing.ts";
import type { AdaptableModule, AdapterLayer } from "../types.ts";

// Changes as their definitions give them, in double precision, against the products of the factors that were read.

const linear = (inFeatures: number, outFeatures: number): AdaptableModule => ({
  component: "unet",
  name: "a",
  kind: "linear",
  inFeatures,
  outFeatures,
});
const convolution: AdaptableModule = {
  component: "unet",
  name: "a",
  kind: "conv",
  inFeatures: 4,
  outFeatures: 6,
  kernel: [3, 3],
};

function random(length: number, seed: number): Float32Array {
  const source = new SeededRandom(seed);
  return Float32Array.from({ length }, () => source.normal());
}

type Matrix = { rows: number; columns: number; at: (row: number, column: number) => number };
const matrix = (values: ArrayLike<number>, rows: number, columns: number): Matrix => ({
  rows,
  columns,
  at: (i, j) => values[i * columns + j],
});
const entries = ({ rows, columns, at }: Matrix) =>
  Float64Array.from({ length: rows * columns }, (_, n) => at(Math.floor(n / columns), n % columns));
const product = (a: Matrix, b: Matrix) => {
  const values = new Float64Array(a.rows * b.columns);
  for (let i = 0; i < a.rows; i++)
    for (let k = 0; k < a.columns; k++)
      for (let j = 0; j < b.columns; j++) values[i * b.columns + j] += a.at(i, k) * b.at(k, j);
  return matrix(values, a.rows, b.columns);
};
const kronecker = (a: Matrix, b: Matrix): Matrix => ({
  rows: a.rows * b.rows,
  columns: a.columns * b.columns,
  at: (i, j) => a.at(Math.floor(i / b.rows), Math.floor(j / b.columns)) * b.at(i % b.rows, j % b.columns),
});
/** `sum over i, j of core[i, j, p] a[i, out] b[j, in]` as `[out, in x p]`. */
const tucker = (core: Float32Array, a: Float32Array, b: Float32Array, rank: number, positions: number): Matrix => {
  const [outputs, inputs] = [a.length / rank, b.length / rank];
  return {
    rows: outputs,
    columns: inputs * positions,
    at: (o, column) => {
      const [c, p] = [Math.floor(column / positions), column % positions];
      let sum = 0;
      for (let i = 0; i < rank; i++)
        for (let j = 0; j < rank; j++)
          sum += core[(i * rank + j) * positions + p] * a[i * outputs + o] * b[j * inputs + c];
      return sum;
    },
  };
};
const changeOf = ({ up, down, rank }: AdapterLayer) =>
  entries(product(matrix(up, up.length / rank, rank), matrix(down, rank, down.length / rank)));
const norm = (values: Float64Array) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
const distance = (got: Float64Array, expected: Float64Array) =>
  norm(got.map((value, i) => value - expected[i])) / norm(expected);

const alphaOf = (value: number): Spec => ["lora_unet_a.alpha", [], Float32Array.of(value)];
const part = (name: string, shape: number[], values: Float32Array): Spec => [`lora_unet_a.${name}`, shape, values];

describe("LoHa", () => {
  test("its entrywise product of products is exact, of rank r1 r2", async () => {
    const [w1a, w1b, w2a, w2b] = [random(30 * 2, 1), random(2 * 20, 2), random(30 * 3, 3), random(3 * 20, 4)];
    const specs = [
      part("hada_w1_a", [30, 2], w1a),
      part("hada_w1_b", [2, 20], w1b),
      part("hada_w2_a", [30, 3], w2a),
      part("hada_w2_b", [3, 20], w2b),
      alphaOf(5),
    ];
    const { layers, report } = await importSpecs(specs, { of: [linear(20, 30)] });
    const [first, second] = [
      product(matrix(w1a, 30, 2), matrix(w1b, 2, 20)),
      product(matrix(w2a, 30, 3), matrix(w2b, 3, 20)),
    ];
    const expected = entries(first).map((value, i) => (5 / 2) * value * entries(second)[i]);
    expect(distance(changeOf(layers[0]), expected)).toBeLessThan(1e-6);
    expect(layers[0].rank).toBe(6);
    expect(report).toMatchObject({ unmatched: [], mismatched: [], warnings: [] });
  });

  test("its Tucker cores, and kernels as columns, in a convolution", async () => {
    const expected = (first: Matrix, second: Matrix) => entries(first).map((v, i) => v * entries(second)[i]);
    const [t1, t2] = [random(4 * 9, 1), random(4 * 9, 2)];
    const [a1, b1, a2, b2] = [random(12, 3), random(8, 4), random(12, 5), random(8, 6)];
    const withCores = await importSpecs(
      [
        part("hada_t1", [2, 2, 3, 3], t1),
        part("hada_w1_a", [2, 6], a1),
        part("hada_w1_b", [2, 4], b1),
        part("hada_t2", [2, 2, 3, 3], t2),
        part("hada_w2_a", [2, 6], a2),
        part("hada_w2_b", [2, 4], b2),
      ],
      { of: [convolution] },
    );
    const cores = expected(tucker(t1, a1, b1, 2, 9), tucker(t2, a2, b2, 2, 9));
    expect(distance(changeOf(withCores.layers[0]), cores)).toBeLessThan(1e-6);

    const [d1, d2] = [random(2 * 36, 7), random(2 * 36, 8)];
    const flat = await importSpecs(
      [
        part("hada_w1_a", [6, 2], a1),
        part("hada_w1_b", [2, 36], d1),
        part("hada_w2_a", [6, 2], a2),
        part("hada_w2_b", [2, 36], d2),
      ],
      { of: [convolution] },
    );
    const [first, second] = [
      product(matrix(a1, 6, 2), matrix(d1, 2, 36)),
      product(matrix(a2, 6, 2), matrix(d2, 2, 36)),
    ];
    expect(distance(changeOf(flat.layers[0]), expected(first, second))).toBeLessThan(1e-6);
  });

  test("more pairs of ranks than the layer is wide need no more than its width", async () => {
    const [w1a, w1b, w2a, w2b] = [random(7 * 4, 1), random(4 * 9, 2), random(7 * 5, 3), random(5 * 9, 4)];
    const { layers } = await importSpecs(
      [
        part("hada_w1_a", [7, 4], w1a),
        part("hada_w1_b", [4, 9], w1b),
        part("hada_w2_a", [7, 5], w2a),
        part("hada_w2_b", [5, 9], w2b),
      ],
      { of: [linear(9, 7)] },
    );
    const [first, second] = [
      product(matrix(w1a, 7, 4), matrix(w1b, 4, 9)),
      product(matrix(w2a, 7, 5), matrix(w2b, 5, 9)),
    ];
    expect(
      distance(
        changeOf(layers[0]),
        entries(first).map((v, i) => v * entries(second)[i]),
      ),
    ).toBeLessThan(1e-6);
    expect(layers[0].rank).toBe(7);
  });

  test("parts that are missing or do not fit leave the layer out, told", async () => {
    const good: Spec[] = [
      ["unet.b.lora_A.weight", [1, 2]],
      ["unet.b.lora_B.weight", [2, 1]],
    ];
    const of = [linear(20, 30), { ...linear(2, 2), name: "b" }];
    const read = async (...specs: Spec[]) => (await importSpecs([...good, ...specs], { of })).report.mismatched[0];
    expect(await read(part("hada_w1_a", [30, 2], random(60, 1)))).toMatchObject({ got: "no hada_w1_b in the file" });
    const wrong = [
      part("hada_w1_a", [29, 2], random(58, 1)),
      part("hada_w1_b", [2, 20], random(40, 1)),
      part("hada_w2_a", [30, 2], random(60, 1)),
      part("hada_w2_b", [2, 20], random(40, 1)),
    ];
    expect(await read(...wrong)).toMatchObject({ expected: "products of [30, 20]", got: "[29, 20]" });
  });
});

describe("LoKr", () => {
  const sides = fc.record({
    outer: fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 4 })),
    inner: fc.tuple(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: 6 })),
    rank: fc.integer({ min: 1, max: 3 }),
    isOuterSplit: fc.boolean(),
    isInnerSplit: fc.boolean(),
  });

  test("its Kronecker product is exact, from full and from decomposed sides", async () => {
    await fc.assert(
      fc.asyncProperty(sides, async ({ outer, inner, rank, isOuterSplit, isInnerSplit }) => {
        const side = (name: string, [rows, columns]: [number, number], isSplit: boolean, seed: number) => {
          if (!isSplit) {
            const values = random(rows * columns, seed);
            return { specs: [part(name, [rows, columns], values)], value: matrix(values, rows, columns) };
          }
          const [a, b] = [random(rows * rank, seed), random(rank * columns, seed + 1)];
          return {
            specs: [part(`${name}_a`, [rows, rank], a), part(`${name}_b`, [rank, columns], b)],
            value: product(matrix(a, rows, rank), matrix(b, rank, columns)),
          };
        };
        const first = side("lokr_w1", outer, isOuterSplit, 1);
        const second = side("lokr_w2", inner, isInnerSplit, 11);
        const of = [linear(outer[1] * inner[1], outer[0] * inner[0])];
        const { layers } = await importSpecs([...first.specs, ...second.specs, alphaOf(6)], { of });
        // Full matrices on both sides have no rank that alpha could be divided by.
        const scale = isOuterSplit || isInnerSplit ? 6 / rank : 1;
        const expected = entries(kronecker(first.value, second.value)).map((value) => value * scale);
        expect(distance(changeOf(layers[0]), expected)).toBeLessThan(1e-5);
      }),
      { seed: 5, numRuns: 60 },
    );
  });

  test("a convolution's kernel is of the second side, full or with a core", async () => {
    const w1 = random(2 * 2, 1);
    const full = random(3 * 2 * 9, 2);
    const first = matrix(w1, 2, 2);
    const direct = await importSpecs([part("lokr_w1", [2, 2], w1), part("lokr_w2", [3, 2, 3, 3], full)], {
      of: [convolution],
    });
    expect(distance(changeOf(direct.layers[0]), entries(kronecker(first, matrix(full, 3, 18))))).toBeLessThan(1e-6);

    const [core, a, b] = [random(2 * 2 * 9, 3), random(2 * 3, 4), random(2 * 2, 5)];
    const specs = [
      part("lokr_w1", [2, 2], w1),
      part("lokr_t2", [2, 2, 3, 3], core),
      part("lokr_w2_a", [2, 3], a),
      part("lokr_w2_b", [2, 2], b),
      alphaOf(1),
    ];
    const cored = await importSpecs(specs, { of: [convolution] });
    const expected = entries(kronecker(first, tucker(core, a, b, 2, 9))).map((value) => value / 2);
    expect(distance(changeOf(cored.layers[0]), expected)).toBeLessThan(1e-6);
  });

  test("full matrices of too large a rank are shortened to the nearest, and the error is what is told", async () => {
    const [w1, w2] = [random(4 * 4, 1), random(12 * 12, 2)];
    const specs = [part("lokr_w1", [4, 4], w1), part("lokr_w2", [12, 12], w2)];
    const expected = entries(kronecker(matrix(w1, 4, 4), matrix(w2, 12, 12)));
    const errors: number[] = [];
    for (const maximumRank of [6, 24, 48]) {
      const { layers, report } = await importSpecs(specs, { of: [linear(48, 48)], maximumRank });
      const error = distance(changeOf(layers[0]), expected);
      errors.push(error);
      expect(layers[0].rank).toBe(maximumRank);
      if (maximumRank === 48) expect(report.warnings).toEqual([]);
      else {
        expect(report.warnings).toHaveLength(1);
        const told = Number(/leaves out ([\d.e+-]+) %/.exec(report.warnings[0])?.[1]);
        expect(Math.abs(told / 100 - error) / error).toBeLessThan(0.05);
      }
    }
    expect(errors[0]).toBeGreaterThan(errors[1]);
    expect(errors[2]).toBeLessThan(1e-6);
  });

  test("a shortened change is the best of its rank: what is left out is orthogonal to what is kept", async () => {
    const [w1, w2] = [random(3 * 3, 7), random(10 * 8, 8)];
    const specs = [part("lokr_w1", [3, 3], w1), part("lokr_w2", [10, 8], w2)];
    const expected = entries(kronecker(matrix(w1, 3, 3), matrix(w2, 10, 8)));
    const kept = changeOf((await importSpecs(specs, { of: [linear(24, 30)], maximumRank: 7 })).layers[0]);
    const rest = matrix(
      expected.map((value, i) => value - kept[i]),
      30,
      24,
    );
    const own = matrix(kept, 30, 24);
    const turned = ({ rows, columns, at }: Matrix): Matrix => ({
      rows: columns,
      columns: rows,
      at: (i, j) => at(j, i),
    });
    const scale = norm(expected) ** 2;
    expect(norm(entries(product(turned(rest), own))) / scale).toBeLessThan(1e-6);
    expect(norm(entries(product(rest, turned(own)))) / scale).toBeLessThan(1e-6);
  });
});

test("changes far wider than the rank they get are shortened by a sketch as well as by the full decomposition", async () => {
  // Inner size 400: a sum whose terms fall off, so that the best approximation of rank 20 is known.
  const size = 400;
  const scale = (k: number) => 0.9 ** k;
  const w2 = new Float32Array(size * size);
  for (let k = 0; k < size; k++) w2[k * size + ((k * 7) % size)] = scale(k);
  const specs = [part("lokr_w1", [1, 1], Float32Array.of(1)), part("lokr_w2", [size, size], w2)];
  const { layers, report } = await importSpecs(specs, { of: [linear(size, size)], maximumRank: 20 });
  // The squares of 0.9^k from 20 on make up 0.9^40 of all.
  expect(distance(changeOf(layers[0]), Float64Array.from(w2))).toBeCloseTo(0.9 ** 20, 4);
  expect(report.warnings[0]).toMatch(/rank 20, which leaves out 12 %/);
});

describe("AdaLoRA", () => {
  const [a, b, e] = [random(3 * 5, 1), random(4 * 3, 2), Float32Array.of(0.5, 0, -2)];
  const specs = (extra: Spec[] = []): Spec[] => [
    ["base_model.model.a.lora_A", [3, 5], a],
    ["base_model.model.a.lora_B", [4, 3], b],
    ["base_model.model.a.lora_E", [3, 1], e],
    ...extra,
  ];
  const diagonal = matrix(
    b.map((value, i) => value * e[i % 3]),
    4,
    3,
  );
  const of = [linear(5, 4)];

  test("its singular values stand between the factors", async () => {
    const { layers, report } = await importSpecs(specs(), { of });
    const expected = entries(product(diagonal, matrix(a, 3, 5)));
    expect(distance(changeOf(layers[0]), expected)).toBeLessThan(1e-5);
    expect(report).toMatchObject({ unmatched: [], mismatched: [] });
  });

  test("alpha is divided by the number of ranks that were left", async () => {
    const metadata = { lora_alpha: "8" };
    const ranknum: Spec = ["base_model.model.a.ranknum", [], Float32Array.of(2)];
    const { layers } = await importSpecs(specs([ranknum]), { of, metadata });
    const expected = entries(product(diagonal, matrix(a, 3, 5))).map((value) => (value * 8) / (2 + 1e-5));
    expect(distance(changeOf(layers[0]), expected)).toBeLessThan(1e-6);
  });
});

test("a tensor of unknown meaning among a layer's factors refuses the file: the product without it is another one", async () => {
  const specs: Spec[] = [
    ["unet.a.lora_A.weight", [2, 5]],
    ["unet.a.lora_B.weight", [4, 2]],
    ["unet.a.core.weight", [2, 2]],
  ];
  expect(await failure(importSpecs(specs, { of: [linear(5, 4)] }))).toMatch(/unet\.a\.core\.weight: .*not known/);
});

test("tensors of two methods in one layer leave it out, told", async () => {
  const specs: Spec[] = [
    ["lora_unet_a.lora_down.weight", [2, 5]],
    ["lora_unet_a.lora_up.weight", [4, 2]],
    ["lora_unet_a.lokr_w1", [2, 1]],
    ["lora_unet_a.lokr_w2", [2, 5]],
  ];
  expect(await failure(importSpecs(specs, { of: [linear(5, 4)] }))).toMatch(/one method for a layer.*LoKr and LoRA/);
});

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type DataType,
  elementCount,
  type Graph,
  Model,
  memorySource,
  type NumericDataType,
  Tensor,
  tensorByteSize,
} from "@quad-lora/onnx";
import { SeededRandom } from "@quad-lora/runtime";
import { afterAll } from "vitest";

/** A new folder that goes away when the test file is done. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "quad-test-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Normally distributed float32 values. */
export function randomTensor(dims: readonly number[], seed: number, scale = 1): Tensor {
  const random = new SeededRandom(seed);
  return Tensor.float32(
    dims,
    Float32Array.from({ length: elementCount(dims) }, () => random.normal() * scale),
  );
}

/** An element type's tensor with bytes that differ from element to element. */
export function rampTensor(dataType: NumericDataType, dims: readonly number[]): Tensor {
  const count = elementCount(dims);
  if (dataType === "int64")
    return Tensor.int64(
      dims,
      Array.from({ length: count }, (_, i) => i - 1),
    );
  if (dataType === "uint64")
    return Tensor.of(
      "uint64",
      dims,
      BigUint64Array.from({ length: count }, (_, i) => BigInt(i)),
    );
  if (dataType === "float32")
    return Tensor.float32(
      dims,
      Float32Array.from({ length: count }, (_, i) => i - 1.5),
    );
  const bytes = Uint8Array.from({ length: tensorByteSize(dataType, dims) }, (_, i) => i % 2);
  return new Tensor(dataType, dims, memorySource(bytes));
}

/** Declares graph outputs. */
export function buildModel(
  build: (graph: Graph) => Record<string, { value: ReturnType<Graph["apply"]>; type?: DataType }>,
): Model {
  const model = new Model();
  for (const [name, { value, type = "float32" }] of Object.entries(build(model.graph))) {
    value.name = model.graph.claimName(name);
    value.type ??= { kind: "tensor", dataType: type, shape: null };
    model.graph.outputs.push(value);
  }
  return model;
}

/** max |a - b| / max |b| over all outputs together, and a check that both have the same outputs and shapes. */
export function outputDifference(a: ReadonlyMap<string, Tensor>, b: ReadonlyMap<string, Tensor>): number {
  let worst = 0;
  if ([...a.keys()].join() !== [...b.keys()].join()) throw new Error(`outputs ${[...a.keys()]} and ${[...b.keys()]}`);
  for (const [name, expected] of b) {
    const got = a.get(name)!;
    if (got.dataType !== expected.dataType || got.dims.join() !== expected.dims.join()) {
      throw new Error(`${name}: ${got.dataType}[${got.dims}] and ${expected.dataType}[${expected.dims}]`);
    }
    worst = Math.max(worst, maxRelative(got.toNumbers(), expected.toNumbers()));
  }
  return worst;
}

/** max |a - b| / max |b|; equal infinities and NaN in the same places count as equal. */
export function maxRelative(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [difference, largest] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    if (Object.is(a[i], b[i])) {
      if (Number.isFinite(b[i])) largest = Math.max(largest, Math.abs(b[i]));
      continue;
    }
    const distance = Math.abs(a[i] - b[i]);
    if (!Number.isFinite(distance)) return Number.POSITIVE_INFINITY;
    difference = Math.max(difference, distance);
    largest = Math.max(largest, Math.abs(b[i]));
  }
  return difference === 0 ? 0 : difference / largest;
}

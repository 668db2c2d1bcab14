import type { Tensor } from "onnxruntime-common";
import type { Conditions, LatentLayout, Row } from "./families/family.ts";
import { type Component, FloatInput, numberTensor, type OrtModule, type Port, TimestepInput } from "./ort.ts";

/** Size of one sample in latents. */
export interface LatentSize {
  readonly channels: number;
  readonly height: number;
  readonly width: number;
}

/** Rows per run of a graph: as many as are wanted, unless its batch is fixed (compiled for a device, say). */
export function rowsPerRun(port: Port, rows: number): number {
  const [batch] = port.shape;
  return typeof batch === "number" ? batch : rows;
}

/** The network's input for latents and further channels behind them, written again before every step. */
export class SampleInput {
  readonly #input: FloatInput;
  readonly #rowSize: number;
  readonly #rows: number;
  readonly #latentSize: number;
  readonly #layout: LatentLayout | undefined;

  /** @param rows - of one run */
  constructor(ort: OrtModule, port: Port, rows: number, size: LatentSize, behind: number, layout?: LatentLayout) {
    const plane = size.height * size.width;
    this.#latentSize = size.channels * plane;
    const dims = layout?.dims ?? [size.channels + behind / plane, size.height, size.width];
    this.#input = new FloatInput(ort, port, [rows, ...dims]);
    this.#rowSize = this.#input.values.length / rows;
    this.#rows = rows;
    this.#layout = layout;
  }

  get tensor(): Tensor {
    return this.#input.tensor;
  }

  /** The same latents in every row. */
  setLatents(latents: Float32Array): void {
    const { values } = this.#input;
    for (let row = 0; row < this.#rows; row++) {
      const start = row * this.#rowSize;
      if (this.#layout) this.#layout.pack(latents, values.subarray(start, start + this.#rowSize));
      else values.set(latents, start);
    }
    this.#input.commit();
  }

  /** What stands behind the latents, by row; the next {@link setLatents} makes it visible. */
  setBehind(rows: readonly Row[]): void {
    rows.forEach(({ behind }, row) => {
      if (behind) this.#input.values.set(behind, row * this.#rowSize + this.#latentSize);
    });
  }
}

/** The time step of one graph, told once or for every row. */
export function timestepInput(ort: OrtModule, graph: Component, rows: number): { name: string; input: TimestepInput } {
  const port = graph.input("timestep");
  return { name: port.name, input: new TimestepInput(ort, port, rows) };
}

/**
 * Tensors of what stays the same at every step, for the rows of one run: rows one behind the other, or as they are where the
 * graph's input has no batch axis.
 */
export function conditionTensors(
  ort: OrtModule,
  graph: Component,
  rows: readonly Conditions[],
): Record<string, Tensor> {
  const tensors: Record<string, Tensor> = {};
  for (const [name, first] of Object.entries(rows[0])) {
    const port = graph.input(name);
    if (port.shape.length === first.dims.length) {
      tensors[name] = numberTensor(ort, port, first.values, first.dims);
      continue;
    }
    const size = first.values.length;
    const values = new Float64Array(rows.length * size);
    rows.forEach((row, index) => {
      if (row[name]?.values.length !== size) throw new Error(`rows differ in the size of ${name}`);
      values.set(row[name].values, index * size);
    });
    tensors[name] = numberTensor(ort, port, values, [rows.length, ...first.dims]);
  }
  return tensors;
}

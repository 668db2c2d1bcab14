import {
  computedSource,
  type DataType,
  type Graph,
  type Node,
  Tensor,
  tensorByteSize,
  type Value,
} from "@quad-lora/onnx";
import { type Codes, type Encoding, pack4, quantize } from "../quantization/index.ts";
import { layerEncoding, type WeightOptions, weightAxis } from "./weights.ts";

/** A layer's quantized weight as a matrix `[rows, columns]`: rows are what a product sums over, columns its outputs. */
export interface WeightMatrix {
  /** int8 `[rows, columns]` */
  codes: Value;
  /** float32 `[columns]` */
  scale: Value;
}

export interface WeightCodesOptions {
  bits: 4 | 8;
  method: WeightOptions["weightMethod"];
}

/**
 * The base's weights as codes on symmetric grids, one scale per output channel: those that the simulation rounds to.
 * Scales are found at once; codes when they are read, so that no model lies in memory twice.
 */
export class WeightCodes {
  readonly #graph: Graph;
  readonly #options: WeightCodesOptions;
  readonly #made = new Map<string, Value>();

  constructor(graph: Graph, options: WeightCodesOptions) {
    this.#graph = graph;
    this.#options = options;
  }

  get bits(): 4 | 8 {
    return this.#options.bits;
  }

  /** The encoding of the weight that `node` reads. */
  encoding(weight: Value, node: Node): Encoding {
    return layerEncoding(weight, node, { weightBits: this.#options.bits, weightMethod: this.#options.method });
  }

  /** Codes in the weight's own layout, int8 or int4. */
  codes(weight: Value, node: Node): Value {
    const encoding = this.encoding(weight, node);
    const { dims } = weight.initializer!;
    const type = encoding.bits === 4 ? "int4" : "int8";
    return this.#once(`${weight.name}_codes`, type, dims, () => {
      const codes = quantize(weight.initializer!.toFloat32(), dims, encoding);
      return encoding.bits === 4 ? pack4(codes as Int8Array) : bytesOf(codes);
    });
  }

  /**
   * The weight as an int8 matrix `[rows, columns]` for a product with activations on its left. A convolution's rows run over
   * kernel height, kernel width and input channels, the channels fastest.
   */
  matrix(weight: Value, node: Node): WeightMatrix {
    const encoding = this.encoding(weight, node);
    const { rows, columns } = matrixShape(weight, node);
    const codes = this.#once(`${weight.name}_matrix`, "int8", [rows, columns], () =>
      bytesOf(matrixCodes(weight, node, encoding)),
    );
    return { codes, scale: this.#scale(weight, encoding) };
  }

  /** The weight in blocks along its rows as MatMulNBits reads it: `[columns, blocks, bytes per block]`, offset to unsigned. */
  blocks(weight: Value, node: Node): { codes: Value; scale: Value; rows: number; columns: number; blockSize: number } {
    const encoding = this.encoding(weight, node);
    const { rows, columns } = matrixShape(weight, node);
    const { bits } = this.#options;
    const blockSize = blockSizeFor(rows);
    const count = Math.ceil(rows / blockSize);
    const codes = this.#once(`${weight.name}_blocks`, "uint8", [columns, count, (blockSize * bits) / 8], () => {
      const matrix = matrixCodes(weight, node, encoding);
      const middle = 2 ** (bits - 1);
      const padded = new Uint8Array(columns * count * blockSize).fill(middle);
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++) {
          padded[column * count * blockSize + row] = matrix[row * columns + column] + middle;
        }
      }
      return bits === 4 ? pack4(padded) : padded;
    });
    const scale = this.#once(`${weight.name}_block_scale`, "float32", [columns * count], () =>
      bytesOf(Float32Array.from({ length: columns * count }, (_, index) => encoding.scale[Math.floor(index / count)])),
    );
    return { codes, scale, rows, columns, blockSize };
  }

  /** Sums over the rows of the rounded weight's matrix, in real units, `[columns]`: what a shift of the activations adds. */
  columnSums(weight: Value, node: Node): Float32Array {
    const { rows, columns } = matrixShape(weight, node);
    const encoding = this.encoding(weight, node);
    const matrix = matrixCodes(weight, node, encoding);
    const sums = new Float64Array(columns);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) sums[column] += matrix[row * columns + column];
    }
    return Float32Array.from(sums, (sum, column) => sum * encoding.scale[column]);
  }

  /** A float32 vector `[columns]` that is computed when it is read; made once per name. */
  vector(name: string, weight: Value, node: Node, compute: () => Float32Array): Value {
    const { columns } = matrixShape(weight, node);
    return this.#once(name, "float32", [columns], () => bytesOf(compute()));
  }

  #scale(weight: Value, { scale }: Encoding): Value {
    return this.#once(`${weight.name}_scale`, "float32", [scale.length], () => bytesOf(scale));
  }

  #once(name: string, type: DataType, dims: readonly number[], compute: () => Uint8Array): Value {
    let value = this.#made.get(name);
    if (!value) {
      const tensor = new Tensor(type, dims, computedSource(tensorByteSize(type, dims), compute));
      this.#made.set(name, (value = this.#graph.addInitializer(name, tensor)));
    }
    return value;
  }
}

/** Rows and columns of a layer's weight as the matrix of a product with activations on its left. */
function matrixShape(weight: Value, node: Node): { rows: number; columns: number } {
  const { dims } = weight.initializer!;
  const columns = dims[weightAxis(node)];
  return { rows: weight.initializer!.elementCount / columns, columns };
}

function matrixCodes(weight: Value, node: Node, encoding: Encoding): Codes {
  const { dims } = weight.initializer!;
  const codes = quantize(weight.initializer!.toFloat32(), dims, encoding);
  if (weightAxis(node) === 1) return codes;
  const [outputs, inputs, ...kernel] = dims;
  const positions = kernel.reduce((product, size) => product * size, 1);
  const matrix = new Int8Array(codes.length);
  for (let output = 0, from = 0; output < outputs; output++) {
    for (let input = 0; input < inputs; input++) {
      for (let position = 0; position < positions; position++, from++) {
        matrix[(position * inputs + input) * outputs + output] = codes[from];
      }
    }
  }
  return matrix;
}

/** The largest block that MatMulNBits takes (a power of 2 from 16 to 256) without filling up the last one; 32 if none. */
function blockSizeFor(rows: number): number {
  return [256, 128, 64, 32, 16].find((size) => rows % size === 0) ?? 32;
}

function bytesOf(array: Codes | Float32Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

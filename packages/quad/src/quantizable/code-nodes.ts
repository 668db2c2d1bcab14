import { type DataType, type Graph, memorySource, Tensor, tensorType, type Value } from "@quad-lora/onnx";
import { type Encoding, pack4 } from "../quantization/index.ts";

/** Element type of an encoding's codes. */
export function codeType({ bits, signed }: Pick<Encoding, "bits" | "signed">): DataType {
  return `${signed ? "" : "u"}int${bits}` as DataType;
}

/**
 * Adds QuantizeLinear and DequantizeLinear nodes to a graph. Scales and zero points that are the same are stored once.
 * Only 8-bit codes are in the standard operators before opset 21; the others use those of com.microsoft.
 */
export class CodeNodes {
  readonly #graph: Graph;
  readonly #constants = new Map<string, Value>();

  constructor(graph: Graph) {
    this.#graph = graph;
  }

  /**
   * float32 -> codes, of the same shape.
   * @param scale - in place of the encoding's, where a graph computes it
   */
  quantize(value: Value, encoding: Encoding, name: string, scale = this.scale(encoding)): Value {
    return this.#node("QuantizeLinear", value, encoding, scale, codeType(encoding), `${name}/QuantizeLinear`);
  }

  /** Codes -> float32, of the same shape; `scale` as in {@link quantize}. */
  dequantize(codes: Value, encoding: Encoding, name: string, scale = this.scale(encoding)): Value {
    return this.#node("DequantizeLinear", codes, encoding, scale, "float32", `${name}/DequantizeLinear`);
  }

  /** A constant with the scales of an encoding: a scalar, or one per index of its axis. */
  scale({ scale, axis }: Encoding): Value {
    const dims = axis === undefined ? [] : [scale.length];
    return this.#constant(`quad.scale.${dims}:${keyOf(scale)}`, "quad.scale", () =>
      Tensor.float32(dims, scale.slice()),
    );
  }

  /** A constant with the zero points of an encoding, in the type and number that its codes need. */
  zeroPoint(encoding: Encoding): Value {
    const { zeroPoint, axis } = encoding;
    const dims = axis === undefined ? [] : [zeroPoint.length];
    const type = codeType(encoding);
    return this.#constant(`${type}.${dims}:${zeroPoint.join()}`, `quad.zero.${type}`, () =>
      integerTensor(type, dims, zeroPoint),
    );
  }

  #node(opType: string, input: Value, encoding: Encoding, scale: Value, type: DataType, name: string): Value {
    const { bits, axis } = encoding;
    const output = this.#graph.apply(opType, [input, scale, this.zeroPoint(encoding)], {
      name,
      ...(bits === 8 ? {} : { domain: "com.microsoft" }),
      ...(axis === undefined ? {} : { attributes: { axis } }),
    });
    output.type = tensorType(type, input.type?.kind === "tensor" ? input.type.shape : null);
    return output;
  }

  #constant(key: string, name: string, make: () => Tensor): Value {
    let value = this.#constants.get(key);
    if (!value) this.#constants.set(key, (value = this.#graph.addInitializer(name, make())));
    return value;
  }
}

/** A tensor of the integer type from whole numbers in its range. */
export function integerTensor(type: DataType, dims: readonly number[], values: ArrayLike<number>): Tensor {
  switch (type) {
    case "int8":
      return Tensor.of(type, dims, Int8Array.from(values));
    case "uint8":
      return Tensor.of(type, dims, Uint8Array.from(values));
    case "int16":
      return Tensor.of(type, dims, Int16Array.from(values));
    case "uint16":
      return Tensor.of(type, dims, Uint16Array.from(values));
    case "int4":
    case "uint4":
      return new Tensor(type, dims, memorySource(pack4(Uint8Array.from(values))));
    default:
      throw new TypeError(`no codes are of type ${type}`);
  }
}

/** Equal for arrays of the same bits. */
function keyOf(values: Float32Array): string {
  return values.length === 1 ? String(values[0]) : Buffer.from(values.slice().buffer).toString("base64");
}

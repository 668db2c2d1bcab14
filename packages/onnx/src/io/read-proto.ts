import { InputError } from "@quad-lora/base";
import {
  type AttributeProto,
  AttributeProto_AttributeType as AttributeType,
  type GraphProto,
  type ModelProto,
  type NodeProto,
  type TensorProto,
  TensorProto_DataLocation,
  type TypeProto,
  type ValueInfoProto,
} from "onnx-buf";
import { type DataType, dataTypeOf } from "../ir/data-type.ts";
import { Graph } from "../ir/graph.ts";
import { Model } from "../ir/model.ts";
import { type Attribute, Node } from "../ir/node.ts";
import { memorySource, Tensor, type TensorSource, tensorByteSize } from "../ir/tensor.ts";
import { type Dimension, Value, type ValueType } from "../ir/value.ts";
import { externalSource, resolveExternal } from "./external-data.ts";

/** How a model file is read. */
export interface ReadOptions {
  /** Path of the model file: external data is looked up beside it, and messages name it. */
  file: string;
  /** Let external data files be absent; reading such a tensor then fails, everything else works. */
  allowMissingExternalData?: boolean;
}

type Scope = ReadonlyMap<string, Value>;

/** Builds the IR from a decoded model file. What the IR does not model stays attached as `extra`. */
export function modelFromProto(proto: ModelProto, options: ReadOptions): Model {
  if (!proto.graph) {
    throw new InputError({
      what: "the file holds no ONNX graph",
      file: options.file,
      fix: "Give a model.onnx written by an exporter.",
    });
  }
  const model = new Model(graphFromProto(proto.graph, new Map(), options));
  model.irVersion = Number(proto.irVersion);
  model.opsets.clear();
  for (const { domain, version } of proto.opsetImport) {
    model.opsets.set(domain === "ai.onnx" ? "" : domain, Number(version));
  }
  model.producerName = proto.producerName;
  model.producerVersion = proto.producerVersion;
  for (const { key, value } of proto.metadataProps) model.metadata.set(key, value);
  model.file = options.file;
  model.extra = { ...proto, graph: undefined, opsetImport: [], metadataProps: [] };
  return model;
}

function graphFromProto(proto: GraphProto, outer: Scope, options: ReadOptions): Graph {
  const graph = new Graph(proto.name);
  const scope = new Map<string, Value>(outer);
  const own = new Set<string>();
  const define = (value: Value, what: string) => {
    if (own.has(value.name)) {
      throw new InputError({ what: `${what} reuses a name`, file: options.file, where: `value "${value.name}"` });
    }
    own.add(value.name);
    scope.set(value.name, value);
  };
  for (const info of proto.input) {
    const value = valueFromInfo(info, options);
    define(value, "graph input");
    graph.inputs.push(value);
  }
  const inputs = new Map(graph.inputs.map((input) => [input.name, input]));
  for (const tensorProto of proto.initializer) {
    const tensor = tensorFromProto(tensorProto, options);
    // Once it has its default, a second initializer of that name is a duplicate like any other.
    const input = inputs.get(tensorProto.name);
    const defaultOf = input?.initializer ? undefined : input;
    const value =
      defaultOf ?? new Value(tensorProto.name, { kind: "tensor", dataType: tensor.dataType, shape: tensor.dims });
    value.initializer = tensor;
    value.extra = { ...(value.extra as object | null), tensor: withoutData(tensorProto) };
    if (!defaultOf) define(value, "initializer");
    graph.initializers.add(value);
  }
  for (const sparse of proto.sparseInitializer) {
    const value = new Value(sparse.values?.name ?? "");
    value.extra = { sparse };
    define(value, "sparse initializer");
    graph.sparseInitializers.add(value);
  }
  const types = new Map(proto.valueInfo.map((info) => [info.name, info]));
  const pending: [Node, NodeProto][] = [];
  for (const nodeProto of proto.node) {
    const node = new Node(nodeProto.opType, [], { name: nodeProto.name, domain: nodeProto.domain });
    for (const name of nodeProto.output) {
      if (name === "") {
        node.addOutput(null);
        continue;
      }
      const value = new Value(name);
      const info = types.get(name);
      if (info) describe(value, info, options);
      define(value, `output of ${node.label}`);
      node.addOutput(value);
    }
    graph.insert(node);
    pending.push([node, nodeProto]);
  }
  for (const [node, nodeProto] of pending) {
    nodeProto.input.forEach((name, index) => {
      node.setInput(index, name === "" ? null : lookUp(scope, name, node.label, options));
    });
    for (const attribute of nodeProto.attribute) {
      node.attributes.set(attribute.name, attributeFromProto(attribute, scope, options));
    }
    node.extra = { ...nodeProto, input: [], output: [], attribute: [] };
  }
  for (const info of proto.output) {
    const found = lookUp(scope, info.name, "graph outputs", options);
    if (own.has(info.name)) {
      describe(found, info, options);
      graph.outputs.push(found);
    } else {
      // ONNX Runtime takes no outer value as a subgraph's output, and an edge to it would be no use of the value.
      let name = `${info.name}_returned`;
      while (scope.has(name)) name += "_";
      const node = graph.insert(new Node("Identity", [found], { name }));
      node.addOutput(new Value(name, found.type));
      define(node.output(), `output of ${node.label}`);
      graph.outputs.push(node.output());
    }
  }
  graph.extra = { ...proto, node: [], initializer: [], sparseInitializer: [], input: [], output: [], valueInfo: [] };
  return graph;
}

function lookUp(scope: Scope, name: string, where: string, options: ReadOptions): Value {
  const value = scope.get(name);
  if (value) return value;
  throw new InputError({
    what: `nothing defines the value "${name}" that is read here`,
    file: options.file,
    where,
    fix: "The graph is incomplete; export it again.",
  });
}

function valueFromInfo(info: ValueInfoProto, options: ReadOptions): Value {
  const value = new Value(info.name);
  describe(value, info, options);
  return value;
}

/** Takes over a declared type; the declaration itself stays attached for as long as the value keeps that type. */
function describe(value: Value, info: ValueInfoProto, options: ReadOptions): void {
  value.type = typeFromProto(info.type, info.name, options) ?? value.type;
  value.extra = { ...(value.extra as object | null), info: { ...info, name: "" }, declared: value.type };
}

function typeFromProto(proto: TypeProto | undefined, name: string, options: ReadOptions): ValueType | null {
  if (!proto || proto.value.case === undefined) return null;
  if (proto.value.case !== "tensorType") return { kind: "opaque", proto };
  const { elemType, shape } = proto.value.value;
  if (elemType === 0) return null;
  return {
    kind: "tensor",
    dataType: dataTypeOf(elemType, `${options.file}: value "${name}"`),
    shape:
      shape?.dim.map(({ value }): Dimension => {
        if (value.case === "dimValue") return Number(value.value);
        return value.case === "dimParam" ? value.value : null;
      }) ?? null,
  };
}

const textDecoder = new TextDecoder("utf-8", { fatal: true });

function attributeFromProto(proto: AttributeProto, scope: Scope, options: ReadOptions): Attribute {
  const opaque: Attribute = { kind: "opaque", proto };
  if (proto.refAttrName) return opaque;
  const extra =
    proto.docString || proto.$unknown ? { extra: { docString: proto.docString, $unknown: proto.$unknown } } : {};
  const integer = (value: bigint) => (Number.isSafeInteger(Number(value)) ? Number(value) : value);
  try {
    switch (proto.type) {
      case AttributeType.FLOAT:
        return { kind: "float", value: proto.f, ...extra };
      case AttributeType.INT:
        return { kind: "int", value: integer(proto.i), ...extra };
      case AttributeType.STRING:
        return { kind: "string", value: textDecoder.decode(proto.s), ...extra };
      case AttributeType.TENSOR:
        return proto.t
          ? {
              kind: "tensor",
              value: tensorFromProto(proto.t, options),
              name: proto.t.name,
              extra: { ...extra.extra, tensor: withoutData(proto.t) },
            }
          : opaque;
      case AttributeType.GRAPH:
        return proto.g ? { kind: "graph", value: graphFromProto(proto.g, scope, options), ...extra } : opaque;
      case AttributeType.FLOATS:
        return { kind: "floats", value: proto.floats, ...extra };
      case AttributeType.INTS:
        return { kind: "ints", value: proto.ints.map(integer), ...extra };
      case AttributeType.STRINGS:
        return { kind: "strings", value: proto.strings.map((bytes) => textDecoder.decode(bytes)), ...extra };
      case AttributeType.GRAPHS:
        return { kind: "graphs", value: proto.graphs.map((graph) => graphFromProto(graph, scope, options)), ...extra };
      default:
        return opaque;
    }
  } catch (error) {
    if (error instanceof TypeError) return opaque; // bytes that are not UTF-8: carried through unread
    throw error;
  }
}

/** Raw little-endian bytes of a tensor, from whichever of the format's fields holds them. */
export function tensorFromProto(proto: TensorProto, options: ReadOptions): Tensor {
  const where = `tensor "${proto.name}"`;
  const dataType = dataTypeOf(proto.dataType, `${options.file}: ${where}`);
  const dims = proto.dims.map(Number);
  if (dims.some((dim) => dim < 0)) {
    throw new InputError({ what: "negative dimension", file: options.file, where, got: `[${dims}]` });
  }
  if (dataType === "string") return new Tensor(dataType, dims, memorySource(new Uint8Array(0)), proto.stringData);
  const needed = tensorByteSize(dataType, dims);
  const source =
    proto.dataLocation === TensorProto_DataLocation.EXTERNAL
      ? fromExternal(proto, needed, options)
      : memorySource(inlineBytes(proto, dataType, needed));
  if (source.byteLength !== needed) {
    throw new InputError({
      what: "data length does not fit type and shape",
      file: options.file,
      where,
      expected: `${needed} bytes for ${dataType} [${dims}]`,
      got: `${source.byteLength}`,
    });
  }
  return new Tensor(dataType, dims, source);
}

function fromExternal(proto: TensorProto, needed: number, options: ReadOptions): TensorSource {
  const entries = new Map(proto.externalData.map(({ key, value }) => [key, value]));
  const number = (key: string, fallback: number) => {
    const text = entries.get(key);
    if (text === undefined) return fallback;
    if (/^\d+$/.test(text) && Number.isSafeInteger(Number(text))) return Number(text);
    throw new InputError({
      what: `external data ${key} is not a whole number`,
      file: options.file,
      where: `tensor "${proto.name}"`,
      got: `"${text}"`,
    });
  };
  const path = resolveExternal(options.file, proto.name, entries.get("location") ?? "");
  const length = number("length", needed);
  return externalSource(path, proto.name, number("offset", 0), length, options.allowMissingExternalData ?? false);
}

function inlineBytes(proto: TensorProto, dataType: DataType, needed: number): Uint8Array {
  if (proto.rawData.length > 0 || needed === 0) return proto.rawData;
  const view = (array: ArrayBufferView) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  switch (dataType) {
    case "float32":
    case "complex64":
      return view(Float32Array.from(proto.floatData));
    case "float64":
    case "complex128":
      return view(Float64Array.from(proto.doubleData));
    case "int64":
      return view(BigInt64Array.from(proto.int64Data));
    case "uint64":
      return view(BigUint64Array.from(proto.uint64Data));
    case "uint32":
      return view(Uint32Array.from(proto.uint64Data, Number));
    case "int32":
      return view(Int32Array.from(proto.int32Data));
    case "uint16":
    case "int16":
    case "float16":
    case "bfloat16":
      return view(Uint16Array.from(proto.int32Data));
    default: // 8-bit elements one to an entry, 4-bit and 2-bit elements packed as in raw data
      return Uint8Array.from(proto.int32Data);
  }
}

function withoutData({ docString, metadataProps, $unknown }: TensorProto): unknown {
  return docString || metadataProps.length > 0 || $unknown ? { docString, metadataProps, $unknown } : undefined;
}

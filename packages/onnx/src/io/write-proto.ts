import { create, type DescMessage, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import {
  type AttributeProto,
  AttributeProtoSchema,
  AttributeProto_AttributeType as AttributeType,
  type GraphProto,
  GraphProtoSchema,
  type ModelProto,
  ModelProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  type SparseTensorProto,
  type TensorProto,
  TensorProto_DataLocation,
  TensorProtoSchema,
  type TypeProto,
  TypeProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from "onnx-buf";
import { dataTypes } from "../ir/data-type.ts";
import type { Graph } from "../ir/graph.ts";
import type { Model } from "../ir/model.ts";
import type { Attribute, Node } from "../ir/node.ts";
import type { Tensor } from "../ir/tensor.ts";
import type { Value, ValueType } from "../ir/value.ts";

/** Where a tensor goes when the model is written: into another file, or (null) into the model file itself. */
export type Placement = (tensor: Tensor) => { location: string; offset: number; length: number } | null;

interface ValueExtra {
  info?: Partial<ValueInfoProto>;
  /** The type that `info` declares, as it was read. */
  declared?: ValueType | null;
  tensor?: Partial<TensorProto>;
  sparse?: SparseTensorProto;
}

/** The file format's form of a model. Nodes stand in execution order; the same model gives the same bytes. */
export function modelToProto(model: Model, place: Placement): ModelProto {
  return message(ModelProtoSchema, model.extra, {
    irVersion: BigInt(model.irVersion),
    opsetImport: [...model.opsets].map(([domain, version]) => ({ domain, version: BigInt(version) })),
    producerName: model.producerName,
    producerVersion: model.producerVersion,
    metadataProps: [...model.metadata].map(([key, value]) => ({ key, value })),
    graph: graphToProto(model.graph, place),
  });
}

function graphToProto(graph: Graph, place: Placement): GraphProto {
  const nodes = graph.sorted();
  const declared = new Set<Value>([...graph.inputs, ...graph.outputs]);
  const valueInfo: ValueInfoProto[] = [];
  for (const node of nodes) {
    for (const value of node.outputs) {
      const isDescribed = value && (value.type || (value.extra as ValueExtra | null)?.info);
      if (isDescribed && !declared.has(value)) valueInfo.push(valueToInfo(value));
    }
  }
  return message(GraphProtoSchema, graph.extra, {
    name: graph.name,
    node: nodes.map((node) => nodeToProto(node, place)),
    initializer: [...graph.initializers].map((value) =>
      tensorToProto(value.initializer!, value.name, place, (value.extra as ValueExtra | null)?.tensor),
    ),
    sparseInitializer: [...graph.sparseInitializers].map((value) => (value.extra as ValueExtra).sparse!),
    input: graph.inputs.map(valueToInfo),
    output: graph.outputs.map(valueToInfo),
    valueInfo,
  });
}

function nodeToProto(node: Node, place: Placement): NodeProto {
  return message(NodeProtoSchema, node.extra, {
    name: node.name,
    opType: node.opType,
    domain: node.domain,
    input: node.inputs.map((value) => value?.name ?? ""),
    output: node.outputs.map((value) => value?.name ?? ""),
    attribute: [...node.attributes].map(([name, attribute]) => attributeToProto(name, attribute, place)),
  });
}

function valueToInfo(value: Value): ValueInfoProto {
  const { info, declared } = (value.extra ?? {}) as ValueExtra;
  // A declaration holds more than the IR models (denotations, for one), so an unchanged one goes back as it was.
  const type = info && declared === value.type ? info.type : value.type && typeToProto(value.type);
  return message(ValueInfoProtoSchema, { ...info, type: undefined }, { name: value.name, ...(type ? { type } : {}) });
}

function typeToProto(type: ValueType): TypeProto {
  if (type.kind === "opaque") return type.proto as TypeProto;
  const dim = type.shape?.map((length) => ({
    value:
      typeof length === "number"
        ? { case: "dimValue" as const, value: BigInt(length) }
        : length === null
          ? { case: undefined }
          : { case: "dimParam" as const, value: length },
  }));
  return create(TypeProtoSchema, {
    value: {
      case: "tensorType",
      value: { elemType: dataTypes[type.dataType].code, ...(dim ? { shape: { dim } } : {}) },
    },
  });
}

/** A message from what the IR models (`fields`) and what it carried through (`extra`), unknown fields included. */
function message<D extends DescMessage>(schema: D, extra: unknown, fields: MessageInitShape<D>): MessageShape<D> {
  const { $typeName: _, $unknown, ...carried } = (extra ?? {}) as Record<string, unknown>;
  const result = create(schema, { ...carried, ...(fields as object) } as MessageInitShape<D>);
  if ($unknown) result.$unknown = $unknown as NonNullable<MessageShape<D>["$unknown"]>;
  return result;
}

const textEncoder = new TextEncoder();

function attributeToProto(name: string, attribute: Attribute, place: Placement): AttributeProto {
  const make = (fields: MessageInitShape<typeof AttributeProtoSchema>) =>
    message(AttributeProtoSchema, attribute.extra, { ...fields, name });
  switch (attribute.kind) {
    case "float":
      return make({ type: AttributeType.FLOAT, f: attribute.value });
    case "int":
      return make({ type: AttributeType.INT, i: BigInt(attribute.value) });
    case "string":
      return make({ type: AttributeType.STRING, s: textEncoder.encode(attribute.value) });
    case "tensor": {
      const { tensor } = (attribute.extra ?? {}) as ValueExtra;
      const t = tensorToProto(attribute.value, attribute.name ?? "", place, tensor);
      return make({ type: AttributeType.TENSOR, t });
    }
    case "graph":
      return make({ type: AttributeType.GRAPH, g: graphToProto(attribute.value, place) });
    case "floats":
      return make({ type: AttributeType.FLOATS, floats: [...attribute.value] });
    case "ints":
      return make({ type: AttributeType.INTS, ints: attribute.value.map(BigInt) });
    case "strings":
      return make({
        type: AttributeType.STRINGS,
        strings: attribute.value.map((text) => textEncoder.encode(text)),
      });
    case "graphs":
      return make({
        type: AttributeType.GRAPHS,
        graphs: attribute.value.map((graph) => graphToProto(graph, place)),
      });
    case "opaque":
      return attribute.proto as AttributeProto;
  }
}

function tensorToProto(tensor: Tensor, name: string, place: Placement, extra?: Partial<TensorProto>): TensorProto {
  const head = {
    name,
    dims: tensor.dims.map(BigInt),
    dataType: dataTypes[tensor.dataType].code,
  };
  if (tensor.strings) {
    return message(TensorProtoSchema, extra, { ...head, stringData: tensor.strings as Uint8Array<ArrayBuffer>[] });
  }
  const external = place(tensor);
  if (!external) {
    return message(TensorProtoSchema, extra, { ...head, rawData: tensor.bytes() as Uint8Array<ArrayBuffer> });
  }
  return message(TensorProtoSchema, extra, {
    ...head,
    dataLocation: TensorProto_DataLocation.EXTERNAL,
    externalData: [
      { key: "location", value: external.location },
      { key: "offset", value: String(external.offset) },
      { key: "length", value: String(external.length) },
    ].map(({ key, value }) => ({ $typeName: "onnx.StringStringEntryProto" as const, key, value })),
  });
}

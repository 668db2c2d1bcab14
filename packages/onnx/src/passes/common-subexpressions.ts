import type { Attribute, Node } from "../ir/node.ts";
import type { Tensor } from "../ir/tensor.ts";
import type { Value } from "../ir/value.ts";
import { isDeterministic, type Pass } from "./pass.ts";

/** Constants up to this size are compared by content; larger ones by identity. */
const comparedBytes = 4096;

/** Lets equal computations on equal inputs share one node, and equal small constants one initializer. */
export const commonSubexpressions: Pass = {
  name: "common-subexpressions",
  description: "Computes equal expressions once.",
  run({ graph }) {
    let merged = 0;
    const constants = new Map<string, Value>();
    for (const value of [...graph.initializers]) {
      if (graph.inputs.includes(value) || graph.outputs.includes(value)) continue;
      const key = tensorKey(value.initializer!);
      const first = key && constants.get(key);
      if (!key) continue;
      if (!first) {
        constants.set(key, value);
        continue;
      }
      graph.replace(value, first);
      graph.initializers.delete(value);
      merged++;
    }
    const identities = new Map<object, number>();
    const identity = (object: object) => {
      const known = identities.get(object);
      if (known !== undefined) return known;
      identities.set(object, identities.size);
      return identities.size - 1;
    };
    const expressions = new Map<string, Node>();
    for (const node of graph.sorted()) {
      const isOutput = node.outputs.some((value) => value && graph.outputs.includes(value));
      if (isOutput || node.subgraphs.length > 0 || !isDeterministic(node)) continue;
      const key = expressionKey(node, identity);
      const first = expressions.get(key);
      if (!first) {
        expressions.set(key, node);
        continue;
      }
      node.outputs.forEach((value, index) => {
        const twin = first.outputs[index];
        if (value && twin) graph.replace(value, twin);
      });
      if (node.outputs.some((value) => value && value.uses.length > 0)) continue;
      graph.remove(node);
      merged++;
    }
    return merged;
  },
};

function tensorKey(tensor: Tensor): string | null {
  if (tensor.strings || tensor.byteLength > comparedBytes) return null;
  return `${tensor.dataType}[${tensor.dims}]${Buffer.from(tensor.bytes()).toString("base64")}`;
}

function expressionKey(node: Node, identity: (object: object) => number): string {
  const inputs = node.inputs.map((value) => (value ? identity(value) : -1));
  const attributes = [...node.attributes]
    .map(([name, attribute]) => `${name}=${attributeKey(attribute, identity)}`)
    .sort();
  const outputs = node.outputs.map((value) => (value ? 1 : 0));
  return `${node.operator}(${inputs})->${outputs}{${attributes}}`;
}

function attributeKey(attribute: Attribute, identity: (object: object) => number): string {
  if (attribute.kind === "tensor") return tensorKey(attribute.value) ?? `#${identity(attribute.value)}`;
  if (attribute.kind === "opaque") return `#${identity(attribute)}`;
  if (attribute.kind === "graph" || attribute.kind === "graphs") return `#${identity(attribute)}`;
  return `${attribute.kind}:${attribute.value}`;
}

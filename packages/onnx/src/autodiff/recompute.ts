import { InputError } from "@quad-lora/base";
import { Node } from "../ir/node.ts";
import { tensorByteSize } from "../ir/tensor.ts";
import { Value } from "../ir/value.ts";
import { isDeterministic } from "../passes/pass.ts";
import type { Builder } from "./builder.ts";

/** Which values of the forward pass the backward pass computes again, to keep less in memory. */
export interface SegmentOptions {
  /**
   * Recompute instead of keeping (Chen et al. 2016, arXiv 1604.06174): the forward graph is cut behind these values. What the
   * backward pass reads from inside a segment is computed again from what the segment read, when its gradient arrives.
   */
  readonly checkpoint?: readonly Value[];
  /** Cut into this many segments, where the fewest bytes cross. Ignored where `checkpoint` is given. */
  readonly segments?: number;
}

/** Makes backward nodes read recomputed values instead of those of the forward pass, segment by segment. */
export function recomputeSegments(
  build: Builder,
  options: SegmentOptions,
  forward: readonly Node[],
  gradientOf: (value: Value) => Value | null,
): void {
  const cuts = options.checkpoint
    ? options.checkpoint.map((value) => cutBehind(build, forward, value))
    : chooseCuts(forward, options.segments ?? 1);
  const ends = [...new Set(cuts)].sort((a, b) => a - b);
  const forwardNodes = new Set(forward);
  // The last segment's backward pass begins at once: nothing to gain there.
  ends.forEach((end, index) => {
    const start = index === 0 ? 0 : ends[index - 1];
    recomputeSegment(build, forward.slice(start, end), forwardNodes, gradientOf);
  });
}

function cutBehind(build: Builder, forward: readonly Node[], value: Value): number {
  const place = value.producer ? forward.indexOf(value.producer) : -1;
  if (place >= 0) return place + 1;
  throw new InputError({
    what: "a checkpoint must be computed by a node of the graph",
    file: build.model.file,
    where: `value "${value.name}"`,
  });
}

function recomputeSegment(
  build: Builder,
  segment: readonly Node[],
  forwardNodes: ReadonlySet<Node>,
  gradientOf: (value: Value) => Value | null,
): void {
  const inside = new Set(segment);
  const isLeaving = (value: Value) =>
    build.graph.outputs.includes(value) || value.consumers.some((node) => forwardNodes.has(node) && !inside.has(node));
  const wanted: Value[] = [];
  let token: Value | null = null;
  for (const node of segment) {
    for (const value of node.outputs) {
      if (!value) continue;
      if (isLeaving(value)) token = gradientOf(value) ?? token;
      else if (isRepeatable(node) && value.consumers.some((reader) => !forwardNodes.has(reader))) wanted.push(value);
    }
  }
  if (!token || wanted.length === 0) return;
  const isKept = (value: Value) =>
    !value.producer || !inside.has(value.producer) || !isRepeatable(value.producer) || isLeaving(value);
  const copies = copySegment(build, wanted, inside, isKept, token);
  for (const value of wanted) {
    const copy = copies.get(value)!;
    for (const { node, index } of value.uses) if (!forwardNodes.has(node)) node.setInput(index, copy);
  }
}

/** Whether running a node again gives the same numbers. */
function isRepeatable(node: Node): boolean {
  return isDeterministic(node) && node.subgraphs.length === 0;
}

/** Copies of the segment's nodes that compute `wanted`, reading gated copies of what stays in memory anyway. */
function copySegment(
  build: Builder,
  wanted: readonly Value[],
  inside: ReadonlySet<Node>,
  isKept: (value: Value) => boolean,
  token: Value,
): Map<Value, Value> {
  const needed = new Set<Node>();
  const stack = wanted.map((value) => value.producer!);
  for (let node = stack.pop(); node; node = stack.pop()) {
    if (needed.has(node)) continue;
    needed.add(node);
    for (const value of node.inputs) if (value && !isKept(value)) stack.push(value.producer!);
  }
  const copies = new Map<Value, Value>();
  const gates = new Map<Value, Value>();
  for (const node of inside) {
    if (!needed.has(node)) continue;
    const inputs = node.inputs.map((value) => {
      const known = value && (gates.get(value) ?? copies.get(value));
      if (!value || known) return known ?? null;
      if (value.initializer || !isKept(value) || !value.dataType?.startsWith("float")) return value;
      const gated = gate(build, value, token);
      gates.set(value, gated);
      return gated;
    });
    const copy = new Node(node.opType, inputs, {
      name: build.graph.claimName(`recompute/${node.name}`),
      domain: node.domain,
    });
    for (const [name, attribute] of node.attributes) copy.attributes.set(name, attribute);
    for (const output of node.outputs) {
      const twin = output && new Value(build.graph.claimName(`recompute/${output.name}`), output.type);
      copy.addOutput(twin);
      if (output) copies.set(output, twin!);
    }
    build.graph.insert(copy);
  }
  return copies;
}

/**
 * The same numbers under a new name, available only once the gradient `token` is. Without it, runtimes would find the copy
 * and the original to be the same expression, or compute the copy before it is needed.
 */
function gate(build: Builder, value: Value, token: Value): Value {
  build.scope = "recompute";
  const rank = build.dims(token).length;
  const corner = Array.from({ length: rank }, () => 0);
  const one = build.slice(
    token,
    corner.map((_, axis) => axis),
    corner,
    corner.map(() => 1),
  );
  const zero = build.op(
    "Clip",
    [build.reshape(build.cast(one, build.type(value)), []), build.scalar(0, value), build.scalar(0, value)],
    [],
  );
  return build.add(value, zero);
}

/** Cuts at equal shares of the activations' bytes, moved to where the fewest bytes cross nearby. */
function chooseCuts(forward: readonly Node[], segments: number): number[] {
  if (segments <= 1) return [];
  const place = new Map(forward.map((node, index) => [node, index]));
  const bytesBefore = [0];
  const crossing = new Array<number>(forward.length + 1).fill(0);
  forward.forEach((node, index) => {
    let made = 0;
    for (const value of node.outputs) {
      const bytes = value?.concreteShape && value.dataType ? tensorByteSize(value.dataType, value.concreteShape) : 0;
      made += bytes;
      const last = Math.max(index, ...(value?.consumers ?? []).map((reader) => place.get(reader) ?? -1));
      for (let cut = index + 1; cut <= last; cut++) crossing[cut] += bytes;
    }
    bytesBefore.push(bytesBefore[index] + made);
  });
  const total = bytesBefore[forward.length];
  const window = total / segments / 3;
  const cuts: number[] = [];
  for (let segment = 1; segment < segments; segment++) {
    const target = (total * segment) / segments;
    let best = -1;
    for (let cut = 1; cut < forward.length; cut++) {
      if (Math.abs(bytesBefore[cut] - target) > window) continue;
      if (best < 0 || crossing[cut] < crossing[best]) best = cut;
    }
    if (best > 0) cuts.push(best);
  }
  return cuts;
}

import { Graph } from "./graph.ts";

/** A graph with what is needed to interpret it. */
export class Model {
  graph: Graph;
  /** Version of the file format. */
  irVersion = 8;
  /** Operator set version by domain; "" is the standard domain. */
  readonly opsets = new Map<string, number>([["", 17]]);
  producerName = "quad";
  producerVersion = "";
  readonly metadata = new Map<string, string>();
  /** File this model was read from, for messages. */
  file = "";
  /** Fields of the file format that the IR does not model, kept for the way back. */
  extra: unknown = null;

  constructor(graph: Graph = new Graph()) {
    this.graph = graph;
  }

  /** Version of the standard operator set. */
  get opset(): number {
    return this.opsets.get("") ?? 1;
  }
}

// Who may import whom. docs/architecture.md says why.

/** Packages by their folders, with the packages that they may import. Only `quad` and `onnx` may import from Node.js. */
export const packages = {
  base: { name: "@quad-lora/base", imports: [], node: false },
  onnx: { name: "@quad-lora/onnx", imports: ["base"], node: true },
  runtime: { name: "@quad-lora/runtime", imports: ["base"], node: false },
  quad: { name: "quad-lora", imports: ["base", "onnx", "runtime"], node: true },
};

/**
 * Rooms of a package, its folders of `src`, from the ground up: a room imports from those above it in this list, never from
 * those below. Files of `src` itself may import from all. A new room is a line, below everything that it imports.
 */
export const rooms = {
  onnx: ["ir", "io", "ort", "passes", "autodiff"],
  quad: [
    // mathematics and files, which know of no model
    "files",
    "work",
    "quantization",
    "alignment",
    "encodings-files",
    "metrics",
    // adapters and models, and what in a graph quantization is about
    "adapters",
    "model",
    "factors",
    "layers",
    "quantizable",
    "targets",
    // what people choose, and what stages hand to each other
    "settings",
    "records",
    // what folders offer
    "tasks",
    "exposed",
    // stages and what they stand on
    "simulate",
    "expose",
    "calibrate",
    "profile",
    "train",
    "distill",
    "bundle",
    "compile",
    "tune",
    "stages",
    // judging and showing
    "report",
    "evaluate",
    "ablation",
    "cli",
  ],
};

/** Circles of files that are the shape of the matter: values know nodes, nodes know values, a graph owns both. */
export const circles = [["onnx/src/ir/graph.ts", "onnx/src/ir/node.ts", "onnx/src/ir/value.ts"]];

/**
 * What is not yet as it should be: arrows ("quad/src/a/one.ts -> quad/src/b/two.ts") and circles ("one.ts, two.ts"). This list
 * only gets shorter: an entry that has become untrue is an error, too.
 */
export const exceptions = [];

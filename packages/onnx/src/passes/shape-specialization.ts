import { Tensor } from "../ir/tensor.ts";
import { inferShapes, type ShapeBindings } from "../ort/concrete-shapes.ts";
import type { Pass } from "./pass.ts";

/**
 * Fixes the model to the input shapes of `bindings`: every Shape and Size becomes a constant, so that folding removes the
 * shape arithmetic of dynamic axes. The outputs stay as they were for inputs of those shapes.
 */
export function shapeSpecialization(bindings: ShapeBindings): Pass {
  return {
    name: "shape-specialization",
    description: "Fixes the input shapes and makes shape arithmetic constant.",
    async run(model) {
      await inferShapes(model, bindings);
      let count = 0;
      for (const node of [...model.graph.nodes]) {
        if (node.domain !== "" || (node.opType !== "Shape" && node.opType !== "Size")) continue;
        const shape = node.input(0).concreteShape;
        if (!shape || model.graph.outputs.includes(node.output())) continue;
        const content =
          node.opType === "Size"
            ? Tensor.int64([], [shape.reduce((product, dim) => product * dim, 1)])
            : shapeTensor(shape.slice(node.int("start", 0), node.attributes.has("end") ? node.int("end") : undefined));
        model.graph.replace(node.output(), model.graph.addInitializer(node.output().name, content));
        model.graph.remove(node);
        count++;
      }
      return count;
    },
  };
}

function shapeTensor(shape: readonly number[]): Tensor {
  return Tensor.int64([shape.length], shape);
}

import type { Model } from "../ir/model.ts";
import type { ShapeBindings } from "../ort/concrete-shapes.ts";
import { commonSubexpressions } from "./common-subexpressions.ts";
import { constantFolding } from "./constant-folding.ts";
import { deadCodeElimination } from "./dead-code.ts";
import { identityRemoval } from "./identity-removal.ts";
import type { Pass } from "./pass.ts";
import { shapeSpecialization } from "./shape-specialization.ts";

/**
 * Passes that need nothing but the model, in the order in which they help each other. Identities and dead code go before
 * folding: a zero attention mask must vanish before anything computes it, at gigabytes apiece.
 */
export const passes: readonly Pass[] = [identityRemoval, deadCodeElimination, constantFolding(), commonSubexpressions];

/** How many places one run of a pass changed. */
export interface PassResult {
  pass: string;
  changes: number;
}

/** Runs the passes in order, again and again until none of them changes anything. */
export async function runPasses(model: Model, list: readonly Pass[] = passes): Promise<PassResult[]> {
  const results: PassResult[] = [];
  for (let changed = true; changed; ) {
    changed = false;
    for (const pass of list) {
      const changes = await pass.run(model);
      results.push({ pass: pass.name, changes });
      changed ||= changes > 0;
    }
  }
  return results;
}

/** Fixes the input shapes, then folds away all that this makes constant. */
export async function specialize(model: Model, bindings: ShapeBindings): Promise<PassResult[]> {
  const pass = shapeSpecialization(bindings);
  const first = { pass: pass.name, changes: await pass.run(model) };
  return [first, ...(await runPasses(model))];
}

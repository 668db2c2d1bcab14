import { InputError } from "@quad-lora/base";
import { deadCodeElimination, runPasses, type Value } from "@quad-lora/onnx";
import { CodeNodes } from "../quantizable/code-nodes.ts";
import { type Profile, pointEncoding } from "../records/profile.ts";
import { encodingInputs, type Simulation } from "./simulation-graph.ts";

/**
 * Gives the simulated graph the profile's encodings for good. Pairs of QuantizeLinear and DequantizeLinear compute the same as
 * the simulation's operators, in half the time.
 * @param scales - values, zero-dimensional, in place of the profile's scales at the points that it names
 * @throws InputError if the profile lacks a point
 */
export async function placeEncodings(
  { model, points }: Pick<Simulation, "model" | "points">,
  profile: Profile,
  scales: ReadonlyMap<string, Value> = new Map(),
): Promise<void> {
  const { graph } = model;
  model.opsets.set("com.microsoft", 1);
  const codes = new CodeNodes(graph);
  const nodes = new Map([...graph.nodes].map((node) => [node.name, node]));
  for (const { name } of points) {
    const point = profile.points[name];
    if (!point) {
      throw new InputError({
        what: "the profile has no encoding for a value of this graph",
        where: name,
        fix: "Make the profile again from this exposed folder.",
      });
    }
    const encoding = pointEncoding(point);
    const value = nodes.get(`quad/${name}/Clip`)!.input(0);
    const rounded = nodes.get(`quad/${name}/Mul`)!.output();
    const scale = scales.get(name);
    const replacement = codes.dequantize(codes.quantize(value, encoding, name, scale), encoding, name, scale);
    graph.replace(rounded, replacement);
  }
  await runPasses(model, [deadCodeElimination]);
  const names = new Set<string>(Object.values(encodingInputs));
  graph.inputs.splice(0, graph.inputs.length, ...graph.inputs.filter(({ name }) => !names.has(name)));
}

import { Command } from "commander";
import type { AdapterComponent } from "../adapters/types.ts";
import { inspectModel } from "../expose/expose.ts";
import { unnamed } from "../layers/find-layers.ts";
import { familyOf } from "../model/model-family.ts";
import { openModelFolder } from "../model/model-folder.ts";
import { collectPairs } from "./arguments.ts";
import { reportToJson, warnOfLostKeys } from "./report.ts";
import { formatTable, type Terminal } from "./terminal.ts";

export function inspectCommand(terminal: () => Terminal): Command {
  return new Command("inspect")
    .summary("show a model's layers and how adapter files fit them")
    .description(
      "Shows which layers of a diffusers/Optimum ONNX folder an adapter can change, and what becomes of every key of the given\nadapter files: matched to a layer, unmatched, or of the wrong shape. Writes nothing.",
    )
    .argument("<model>", "folder with model_index.json")
    .option("-a, --adapter <name=path>", "LoRA file or PEFT folder; repeatable", collectPairs, {})
    .option("--layers", "list every layer")
    .addHelpText("after", "\nExample:\n  quad inspect models/pocket --adapter flat --adapter sketch --adapter erase")
    .action(async (path: string, options: { adapter: Record<string, string>; layers?: boolean }) => {
      const out = terminal();
      const folder = await openModelFolder(path);
      const { models, components, adapters } = await inspectModel(folder, options.adapter);
      const family = familyOf(folder, models.get(folder.denoiser)!).name;
      const inputsOf = (component: AdapterComponent) => models.get(component)!.graph.inputs.map(({ name }) => name);
      out.result({
        model: path,
        pipeline: folder.pipelineClass,
        family,
        components: Object.fromEntries(
          components.map(({ component, nodes, layers, skipped }) => [
            component,
            {
              inputs: inputsOf(component),
              nodes,
              layers: layers.map(({ calls, ...layer }) => ({ ...layer, calls: calls.length })),
              skipped,
            },
          ]),
        ),
        adapters: Object.fromEntries(
          adapters.map(({ name, format, layers, report }) => [
            name,
            { format, layers: layers.length, rank: [report.rankMin, report.rankMax], ...reportToJson(report) },
          ]),
        ),
      });
      out.print(`${folder.pipelineClass} in ${path} (${family})\n`);
      const count = (kinds: string[], layers: { kind: string }[]) =>
        layers.filter(({ kind }) => kinds.includes(kind)).length;
      out.print(
        formatTable([
          ["component", "nodes", "linear layers", "convolutions", "not adaptable"],
          ...components.map(({ component, nodes, layers, skipped }) => [
            component,
            nodes,
            count(["matmul", "gemm"], layers),
            count(["conv"], layers),
            skipped.length,
          ]),
        ]),
      );
      out.print("");
      for (const { component } of components)
        out.print(`${component} takes ${numbered(inputsOf(component)).join(", ")}`);
      for (const { component, skipped } of components) {
        const count = skipped.filter(({ reason }) => reason === unnamed).length;
        if (count > 0)
          out.warn(`${component}: ${count} layers carry no module name, so that no adapter's key can mean them`);
      }
      if (options.layers) {
        const rows = components.flatMap(({ component, layers }) =>
          layers.map((layer) => [
            `${component}.${layer.name}`,
            layer.kind,
            layer.inFeatures,
            layer.outFeatures,
            layer.kernel?.join("x") ?? "",
          ]),
        );
        out.print(`\n${formatTable([["layer", "kind", "in", "out", "kernel"], ...rows])}`);
      }
      if (adapters.length === 0) return;
      out.print("");
      out.print(
        formatTable([
          ["adapter", "format", "rank", "layers", "matched keys", "unmatched", "wrong shape"],
          ...adapters.map(({ name, format, layers, report }) => [
            name,
            format,
            report.rankMin === report.rankMax ? `${report.rankMax}` : `${report.rankMin}-${report.rankMax}`,
            layers.length,
            report.matched.length,
            report.unmatched.length,
            report.mismatched.length,
          ]),
        ]),
      );
      for (const { name, report } of adapters) warnOfLostKeys(out, name, report);
    });
}

/** Names that differ in a number at their end as one: `residuals_0 to 5`. */
function numbered(names: readonly string[]): string[] {
  const last = new Map<string, string>();
  for (const name of names) last.set(name.replace(/\d+$/, ""), name);
  return [...last].map(([stem, name]) => {
    const first = names.find((other) => other.replace(/\d+$/, "") === stem)!;
    return first === name ? name : `${first} to ${name.slice(stem.length)}`;
  });
}

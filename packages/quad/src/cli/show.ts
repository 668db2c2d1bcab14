import { readFile } from "node:fs/promises";
import type { AdapterRecord, BundleQuality } from "@quad-lora/runtime";
import { Command, Option } from "commander";
import { bundleEncodings, showBundle } from "../bundle/show.ts";
import { verifyBundle } from "../bundle/verify.ts";
import type { AimetVersion } from "../encodings-files/index.ts";
import { writeFileAtomically } from "../files/atomic.ts";
import { describeShape } from "../model/denoiser.ts";
import { printProfile } from "./build.ts";
import { formatBytes, formatTable, type Terminal } from "./terminal.ts";

interface Options {
  verify?: boolean;
  verifyKey?: string;
  encodings?: AimetVersion;
  out?: string;
}

export function showCommand(terminal: () => Terminal): Command {
  return new Command("show")
    .summary("what is inside a bundle: graph, profile, adapters and how well they fit")
    .argument("<bundle>", "folder written by quad build or quad compile")
    .option(
      "--verify",
      "check all that running it relies on: every file against the manifest and the adapters' records",
    )
    .option("--verify-key <file>", "also check the signatures, against this public ed25519 key (PEM or base64)")
    .addOption(
      new Option("--encodings <version>", "write the encodings as an AIMET file instead").choices([
        "0.6.1",
        "1.0.0",
        "2.0.0",
      ]),
    )
    .option("-o, --out <file>", "file for --encodings; default: standard output")
    .addHelpText("after", "\nExamples:\n  quad show bundle\n  quad show bundle --encodings 1.0.0 --out encodings.json")
    .action(async (bundle: string, options: Options) => {
      const out = terminal();
      if (options.encodings) {
        const text = await bundleEncodings(bundle, options.encodings);
        if (options.out) await writeFileAtomically(options.out, text);
        else process.stdout.write(text);
        return;
      }
      const summary = await showBundle(bundle);
      const keys = options.verifyKey ? [await readFile(options.verifyKey, "utf8")] : undefined;
      const isVerified = options.verify || keys !== undefined;
      if (isVerified) await verifyBundle(bundle, (done, total) => out.progress("verifying", done, total), keys);
      out.endProgress();
      out.result({ ...summary, verified: isVerified });
      const { manifest, profile, slots, adapters, sizes, nodes } = summary;
      const { target } = manifest;
      const count = slots.components[manifest.component]?.slots.length ?? 0;
      const rank = slots.rank.kind === "fixed" ? `rank ${slots.rank.rank}` : "any rank";
      const { batch } = profile.shape;
      out.print(
        [
          `${manifest.component} for ${target.kind}: ${nodes} nodes, ${count} slots of ${rank}, batch ${batch}, ${describeShape(profile.shape)}`,
          `graph ${manifest.graph}`,
          `profile ${manifest.profile}`,
          ...(target.operators?.length ? [`needs ${target.operators.join(", ")}`] : []),
          "",
        ].join("\n"),
      );
      printProfile(out, profile);
      const narrow = profile.narrowLayers.length;
      const { weightBits, adapterBits, align, headroom } = profile.policy;
      out.print(
        `Weights ${weightBits} bits, adapters ${adapterBits} bits on shared scales${align ? ", aligned" : ""}, headroom ${headroom}; ${narrow} layers read 8-bit activations.\n`,
      );
      printAdapters(out, adapters, manifest.base);
      out.print("");
      out.print(
        formatTable([["part", "size"], ...Object.entries(sizes).map(([part, bytes]) => [part, formatBytes(bytes)])]),
      );
      if (isVerified) out.print("\nAll files are those that the manifest describes.");
      if (keys) out.print("Manifest and adapters are signed with the given key.");
    });
}

/** How well the adapters of a bundle fit. */
export function printAdapters(out: Terminal, adapters: readonly AdapterRecord[], base?: BundleQuality): void {
  const decibels = (value: number | null) => (value === null ? "exact" : value.toFixed(1));
  const measured = (quality: BundleQuality | undefined) =>
    quality ? [quality.qss.toExponential(2), decibels(quality.sqnr)] : ["not measured", ""];
  out.print(
    formatTable([
      ["adapter", "rank", "size", "QSS", "SQNR dB", "factors dB", "error", "before alignment", "clipped"],
      ...(base ? [["base", "", "", ...measured(base), "", "", "", ""]] : []),
      ...adapters.map(({ name, rank, files, fit }) => [
        name,
        rank,
        formatBytes(files[`${name}.safetensors`]?.bytes ?? 0),
        ...measured(fit.measured),
        decibels(fit.productSqnr),
        fit.alignmentError.toFixed(4),
        fit.errorBeforeAlignment.toFixed(4),
        `${(100 * fit.clipped).toFixed(2)} %`,
      ]),
    ]),
  );
}

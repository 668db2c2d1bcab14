import { readFile } from "node:fs/promises";
import { Command, Option } from "commander";
import { bundleEncodings, showBundle } from "../bundle/show.ts";
import { verifyBundle } from "../bundle/verify.ts";
import type { AimetVersion } from "../encodings-files/index.ts";
import { writeFileAtomically } from "../files/atomic.ts";
import { describeShape } from "../model/denoiser.ts";
import { formatBytes } from "../report/format.ts";
import { stageOptions } from "./interrupt.ts";
import { printAdapters, printProfile } from "./tables.ts";
import { formatTable, type Terminal } from "./terminal.ts";

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
      if (isVerified) await verifyBundle(bundle, { ...stageOptions(out), trustedKeys: keys });
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

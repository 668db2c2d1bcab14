import { Command } from "commander";
import { signBundle } from "../bundle/sign.ts";
import type { Terminal } from "./terminal.ts";

export function signCommand(terminal: () => Terminal): Command {
  return new Command("sign")
    .summary("sign a bundle and its adapters, so that apps that know your key take no other")
    .argument("<bundle>", "folder written by quad build or quad compile")
    .requiredOption("-k, --key <file>", "private ed25519 key, PEM: openssl genpkey -algorithm ed25519 -out private.pem")
    .addHelpText(
      "after",
      "\nSign again after quad add: the new adapter's record needs a signature, too.\n\nExample:\n  quad sign bundle --key private.pem",
    )
    .action(async (bundle: string, { key }: { key: string }) => {
      const out = terminal();
      const result = await signBundle(bundle, key);
      out.result(result);
      out.print(`Signed ${result.signed.join(", ")}.\nPublic key: ${result.publicKey}`);
    });
}

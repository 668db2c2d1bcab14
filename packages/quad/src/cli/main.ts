import { InputError } from "@quad-lora/base";
import { Command, CommanderError } from "commander";
import { ablateCommand } from "./ablate.ts";
import { addCommand } from "./add.ts";
import { buildCommand } from "./build.ts";
import { compileCommand } from "./compile.ts";
import { distillCommand } from "./distill.ts";
import { evalCommand, reportCommand } from "./eval.ts";
import { exposeCommand } from "./expose.ts";
import { inspectCommand } from "./inspect.ts";
import { Interrupted } from "./interrupt.ts";
import { probeCommand } from "./probe.ts";
import { runCommand } from "./run.ts";
import { showCommand } from "./show.ts";
import { signCommand } from "./sign.ts";
import { calibrateCommand, profileCommand } from "./stages.ts";
import { createTerminal, visible } from "./terminal.ts";
import { trainCommand } from "./train.ts";
import { tuneCommand } from "./tune.ts";

/** 0 done, 1 a fault of ours, 2 bad input or usage, 130 interrupted. */
export type ExitCode = 0 | 1 | 2 | 130;

/** Runs the command line and sets the process's exit code. */
export async function main(args: string[]): Promise<void> {
  const json = args.includes("--json");
  for (const stream of [process.stdout, process.stderr]) {
    if (!stream.listeners("error").includes(endWithoutReader)) stream.on("error", endWithoutReader);
  }
  process.exitCode = await runCli(args, json);
}

/** `quad show bundle | head -1`: whoever read the output has enough. */
function endWithoutReader(error: NodeJS.ErrnoException): void {
  if (error.code !== "EPIPE") throw error;
  process.exit();
}

async function runCli(args: string[], json: boolean): Promise<ExitCode> {
  const terminal = () => createTerminal(json);
  const program = new Command("quad")
    .description("One quantized graph, every LoRA: adapters as inputs of one frozen diffusion model.")
    .version("0.1.0")
    .addHelpText(
      "after",
      "\nExit codes: 0 done, 2 bad input or usage, 130 interrupted, 1 a fault in quad itself.\nEvery command takes --json: one object on standard output for scripts.",
    );
  for (const make of [
    inspectCommand,
    exposeCommand,
    buildCommand,
    calibrateCommand,
    profileCommand,
    tuneCommand,
    ablateCommand,
    distillCommand,
    compileCommand,
    showCommand,
    signCommand,
    addCommand,
    runCommand,
    evalCommand,
    reportCommand,
    probeCommand,
    trainCommand,
  ]) {
    program.addCommand(
      make(terminal).option("--json", "print one JSON object").showHelpAfterError("(--help shows the options)"),
    );
  }
  for (const command of [program, ...program.commands]) command.exitOverride();
  if (args.length === 0) {
    program.outputHelp();
    return 0;
  }
  try {
    await program.parseAsync(args, { from: "user" });
    return 0;
  } catch (error) {
    return report(error, json);
  }
}

function report(error: unknown, json: boolean): ExitCode {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof InputError) {
    if (json) process.stdout.write(`${visible(JSON.stringify({ error: { message, ...error.problem } }))}\n`);
    process.stderr.write(`error: ${message.replaceAll("\n", " ")}\n`);
    return 2;
  }
  const trouble = fileTrouble(error);
  if (trouble) {
    if (json) process.stdout.write(`${visible(JSON.stringify({ error: { message: trouble } }))}\n`);
    process.stderr.write(`error: ${visible(trouble)}\n`);
    return 2;
  }
  if (error instanceof Interrupted) {
    process.stderr.write(`${message}\n`);
    return 130;
  }
  if (json) process.stdout.write(`${visible(JSON.stringify({ error: { message } }))}\n`);
  process.stderr.write(`This is a fault in quad, not in your input: ${visible(message)}\n`);
  process.stderr.write(
    process.env.QUAD_DEBUG ? `${(error as Error).stack}\n` : "Set QUAD_DEBUG=1 to see where it happened.\n",
  );
  return 1;
}

const fileTroubles = new Map([
  ["ENOENT", "there is no such file or folder"],
  ["ENOTDIR", "a part of the path is a file, not a folder"],
  ["EISDIR", "is a folder, not a file"],
  ["EEXIST", "exists already"],
  ["EACCES", "permission denied"],
  ["EPERM", "permission denied"],
  ["EROFS", "the file system is read-only"],
  ["ENOSPC", "no space left on the device"],
  ["EDQUOT", "the disk quota is used up"],
  ["ENAMETOOLONG", "the name is too long"],
  ["EXDEV", "cannot be moved to another file system"],
]);

/** What the operating system refused on a path, or null where the error is another: the user's to mend, no fault of ours. */
function fileTrouble(error: unknown): string | null {
  const { code, path } = (error ?? {}) as NodeJS.ErrnoException;
  const trouble = fileTroubles.get(code ?? "");
  return trouble ? `${path ?? "file system"}: ${trouble}` : null;
}
